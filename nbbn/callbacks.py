"""What happens beside training: callbacks, and the run that they see."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

from ._validation import choice, iterate, mapping, positive
from .errors import ArgumentError, CheckpointError

__all__ = ["Callback", "EarlyStopping", "Run", "StopOnSignal"]


class Run:
    """A training under way: what `nbbn.train.fit` shows to callbacks.

    Parameters
    ----------
    model : Module
    batches : Batches
    optimizer : Optimizer
    epochs : int
        Epochs in all.

    Attributes
    ----------
    model, batches, optimizer, epochs
        As given.
    epoch : int
        The epoch under way, 1 for the first; between epochs, the next.
    loss : float
        Loss of the last step.
    total : float
        Sum of the losses of this epoch's images.
    count : int
        Number of this epoch's images.
    position : int
        Number of this epoch's steps.
    right : int or None
        How many of them were classified right in training; None if nobody asked.
    x, y : ndarray or None
        The batch of the last step. It may be overwritten by the next.
    history : list of Epoch
        The finished epochs.
    saved : Path or None
        The last checkpoint.
    stopped : str or None
        Why training ends before its last epoch.
    """

    _STATE = ("epoch", "total", "count", "position", "right")
    _since: float | None

    def __init__(self, model: Any, batches: Any, optimizer: Any, epochs: int) -> None:
        self.model, self.batches, self.optimizer, self.epochs = model, batches, optimizer, epochs
        self.epoch = 1
        self.loss = math.nan
        self.x: Any = None
        self.y: Any = None
        self.history: list[Any] = []
        self.saved: Path | None = None
        self.stopped: str | None = None
        self.right: int | None = None
        self.total, self.count, self.position = 0.0, 0, 0
        self._before, self._since = 0.0, None

    @property
    def step(self) -> int:
        """Number of steps that the optimizer has made."""
        return int(self.optimizer.step_count)

    @property
    def seconds(self) -> float:
        """Time spent on the training steps of this epoch."""
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        return self._before + running

    def stop(self, reason: str) -> None:
        """End training after this step.

        Parameters
        ----------
        reason : str
        """
        self.stopped = reason

    def take(self, x: Any, y: Any, right: int | None) -> None:
        """Count a step that was made.

        Parameters
        ----------
        x, y : ndarray
            Its batch.
        right : int or None
            Examples of this epoch that were classified right so far.
        """
        self.x, self.y, self.right = x, y, right
        self.total += self.loss * len(y)
        self.count += len(y)
        self.position += 1

    def start_clock(self) -> None:
        """Count the time from here."""
        self._since = time.perf_counter()

    def stop_clock(self) -> None:
        """Count the time up to here."""
        self._before, self._since = self.seconds, None

    def next_epoch(self) -> None:
        """Begin to count anew."""
        self.epoch += 1
        self.total, self.count, self.position, self._before = 0.0, 0, 0, 0.0
        self.right = None if self.right is None else 0

    def state_dict(self) -> dict[str, Any]:
        """Return how far training is.

        Returns
        -------
        dict
            What JSON can hold.
        """
        state = {name: getattr(self, name) for name in self._STATE}
        return {**state, "seconds": self.seconds, "history": list(self.history)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken.

        Parameters
        ----------
        state : dict
            What `state_dict` returned.

        Raises
        ------
        CheckpointError
            It is not the state of a run.
        """
        mapping(state, "state", "what state_dict returned")
        if not state.keys() >= {*self._STATE, "seconds", "history"}:
            raise CheckpointError("this checkpoint does not say how far training was")
        history = list(iterate(state["history"], "history", "epochs"))
        for name in self._STATE:
            setattr(self, name, state[name])
        self._before, self.history = state["seconds"], history


class Callback:
    """Base class of what watches a training; all methods do nothing.

    Attributes
    ----------
    counts_right : bool
        Whether `Run.right` is wanted, which costs a few microseconds per step.
    """

    counts_right: ClassVar[bool] = False

    def start(self, run: Run) -> None:
        """Before the first step."""

    def step(self, run: Run) -> None:
        """After each step."""

    def epoch(self, run: Run, result: Any) -> None:
        """After each epoch, with its `nbbn.train.Epoch`."""

    def end(self, run: Run) -> None:
        """After the last step, unless training failed."""

    def close(self) -> None:
        """At the very end, even if training failed."""


class EarlyStopping(Callback):
    """Stop when a measure has not improved for some epochs.

    It watches the validation set where there is one, else the test set. It keeps nothing: after a
    resume the history tells it where it stood.

    Parameters
    ----------
    patience : int
        Epochs without improvement to wait for.
    measure : {"loss", "accuracy"}, default "loss"

    Raises
    ------
    ArgumentError
        A patience below 1 or an unknown measure; from `fit`, nothing to watch.
    """

    def __init__(self, patience: int, measure: str = "loss") -> None:
        self.patience = positive(patience, "patience")
        self.measure = choice(measure, ("loss", "accuracy"), "measure")

    def start(self, run: Run) -> None:
        """Stop at once if a resumed run had been stopped here."""
        if run.history:
            self.epoch(run, run.history[-1])

    def epoch(self, run: Run, result: Any) -> None:
        """Compare the epochs so far."""
        if result.watched is None:
            raise ArgumentError("early stopping needs data to watch: pass validation or test")
        found = [getattr(epoch.watched, self.measure) for epoch in run.history]
        better, worst = (min, math.inf) if self.measure == "loss" else (max, -math.inf)
        # No comparison with NaN holds: left in, it would count as the best.
        values = [worst if math.isnan(value) else value for value in found]
        best = values.index(better(values))
        if len(values) - 1 - best >= self.patience:
            run.stop(f"no better {self.measure} than in epoch {run.history[best].epoch}")


class StopOnSignal(Callback):
    """End training cleanly on Ctrl-C or SIGTERM: finish the step, save, return.

    A second signal ends the process at once, with status 130 or 143. Outside of training the first
    one raises KeyboardInterrupt. Used as a context manager it also covers what comes before and
    after `fit`. Only the main thread of a process gets signals; in others this does nothing.

    Attributes
    ----------
    signum : int or None
        The signal that came.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signum: int | None = None
        self._run: Run | None = None
        self._before: dict[int, Any] = {}
        self._entered = False

    def __enter__(self) -> StopOnSignal:
        self._entered = True
        self._install()
        return self

    def __exit__(self, *exc: object) -> None:
        self._entered = False
        self._remove()

    @property
    def status(self) -> int:
        """The exit status that shells expect: 128 and the number of the signal, or 0."""
        return 0 if self.signum is None else 128 + self.signum

    def start(self, run: Run) -> None:
        """From now on, stop `run`."""
        self._install()
        self._run = run
        # An interrupt while libraries load can be swallowed by them: it has been noted here.
        if self.signum is not None:
            self._stop(run)

    def close(self) -> None:
        """Raise KeyboardInterrupt again, or leave signals to what handled them before."""
        self._run = None
        if not self._entered:
            self._remove()

    def _install(self) -> None:
        if not self._before and threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in self._SIGNALS}

    def _remove(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            os._exit(128 + signum)
        self.signum = signum
        if self._run is None:
            raise KeyboardInterrupt
        self._stop(self._run)
        # print() could have been interrupted itself, and nobody may be listening.
        with contextlib.suppress(OSError):
            os.write(2, b"\nnbbn: finishing this step; once more to exit at once\n")

    def _stop(self, run: Run) -> None:
        assert self.signum is not None
        run.stop(signal.Signals(self.signum).name)
