"""Folders that one process at a time writes to."""

from __future__ import annotations

import os
from pathlib import Path


def sweep(folder: Path) -> None:
    """Remove what `write_atomically` left in `folder` when its process was killed.

    No other process must write to it.
    """
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)


def lock_folder(folder: Path) -> int | None:
    """Take the lock of a folder, which the system gives back when the process ends.

    Returns the descriptor that holds it, to be closed; None where folders cannot be locked. Raises
    BlockingIOError where somebody else holds it.
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
