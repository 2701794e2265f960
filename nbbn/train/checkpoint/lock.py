"""Folders that one process at a time writes to."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["lock_folder", "sweep"]


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
