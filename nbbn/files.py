"""Writing files so that a reader finds the old content or the new, whatever happens in between."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import Any

from .errors import ArgumentError, DTypeError

__all__ = ["as_path", "lock_folder", "sweep", "write_atomically"]


def as_path(value: Any, name: str) -> Path:
    """Return what a user gave as a path.

    Parameters
    ----------
    value : path
    name : str
        The argument's, for messages.

    Returns
    -------
    Path

    Raises
    ------
    DTypeError
        Neither a str nor an os.PathLike of one.
    ArgumentError
        It holds a null character, which no file system knows.
    """
    try:
        path = Path(value)
    except TypeError:
        raise DTypeError(
            f"{name} must be a path, a str or an os.PathLike, got {type(value).__name__}"
        ) from None
    if "\0" in str(path):
        raise ArgumentError(f"{name} must be a path without null characters, got {value!r}")
    return path


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the content of `path`, or leave it as it was.

    Parameters
    ----------
    path : Path
        In a folder that exists.
    content : bytes

    Raises
    ------
    OSError
        It could not be written; the old content is still there.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with open(part, "xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    # A folder that cannot be synced, as on some network file systems, costs durability only.
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def sweep(folder: Path) -> None:
    """Remove what `write_atomically` left in `folder` when its process was killed.

    Parameters
    ----------
    folder : Path
        One that no other process writes to.
    """
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)


def lock_folder(folder: Path) -> int | None:
    """Take the lock of a folder, which the system gives back when the process ends.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    int or None
        The descriptor that holds the lock, to be closed; None where folders cannot be locked.

    Raises
    ------
    BlockingIOError
        Somebody else holds it.
    """
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
