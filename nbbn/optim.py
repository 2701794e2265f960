"""Optimizers and learning-rate schedules.

An optimizer moves its parameters, gradients and state into flat arrays, one per group and dtype: a
step is one kernel over one array, and all gradients can be reduced or saved as one. A parameter's
``data`` becomes a view into them.

Where an optimizer takes parameters it also takes a list of groups with settings of their own, as
PyTorch's: dicts with "params" and whatever differs from the optimizer's arguments.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np

from . import backend
from ._validation import fraction, integer, iterate, mapping, positive, possible, real, switch
from .autograd.tensor import Parameter
from .errors import ArgumentError, DeviceError, DTypeError, NbbnError, ShapeError
from .functional import checks
from .nn.module import Module

__all__ = [
    "OPTIMIZERS", "SCHEDULES", "SGD", "Adam", "AdamW", "Cosine", "OneCycle", "Optimizer",
    "Schedule", "StepDecay", "clip_grad_norm", "decay_groups",
]  # fmt: skip

Schedule = Callable[[int], float]
Parameters = Iterable[Parameter] | Iterable[Mapping[str, Any]]


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
        self.lr = _nonnegative(lr, "lr")
        self.every = positive(every, "every")
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
        As for `StepDecay`.
    """

    def __init__(self, lr: float, total: int, *, final: float = 0.0, warmup: int = 0) -> None:
        self.lr = _nonnegative(lr, "lr")
        self.total = positive(total, "total")
        self.final = _nonnegative(final, "final")
        self.warmup = integer(warmup, "warmup", least=0)
        if self.warmup >= self.total:
            raise ArgumentError(f"warmup ({warmup}) must be shorter than total ({total})")

    def __call__(self, step: int) -> float:
        """Learning rate of step 0, 1, ..."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        position = min((step - self.warmup) / (self.total - self.warmup), 1.0)
        return _anneal(self.lr, self.final, position)


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
        self.lr = _nonnegative(lr, "lr")
        self.total = positive(total, "total")
        self.rise = fraction(rise, "rise")

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
    "constant": lambda lr, total: _nonnegative(lr, "lr"),
    "cosine": Cosine,
    "one-cycle": OneCycle,
    "step": lambda lr, total: StepDecay(lr, max(total // 3, 1)),
}


class _Group(MutableMapping[str, Any]):
    """The parameters that share settings: a mapping, as PyTorch's groups are."""

    def __init__(self, kind: type[Optimizer], parameters: list[Parameter], given: Any) -> None:
        self._kind, self.parameters = kind, tuple(parameters)
        # Steps that the optimizer has made: where the schedule is.
        self.step = 0
        self._settings = kind._checked(given)
        self.rate()
        self.states = kind._needed(self._settings)

    @property
    def schedule(self) -> Schedule:
        """What maps the step to the learning rate."""
        schedule: Schedule = self._settings["lr"]
        return schedule

    def rate(self, name: str = "lr") -> float:
        """Learning rate of the next step."""
        return _nonnegative(self.schedule(self.step), name)

    def changed(self, name: str, value: Any) -> dict[str, Any]:
        """Return the settings with another value for one of them, checked."""
        if name == "params":
            raise ArgumentError(
                "the parameters of a group stay: use optimizer.add_param_group, or make a new "
                "optimizer"
            )
        _check_keys([name], self._settings)
        settings = self._kind._checked({**self._settings, name: value})
        _nonnegative(settings["lr"](self.step), "lr")
        if self._kind._needed(settings) > self.states:
            raise ArgumentError(
                f"{name} cannot become {value}: this {self._kind.__name__} was made without the "
                "state for it; make a new one"
            )
        return settings

    def settings(self) -> dict[str, Any]:
        """Return all settings but the learning rate."""
        return {name: value for name, value in self._settings.items() if name != "lr"}

    def __getitem__(self, name: str) -> Any:
        if name == "params":
            return self.parameters
        return self.rate() if name == "lr" else self._settings[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._settings = self.changed(name, value)

    def __delitem__(self, name: str) -> None:
        raise ArgumentError(f"a group keeps all of its settings, {name} too: assign another value")

    def __iter__(self) -> Iterator[str]:
        return iter(("params", *self._settings))

    def __len__(self) -> int:
        return 1 + len(self._settings)

    def __repr__(self) -> str:
        settings = "".join(f", {name}={self[name]!r}" for name in self._settings)
        return f"Group({len(self.parameters)} parameters{settings})"


class _Block:
    """Neighbours in an arena that have made the same steps: one launch."""

    def __init__(self, arena: _Arena, first: int, last: int, count: int) -> None:
        self.group, self.first, self.last, self.count = arena.group, first, last, count
        part = slice(arena.ends[first] - arena.parameters[first].size, arena.ends[last - 1])
        self.hyper, self.grad, self.data = arena.hyper[first], arena.grad[part], arena.data[part]
        self.states = [state[part] for state in arena.states]


class _Arena:
    """The flat arrays of all parameters of one group and dtype."""

    def __init__(self, group: _Group, parameters: list[Parameter], numbers: int) -> None:
        dtype, device = parameters[0].data.dtype, parameters[0].device
        size = sum(p.size for p in parameters)
        self.group, self.parameters, self.device = group, parameters, device
        possible((size,), dtype, "an array of all parameters")
        try:
            self.data, self.grad, *self.states = (
                backend.aligned_zeros(size, dtype, device) for _ in range(2 + group.states)
            )
        except MemoryError:
            arrays = 2 + group.states
            raise ArgumentError(
                f"{size:,} parameters need {arrays * size * dtype.itemsize / 2**30:,.1f} GiB, "
                f"{arrays} arrays of {dtype}, which cannot be had: make the model smaller"
            ) from None
        # The numbers of a block are where its first parameter's are.
        self.hyper = backend.zeros((len(parameters), numbers), dtype, device)
        self._lay_out([0] * len(parameters))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the views, which a copy would turn into arrays of their own."""
        kept = {k: v for k, v in vars(self).items() if k not in ("views", "buffers", "ends")}
        return {**kept, "blocks": self.counts()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Move the parameters of a copy into the flat arrays of the copy."""
        vars(self).update(state)
        self._lay_out(state["blocks"])
        self.adopt()

    def _lay_out(self, counts: list[int]) -> None:
        """Give every parameter its place, and the number of its steps."""
        self.views: list[np.ndarray] = []
        self.buffers: list[np.ndarray] = []
        self.ends: list[int] = []
        end = 0
        for p in self.parameters:
            start, end = end, end + p.size
            self.views.append(self.data[start:end].reshape(p.shape))
            self.buffers.append(self.grad[start:end].reshape(p.shape))
            self.ends.append(end)
        self.cut([(count,) for count in counts])

    def cut(self, keys: list[tuple[int, ...]]) -> None:
        """Make a block of all neighbours with equal keys, which begin with their count."""
        self.blocks: list[_Block] = []
        end = 0
        for (count, *_), members in itertools.groupby(keys):
            start, end = end, end + len(list(members))
            self.blocks.append(_Block(self, start, end, count))

    def counts(self) -> list[int]:
        """Steps that each parameter has made."""
        return [block.count for block in self.blocks for _ in range(block.first, block.last)]

    def separate(self) -> bool:
        """Cut blocks that have a gradient in parts only; return whether there were any."""
        without = [p.grad is None for p in self.parameters]
        pieces = [without[block.first : block.last] for block in self.blocks]
        if not any(0 < sum(piece) < len(piece) for piece in pieces):
            return False
        parts = zip(self.blocks, pieces, strict=True)
        self.cut([(block.count, block.first, none) for block, piece in parts for none in piece])
        return True

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


def _shared(name: str, doc: str) -> Any:
    """Make the property of an optimizer that is one setting of all its groups."""

    def get(self: Optimizer) -> Any:
        values = [group[name] for group in self.param_groups]
        if any(value != values[0] for value in values):
            raise ArgumentError(
                f"{name} differs between the groups, {values}: read it from param_groups"
            )
        return values[0]

    def put(self: Optimizer, value: Any) -> None:
        changed = [group.changed(name, value) for group in self.param_groups]
        for group, settings in zip(self.param_groups, changed, strict=True):
            group._settings = settings

    get.__doc__ = doc
    return property(get, put)


class Optimizer:
    """Base class: groups, arenas, the step count, the learning rate.

    A parameter without a gradient is left alone, its state too, and its count: the bias correction
    of `Adam` goes by the steps that the parameter has made.

    Parameters
    ----------
    parameters : iterable of Parameter, or of dict
        Groups are dicts with "params", and any setting below that differs: "lr" (a number or a
        schedule), "weight_decay", and what the subclass takes.
    lr : float or callable
        Learning rate, or a schedule that maps the step (0, 1, ...) to it.
    weight_decay : float
        See the subclass.
    **settings
        Further ones of the subclass.

    Attributes
    ----------
    layout : int
        Changes whenever a recorded step must be recorded again.
    """

    # The kernel of a step, how many numbers it reads, and how many states it keeps.
    _kernel = ""
    _numbers = 0
    _states = 0

    def __init__(
        self,
        parameters: Parameters,
        lr: float | Schedule,
        weight_decay: float = 0.0,
        **settings: Any,
    ) -> None:
        given = {"lr": lr, "weight_decay": weight_decay, **settings}
        self._defaults = self._checked(given)
        _nonnegative(self._defaults["lr"](0), "lr")
        self.parameters: list[Parameter] = []
        self.arenas: list[_Arena] = []
        self._groups: tuple[_Group, ...] = ()
        self.layout = 0
        groups = _as_groups(parameters)
        self._add(groups, "group {}: " if isinstance(groups[0], Mapping) else "")

    lr = _shared("lr", "Learning rate of the next step; set it to a number or a schedule.")
    weight_decay = _shared("weight_decay", "Weight decay, where it is the same for all groups.")

    @property
    def param_groups(self) -> tuple[_Group, ...]:
        """The groups: mappings of "params" and settings, effective from the next step when set."""
        return self._groups

    @property
    def schedule(self) -> Schedule:
        """What maps the step to the learning rate, where it is the same for all groups."""
        schedules = [group.schedule for group in self._groups]
        if any(schedule is not schedules[0] for schedule in schedules):
            raise ArgumentError("the schedule differs between the groups")
        return schedules[0]

    @schedule.setter
    def schedule(self, value: Schedule) -> None:
        self.lr = value

    @property
    def step_count(self) -> int:
        """Number of steps so far."""
        return self._groups[0].step

    @step_count.setter
    def step_count(self, value: int) -> None:
        for group in self._groups:
            group.step = value

    @property
    def max_norm(self) -> float | None:
        """Largest norm of a gradient, over all parameters together; None, the default, for any.

        `step` scales a larger one down to it, as `clip_grad_norm` does; weight decay comes after.
        """
        return vars(self).get("max_norm")

    @max_norm.setter
    def max_norm(self, value: float | None) -> None:
        limit = None if value is None else real(value, "max_norm", above=0)
        if limit == self.max_norm:
            return
        # Where there is none, checkpoints know nothing of it, as those of earlier versions.
        vars(self).pop("max_norm", None)
        if limit is not None:
            vars(self)["max_norm"] = limit
        self.layout += 1

    def arrays(self) -> list[np.ndarray]:
        """Return every array of this optimizer: flat parameters, gradients, state, step numbers.

        ``data`` and ``grad`` of parameters are views into them.
        """
        return [
            array
            for arena in self.arenas
            for array in (arena.data, arena.grad, *arena.states, arena.hyper)
        ]

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Take a group of more parameters, such as those of layers that thaw later.

        An ArgumentError for one without "params", with a parameter that has a group already, an
        unknown key or a bad value; a DTypeError for something of another type.
        """
        if not isinstance(group, Mapping):
            raise DTypeError(f"a group must be a dict with 'params', got {type(group).__name__}")
        self._add([group], "")

    def _add(self, given: list[Mapping[str, Any]], label: str) -> None:
        """Take groups, all or none."""
        groups: list[_Group] = []
        taken = {id(p): number for number, g in enumerate(self._groups) for p in g.parameters}
        for number, settings in enumerate(given, len(self._groups)):
            try:
                parameters = _parameters_of(settings, [*self._defaults])
                for p in parameters:
                    other = taken.setdefault(id(p), number)
                    if other != number:
                        raise ArgumentError(
                            f"a parameter of shape {p.shape} is in group {other} already: each "
                            "belongs to one group"
                        )
                own = {name: value for name, value in settings.items() if name != "params"}
                groups.append(_Group(type(self), parameters, {**self._defaults, **own}))
            except NbbnError as error:
                raise type(error)(f"{label.format(number)}{error}") from None
        arenas: list[_Arena] = []
        for group in groups:
            by_kind: dict[Any, list[Parameter]] = {}
            for p in group.parameters:
                by_kind.setdefault((p.data.dtype, p.device), []).append(p)
            arenas += [_Arena(group, same, self._numbers) for same in by_kind.values()]
        for arena in arenas:
            for p in arena.parameters:
                p.grad = None
            arena.adopt()
        for group in groups:
            group.step = self.step_count if self._groups else 0
            self.parameters += group.parameters
        self.arenas += arenas
        self._groups += tuple(groups)
        self.layout += 1

    @classmethod
    def _checked(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Check the settings of a group; a learning rate that is a number becomes a schedule."""
        lr = settings["lr"]
        return {
            "lr": lr if callable(lr) else _Constant(_nonnegative(lr, "lr")),
            "weight_decay": _nonnegative(settings["weight_decay"], "weight_decay"),
        }

    @classmethod
    def _needed(cls, settings: dict[str, Any]) -> int:
        """How many state arrays the settings of a group ask for."""
        return cls._states

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
        blocks: list[_Block] = []
        for arena in self.arenas:
            if arena.separate():
                self.layout += 1
            items = arena.parameters
            blocks += [block for block in arena.blocks if items[block.first].grad is not None]
        backend.run_ahead(self._advance, tuple(blocks))
        if self.max_norm is not None:
            gradients = (p.grad for p in self.parameters if p.grad is not None)
            backend.run(_clip, self.max_norm, *gradients)
        for block in blocks:
            self._update(block.hyper, block.grad, block.data, block.states)

    def _advance(self, blocks: tuple[_Block, ...]) -> None:
        """Count the step and write its numbers to where the kernels read them."""
        rates = {id(g): g.rate("lr, which the schedule gave,") for g in self._groups}
        numbers = [self._hyper(rates[id(b.group)], b.group, b.count + 1) for b in blocks]
        for group in self._groups:
            group.step += 1
        for block, values in zip(blocks, numbers, strict=True):
            block.count += 1
            backend.fill(block.hyper, values)

    def _hyper(self, lr: float, group: _Group, count: int) -> tuple[float, ...]:
        """Numbers of parameters that make their step `count`, in the order of the kernel."""
        raise NotImplementedError

    def _update(
        self, hyper: np.ndarray, grad: np.ndarray, data: np.ndarray, states: list[np.ndarray]
    ) -> None:
        launcher = getattr(backend.kernels("optim", backend.device_of(data)), self._kernel)
        # A kernel takes an empty array for the state that is not kept.
        backend.run(launcher, grad, hyper, data, *(states or [data[:0]]))

    def gradient_norm(self) -> float:
        """Euclidean norm of the gradient that the last step used, over all trained parameters.

        Of one that was clipped it is `max_norm`.
        """
        total = 0.0
        for arena in self.arenas:
            for p, buffer in zip(arena.parameters, arena.buffers, strict=True):
                if p.requires_grad:
                    total += float(np.square(backend.host(buffer), dtype=np.float64).sum())
        return math.sqrt(total)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of the step count, the count of each parameter and the state arrays, by name.

        Settings are not among them.
        """
        counts = [count for arena in self.arenas for count in arena.counts()]
        state = {"step_count": np.array(self.step_count), "counts": np.array(counts, np.int64)}
        for a, arena in enumerate(self.arenas):
            for s, array in enumerate(arena.states):
                state[f"arena{a}.state{s}"] = np.array(backend.host(array))
        return state

    def expected(self, state: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return `state_dict`, but no counts where `state`, of earlier versions, has none."""
        mapping(state, "state", "arrays")
        own = self.state_dict()
        if "counts" not in state:
            del own["counts"]
        return own

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Restore what `state_dict` returned. Nothing is changed unless everything fits.

        States of earlier versions have no counts: there every parameter has made all steps. The
        state of another optimizer or of other parameters, and a step count that is none, raise an
        ArgumentError; no mapping, and something else than numbers in it, a DTypeError.
        """
        checks.mapping(state, "state")
        own = self.expected(state)
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
        for name in ("step_count", "counts"):
            if name in given:
                checks.running_statistic(given[name], checks.COUNTERS[0], given[name].dtype, name)
        self.step_count = int(given["step_count"])
        counts = given.get("counts", np.full(len(self.parameters), self.step_count))
        self.layout += 1
        end = 0
        for a, arena in enumerate(self.arenas):
            start, end = end, end + len(arena.parameters)
            arena.cut([(int(count),) for count in counts[start:end]])
            for s, array in enumerate(arena.states):
                backend.assign(array, given[f"arena{a}.state{s}"])


class SGD(Optimizer):
    """Stochastic gradient descent: ``v = momentum * v + g; p -= lr * v``.

    Parameters
    ----------
    parameters, lr
        See `Optimizer`.
    momentum : float, default 0
        In [0, 1].
    nesterov : bool, default False
        Step along ``g + momentum * v`` (Nesterov, 1983, in PyTorch's form).
    weight_decay : float, default 0
        ``weight_decay * p`` is added to the gradient.
    """

    _kernel, _numbers = "sgd", 4

    def __init__(
        self,
        parameters: Parameters,
        lr: float | Schedule = 1e-2,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr, weight_decay, momentum=momentum, nesterov=nesterov)

    momentum = _shared("momentum", "Momentum, where it is the same for all groups.")
    nesterov = _shared("nesterov", "Whether all groups step in Nesterov's form.")

    @classmethod
    def _checked(cls, settings: dict[str, Any]) -> dict[str, Any]:
        momentum = fraction(settings["momentum"], "momentum")
        nesterov = switch(settings["nesterov"], "nesterov")
        if nesterov and not momentum:
            raise ArgumentError("nesterov needs a momentum above 0")
        return {**super()._checked(settings), "momentum": momentum, "nesterov": nesterov}

    @classmethod
    def _needed(cls, settings: dict[str, Any]) -> int:
        return 1 if settings["momentum"] else 0

    def _hyper(self, lr: float, group: _Group, count: int) -> tuple[float, ...]:
        return lr, group["momentum"], group["weight_decay"], float(group["nesterov"])


class Adam(Optimizer):
    """Adam with bias correction (Kingma and Ba, 2015).

    Parameters
    ----------
    parameters, lr
        See `Optimizer`.
    betas : (float, float), default (0.9, 0.999)
        Decay of the averages of the gradient and of its square, in [0, 1).
    eps : float, default 1e-8
        Added to the square root.
    weight_decay : float, default 0
        ``weight_decay * p`` is added to the gradient; `AdamW` decouples it.
    """

    _kernel, _numbers, _states = "adam", 9, 2
    _decoupled = False

    def __init__(
        self,
        parameters: Parameters,
        lr: float | Schedule = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr, weight_decay, betas=betas, eps=eps)

    betas = _shared("betas", "Decay of both averages, where it is the same for all groups.")
    eps = _shared("eps", "What is added to the square root, where it is the same for all groups.")

    @classmethod
    def _checked(cls, settings: dict[str, Any]) -> dict[str, Any]:
        betas = settings["betas"]
        if not isinstance(betas, tuple | list):
            raise DTypeError(f"betas must be a pair of numbers, got {type(betas).__name__}")
        values = tuple(fraction(beta, "betas") for beta in betas)
        if len(values) != 2 or max(values) == 1:
            raise ArgumentError(f"betas must be two numbers in [0, 1), got {betas!r}")
        eps = _nonnegative(settings["eps"], "eps")
        return {**super()._checked(settings), "betas": values, "eps": eps}

    def _hyper(self, lr: float, group: _Group, count: int) -> tuple[float, ...]:
        decay, (beta1, beta2) = group["weight_decay"], group["betas"]
        coupled, decoupled = (0.0, decay) if self._decoupled else (decay, 0.0)
        bias1, bias2 = 1 - beta1**count, 1 - beta2**count
        return (
            lr / bias1, beta1, beta2, 1 - beta1, 1 - beta2, group["eps"], coupled,
            1 - lr * decoupled, 1 / math.sqrt(bias2),
        )  # fmt: skip


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019). Otherwise as `Adam`.

    Parameters
    ----------
    weight_decay : float, default 0.01
        Each step first scales the parameters by ``1 - lr * weight_decay``.
    """

    _decoupled = True

    def __init__(
        self,
        parameters: Parameters,
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


def clip_grad_norm(parameters: Iterable[Parameter], max_norm: float) -> float:
    """Scale gradients down, in place, until their norm over all parameters is at most `max_norm`.

    For loops of your own, between `backward` and the optimizer's `step`. `Optimizer.max_norm` does
    the same in every step, recorded ones included, bit for bit.

    Parameters
    ----------
    parameters : iterable of Parameter
        Those without a gradient count for nothing.
    max_norm : float
        Above 0.

    Returns
    -------
    float
        The norm before: the root of the sum of all squares, in float64.

    Raises
    ------
    ArgumentError, DTypeError
        `max_norm` is not above 0; something else than Parameters.
    """
    limit = real(max_norm, "max_norm", above=0)
    given = _parameters_of({"params": parameters}, [])
    gradients = [p.grad for p in given if p.grad is not None]
    norm = float(_norm(gradients)) if gradients else 0.0
    backend.run(_clip, limit, *gradients)
    return norm


def _norm(gradients: Iterable[np.ndarray]) -> Any:
    return np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in gradients))


def _clip(limit: float, *gradients: np.ndarray) -> None:
    # Exactly 1 where nothing is to be done.
    scale = limit / np.maximum(_norm(gradients), limit)
    for gradient in gradients:
        gradient *= scale.astype(gradient.dtype)


def decay_groups(model: Module, weight_decay: float) -> list[dict[str, Any]]:
    """Make groups of which only the weights decay: not gamma, beta and biases.

    These are told by their number of dimensions, which is at most 1.

    Parameters
    ----------
    model : Module
    weight_decay : float

    Returns
    -------
    list of dict
        What an optimizer takes instead of parameters.

    Raises
    ------
    DTypeError, ArgumentError
        A `model` that is not a Module, a `weight_decay` that is no number of at least 0.
    """
    if not isinstance(model, Module):
        raise DTypeError(f"model must be a Module, got {type(model).__name__}")
    decay = _nonnegative(weight_decay, "weight_decay")
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _as_groups(parameters: Any) -> list[Mapping[str, Any]]:
    """Check what an optimizer is given; return its groups."""
    items = _items(parameters, "parameters")
    if not items:
        raise ArgumentError("an optimizer needs at least one parameter, got none")
    groups = [item for item in items if isinstance(item, Mapping)]
    if not groups:
        return [{"params": items}]
    if len(groups) < len(items):
        raise DTypeError("an optimizer takes Parameters or groups (dicts), got both in one list")
    return groups


def _items(parameters: Any, what: str) -> list[Any]:
    """List what is to be Parameters or groups, unless its elements cannot be either."""
    if isinstance(parameters, Parameter):
        raise DTypeError("parameters must be a list of Parameters, got one: put it into a list")
    return list(iterate(parameters, what, "Parameters, such as model.parameters(), or of groups"))


def _parameters_of(group: Mapping[str, Any], settings: list[str]) -> list[Parameter]:
    """Return the parameters of a group, each once; check its keys."""
    _check_keys(group, ["params", *settings])
    if "params" not in group:
        raise ArgumentError(f"a group needs 'params', got only {', '.join(map(repr, group))}")
    found = group["params"]
    found = [found] if isinstance(found, Parameter) else _items(found, "'params'")
    if not found:
        raise ArgumentError("a group needs at least one parameter, got none: leave it out")
    for p in found:
        if not isinstance(p, Parameter):
            raise DTypeError(
                f"an optimizer takes Parameters, such as model.parameters(), got {type(p).__name__}"
            )
    return list({id(p): p for p in found}.values())


def _check_keys(names: Iterable[str], allowed: Iterable[str]) -> None:
    for name in names:
        if name not in allowed:
            raise ArgumentError(
                f"a group has no setting {name!r}: the settings are {', '.join(allowed)}"
            )


def _nonnegative(value: Any, name: str) -> float:
    return real(value, name, least=0)
