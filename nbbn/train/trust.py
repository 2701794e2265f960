"""Which Python of a training step may be skipped when the step is replayed.

A replay repeats launches and runs nothing else. So all Python of the step must be known to do
nothing but launch: nbbn's own; that of users which `transparent` can read; and what its author
declares by ``recordable = True`` in the class that defines it, or by `recordable` above a function.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from .. import _validation, backend
from ..autograd.op import Op
from ..autograd.tensor import Parameter, Tensor, apply
from ..errors import DTypeError
from ..nn.module import Module
from ..optim import Optimizer
from .transparent import STATIC, TENSOR, VALUE, Known, Opaque, read

__all__ = ["recordable"]

_Function = TypeVar("_Function", bound=Callable[..., Any])

# What no step calls, or every replay calls too.
_FREE = {
    "__init__", "__repr__", "__str__", "children", "eval", "gradient_norm", "load_state_dict", "lr",
    "modules", "named_modules", "parameters", "state_dict", "to", "train",
}  # fmt: skip
# What a replay of an optimizer's step calls, at its place among the launches.
_LIVE = {"_advance", "_hyper"}
_IMMUTABLE = {bool, bytes, complex, float, int, str, type(None), type(...)}
_MISSING = object()
_OF_NUMBERS = (abs, bool, float, int, len, max, min, range, round, sum, tuple)


def recordable(function: _Function) -> _Function:
    """Declare that all a function does is apply layers and Tensor operations.

    A recorded training step runs it while recording only, and then replays what it launched. For a
    class, such as a Module with a forward of its own, set ``recordable = True`` in its body.

    Parameters
    ----------
    function : callable
        Such as a loss.

    Returns
    -------
    callable
        The same function.

    Raises
    ------
    DTypeError
        Not a function, or one that cannot carry the mark, such as a built-in one.
    """
    _validation.function(function, "what is declared")
    try:
        function.recordable = True  # type: ignore[attr-defined]
    except (AttributeError, TypeError):
        raise DTypeError(f"{function!r:.80} cannot be declared: wrap it in a def") from None
    return function


class Untrusted(Opaque):  # not an error: the step runs eagerly
    """Something in a step must not be skipped."""


class Audit:
    """Looks at all Python that a replay of a step would skip, or raises `Untrusted`."""

    def __init__(self, model: Module, loss: Callable[..., Any], optimizer: Optimizer) -> None:
        # All modules that the step applies, and all tensors that no optimizer holds.
        self.modules: list[Module] = []
        self.tensors: list[Tensor] = []
        # What the optimizer writes ahead of a step, such as its learning rate.
        self.numbers: list[Any] = []
        # Whether some of the code is trusted because its author says so.
        self.declared = False
        # Code of the user's that replays run, and that may look at gradients.
        self.live: str | None = None
        # Numbers of NumPy's that a name stands for: another one would be noticed.
        self.scalars: list[np.generic] = []
        self._kinds: dict[int, str] = {}
        self._held: dict[int, tuple[str, Any]] = {}
        self._guards: list[tuple[Callable[[], Any], Any]] = []
        self._reading: list[Any] = []
        for module in model.modules():
            self._module(module)
        self.call(loss, [self._kinds[id(model)], VALUE], {})
        self._optimizer(optimizer)
        owned = {id(p) for p in optimizer.parameters}
        for _, leaf in [*self._leaves()]:
            kind = type(leaf)
            if isinstance(leaf, Tensor) and not (_is_own(kind) or vars(kind).get("recordable")):
                raise Untrusted(_advice(kind.__qualname__, "it is a kind of Tensor", kind))
            if isinstance(leaf, Tensor) and id(leaf) not in owned:
                self.tensors.append(leaf)
                self._guard(functools.partial(getattr, leaf, "data"), leaf.data)

    def holds(self) -> bool:
        """Whether everything that was looked at is still the same."""
        for current, value in self._guards:  # noqa: SIM110 - every step: a generator costs more
            if current() is not value:
                return False
        return True

    def versions(self) -> list[int]:
        """Return numbers that change when an attribute of a module does."""
        return [module._version for module in self.modules]

    def arrays(self) -> list[tuple[str, Any]]:
        """Return what the step may read and write besides the batch, each array with its name."""
        found = [
            (name, leaf.data if isinstance(leaf, Tensor) else leaf) for name, leaf in self._leaves()
        ]
        # Gradients of what no optimizer has add up from step to step.
        return found + [("a gradient", t._buffer) for t in self.tensors if t._buffer is not None]

    def _leaves(self) -> Iterator[tuple[str, Any]]:
        for module in self.modules:
            yield from _leaves(f"in {type(module).__name__}", vars(module))
        for name, value in self._held.values():
            yield from _leaves(name, value)

    def _guard(self, read: Callable[[], Any], value: Any) -> None:
        self._guards.append((read, value))

    def _entry(self, names: Any, name: str) -> None:
        """Guard what a name stands for in a namespace, or that it stands for nothing."""
        self._guard(functools.partial(names.get, name, _MISSING), names.get(name, _MISSING))

    # ------------------------------------------------------------ the parts of a step

    def _module(self, module: Module) -> str:
        if id(module) not in self._kinds:
            self._kinds[id(module)] = VALUE
            self.modules.append(module)
            self._overrides(module)
            forward = self.attribute(module, "forward")
            self._kinds[id(module)] = self._function(forward, [TENSOR], {})
        return self._kinds[id(module)]

    def _optimizer(self, optimizer: Optimizer) -> None:
        self._overrides(optimizer)
        self._held[id(optimizer)] = "the optimizer", vars(optimizer)
        for arena in optimizer.arenas:
            self._held[id(arena)] = "the optimizer", {**vars(arena), "hyper": None}
        self.numbers = [arena.hyper for arena in optimizer.arenas]
        for name in ("step", "_update", "zero_grad", "adopt"):
            self._guard(functools.partial(vars(optimizer).get, name), None)
        for group in optimizer.param_groups:
            try:
                if not _is_own(type(group.schedule)):
                    self.call(group.schedule, [STATIC], {})
            except Untrusted:
                self.live = "a learning-rate schedule"

    def _overrides(self, instance: Any) -> None:
        """Look at what a user's classes put in the place of methods that a step calls."""
        kinds = type(instance).__mro__
        for position, kind in enumerate(kinds):
            if _is_own(kind) or kind is object:
                continue
            if vars(kind).get("recordable") is True:
                self.declared = True
                continue
            trusted = [k for k in kinds[position + 1 :] if _is_own(k) or "recordable" in vars(k)]
            names = {"__getattr__", "__getattribute__"}.union(*map(vars, trusted))
            # A layer reads its settings by name.
            layer = len([k for k in trusted if k is not Module]) > 0
            for name, value in vars(kind).items():
                concerns = name in names or (layer and hasattr(type(value), "__set__"))
                if concerns and hasattr(type(value), "__get__"):
                    self._override(instance, kind, name, value)
        for name, value in vars(instance).items():
            if callable(value) and isinstance(
                getattr(type(instance), name, None), types.FunctionType
            ):
                self._override(instance, None, name, value)

    def _override(self, instance: Any, kind: type | None, name: str, value: Any) -> None:
        if name in _FREE or (name == "forward" and isinstance(instance, Module)):
            return
        if name in ("__dict__", "__weakref__", "__doc__") or getattr(value, "recordable", False):
            return
        label = f"{(kind or type(instance)).__qualname__}.{name}"
        if name in _LIVE and isinstance(instance, Optimizer):
            self.live = label
            return
        raise Untrusted(_advice(label, "it replaces a method of nbbn's", kind))

    # ------------------------------------------------------------ what `transparent` asks

    def kind(self, value: Any) -> str | None:
        """Return the kind of an object that is used as a value; None if it is no such."""
        if type(value) in _IMMUTABLE or isinstance(value, np.dtype):
            return STATIC
        if isinstance(value, tuple):
            kinds = {self.kind(item) for item in value}
            return STATIC if kinds <= {STATIC} else None if None in kinds else VALUE
        if type(value) in (Tensor, Parameter) or backend.is_array(value):
            self._held[id(value)] = "a constant", [value]
            return TENSOR if isinstance(value, Tensor) else VALUE
        if isinstance(value, np.generic):
            self.scalars.append(value)
        return VALUE if isinstance(value, np.generic | np.random.Generator) else None

    def is_op(self, value: Any) -> bool:
        """Whether an object is an operation."""
        return isinstance(value, type) and issubclass(value, Op)

    def named(self, function: Any, name: str) -> Any:
        """Return what a name stands for in a function, where it is not local."""
        code = function.__code__
        if name in code.co_freevars:
            cell = function.__closure__[code.co_freevars.index(name)]
            self._guard(functools.partial(getattr, cell, "cell_contents", None), cell.cell_contents)
            return cell.cell_contents
        names = function.__globals__
        self._entry(names, name)
        return names[name] if name in names else function.__builtins__[name]

    def attribute(self, owner: Any, name: str) -> Any:
        """Return an attribute of an object without running code of its class."""
        if isinstance(owner, types.ModuleType):
            value = getattr(owner, name)
            self._entry(vars(owner), name)
            return value
        kinds = type(owner).__mro__
        kind = next((k for k in kinds if name in vars(k)), None)
        value = vars(kind)[name] if kind else None
        if hasattr(type(value), "__set__") or "__getattribute__" in {
            n for k in kinds[:-1] for n in vars(k)
        }:
            raise Opaque(f"its {name} is computed")
        own = getattr(owner, "__dict__", {})
        if not isinstance(owner, Module):
            # Of a Module the version tells.
            self._entry(own, name)
        if name in own:
            value = own[name]
        elif kind is None or not (self.kind(value) or isinstance(value, types.FunctionType)):
            raise Opaque(f"its {name} is computed")
        else:
            # A class before it may come to have one of its own.
            for place in kinds[: kinds.index(kind) + 1]:
                self._entry(vars(place), name)
            if isinstance(value, types.FunctionType):
                value = types.MethodType(value, owner)
        return value

    def inherited(self, me: Any, owner: type, name: str) -> Any:
        """Return the method that ``super()`` finds."""
        kinds = type(me.value).__mro__
        kind = next(k for k in kinds[kinds.index(owner) + 1 :] if name in vars(k))
        return types.MethodType(vars(kind)[name], me.value)

    def call(self, callee: Any, kinds: Sequence[Any], named: Mapping[str, Any]) -> str:
        """Return the kind of a call's result, once it is known to launch and nothing else."""
        if isinstance(callee, Module):
            kind = self._module(callee)
            forward = self.attribute(callee, "forward")
            if (len(kinds) > 1 or named) and not _is_own(getattr(forward, "__func__", forward)):
                return self._function(forward, kinds, named)
            return kind
        if isinstance(callee, functools.partial):
            given = [self._argument(value) for value in callee.args]
            more = {k: self._argument(v) for k, v in callee.keywords.items()}
            for name in more:
                self._entry(callee.keywords, name)
            return self.call(callee.func, [*given, *kinds], {**more, **named})
        if isinstance(callee, types.FunctionType | types.MethodType):
            return self._function(callee, kinds, named)
        if isinstance(callee, types.BuiltinFunctionType | type):
            numbers = callee in _OF_NUMBERS or getattr(callee, "__module__", "") == "math"
            if callee is len or (numbers and {*kinds, *named.values()} <= {STATIC}):
                return STATIC
            raise Opaque(f"it calls {callee.__qualname__}")
        inside = getattr(callee, "__dict__", {})
        self._held[id(callee)] = f"in {type(callee).__name__}", inside
        if _is_own(type(callee)):
            # An object of nbbn's calls what it holds.
            return [self.call(v, kinds, named) for v in inside.values() if callable(v)].pop()
        return self._function(self.attribute(callee, "__call__"), kinds, named)

    def _argument(self, value: Any) -> Any:
        kind = self.kind(value)
        if kind is None:
            raise Opaque(f"it is given a {type(value).__name__}")
        return kind

    def _function(self, callee: Any, kinds: Sequence[Any], named: Mapping[str, Any]) -> str:
        me = getattr(callee, "__self__", None)
        function = getattr(callee, "__func__", callee)
        if _is_own(function):
            return self._own(function, me, kinds)
        owner = next(
            (k for k in type(me).__mro__ if any(v is function for v in vars(k).values())), None
        )
        if getattr(function, "recordable", False) or (owner and vars(owner).get("recordable")):
            self.declared = True
            self._hold(function, me)
            return TENSOR
        for part in ("__code__", "__defaults__", "__kwdefaults__"):
            self._guard(
                functools.partial(getattr, function, part, None), getattr(function, part, None)
            )
        for name in getattr(function, "__kwdefaults__", None) or ():
            self._entry(function.__kwdefaults__, name)
        label = getattr(function, "__qualname__", repr(function))
        if function in self._reading:
            raise Untrusted(_advice(label, "it calls itself", owner))
        self._reading.append(function)
        try:
            arguments: dict[str, Any] = {}
            signature = inspect.signature(function, follow_wrapped=False)
            first = [] if me is None else [Known(me)]
            bound = signature.bind(*first, *kinds, **named).arguments
            for name, parameter in signature.parameters.items():
                if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                    raise Opaque(f"it takes any arguments (*{name})")
                arguments[name] = bound.get(name, Known(parameter.default))
            kind: str = read(self, function, owner, arguments)
            return kind
        except Untrusted:
            raise
        except Opaque as reason:
            raise Untrusted(_advice(label, str(reason), owner)) from None
        except Exception as error:  # its attributes may do anything when they are looked at
            raise Untrusted(_advice(label, f"reading it failed ({error!r})", owner)) from None
        finally:
            self._reading.pop()

    def _own(self, function: Any, me: Any, kinds: Sequence[Any]) -> str:
        """Say whether a function of nbbn's launches alone, and returns a Tensor."""
        if function == apply and kinds and isinstance(kinds[0], Known):
            # `apply` itself looks whether an operation may be recorded.
            self.declared = self.declared or not _is_own(kinds[0].value)
            return TENSOR
        if isinstance(me, Module) and function.__name__ in ("forward", "__call__"):
            return TENSOR
        home = function.__module__
        launches = home.startswith(
            ("nbbn.nn.losses", "nbbn.autograd.functions", "nbbn.autograd.ops.")
        )
        if launches and function.__annotations__.get("return") == "Tensor":
            return TENSOR
        raise Opaque(f"it calls {function.__qualname__}")

    def _hold(self, function: Any, me: Any) -> None:
        """Know the arrays and modules that declared code has at hand."""
        names = {*function.__code__.co_names} & {*function.__globals__}
        found = [self.named(function, name) for name in {*names, *function.__code__.co_freevars}]
        if me is not None and not isinstance(me, Module):
            self._held[id(me)] = f"in {type(me).__name__}", vars(me)
        for value in found:
            if isinstance(value, Module):
                self._module(value)
            elif [*_leaves("", value)]:
                self._held[id(value)] = f"an array of {function.__qualname__}", [value]


def _is_own(part: Any) -> bool:
    """Whether a function or class is nbbn's; by where it was compiled, which no wrapper copies."""
    is_function = isinstance(part, types.FunctionType)
    home = part.__globals__.get("__name__") if is_function else part.__module__
    return str(home).partition(".")[0] == "nbbn"


def _advice(label: str, reason: str, owner: type | None) -> str:
    where = (
        f"set recordable = True in class {owner.__name__}"
        if owner
        else "decorate it with nbbn.recordable"
    )
    return (
        f"{label} would be skipped by a replay, and {reason}; if all it does is apply layers and "
        f"Tensor operations, {where}"
    )


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the arrays and Tensors in nested containers."""
    if isinstance(value, Tensor) or backend.is_array(value):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(f"{key} {name}", item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(name, item)
