"""Training: the recorded step, `fit` and `evaluate`."""

from __future__ import annotations

import functools
import itertools
import logging
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import backend, checkpoint, checks, modules
from .autograd import Parameter, Tape, Tensor
from .callbacks import Callback, Run
from .checkpoint import Checkpoint
from .data import Batches
from .errors import ArgumentError, DivergenceError, DTypeError, ShapeError
from .losses import cross_entropy
from .modules import Module
from .observe import first_nonfinite
from .optim import Optimizer
from .recorder import Arena, GraphPlan, Plan, Recorder, difference

__all__ = ["Epoch", "Evaluation", "Step", "evaluate", "fit", "record_step"]

Loss = Callable[[Tensor, np.ndarray], Tensor]

_log = logging.getLogger(__name__)

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
        return self.submit(x, y)()

    def submit(self, x: np.ndarray, y: np.ndarray) -> Callable[[], float]:
        """Train on one batch without waiting for a device.

        Parameters
        ----------
        x : ndarray of float, shape (N, ...)
        y : ndarray
            Targets, as the loss takes them.

        Returns
        -------
        callable
            Waits and returns the loss before the update; it raises what a device has found.
        """
        if not backend.is_array(x) or not backend.is_array(y):
            raise DTypeError(
                f"a step takes numpy arrays, got {type(x).__name__} and {type(y).__name__}"
            )
        if self.refusal is not None:
            return self._eager(x, y).item
        if self._version != modules.version() or not self._optimizer.intact():
            self._forget()
        checks.on_device(y, backend.device_of(x), "y")
        # Only whole, dense, separate arrays can take each other's place in a plan.
        x, y = backend.dense(x), backend.dense(y)
        if np.may_share_memory(x, y):
            y = y.copy()
        wanted = tuple([p.requires_grad for p in self._parameters])
        key = (x.shape, x.strides, x.dtype, y.shape, y.strides, y.dtype, wanted)
        plan = self._plans.get(key)
        if isinstance(plan, Plan):
            return functools.partial(plan.value, plan.replay((x, y)))
        value = self._record(key, plan, x, y)
        return lambda: value

    def _record(self, key: Any, before: Recorder | None, x: np.ndarray, y: np.ndarray) -> float:
        device = backend.memory(x)
        recorder = Recorder((x, y), None if before is None else Arena(before), device)
        if before is not None and set(before.contents) & set(recorder.contents):
            # Only different batches show what Python computes from a batch behind our back.
            return self._eager(x, y).item()
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
            self._plans[key] = (GraphPlan if device else Plan)(recorder, loss.data)
        else:
            self.refusal = reason
            self._plans.clear()
            warnings.warn(
                f"this training step runs eagerly, not recorded: {reason}",
                RuntimeWarning,
                stacklevel=4,
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
    accuracy : float or None
        Fraction of training examples classified right, each before its step's update; None unless
        a callback counts them.
    seconds : float
        Time spent on the training steps.
    images_per_second : float
    validation, test : Evaluation or None
        Results on the validation and test batches, where given.
    """

    epoch: int
    loss: float
    accuracy: float | None
    seconds: float
    images_per_second: float
    validation: Evaluation | None
    test: Evaluation | None

    @property
    def watched(self) -> Evaluation | None:
        """The result that decides: on the validation batches where given, else on the test's."""
        return self.validation or self.test


def fit(
    model: Module,
    batches: Batches,
    optimizer: Optimizer,
    *,
    epochs: int,
    loss: Loss = cross_entropy,
    validation: Batches | None = None,
    test: Batches | None = None,
    until: float | None = None,
    callbacks: Sequence[Callback] = (),
    resume: Checkpoint | None = None,
    strict: bool = True,
) -> list[Epoch]:
    """Train a model.

    Parameters
    ----------
    model : Module
        Trained in place, and left in training mode.
    batches : Batches
        Training data, shuffled anew for every epoch. Any iterable of pairs (x, y) that can be
        iterated once per epoch will do.
    optimizer : Optimizer
        Of the model's parameters.
    epochs : int
        Epochs in all, those before a resume included.
    loss : callable, default `nbbn.losses.cross_entropy`
        Maps (output Tensor, labels) to a Tensor of one element, a mean over the batch.
    validation, test : Batches, optional
        Evaluated after every epoch.
    until : float, optional
        Stop after the epoch whose accuracy reaches this fraction, on the validation set where
        given, else on the test set.
    callbacks : sequence of Callback
        Are told how it goes, in their order.
    resume : Checkpoint, optional
        Go on where this was saved, as if nothing had happened: the numbers are the same bit for
        bit, for the same number of threads. Make model, batches and optimizer as for the first
        run; their state is replaced.
    strict : bool, default True
        Whether optimizer, schedule and batches must have the settings they had before a resume.

    Returns
    -------
    list of Epoch
        The finished epochs, those before a resume included.

    Raises
    ------
    ArgumentError
        `epochs` below 1, or `until` without data to watch.
    DivergenceError
        The loss is not finite. The parameters are those before that step.
    CheckpointError
        `resume` belongs to another model, optimizer or data set.
    """
    checks.positive(epochs, "epochs")
    if until is not None:
        checks.fraction(until, "until")
        if test is None and validation is None:
            raise ArgumentError("until watches an accuracy: pass validation or test as well")
    _check_batches(batches, validation, test)
    if isinstance(batches, Batches) and batches.batch_size > batches.count:
        _log.warning(
            "the batch size %d exceeds the %d training examples: every step uses all of them",
            batches.batch_size, batches.count,
        )  # fmt: skip
    counts = any(callback.counts_right for callback in callbacks)
    watched = _Watched(loss, counts, optimizer.parameters[0].device)
    step = record_step(model, watched, optimizer)
    run = Run(model, batches, optimizer, epochs)
    if resume is not None:
        own = batches if isinstance(batches, Batches) else None
        checkpoint.restore(resume, model, optimizer, own, strict=strict)
        run.load_state_dict(resume.progress)
        run.history = [_epoch(values) for values in run.history]
    try:
        for callback in callbacks:
            callback.start(run)
        while run.epoch <= epochs and not run.stopped and not _reached(run, until):
            model.train()
            _train_epoch(run, step, watched, callbacks)
            if run.stopped:
                break
            if not run.count:
                raise ArgumentError(
                    f"there are no batches in epoch {run.epoch}: pass Batches, or a list"
                )
            result = Epoch(
                run.epoch,
                run.total / run.count,
                None if run.right is None else run.right / run.count,
                run.seconds,
                run.count / run.seconds,
                None if validation is None else evaluate(model, validation, loss=loss),
                None if test is None else evaluate(model, test, loss=loss),
            )
            model.train()
            run.history.append(result)
            run.next_epoch()
            for callback in callbacks:
                callback.epoch(run, result)
        for callback in callbacks:
            callback.end(run)
    finally:
        for callback in callbacks:
            callback.close()
    return run.history


def _train_epoch(run: Run, step: Step, watched: _Watched, callbacks: Sequence[Callback]) -> None:
    """Make the steps of an epoch, or what is left of it."""
    run.start_clock()
    backend.fill(watched.right, run.right or 0)
    # Batches know themselves where to go on.
    done = 0 if isinstance(run.batches, Batches) else run.position
    for x, y in itertools.islice(run.batches, done, None):
        number = run.step + 1
        try:
            run.loss = step(x, y)
            # On a device this is the first look at it: the step has been made.
            if not math.isfinite(run.loss):
                raise _NotFinite(run.loss)
        except _NotFinite as error:
            raise _diverged(run, number, error.value, x) from None
        run.take(x, y, int(watched.right[0]) if watched.counts else None)
        for callback in callbacks:
            callback.step(run)
        if run.stopped:
            return
    run.stop_clock()


def _reached(run: Run, until: float | None) -> bool:
    last = run.history[-1].watched if run.history else None
    return until is not None and last is not None and last.accuracy >= until


def _epoch(values: Sequence[Any]) -> Epoch:
    """Rebuild what JSON has made lists of."""
    *numbers, validation, test = values
    return Epoch(*numbers, *(part and Evaluation(*part) for part in (validation, test)))


def _check_batches(*all_data: Any) -> None:
    for data in all_data:
        pair = isinstance(data, tuple | list) and data and isinstance(data[0], np.ndarray)
        if pair or isinstance(data, np.ndarray):
            raise DTypeError(
                f"expected batches, got arrays ({type(data).__name__}): "
                "pass nbbn.data.Batches(x, y, batch_size)"
            )


class _NotFinite(Exception):  # noqa: N818 - never leaves this module
    def __init__(self, value: float) -> None:
        self.value = value


class _Watched:
    """The loss, and what a step notices beside it before it changes anything.

    It goes through `backend.run`, so that a replayed step notices the same.
    """

    def __init__(self, loss: Loss, counts: bool, device: str) -> None:
        self._loss, self.counts = loss, counts
        self.right = backend.zeros(1, np.int64, device)

    def __call__(self, output: Tensor, y: np.ndarray) -> Tensor:
        value = self._loss(output, y)
        if isinstance(value, Tensor) and value.size == 1 and value.device == "cpu":
            backend.run(_check_finite, value.data)
        if self.counts and output.ndim == 2 and y.ndim == 1 and y.dtype.kind in "iu":
            backend.run(_count_right, output.data, y, self.right)
        return value


def _check_finite(loss: np.ndarray) -> None:
    value = loss.item()
    if not math.isfinite(value):
        raise _NotFinite(value)


def _count_right(output: np.ndarray, labels: np.ndarray, right: np.ndarray) -> None:
    np.add(right, np.count_nonzero(output.argmax(axis=1) == labels), right)


def _diverged(run: Run, step: int, loss: float, x: np.ndarray) -> DivergenceError:
    first = first_nonfinite(run.model, x)
    saved = f"the last good checkpoint is {run.saved}" if run.saved else "no checkpoint was saved"
    return DivergenceError(
        f"the loss is {loss} at step {step} of epoch {run.epoch}: training has diverged; "
        f"{first} is the first that is not finite; {saved}; try a smaller learning rate"
    )


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
    _check_batches(batches)
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
