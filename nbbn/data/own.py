"""A user's own data: .npz, .npy (memory-mapped) and IDX files."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from .._validation import as_path
from ..errors import ArgumentError, DataError
from .idx import read_idx, reason
from .named import Dataset, load_fashion_mnist, load_mnist

_log = logging.getLogger(__name__)

__all__ = ["NAMED", "load", "read_npy"]

NAMED = {"mnist": load_mnist, "fashion-mnist": load_fashion_mnist}
# What the parts of a data set may be called, in this order: Keras's names, PyTorch users', MNIST's.
_NAMES = {
    "train_images": ("x_train", "train_images", "train-images", "train-images-idx3-ubyte",
                     "train-images.idx3-ubyte", "x"),
    "train_labels": ("y_train", "train_labels", "train-labels", "train-labels-idx1-ubyte",
                     "train-labels.idx1-ubyte", "y"),
    "test_images": ("x_test", "test_images", "test-images", "t10k-images-idx3-ubyte",
                    "t10k-images.idx3-ubyte"),
    "test_labels": ("y_test", "test_labels", "test-labels", "t10k-labels-idx1-ubyte",
                    "t10k-labels.idx1-ubyte"),
}  # fmt: skip
# Beyond this no label is the number of a class: an identifier, or a fill value, was meant.
_LARGEST_LABEL = 2**24
_TEXT = (".csv", ".tsv", ".txt")
_SUFFIXES = (".npy", ".idx", ".idx.gz", ".gz", "")


def load(
    source: str | os.PathLike[str],
    labels: str | os.PathLike[str] | None = None,
    *,
    data_dir: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Load a data set by its name, or your own.

    Parameters
    ----------
    source : path or {"mnist", "fashion-mnist"}
        An ``.npz`` file with arrays ``x_train, y_train`` and perhaps ``x_test, y_test``
        (``train_images`` and so on will do, or ``x, y``); a folder with files of such names,
        ``.npy`` or IDX; or the file of the images alone. ``.npy`` files are mapped into memory, so
        that they may be larger than it.
    labels : path, optional
        The file of the labels, if `source` is that of the images.
    data_dir : path, optional
        Folder of a named data set, see `load_mnist`.

    Returns
    -------
    Dataset
        Images (N, ...) uint8, float32 or float64, and labels (N,), integers from 0.

    Raises
    ------
    DataError
        Something is missing, cannot be read, or does not fit.
    ArgumentError
        A `data_dir` beside your own data.
    """
    if isinstance(source, str) and source in NAMED:
        return NAMED[source](data_dir)
    path = as_path(source, "source", expand=True)
    if data_dir is not None:
        raise ArgumentError(
            f"data_dir is the folder of a named data set ({', '.join(NAMED)}), not of your own, "
            f"{source}: leave it out"
        )
    if labels is not None:
        found = {
            "train_images": _array(path),
            "train_labels": _array(as_path(labels, "labels", expand=True)),
        }
    elif path.is_dir():
        found = dict(_in_folder(path))
    elif path.suffix == ".npz":
        found = dict(_in_archive(path))
    elif path.exists():
        convert = "; numpy.save turns text into .npy" if path.suffix in _TEXT else ""
        raise DataError(
            f"{path} is neither a folder nor an .npz file: name the file of the labels after it"
            f"{convert}"
        )
    else:
        raise DataError(
            f"there is no data set {source}: expected {', '.join(NAMED)}, an .npz file, a folder, "
            "or the files of images and labels"
        )
    return _checked(path, found)


def _in_folder(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    for part, names in _NAMES.items():
        paths = [folder / (name + suffix) for name in names for suffix in _SUFFIXES]
        if path := next((path for path in paths if path.is_file()), None):
            yield part, _array(path)


def _in_archive(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    import zipfile  # as NumPy does: for archives only

    try:
        if not zipfile.is_zipfile(path) and path.stat().st_size:
            raise ValueError("it is not a complete zip archive")
        with np.load(path) as archive:
            for part, names in _NAMES.items():
                if name := next((name for name in names if name in archive), None):
                    yield part, archive[name]
    except (OSError, ValueError, EOFError, TokenError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as .npz: {reason(error)}") from error


def _instead(path: Path) -> str:
    """List the arrays of an archive, or the files of a folder."""
    if path.is_dir():
        names = sorted(entry.name for entry in path.iterdir() if entry.is_file())
    else:
        with np.load(path) as archive:
            names = list(archive)
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f", but {shown}" if names else ""


def _array(path: Path) -> np.ndarray:
    if path.suffix == ".npz":
        raise DataError(f"{path} is an archive, which holds images and labels: name it alone")
    if path.suffix != ".npy":
        return read_idx(path)
    return read_npy(path, mapped=True)


def read_npy(path: Path, *, mapped: bool = False) -> np.ndarray:
    """Read the one array of an ``.npy`` file, or map it into memory."""
    try:
        # Not np.load, which would take an archive too.
        if mapped:
            return np.lib.format.open_memmap(path, mode="r")
        with path.open("rb") as stream:
            array: np.ndarray = np.lib.format.read_array(stream)
            return array
    except (OSError, ValueError, EOFError, TokenError) as error:
        raise DataError(f"{path} cannot be read as .npy: {reason(error)}") from error


def _checked(path: Path, found: dict[str, Any]) -> Dataset:
    for part in ("train_images", "train_labels"):
        if part not in found:
            raise DataError(
                f"{path} holds no {part}{_instead(path)}: call it {' or '.join(_NAMES[part])}"
            )
    if ("test_images" in found) != ("test_labels" in found):
        lacking = "labels" if "test_images" in found else "images"
        raise DataError(f"{path} has a test set without {lacking}: add them or leave both out")
    test = found.get("test_images"), found.get("test_labels")
    data = Dataset(found["train_images"], found["train_labels"], *test)
    for name, images, labels in (
        ("train", data.train_images, data.train_labels),
        ("test", data.test_images, data.test_labels),
    ):
        if images is None or labels is None:
            continue
        if images.ndim < 2 or images.size == 0 or labels.shape != (len(images),):
            raise DataError(
                f"{path}: {name} images have shape {images.shape} and labels {labels.shape}; "
                "expected (N, ...) and (N,)"
            )
        if labels.dtype.kind not in "iu" or labels.min() < 0:
            lowest = f" from {labels.min()}" if labels.dtype.kind in "iuf" else ""
            raise DataError(
                f"{path}: {name} labels must be integers from 0, got {labels.dtype}{lowest}: "
                "numpy.unique(labels, return_inverse=True)[1] numbers any classes so"
                + ("; regression is for Python, see losses.mse" if labels.dtype.kind == "f" else "")
            )
        if labels.max() > _LARGEST_LABEL:
            raise DataError(
                f"{path}: {name} labels go up to {labels.max()}, which would take as many outputs: "
                f"number the classes from 0, to {_LARGEST_LABEL} at most"
            )
        if images.dtype not in (np.uint8, np.float32, np.float64):
            raise DataError(
                f"{path}: {name} images are {images.dtype}; expected uint8, float32 or float64"
            )
        if name == "train" and labels.min() > 0:
            _log.warning(
                "%s: labels begin at %d: the model gets outputs for the classes below too; "
                "number the classes from 0 if there are none", path, labels.min(),
            )  # fmt: skip
        if images.shape[1:] != data.train_images.shape[1:]:
            raise DataError(
                f"{path}: test images have shape {images.shape[1:]}, training images "
                f"{data.train_images.shape[1:]}"
            )
    return data
