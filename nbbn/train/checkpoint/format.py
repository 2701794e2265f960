"""The file format of checkpoints: one safetensors file that proves its own content.

The file holds the model's arrays under the names of its state dict, which are PyTorch's; what
else training needs lies beside them under ``training/``. The metadata holds the rest as JSON, and a
SHA-256 over all arrays and metadata, since a flipped bit would otherwise load silently.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..._version import __version__
from ...errors import CheckpointError, DTypeError

__all__ = ["Checkpoint", "pack", "unpack"]

FORMAT = "nbbn checkpoint 1"
_TRAINING = "training/"


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint.

    Parameters
    ----------
    path : Path
        Where it was read from.
    model : dict of str to ndarray
        The model's state dict.
    optimizer, batches : dict of str to ndarray
        The state dicts of optimizer and batches; empty if they were not saved.
    progress : dict
        How far training was: epoch, sums of the epoch under way, finished epochs.
    generators : dict
        States of the random generators, and who uses which.
    settings : dict
        What model, optimizer, schedule and batches were made with.
    config : dict
        What the caller wants to find again.
    version : str
        The version of nbbn that wrote it.
    best : dict of str to ndarray
        The model's state after the best epoch, where it was to be restored in the end.
    average : dict of str to ndarray
        The state of the callback `EMA`, where there was one: averages by name, and their "count".
    """

    path: Path
    model: dict[str, np.ndarray]
    optimizer: dict[str, np.ndarray]
    batches: dict[str, np.ndarray]
    progress: dict[str, Any]
    generators: dict[str, Any]
    settings: dict[str, Any]
    config: dict[str, Any]
    version: str
    best: dict[str, np.ndarray] = field(default_factory=dict)
    average: dict[str, np.ndarray] = field(default_factory=dict)


def pack(checkpoint: Checkpoint) -> bytes:
    """Return the file's content; raises DTypeError where it holds what JSON cannot."""
    from safetensors.numpy import save

    # safetensors writes the memory of an array as it lies: it must lie in C order.
    arrays = {name: np.asarray(array, order="C") for name, array in checkpoint.model.items()}
    for part in _ARRAYS:
        for name, array in getattr(checkpoint, part).items():
            arrays[f"{_TRAINING}{part}/{name}"] = np.asarray(array, order="C")
    metadata = {"format": FORMAT, "version": checkpoint.version}
    for part in _JSON:
        try:
            metadata[part] = json.dumps(getattr(checkpoint, part), default=_plain)
        except (TypeError, ValueError) as error:
            raise DTypeError(f"the {part} of a checkpoint must fit into JSON: {error}") from None
    metadata["sha256"] = _digest(arrays, metadata)
    return save(arrays, metadata)


def unpack(path: Path) -> Checkpoint:
    """Read a file and verify it; raises CheckpointError unless it is a whole checkpoint."""
    metadata, arrays = _read(path)
    if "format" not in metadata:
        raise CheckpointError(f"{path} is a safetensors file, but not a checkpoint of nbbn")
    if metadata["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has the format {metadata['format']!r}, but nbbn {__version__} reads "
            f"{FORMAT!r}: use the version that wrote it, {metadata.get('version', 'unknown')}"
        )
    if metadata.pop("sha256", None) != _digest(arrays, metadata):
        raise CheckpointError(
            f"{path} is damaged: its content does not have the SHA-256 that it states"
        )
    content: dict[str, Any] = {part: json.loads(metadata[part]) for part in _JSON}
    for part in _ARRAYS:
        prefix = f"{_TRAINING}{part}/"
        own = [name for name in arrays if name.startswith(prefix)]
        content[part] = {name.removeprefix(prefix): arrays.pop(name) for name in own}
    return Checkpoint(path=path, model=arrays, version=metadata["version"], **content)


_ARRAYS = ("optimizer", "batches", "best", "average")
_JSON = tuple(
    part.name
    for part in fields(Checkpoint)
    if part.name not in ("path", "model", "version", *_ARRAYS)
)


def _read(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    from safetensors import safe_open

    try:
        with open(path, "rb") as stream:
            start = stream.read(9)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    # A header of JSON comes behind its length.
    if start[8:] not in (b"", b"{"):
        raise CheckpointError(
            f"{path} is not a checkpoint, or damaged: expected a .safetensors file that nbbn train "
            "--out or nbbn.checkpoint.save has written"
        )
    try:
        with safe_open(path, framework="numpy") as stored:
            metadata = dict(stored.metadata() or {})
            return metadata, {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except Exception as error:  # a damaged header can fail in any way
        raise CheckpointError(
            f"{path} is damaged or cut short: {error or type(error).__name__}"
        ) from error


def _digest(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """Turn what random generators and configurations hold beside JSON's own types into those."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"it holds a {type(value).__name__}")
