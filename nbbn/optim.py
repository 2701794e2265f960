"""Optimizers and learning-rate schedules.

An optimizer moves its parameters, gradients and state into flat arrays, one per dtype: a step is
one kernel over one array, and all gradients can be reduced or saved as one. A parameter's ``data``
becomes a view into them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from . import backend, checks
from ._validation import integer, iterate, real, switch
from .autograd import Parameter
from .errors import ArgumentError, DeviceError, DTypeError, ShapeError

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "SGD",
    "Adam",
    "AdamW",
    "Cosine",
    "OneCycle",
    "Optimizer",
    "Schedule",
    "StepDecay",
]

Schedule = Callable[[int], float]


class StepDecay:
    """Multiply the learning rate by `factor` after every `every` steps.

    Parameters
    ----------
    lr : float
        Rate of the first step.
    every : int
        Steps between two changes.
    factor : float, default 0.1
    warmup : int, default 0
        Steps over which the rate first rises linearly to `lr`.
    """

    def __init__(self, lr: float, every: int, *, factor: float = 0.1, warmup: int = 0) -> None:
        self.lr = _rate(lr)
        self.every = checks.positive(every, "every")
        self.factor = real(factor, "factor", above=0)
        self.warmup = integer(warmup, "warmup", least=0)

    def __call__(self, step: int) -> float:
        """Learning rate of step 0, 1, ..."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        return self.lr * self.factor ** ((step - self.warmup) // self.every)


class Cosine:
    """Fall from `lr` to `final` along half a cosine (Loshchilov and Hutter, 2017).

    Parameters
    ----------
    lr : float
        Highest rate.
    total : int
        Steps in all; afterwards the rate stays at `final`.
    final : float, default 0
        Lowest rate.
    warmup : int, default 0
        Steps over which the rate first rises linearly to `lr`.
    """

    def __init__(self, lr: float, total: int, *, final: float = 0.0, warmup: int = 0) -> None:
        self.lr = _rate(lr)
        self.total = checks.positive(total, "total")
        self.final = _rate(final, "final")
        self.warmup = integer(warmup, "warmup", least=0)
        if self.warmup >= self.total:
            raise ArgumentError(f"warmup ({warmup}) must be shorter than total ({total})")

    def __call__(self, step: int) -> float:
        """Learning rate of step 0, 1, ..."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        position = min((step - self.warmup) / (self.total - self.warmup), 1.0)
        return self.final + (self.lr - self.final) * 0.5 * (1 + math.cos(math.pi * position))


class OneCycle:
    """Rise to `lr` and fall to almost 0, both along cosines (Smith and Topin, 2018).

    Parameters
    ----------
    lr : float
        Highest rate; the first step has ``lr / 25``, the last ``lr / 250_000``.
    total : int
        Steps in all; afterwards the rate stays at its last value.
    rise : float, default 0.3
        Fraction of the steps before the peak.
    """

    def __init__(self, lr: float, total: int, *, rise: float = 0.3) -> None:
        self.lr = _rate(lr)
        self.total = checks.positive(total, "total")
        self.rise = checks.fraction(rise, "rise")

    def __call__(self, step: int) -> float:
        """Learning rate of step 0, 1, ..."""
        start, end = self.lr / 25, self.lr / 250_000
        last = self.total - 1
        peak = self.rise * self.total - 1
        step = min(step, last)
        if step < peak:
            return _anneal(start, self.lr, step / peak)
        return _anneal(self.lr, end, (step - peak) / (last - peak) if last > peak else 0.0)


def _anneal(start: float, end: float, position: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * position))


SCHEDULES: dict[str, Callable[[float, int], float | Schedule]] = {
    "constant": lambda lr, total: _rate(lr),
    "cosine": lambda lr, total: Cosine(lr, total),
    "one-cycle": lambda lr, total: OneCycle(lr, total),
    "step": lambda lr, total: StepDecay(lr, max(total // 3, 1)),
}


class _Arena:
    """The flat arrays of all parameters of one dtype."""

    def __init__(self, parameters: list[Parameter], states: int, numbers: int) -> None:
        dtype, device = parameters[0].data.dtype, parameters[0].device
        size = sum(p.size for p in parameters)
        self.parameters, self.device = parameters, device
        self.data, self.grad = (backend.zeros(size, dtype, device) for _ in range(2))
        self.states = [backend.zeros(size, dtype, device) for _ in range(states)]
        self.hyper = backend.zeros(numbers, dtype, device)
        self._lay_out()
        for p in parameters:
            p.grad = None
        self.adopt()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the views, which a copy would turn into arrays of their own."""
        return {k: v for k, v in vars(self).items() if k not in ("views", "buffers", "ends")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Move the parameters of a copy into the flat arrays of the copy."""
        vars(self).update(state)
        self._lay_out()
        self.adopt()

    def _lay_out(self) -> None:
        """Give every parameter its place."""
        self.views: list[np.ndarray] = []
        self.buffers: list[np.ndarray] = []
        self.ends: list[int] = []
        end = 0
        for p in self.parameters:
            start, end = end, end + p.size
            self.views.append(self.data[start:end].reshape(p.shape))
            self.buffers.append(self.grad[start:end].reshape(p.shape))
            self.ends.append(end)

    def adopt(self) -> None:
        """Bring back data and gradients that somebody replaced by arrays of their own."""
        for p, view, buffer in zip(self.parameters, self.views, self.buffers, strict=True):
            for name, array in (("data", p.data), ("grad", p.grad)):
                if backend.is_array(array) and backend.device_of(array) != self.device:
                    raise DeviceError(
                        f"{name} of a parameter moved from {self.device} to "
                        f"{backend.device_of(array)}: make the optimizer after model.to(...)"
                    )
                if array is not None and np.shape(array) != view.shape:
                    raise ShapeError(
                        f"{name} of a parameter of shape {view.shape} was replaced by an array of "
                        f"shape {np.shape(array)}: keep the shape, or make a new optimizer"
                    )
            if p.data is not view:
                view[...] = p.data
                p.data = view
            if p.grad is not None and p.grad is not buffer:
                buffer[...] = p.grad
                p.grad = buffer
            p._buffer = buffer

    def intact(self) -> bool:
        """Whether every parameter lives here and waits for a gradient."""
        for p, view, buffer in zip(self.parameters, self.views, self.buffers, strict=True):
            if p.data is not view or p._buffer is not buffer or p.grad is not None:
                return False
        return True

    def runs(self) -> list[slice]:
        """Longest stretches of neighbours that have a gradient."""
        found: list[slice] = []
        for p, end in zip(self.parameters, self.ends, strict=True):
            if p.grad is None:
                continue
            start = end - p.size
            if found and found[-1].stop == start:
                found[-1] = slice(found[-1].start, end)
            else:
                found.append(slice(start, end))
        return found


class Optimizer:
    """Base class: the arenas, the step count, the learning rate.

    A parameter without a gradient is left alone, its state too.

    Parameters
    ----------
    parameters : iterable of Parameter
    lr : float or callable
        Learning rate, or a schedule that maps the step (0, 1, ...) to it.
    weight_decay : float
        See the subclass.
    """

    _states = 0
    # How many numbers the kernel of a step reads.
    _numbers = 0

    def __init__(
        self, parameters: Iterable[Parameter], lr: float | Schedule, weight_decay: float = 0.0
    ) -> None:
        if isinstance(parameters, Parameter):
            raise DTypeError("parameters must be a list of Parameters, got one: put it into a list")
        several = iterate(parameters, "parameters", "Parameters, such as model.parameters()")
        unique = list({id(p): p for p in several}.values())
        if not unique:
            raise ArgumentError("an optimizer needs at least one parameter, got none")
        for p in unique:
            if not isinstance(p, Parameter):
                raise DTypeError(
                    "an optimizer takes Parameters, such as model.parameters(), "
                    f"got {type(p).__name__}"
                )
        self.schedule: Schedule = lr if callable(lr) else _Constant(_rate(lr))
        _rate(self.schedule(0))
        self.weight_decay = real(weight_decay, "weight_decay", least=0)
        self.step_count = 0
        self.parameters = unique
        by_kind: dict[Any, list[Parameter]] = {}
        for p in unique:
            by_kind.setdefault((p.data.dtype, p.device), []).append(p)
        self.arenas = [_Arena(group, self._states, self._numbers) for group in by_kind.values()]

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        return _rate(self.schedule(self.step_count))

    def zero_grad(self) -> None:
        """Forget the gradient of every parameter."""
        for p in self.parameters:
            p.grad = None

    def adopt(self) -> None:
        """Copy into the flat arrays what was assigned to ``data`` or ``grad`` of a parameter."""
        for arena in self.arenas:
            arena.adopt()

    def intact(self) -> bool:
        """Whether every parameter still lives in the flat arrays and has no gradient yet."""
        return all(arena.intact() for arena in self.arenas)

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        self.adopt()
        backend.run_ahead(self._advance)
        for arena in self.arenas:
            for run in arena.runs():
                states = [state[run] for state in arena.states]
                self._update(arena.hyper, arena.grad[run], arena.data[run], states)

    def _advance(self) -> None:
        """Count the step and write its numbers to where the kernel reads them."""
        lr = _rate(self.schedule(self.step_count), "lr, which the schedule gave,")
        self.step_count += 1
        numbers = self._hyper(lr)
        for arena in self.arenas:
            backend.fill(arena.hyper, numbers)

    def _hyper(self, lr: float) -> tuple[float, ...]:
        """Numbers of this step, in the order of the kernel."""
        raise NotImplementedError

    def _update(
        self, hyper: np.ndarray, grad: np.ndarray, data: np.ndarray, states: list[np.ndarray]
    ) -> None:
        raise NotImplementedError

    def gradient_norm(self) -> float:
        """Euclidean norm of the gradient that the last step used, over all trained parameters."""
        total = 0.0
        for arena in self.arenas:
            for p, buffer in zip(arena.parameters, arena.buffers, strict=True):
                if p.requires_grad:
                    total += float(np.square(backend.host(buffer), dtype=np.float64).sum())
        return math.sqrt(total)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of the step count and the state arrays, by name."""
        state = {"step_count": np.array(self.step_count)}
        for a, arena in enumerate(self.arenas):
            for s, array in enumerate(arena.states):
                state[f"arena{a}.state{s}"] = np.array(backend.host(array))
        return state

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Restore what `state_dict` returned.

        Nothing is changed unless everything fits.

        Raises
        ------
        ArgumentError
            The state belongs to another optimizer or another set of parameters, or its step count
            is no count.
        DTypeError
            It is no mapping, or holds something else than numbers.
        """
        checks.mapping(state, "state")
        own = self.state_dict()
        given = {name: backend.host(array) for name, array in state.items()}
        if own.keys() != given.keys() or any(own[k].shape != given[k].shape for k in own):
            raise ArgumentError(
                "the state belongs to another optimizer or model: expected "
                f"{ {k: v.shape for k, v in own.items()} }, "
                f"got { {k: v.shape for k, v in given.items()} }"
            )
        for name, array in given.items():
            if array.dtype.kind not in "fiu":
                raise DTypeError(f"{name} must hold numbers, got {array.dtype}")
        count = given["step_count"]
        checks.running_statistic(count, checks.COUNTERS[0], count.dtype, "step_count")
        self.step_count = int(count)
        for a, arena in enumerate(self.arenas):
            for s, array in enumerate(arena.states):
                backend.assign(array, given[f"arena{a}.state{s}"])


class SGD(Optimizer):
    """Stochastic gradient descent: ``v = momentum * v + g; p -= lr * v``.

    Parameters
    ----------
    parameters : iterable of Parameter
    lr : float or callable
        Learning rate, or a schedule that maps the step (0, 1, ...) to it.
    momentum : float, default 0
        In [0, 1].
    nesterov : bool, default False
        Step along ``g + momentum * v`` (Nesterov, 1983, in PyTorch's form).
    weight_decay : float, default 0
        ``weight_decay * p`` is added to the gradient.
    """

    _numbers = 4

    def __init__(
        self,
        parameters: Iterable[Parameter],
        lr: float | Schedule = 1e-2,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        self.momentum = checks.fraction(momentum, "momentum")
        self.nesterov = switch(nesterov, "nesterov")
        if self.nesterov and not self.momentum:
            raise ArgumentError("nesterov needs a momentum above 0")
        self._states = 1 if self.momentum else 0
        super().__init__(parameters, lr, weight_decay)

    def _hyper(self, lr: float) -> tuple[float, ...]:
        return lr, self.momentum, self.weight_decay, float(self.nesterov)

    def _update(
        self, hyper: np.ndarray, grad: np.ndarray, data: np.ndarray, states: list[np.ndarray]
    ) -> None:
        velocity = states[0] if states else data[:0]
        kernels = backend.kernels("optim", backend.device_of(data))
        backend.run(kernels.sgd, grad, hyper, data, velocity)


class Adam(Optimizer):
    """Adam with bias correction (Kingma and Ba, 2015).

    Parameters
    ----------
    parameters : iterable of Parameter
    lr : float or callable
        Learning rate, or a schedule that maps the step (0, 1, ...) to it.
    betas : (float, float), default (0.9, 0.999)
        Decay of the averages of the gradient and of its square, in [0, 1).
    eps : float, default 1e-8
        Added to the square root.
    weight_decay : float, default 0
        ``weight_decay * p`` is added to the gradient; `AdamW` decouples it.
    """

    _states = 2
    _numbers = 9
    _decoupled = False

    def __init__(
        self,
        parameters: Iterable[Parameter],
        lr: float | Schedule = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if not isinstance(betas, tuple | list):
            raise DTypeError(f"betas must be a pair of numbers, got {type(betas).__name__}")
        if len(betas) != 2:
            raise ArgumentError(f"betas must be two numbers in [0, 1), got {betas!r}")
        self.betas = tuple(checks.fraction(beta, "betas") for beta in betas)
        if max(self.betas) == 1:
            raise ArgumentError(f"betas must be two numbers in [0, 1), got {betas!r}")
        self.eps = checks.real(eps, "eps")
        if self.eps < 0:
            raise ArgumentError(f"eps must be >= 0, got {eps}")
        super().__init__(parameters, lr, weight_decay)

    def _hyper(self, lr: float) -> tuple[float, ...]:
        coupled, decoupled = (
            (0.0, self.weight_decay) if self._decoupled else (self.weight_decay, 0.0)
        )
        beta1, beta2 = self.betas
        bias1, bias2 = 1 - beta1**self.step_count, 1 - beta2**self.step_count
        return (
            lr / bias1, beta1, beta2, 1 - beta1, 1 - beta2, self.eps, coupled,
            1 - lr * decoupled, 1 / math.sqrt(bias2),
        )  # fmt: skip

    def _update(
        self, hyper: np.ndarray, grad: np.ndarray, data: np.ndarray, states: list[np.ndarray]
    ) -> None:
        kernels = backend.kernels("optim", backend.device_of(data))
        backend.run(kernels.adam, grad, hyper, data, *states)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019).

    Parameters
    ----------
    parameters : iterable of Parameter
    lr : float or callable
        Learning rate, or a schedule that maps the step (0, 1, ...) to it.
    betas : (float, float), default (0.9, 0.999)
    eps : float, default 1e-8
    weight_decay : float, default 0.01
        Each step first scales the parameters by ``1 - lr * weight_decay``.
    """

    _decoupled = True

    def __init__(
        self,
        parameters: Iterable[Parameter],
        lr: float | Schedule = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(parameters, lr, betas=betas, eps=eps, weight_decay=weight_decay)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"adam": Adam, "adamw": AdamW, "sgd": SGD}


class _Constant:
    def __init__(self, lr: float) -> None:
        self.lr = lr

    def __call__(self, step: int) -> float:
        return self.lr


def _rate(value: Any, name: str = "lr") -> float:
    return real(value, name, least=0)
