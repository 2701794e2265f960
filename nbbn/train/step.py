"""The recorded training step."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import backend
from .._validation import instance
from ..autograd.tensor import Parameter, Tape, Tensor, as_tensor
from ..backend.recorder import Arena, GraphPlan, Plan, Recorder, difference
from ..distributed import Ranks, check_ranks
from ..errors import ArgumentError, DTypeError, ShapeError
from ..functional import checks
from ..nn.module import Module
from ..optim import Optimizer
from . import forks
from .share import Share
from .transparent import Opaque
from .trust import Audit

__all__ = ["Loss", "Step", "record_step"]

Loss = Callable[[Tensor, np.ndarray], Tensor]

# Shapes whose plans are kept: a full batch, a short last one, and a few more.
_MAX_PLANS = 8


class Step:
    """One training step: forward, backward, optimizer.

    Made by `record_step`. The first two calls with batches of a shape run eagerly and are recorded;
    later ones replay. Results are those of the eager step, bit for bit. Threads that share one take
    turns. A forked child may use it too: what another thread's step had done by then is done.

    Parameters
    ----------
    model : Module
    loss : callable
        Maps (output Tensor, y) to a Tensor of one element.
    optimizer : Optimizer
    share : Share, optional
        This rank's, in a distributed run.

    Attributes
    ----------
    refusal : str or None
        Why all steps run eagerly, or None.
    recordings : int
        How many steps have been recorded so far.
    """

    def __init__(
        self, model: Module, loss: Loss, optimizer: Optimizer, share: Share | None = None
    ) -> None:
        self._model, self._loss, self._optimizer = model, loss, optimizer
        self._share = share
        self._plans: dict[Any, Recorder | Plan] = {}
        self._audit: Audit | None = None
        self._versions: list[int] = []
        self._tensors: list[Tensor] = []
        self._layout: int | None = None
        self._others = _Others([])
        self._turn = threading.RLock()
        self.refusal: str | None = None
        self.recordings = 0
        forks.renew(self)

    def _after_fork_in_child(self) -> None:
        """Let the child have its turn: whose turn it was in the parent is not here."""
        self._turn = threading.RLock()

    def __call__(self, x: np.ndarray, y: np.ndarray) -> float:
        """Train on one batch.

        Parameters
        ----------
        x : ndarray of float, shape (N, ...), or sparse rows
        y : ndarray
            Targets, as the loss takes them.

        Returns
        -------
        float
            The loss before the update.

        Raises
        ------
        ShapeError
            A batch without rows, unless ranks make the step together.
        DTypeError
            Something else than arrays of numbers.
        """
        return self.submit(x, y)()

    def submit(self, x: Any, y: np.ndarray) -> Callable[[], float]:
        """Train on one batch without waiting for a device.

        Parameters
        ----------
        x, y
            As of a call.

        Returns
        -------
        callable
            Waits and returns the loss before the update; it raises what a device has found.
        """
        with self._turn:
            return self._submit(x, y)

    def _submit(self, x: Any, y: np.ndarray) -> Callable[[], float]:
        rows = backend.as_csr(x)
        for name, array in (("x", x), ("y", y))[rows is not None :]:
            if not backend.is_array(array) or array.dtype.hasobject:
                found = "one of objects" if backend.is_array(array) else type(array).__name__
                raise DTypeError(f"a step takes {name} as a numpy array of numbers, got {found}")
        x = x if rows is None else rows
        # A rank without examples takes part in the step of the others.
        if self._share is None and x.shape[:1] == (0,):
            raise ShapeError(
                f"a step needs at least one row, but x has shape {x.shape}: leave such batches out"
            )
        if self.refusal is not None:
            return self._eager(x, y).item
        audit = self._audit
        if (
            audit is None
            or audit.versions() != self._versions
            or self._layout != self._optimizer.layout
            or not (audit.holds() and self._optimizer.intact() and self._others.intact())
        ):
            audit = self._look("cpu" if rows is not None else backend.device_of(x))
            if audit is None:
                return self._eager(x, y).item
        if rows is not None:
            return self._sparse(audit, rows, y)
        checks.on_device(y, backend.device_of(x), "y")
        # Only whole, dense, separate arrays can take each other's place in a plan.
        x, y = backend.dense(x), backend.dense(y)
        if np.may_share_memory(x, y):
            y = y.copy()
        return self._repeat(audit, (x.shape, x.strides, x.dtype), (x, y))

    def _sparse(self, audit: Audit, rows: backend.CSR, y: np.ndarray) -> Callable[[], float]:
        """Train on sparse rows, in arrays of their own."""
        checks.on_device(y, "cpu", "y")
        kinds = [(part.shape, part.dtype) for part in rows.parts()]
        return self._repeat(audit, (*kinds, rows.features), (*rows.parts(), backend.dense(y)))

    def _repeat(
        self, audit: Audit, kind: Any, inputs: tuple[np.ndarray, ...]
    ) -> Callable[[], float]:
        """Replay a step with arrays of the layouts that `kind` and y tell, or record one."""
        wanted = tuple([p.requires_grad for p in self._tensors])
        having = self._others.having()
        y = inputs[-1]
        key = (*kind, y.shape, y.strides, y.dtype, wanted, having)
        plan = self._plans.get(key)
        if isinstance(plan, Plan):
            return functools.partial(plan.value, plan.replay(inputs))
        value = self._record(audit, key, plan, inputs)
        return lambda: value

    def _record(
        self, audit: Audit, key: Any, before: Recorder | None, inputs: tuple[np.ndarray, ...]
    ) -> float:
        device = backend.memory(inputs[0])
        state = audit.arrays()
        known = [*(array for _, array in state), *audit.numbers]
        known += [] if self._share is None else self._share.arrays
        # A batch that the loss holds as well, say, is not what the next batch takes the place of.
        inputs = tuple(a.copy("K") if any(np.may_share_memory(a, b) for b in known
                       if type(a) is type(b)) else a for a in inputs)  # fmt: skip
        recorder = Recorder(inputs, known, None if before is None else Arena(before), device)
        recorder.numbers = audit.scalars
        proving = audit.declared and before is not None
        start = [a.copy() for a in [*(array for _, array in state), *inputs]] if proving else []
        self.recordings += 1
        with backend.recording(recorder):
            x: Any = inputs[0]
            if len(inputs) == 4:
                x = backend.CSR(inputs[0], inputs[1], inputs[2], key[3])
            loss = self._eager(x, inputs[-1])
            recorder.check(loss.data)
        value = loss.item()
        if self._layout != self._optimizer.layout:
            # This step cut the optimizer's blocks: other plans update what no longer is one.
            self._plans.clear()
            self._layout = self._optimizer.layout
        if audit.versions() != self._versions or not audit.holds():
            recorder.refuse("it sets attributes of its modules or global names")
        if [id(array) for _, array in audit.arrays()] != [id(array) for _, array in state]:
            recorder.refuse("it replaces arrays by new ones")
        reason = recorder.refusal if before is None else difference(before, recorder)
        if reason is not None:
            self._refuse(reason, 7)
        elif before is None:
            recorder.inputs = ()
            while len(self._plans) >= _MAX_PLANS:
                self._plans.pop(next(iter(self._plans)))
            self._plans[key] = recorder
        else:
            plan = (GraphPlan if device else Plan)(recorder, loss.data)
            reason = _disproof(plan, recorder, state, start, inputs, value) if start else None
            if reason is None:
                self._plans[key] = plan
            else:
                self._refuse(reason, 7)
        return value

    def _refuse(self, reason: str, level: int = 6) -> None:
        self.refusal = reason
        self._plans.clear()
        warnings.warn(
            f"this training step runs eagerly, not recorded: {reason}",
            RuntimeWarning,
            # The line that called the step.
            stacklevel=level,
        )

    def _eager(self, x: Any, y: np.ndarray) -> Tensor:
        self._optimizer.zero_grad()
        with Tape() as tape:
            loss = self._loss(self._model(as_tensor(x)), y)
        if not isinstance(loss, Tensor):
            raise DTypeError(f"the loss must be a Tensor, got {type(loss).__name__}")
        if loss.size != 1:
            raise ShapeError(f"the loss must be one number, got shape {loss.shape}")
        if self._share is None:
            tape.backward(loss)
        else:
            own, (loss, seed) = loss, self._share.loss(loss, y)
            self._share.backward(tape, own, seed, self._optimizer)
        backend.run_ahead(self._others.receive, self._others.having())
        # A user's schedule runs in replays too, and sees the gradients as it does here.
        live = self._audit is not None and self._audit.live
        trained = tuple(p for p in self._optimizer.parameters if p.grad is not None)
        if live:
            backend.run(_show_gradients, trained)
        self._optimizer.step()
        self._optimizer.zero_grad()
        if live:
            backend.run(_hide_gradients, trained)
        return loss

    def _look(self, device: str) -> Audit | None:
        """Look at the parts of the step again; None if they must run eagerly."""
        self._plans.clear()
        self._optimizer.adopt()
        try:
            audit = Audit(self._model, self._loss, self._optimizer)
            if audit.live and device != "cpu":
                raise Opaque(f"{audit.live} could look at gradients before they are computed")
            if self._share is not None and device != "cpu":
                raise Opaque("ranks speak through the host, which a device's graph cannot")
            if self._share is not None and audit.declared:
                raise Opaque("what is declared recordable is tried once, which other ranks do not")
        except Opaque as reason:
            self._refuse(str(reason))
            return None
        self._audit, self._versions = audit, audit.versions()
        self._layout, self._others = self._optimizer.layout, _Others(audit.tensors)
        self._tensors = [*self._model.parameters(), *audit.tensors]
        return audit


class _Others:
    """Tensors of the step that the optimizer does not have: their gradients add up.

    They do so in arrays that stay, so that a recorded step can go on adding.
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        self._places: list[tuple[Tensor, np.ndarray, np.ndarray | None]] = []
        for p in tensors:
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


def record_step(
    model: Module, loss_fn: Loss, optimizer: Optimizer, *, ranks: Ranks | None = None
) -> Step:
    """Make a training step that replays recorded launches instead of running Python.

    The step records itself again when the batch shape, train/eval mode, the parameters or any
    attribute of a module of the model change.

    A replay skips the Python of model, loss and optimizer. So it happens only where this Python is
    known to do nothing but launch: nbbn's own; functions and ``forward`` methods that only apply
    layers, losses and Tensor operations, which their source shows; and what its author declares, by
    ``recordable = True`` in the class or by `nbbn.recordable` above a function. A declaration is
    tried once: what a replay would leave out of an array is found. Learning-rate schedules run at
    every step. All else runs eagerly, and a warning says so once: NumPy on a batch, statistics kept
    in Python, random numbers of your own, printing, an optimizer of your own.

    Parameters
    ----------
    model : Module
    loss_fn : callable
        Maps (output Tensor, y) to a Tensor of one element.
    optimizer : Optimizer
        Of the model's parameters.
    ranks : nbbn.distributed.Ranks, optional
        Make each step together with the others: (x, y) is this rank's part of the batch, the loss
        is the mean over the examples of all ranks, and so are the gradients. All ranks make the
        same number of steps; a rank without examples passes arrays of no rows.

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
    check_ranks(ranks)
    return Step(model, loss_fn, optimizer, None if ranks is None else Share(ranks))


def _show_gradients(parameters: Sequence[Parameter]) -> None:
    for p in parameters:
        p.grad = p._buffer


def _hide_gradients(parameters: Sequence[Parameter]) -> None:
    for p in parameters:
        p.grad = None


def _disproof(
    plan: Plan,
    recorder: Recorder,
    state: list[tuple[str, Any]],
    start: list[Any],
    inputs: tuple[Any, ...],
    value: float,
) -> str | None:
    """Repeat the step that was recorded by a replay, and name what then differs, if anything does.

    What a step declares to launch may have been done by NumPy, where no recorder sees it.
    """
    end = [array.copy() for _, array in state]
    for array, before in zip(inputs, start[len(state) :], strict=True):
        if not _same_bits(array, before):
            return "it writes into the batch"
    for (_, array), before in zip(state, start, strict=False):
        array[...] = before
    recorder.spoil()
    reason = None
    try:
        repeated = plan.value(plan.replay(inputs, ahead=False))
        if not _same_bits(np.float64(repeated), np.float64(value)):
            reason = "a replay gives another loss"
    except Exception as error:
        reason = f"a replay fails ({error!r})"
    for (name, array), after in zip(state, end, strict=True):
        if reason is None and not _same_bits(array, after):
            reason = f"a replay leaves other numbers in {name}, which NumPy may have changed"
    if reason is not None:
        for (_, array), after in zip(state, end, strict=True):
            array[...] = after
    return reason


def _same_bits(a: Any, b: Any) -> bool:
    return backend.host(a).tobytes() == backend.host(b).tobytes()


def check_step(model: Any, loss: Any, optimizer: Any) -> None:
    """Check what a training step is made of, as `record_step` does."""
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
