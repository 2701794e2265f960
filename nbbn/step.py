"""The recorded training step."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from . import backend, checks, modules
from ._validation import instance
from .autograd import Parameter, Tape, Tensor
from .errors import ArgumentError, DTypeError, ShapeError
from .modules import Module
from .optim import Optimizer
from .recorder import Arena, GraphPlan, Plan, Recorder, difference

__all__ = ["Loss", "Step", "record_step"]

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
        self._version: Any = None
        self._parameters: list[Parameter] = []
        self._layout: int | None = None
        self._others = _Others([])
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
        for name, array in (("x", x), ("y", y)):
            if not backend.is_array(array) or array.dtype.hasobject:
                found = "one of objects" if backend.is_array(array) else type(array).__name__
                raise DTypeError(f"a step takes {name} as a numpy array of numbers, got {found}")
        if self.refusal is not None:
            return self._eager(x, y).item
        fits = self._version == modules.version() and self._layout == self._optimizer.layout
        if not (fits and self._optimizer.intact() and self._others.intact()):
            self._forget()
        checks.on_device(y, backend.device_of(x), "y")
        # Only whole, dense, separate arrays can take each other's place in a plan.
        x, y = backend.dense(x), backend.dense(y)
        if np.may_share_memory(x, y):
            y = y.copy()
        wanted = tuple([p.requires_grad for p in self._parameters])
        having = self._others.having()
        key = (x.shape, x.strides, x.dtype, y.shape, y.strides, y.dtype, wanted, having)
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
        changes = modules.changes()
        with backend.recording(recorder):
            loss = self._eager(x, y)
        value = loss.item()
        # What other threads do to their models is no concern of this step.
        if modules.changes() != changes:
            recorder.refuse("the model sets attributes of its modules during a step")
        if self._layout != self._optimizer.layout:
            # This step cut the optimizer's blocks: other plans update what no longer is one.
            self._plans.clear()
            self._layout = self._optimizer.layout
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
        backend.run_ahead(self._others.receive, self._others.having())
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss

    def _forget(self) -> None:
        self._plans.clear()
        self._version = modules.version()
        self._layout = self._optimizer.layout
        self._parameters = self._model.parameters()
        owned = set(map(id, self._optimizer.parameters))
        self._others = _Others([p for p in self._parameters if id(p) not in owned])
        self._optimizer.adopt()


class _Others:
    """The model's parameters that the optimizer does not have: their gradients add up.

    They do so in arrays that stay, so that a recorded step can go on adding.
    """

    def __init__(self, parameters: list[Parameter]) -> None:
        self._places: list[tuple[Parameter, np.ndarray, np.ndarray | None]] = []
        for p in parameters:
            if p.requires_grad and (p._buffer is None or p._buffer.shape != p.shape):
                p._buffer = backend.zeros(p.shape, p.dtype, p.device)
            if p._buffer is not None and p.grad is not None and p.grad is not p._buffer:
                np.copyto(p._buffer, p.grad)
                p.grad = p._buffer
            self._places.append((p, p.data, p._buffer))

    def intact(self) -> bool:
        """Whether data and gradients are where they were."""
        for p, data, buffer in self._places:
            if p.data is not data or p._buffer is not buffer:
                return False
            if p.requires_grad and (buffer is None or not (p.grad is None or p.grad is buffer)):
                return False
        return True

    def having(self) -> tuple[bool, ...]:
        """Which of them have a gradient."""
        return tuple([p.grad is not None for p, _, _ in self._places])

    def receive(self, having: tuple[bool, ...]) -> None:
        """Show the gradients that a replay has written, as backward does."""
        for (p, _, buffer), has in zip(self._places, having, strict=True):
            if has and buffer is not None:
                p.grad = buffer


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
    ArgumentError
        An optimizer of another model.
    """
    check_step(model, loss_fn, optimizer)
    return Step(model, loss_fn, optimizer)


def check_step(model: Any, loss: Any, optimizer: Any) -> None:
    """Check what a training step is made of.

    Parameters
    ----------
    model, loss, optimizer
        What `record_step` takes.

    Raises
    ------
    DTypeError, ArgumentError
        As `record_step`.
    """
    instance(model, Module, "model")
    if not callable(loss):
        raise DTypeError(
            "the loss must be callable, such as nbbn.losses.cross_entropy, "
            f"got {type(loss).__name__}"
        )
    if not isinstance(optimizer, Optimizer):
        raise DTypeError(
            "optimizer must be an Optimizer, such as nbbn.optim.Adam(model.parameters()), "
            f"got {type(optimizer).__name__}"
        )
    if {id(p) for p in model.parameters()}.isdisjoint(map(id, optimizer.parameters)):
        raise ArgumentError(
            "the optimizer has none of the model's parameters: make it of model.parameters()"
        )
