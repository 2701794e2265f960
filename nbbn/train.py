"""Training: the recorded step, `fit` and `evaluate`."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import numpy as np

from . import backend, checks, modules
from .autograd import Parameter, Tape, Tensor
from .data import Batches
from .errors import ArgumentError, DTypeError, ShapeError
from .losses import cross_entropy
from .modules import Module
from .optim import Optimizer
from .recorder import Arena, Plan, Recorder, contents, difference

__all__ = ["Epoch", "Evaluation", "Step", "evaluate", "fit", "record_step"]

Loss = Callable[[Tensor, np.ndarray], Tensor]

# Shapes whose plans are kept: a full batch, a short last one, and a few more.
_MAX_PLANS = 8


class Step:
    """One training step: forward, backward, optimizer.

    Made by `record_step`. The first two calls with different batches of a shape run eagerly and are
    recorded; later ones replay. Results are those of the eager step, bit for bit.

    Parameters
    ----------
    model : Module
    loss : callable
        Maps (output Tensor, y) to a Tensor of one element.
    optimizer : Optimizer

    Attributes
    ----------
    refusal : str or None
        Why the last step ran eagerly for good, or None.
    """

    def __init__(self, model: Module, loss: Loss, optimizer: Optimizer) -> None:
        self._model, self._loss, self._optimizer = model, loss, optimizer
        self._plans: dict[Any, Recorder | Plan] = {}
        self._version = -1
        self._parameters: list[Parameter] = []
        self.refusal: str | None = None

    def __call__(self, x: np.ndarray, y: np.ndarray) -> float:
        """Train on one batch.

        Parameters
        ----------
        x : ndarray of float, shape (N, ...)
        y : ndarray
            Targets, as the loss takes them.

        Returns
        -------
        float
            The loss before the update.
        """
        if not isinstance(x, np.ndarray) or not isinstance(y, np.ndarray):
            raise DTypeError(
                f"a step takes numpy arrays, got {type(x).__name__} and {type(y).__name__}"
            )
        if self.refusal is not None:
            return self._eager(x, y).item()
        if self._version != modules.version() or not self._optimizer.intact():
            self._forget()
        # Only whole, dense, separate arrays can take each other's place in a plan.
        x, y = backend.dense(x), backend.dense(y)
        if np.may_share_memory(x, y):
            y = y.copy()
        wanted = tuple([p.requires_grad for p in self._parameters])
        key = (x.shape, x.strides, x.dtype, y.shape, y.strides, y.dtype, wanted)
        plan = self._plans.get(key)
        if isinstance(plan, Plan):
            return float(plan.replay((x, y)).reshape(())[()])
        return self._record(key, plan, x, y)

    def _record(self, key: Any, before: Recorder | None, x: np.ndarray, y: np.ndarray) -> float:
        if before is not None and set(before.contents) & set(contents((x, y))):
            # Only different batches show what Python computes from a batch behind our back.
            return self._eager(x, y).item()
        recorder = Recorder((x, y), None if before is None else Arena(before))
        with backend.recording(recorder):
            loss = self._eager(x, y)
        value = loss.item()
        if modules.version() != self._version:
            recorder.refuse("the model sets attributes of its modules during a step")
        reason = recorder.refusal
        if before is not None:
            reason = difference(before, recorder)
        if reason is None and before is None:
            recorder.inputs = ()
            while len(self._plans) >= _MAX_PLANS:
                self._plans.pop(next(iter(self._plans)))
            self._plans[key] = recorder
        elif reason is None:
            self._plans[key] = Plan(recorder, loss.data)
        else:
            self.refusal = reason
            self._plans.clear()
            warnings.warn(
                f"this training step runs eagerly, not recorded: {reason}",
                RuntimeWarning,
                stacklevel=3,
            )
        return value

    def _eager(self, x: np.ndarray, y: np.ndarray) -> Tensor:
        self._optimizer.zero_grad()
        with Tape() as tape:
            loss = self._loss(self._model(Tensor(x)), y)
        if not isinstance(loss, Tensor):
            raise DTypeError(f"the loss must be a Tensor, got {type(loss).__name__}")
        if loss.size != 1:
            raise ShapeError(f"the loss must be one number, got shape {loss.shape}")
        tape.backward(loss)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss

    def _forget(self) -> None:
        self._plans.clear()
        self._version = modules.version()
        self._parameters = self._model.parameters()
        self._optimizer.adopt()


def record_step(model: Module, loss_fn: Loss, optimizer: Optimizer) -> Step:
    """Make a training step that replays recorded launches instead of running Python.

    The step records itself again when the batch shape, train/eval mode, the parameters or any
    attribute of a module change. What it cannot record runs eagerly, and a warning says so once.
    Python inside the model and the loss runs only while recording, as with a CUDA graph.

    Parameters
    ----------
    model : Module
    loss_fn : callable
        Maps (output Tensor, y) to a Tensor of one element.
    optimizer : Optimizer
        Of the model's parameters.

    Returns
    -------
    Step
        ``step(x, y) -> float``, the loss.

    Raises
    ------
    DTypeError
        Arguments that are not a Module, a callable and an Optimizer.
    """
    if not isinstance(model, Module):
        raise DTypeError(f"model must be a Module, got {type(model).__name__}")
    if not callable(loss_fn):
        raise DTypeError(f"loss_fn must be callable, got {type(loss_fn).__name__}")
    if not isinstance(optimizer, Optimizer):
        raise DTypeError(f"optimizer must be an Optimizer, got {type(optimizer).__name__}")
    return Step(model, loss_fn, optimizer)


class Evaluation(NamedTuple):
    """What `evaluate` measured.

    Attributes
    ----------
    loss : float
        Mean loss per example.
    accuracy : float
        Fraction of examples whose largest output is their label.
    count : int
        Number of examples.
    """

    loss: float
    accuracy: float
    count: int  # type: ignore[assignment]


class Epoch(NamedTuple):
    """What `fit` reports after each epoch.

    Attributes
    ----------
    epoch : int
        1 for the first.
    loss : float
        Mean training loss per example, each before its step's update.
    seconds : float
        Time spent on the training steps.
    images_per_second : float
    test : Evaluation or None
        Result on the test batches, where given.
    """

    epoch: int
    loss: float
    seconds: float
    images_per_second: float
    test: Evaluation | None


class Progress(Protocol):
    """Watches training: see `nbbn.progress`."""

    def batches(self, epoch: int, batches: Batches) -> Iterable[tuple[np.ndarray, np.ndarray]]:
        """Yield the batches of an epoch, showing how far it is."""

    def loss(self, value: float) -> None:
        """Take the running mean loss."""

    def epoch(self, result: Epoch) -> None:
        """Take the result of an epoch."""


def fit(
    model: Module,
    batches: Batches,
    optimizer: Optimizer,
    *,
    epochs: int,
    loss: Loss = cross_entropy,
    test: Batches | None = None,
    until: float | None = None,
    progress: Progress | None = None,
) -> list[Epoch]:
    """Train a model.

    Parameters
    ----------
    model : Module
        Trained in place, and left in training mode.
    batches : Batches
        Training data, shuffled anew for every epoch.
    optimizer : Optimizer
        Of the model's parameters.
    epochs : int
    loss : callable, default `nbbn.losses.cross_entropy`
        Maps (output Tensor, labels) to a Tensor of one element, a mean over the batch.
    test : Batches, optional
        Evaluated after every epoch.
    until : float, optional
        Stop after the epoch whose test accuracy reaches this fraction; needs `test`.
    progress : Progress, optional
        Is told how it goes.

    Returns
    -------
    list of Epoch

    Raises
    ------
    ArgumentError
        `epochs` below 1, or a loss that is not finite: training has diverged.
    """
    checks.positive(epochs, "epochs")
    if until is not None:
        checks.fraction(until, "until")
        if test is None:
            raise ArgumentError("until watches the test accuracy: pass test as well")
    step = record_step(model, loss, optimizer)
    history: list[Epoch] = []
    for number in range(1, epochs + 1):
        model.train()
        total, count = 0.0, 0
        start = time.perf_counter()
        for x, y in progress.batches(number, batches) if progress else batches:
            value = step(x, y)
            if not math.isfinite(value):
                raise ArgumentError(
                    f"the loss is {value} at step {optimizer.step_count} of epoch {number}: "
                    "training has diverged; try a smaller learning rate"
                )
            total += value * len(y)
            count += len(y)
            if progress:
                progress.loss(total / count)
        if not count:
            raise ArgumentError(f"there are no batches in epoch {number}: pass Batches, or a list")
        seconds = time.perf_counter() - start
        result = evaluate(model, test, loss=loss) if test is not None else None
        model.train()
        epoch = Epoch(number, total / count, seconds, count / seconds, result)
        history.append(epoch)
        if progress:
            progress.epoch(epoch)
        if until is not None and result is not None and result.accuracy >= until:
            break
    return history


def evaluate(model: Module, batches: Batches, *, loss: Loss = cross_entropy) -> Evaluation:
    """Measure loss and accuracy, with the model in evaluation mode.

    Parameters
    ----------
    model : Module
        Its mode is restored afterwards.
    batches : Batches
    loss : callable, default `nbbn.losses.cross_entropy`
        A mean over the batch.

    Returns
    -------
    Evaluation
    """
    total, right, count = 0.0, 0, 0
    with _evaluating(model):
        for x, y in batches:
            output = model(x)
            total += loss(output, y).item() * len(y)
            right += int(np.count_nonzero(output.data.argmax(axis=1) == y))
            count += len(y)
    if not count:
        raise ArgumentError("there is nothing to evaluate: batches is empty")
    return Evaluation(total / count, right / count, count)


class _evaluating:  # noqa: N801 - reads as a statement
    def __init__(self, model: Module) -> None:
        self._model = model

    def __enter__(self) -> None:
        self._modes = [(module, module.training) for module in self._model.modules()]
        self._model.eval()

    def __exit__(self, *exc: object) -> None:
        for module, training in self._modes:
            module.training = training
