"""A folder of checkpoints, kept up to date while a model trains."""

from __future__ import annotations

import logging
import os
import re
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..._validation import as_path, mapping, positive, switch, write_atomically
from ...data import Batches
from ...errors import ArgumentError, CheckpointError
from .. import forks
from ..callbacks import Callback, Run
from .format import Checkpoint, unpack
from .saving import save

__all__ = ["Checkpoints", "latest", "load"]

_NAME = re.compile(r"step-(\d{8,})\.safetensors")
_log = logging.getLogger(__name__)


def load(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint and verify it.

    Parameters
    ----------
    path : path
        A checkpoint, or a folder of them, whose latest is meant.

    Returns
    -------
    Checkpoint

    Raises
    ------
    CheckpointError
        It is missing, damaged, not a checkpoint, or of an unknown format.
    """
    path = as_path(path, "path")
    if path.is_dir():
        found = latest(path)
        if found is None:
            raise CheckpointError(f"there is no checkpoint in the folder {path}")
        return found
    return unpack(path)


def latest(folder: str | os.PathLike[str]) -> Checkpoint | None:
    """Read the checkpoint of the highest step in a folder that can be read.

    Parameters
    ----------
    folder : path

    Returns
    -------
    Checkpoint or None
        None if there is none, or no such folder. Damaged ones are passed over with a warning in
        the log.

    Raises
    ------
    ArgumentError
        A file.
    CheckpointError
        There are some, but all are damaged.
    """
    folder, errors = as_path(folder, "folder"), []
    if folder.is_file():
        raise ArgumentError(
            f"{folder} is a file, where the latest of a folder was asked for: load(path) reads it"
        )
    for path in reversed(_numbered(folder)):
        try:
            return unpack(path)
        except CheckpointError as error:
            _log.warning("%s", error)
            errors.append(error)
    if errors:
        raise CheckpointError(
            f"every checkpoint in {folder} is damaged; the first: {errors[0]}"
        ) from errors[0]
    return None


class Checkpoints(Callback):
    """Save checkpoints into a folder while training.

    The folder holds ``step-00000469.safetensors`` and so on, and ``best.safetensors``. Only one
    process at a time may use it. If a checkpoint cannot be written, say because the disk is full,
    the older ones stay, the log says so, and training goes on. A model that is no longer finite is
    not saved.

    Parameters
    ----------
    folder : path
        Made if need be.
    every : int, optional
        Steps between two checkpoints. By default one is saved after every epoch. The last step of
        a run, be it stopped or finished, is always saved.
    keep : int, default 3
        How many of the latest to keep.
    best : bool, default True
        Whether to keep the one of the best epoch as well, by what `fit` watches; its `progress`
        names that, and the epoch.
    config : mapping, optional
        Saved with each: what JSON can hold.

    Attributes
    ----------
    error : OSError or None
        Why the last attempt to save failed.

    Raises
    ------
    ArgumentError
        The folder cannot be used, or another run uses it; from `fit`, it holds checkpoints of
        later steps, which belong to another run.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        every: int | None = None,
        keep: int = 3,
        best: bool = True,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = as_path(folder, "folder")
        self.every = None if every is None else positive(every, "every")
        self.keep = positive(keep, "keep")
        self.best = switch(best, "best")
        if config is not None:
            mapping(config, "config", "what JSON can hold")
        self.config = dict(config or {})
        self.error: OSError | None = None
        self._failed: Path | None = None
        self._saved = (-1, -1)
        self._release = weakref.finalize(self, _close, _take(self.folder))
        forks.renew(self)

    def _after_fork_in_child(self) -> None:
        """Leave the folder to the parent, and to others when that one has given it back."""
        self._release()

    def start(self, run: Run) -> None:
        """Refuse to mix this run with another one's checkpoints."""
        if not self._release.alive:
            # An earlier `fit` has given the folder back.
            self._release = weakref.finalize(self, _close, _take(self.folder))
        if run.step:
            self._put_damaged_aside(run.step)
        found = _numbered(self.folder)
        if found and _step(found[-1]) > run.step:
            raise ArgumentError(
                f"{self.folder} holds another run's checkpoints, up to {found[-1].name}, and this "
                f"one is at step {run.step}: resume from there, or use another folder"
            )
        self._saved = (run.step, run.epoch)
        run.saved = found[-1] if found else None
        # A kill may have come between a save and the removal of what it replaced.
        self._remove_old()

    def _put_damaged_aside(self, step: int) -> None:
        """Let a run that goes on from before a damaged checkpoint make that step again."""
        for path in _numbered(self.folder):
            if _step(path) <= step:
                continue
            try:
                unpack(path)
            except CheckpointError:
                aside = path.with_name(f"{path.name}.damaged")
                os.replace(path, aside)
                # Why it is damaged, `latest` has said.
                _log.warning("%s is now %s", path, aside)

    def step(self, run: Run) -> None:
        """Save if it is time."""
        if self.every is not None and run.step % self.every == 0:
            self._save(run)

    def epoch(self, run: Run, result: Any) -> None:
        """Save the epoch, unless steps are counted, and the best one."""
        # First: if a kill comes between the two, the resumed run makes this epoch, and it, again.
        if self.best and run.best is result:
            self._write(run, self.folder / "best.safetensors")
        if self.every is None:
            self._save(run)

    def end(self, run: Run) -> None:
        """Save the last step."""
        if (run.step, run.epoch) != self._saved or self.error is not None:
            self._save(run)

    def close(self) -> None:
        """Let others use the folder."""
        self._release()

    def _save(self, run: Run) -> None:
        path = self.folder / f"step-{run.step:08}.safetensors"
        if self._write(run, path):
            self._saved, run.saved = (run.step, run.epoch), path
            self._remove_old()

    def _remove_old(self) -> None:
        for old in _numbered(self.folder)[: -self.keep]:
            old.unlink(missing_ok=True)

    def _write(self, run: Run, path: Path) -> bool:
        if not all(np.isfinite(array).all() for array in run.model.state_dict().values()):
            _log.warning("%s was not saved: the model is no longer finite", path)
            return False
        batches = run.batches if isinstance(run.batches, Batches) else None
        try:
            save(
                path, run.model, run.optimizer, batches,
                progress=run.state_dict(), config=self.config, best=run.best_state,
                average=None if run.average is None else run.average.state_dict(),
            )  # fmt: skip
        except OSError as error:
            kept = f"the last one is {run.saved}" if run.saved else "there is none yet"
            # The last step is tried again in the end.
            if path != self._failed:
                _log.warning(
                    "the checkpoint %s cannot be saved: %s; %s, and training goes on",
                    path, error.strerror or error, kept,
                )  # fmt: skip
            self.error, self._failed = error, path
            return False
        self.error = self._failed = None
        return True


def _take(folder: Path) -> int | None:
    """Lock and clean the folder; return the descriptor that holds the lock."""
    probe = folder / ".probe.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(folder)
        # What `write_atomically` left here when its process was killed.
        for part in folder.glob(".*.part"):
            part.unlink(missing_ok=True)
        write_atomically(probe, b"")
        probe.unlink()
    except BlockingIOError:
        raise ArgumentError(
            f"another run writes to {folder}: wait for it, or use another folder"
        ) from None
    except OSError as error:
        raise ArgumentError(f"cannot write to {folder}: {error.strerror}") from None
    return descriptor


def _lock(folder: Path) -> int | None:
    """Return the descriptor that holds the lock of a folder; None where folders have none."""
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


def _close(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)


def _numbered(folder: Path) -> list[Path]:
    """List the numbered checkpoints of a folder, the latest last."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if _NAME.fullmatch(p.name)), key=_step)


def _step(path: Path) -> int:
    found = _NAME.fullmatch(path.name)
    assert found is not None
    return int(found[1])
