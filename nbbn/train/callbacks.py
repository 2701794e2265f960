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

import numpy as np

from .. import backend
from .._validation import instance, iterate, mapping, positive, real
from ..errors import ArgumentError, CheckpointError
from ..nn.batchnorm import BatchNorm
from ..nn.module import Module
from ..nn.variants import recalibrate

__all__ = ["EMA", "Callback", "EarlyStopping", "Run", "StopOnSignal"]


class Run:
    """A training under way: what `nbbn.train.fit` shows to callbacks.

    Parameters
    ----------
    model : Module
    batches : Batches
    optimizer : Optimizer
    epochs : int
        Epochs in all.
    watch : {"loss", "accuracy"}, default "loss"
        What decides which epoch is the best.
    part : {"validation", "test"} or None
        The data that it is measured on, if there are any.

    Attributes
    ----------
    model, batches, optimizer, epochs, watch, part
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
    best_state : dict of str to ndarray
        The model's state after the best epoch; empty unless `fit` is to restore it.
    resumed : Checkpoint or None
        Where the run goes on.
    average : EMA or None
        What averages the weights.
    saved : Path or None
        The last checkpoint.
    stopped : str or None
        Why training ends before its last epoch.
    """

    _STATE = ("epoch", "total", "count", "position", "right")
    _since: float | None

    def __init__(
        self,
        model: Any,
        batches: Any,
        optimizer: Any,
        epochs: int,
        watch: str = "loss",
        part: str | None = None,
    ) -> None:
        self.model, self.batches, self.optimizer, self.epochs = model, batches, optimizer, epochs
        self.watch, self.part = watch, part
        self.best_state: dict[str, Any] = {}
        self.epoch = 1
        self.loss = math.nan
        self.x: Any = None
        self.y: Any = None
        self.history: list[Any] = []
        self.resumed: Any = None
        self.average: EMA | None = None
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
    def watched(self) -> str | None:
        """Name of what is watched, such as "validation_loss", or None."""
        return None if self.part is None else f"{self.part}_{self.watch}"

    @property
    def best(self) -> Any:
        """The finished `Epoch` whose watched quantity is best, the first of equals, or None."""
        sign = -1 if self.watch == "loss" else 1
        # No comparison with NaN holds: left in, it could count as the best.
        measured = [
            (sign * value, epoch)
            for epoch in self.history
            if epoch.watched is not None
            and not math.isnan(value := getattr(epoch.watched, self.watch))
        ]
        return max(measured, key=lambda pair: pair[0], default=(0, None))[1]

    @property
    def seconds(self) -> float:
        """Time spent on the training steps of this epoch."""
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        return self._before + running

    def stop(self, reason: str) -> None:
        """End training after this step, for a reason in words."""
        self.stopped = reason

    def take(self, x: Any, y: Any, right: int | None, count: int | None = None) -> None:
        """Count a step that was made of the batch (x, y); `right` of this epoch so far.

        In a distributed run (x, y) are this rank's part of `count` examples.
        """
        self.x, self.y, self.right = x, y, right
        count = len(y) if count is None else count
        self.total += self.loss * count
        self.count += count
        self.position += 1

    def start_clock(self) -> None:
        """Count the time from here."""
        self._since = time.perf_counter()

    def stop_clock(self) -> None:
        """Count the time up to here."""
        self._before, self._since = self.seconds, None

    def next_epoch(self) -> None:
        """Begin to count again."""
        self.epoch += 1
        self.total, self.count, self.position, self._before = 0.0, 0, 0, 0.0
        self.right = None if self.right is None else 0

    def state_dict(self) -> dict[str, Any]:
        """Return how far training is, as JSON can hold it."""
        state = {name: getattr(self, name) for name in self._STATE}
        best = None if self.best is None else self.best.epoch
        return {
            **state,
            "seconds": self.seconds,
            "history": list(self.history),
            "watch": self.watch,
            "watched": self.watched,
            "best_epoch": best,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` returned `state`; a CheckpointError if that is of no run."""
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


HOOKS = ("start", "step", "epoch", "end", "close")


def slips(kind: type[Callback]) -> list[str]:
    """Find methods of a callback that are meant to be one of `HOOKS`, but have another name."""
    import difflib

    own = {
        name: value
        for base in kind.__mro__[: kind.__mro__.index(Callback)]
        for name, value in vars(base).items()
        if callable(value) and not name.startswith("_")
    }
    # A callback without any of them does nothing, whatever its methods are called.
    nothing = own.keys().isdisjoint(HOOKS)
    return [
        name
        for name in own
        if name not in HOOKS and (nothing or difflib.get_close_matches(name, HOOKS, 1, 0.75))
    ]


class EarlyStopping(Callback):
    """Stop when what `fit` watches has not improved for some epochs.

    That is its `watch`, on the validation set where there is one, else on the test set. It keeps
    nothing: after a resume the history tells it where it stood.

    Parameters
    ----------
    patience : int
        Epochs without improvement to wait for.

    Raises
    ------
    ArgumentError
        A patience below 1; from `fit`, nothing to watch.
    """

    def __init__(self, patience: int) -> None:
        self.patience = positive(patience, "patience")

    def start(self, run: Run) -> None:
        """Stop at once if a resumed run had been stopped here."""
        if run.part is None:
            raise ArgumentError("early stopping needs data to watch: pass validation or test")
        if run.history:
            self.epoch(run, run.history[-1])

    def epoch(self, run: Run, result: Any) -> None:
        """Count the epochs since the best."""
        best = 0 if run.best is None else run.best.epoch
        since = sum(epoch.watched is not None and epoch.epoch > best for epoch in run.history)
        if since >= self.patience:
            than = f"better {run.watched} than in epoch {best}" if best else f"finite {run.watched}"
            run.stop(f"no {than}")


class EMA(Callback):
    """Keep an exponential moving average of the weights while a model trains.

    After step t, ``average += max(1 - decay, 1 / t) * (weights - average)``: the plain mean of the
    first weights, later the moving average, in which those that training began with have no part.
    Checkpoints hold it, and a resumed run goes on with it, bit for bit. The model itself trains and
    is evaluated as without; `apply` gives it the averages in the end.

    Parameters
    ----------
    decay : float, default 0.999
        In [0, 1): the average is over about the last ``1 / (1 - decay)`` steps.

    Raises
    ------
    CheckpointError
        From `fit`: the average of a resumed checkpoint is that of another model, or missing.

    References
    ----------
    Polyak and Juditsky, "Acceleration of stochastic approximation by averaging" (1992).
    """

    def __init__(self, decay: float = 0.999) -> None:
        self.decay = real(decay, "decay", least=0, below=1)
        self._count = 0
        self._average: dict[str, Any] = {}

    def start(self, run: Run) -> None:
        """Begin, or go on with the average of a checkpoint."""
        run.average = self
        weights = _weights(run.model)
        self._count, self._average = 0, {name: array.copy() for name, array in weights.items()}
        if run.resumed is None:
            return
        saved = dict(run.resumed.average)
        count = saved.pop("count", None)
        if count is None or {k: a.shape for k, a in saved.items()} != {
            k: a.shape for k, a in weights.items()
        }:
            what = "no average" if count is None else "the average of another model"
            raise CheckpointError(
                f"{run.resumed.path} holds {what}: resume without EMA, or begin a new run"
            )
        self._count = int(count)
        for name, array in self._average.items():
            backend.assign(array, saved[name])

    def step(self, run: Run) -> None:
        """Move the average towards the weights."""
        self._count += 1
        share = max(1.0 - self.decay, 1.0 / self._count)
        for name, array in _weights(run.model).items():
            average = self._average[name]
            average += share * (array - average)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return copies of the averages by the names of their parameters, and the step "count"."""
        averages = {name: np.array(backend.host(array)) for name, array in self._average.items()}
        return {**averages, "count": np.array(self._count)}

    def apply(self, model: Module, batches: Any = None) -> None:
        """Give a model the averages, and its BatchNorms the statistics that belong to them.

        Parameters
        ----------
        model : Module
            The one that was trained, or one like it.
        batches : iterable, optional
            Training data for `nbbn.recalibrate`; needed if the model has running statistics, which
            were those of other weights. Where that raises, the model stays as it was.
        """
        instance(model, Module, "model")
        before = model.state_dict()
        averages = self.state_dict()
        if not averages.pop("count"):
            raise ArgumentError("there is no average yet: pass EMA to fit first")
        normalized = any(
            isinstance(m, BatchNorm) and m.running_mean is not None and not m.frozen
            for m in model.modules()
        )
        if normalized and batches is None:
            raise ArgumentError(
                "the running statistics belong to other weights than the averages: pass training "
                "data as batches, to take them again"
            )
        model.load_state_dict({**before, **averages})
        try:
            if normalized:
                recalibrate(model, batches)
        except BaseException:
            model.load_state_dict(before)
            raise


def _weights(model: Module) -> dict[str, Any]:
    """Arrays of a model's parameters by their names in the state."""
    own = {id(p.data) for p in model.parameters()}
    return {name: array for name, array in model._state() if id(array) in own}


class StopOnSignal(Callback):
    """End training cleanly on Ctrl-C or SIGTERM: finish the step, save, return.

    `fit` then returns as it does in the end: look at `signum` before you use the model. A second
    signal ends the process at once, with status 130 or 143. Outside of training the first one
    raises KeyboardInterrupt. Used as a context manager it also covers what comes before and after
    `fit`. Only the main thread of a process gets signals; in others this does nothing.

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
        self._entered = self._held = False

    def __enter__(self) -> StopOnSignal:
        self._entered = True
        self._install()
        return self

    def __exit__(self, *exc: object) -> None:
        self._entered = False
        self._remove()

    @classmethod
    def exit_at_once(cls) -> None:
        """Let both signals end this process at once, with their status, where nothing else does."""
        if threading.current_thread() is threading.main_thread():
            for number in cls._SIGNALS:
                signal.signal(number, lambda signum, frame: os._exit(128 + signum))

    def hold(self) -> None:
        """From now on a first signal is noted in `signum` only: there is nothing left to stop."""
        self._held = True

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
            # That of an earlier training is over.
            self.signum = None
            self._before = {number: signal.signal(number, self._handle) for number in self._SIGNALS}

    def _remove(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            os._exit(128 + signum)
        self.signum = signum
        if self._held:
            return
        if self._run is None:
            raise KeyboardInterrupt
        self._stop(self._run)
        # print() could have been interrupted itself, and nobody may be listening.
        with contextlib.suppress(OSError):
            os.write(2, b"\nnbbn: finishing this step; once more to exit at once\n")

    def _stop(self, run: Run) -> None:
        assert self.signum is not None
        run.stop(signal.Signals(self.signum).name)
