"""The base class of all layers and models."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from .. import backend
from .._validation import as_array, instance, switch
from ..autograd.tensor import Parameter, Tensor, as_tensor
from ..errors import ArgumentError, DTypeError, ShapeError
from ..functional import checks

__all__ = ["Module"]

_MISSING = object()
_CHANGE = 1 << 32


class Module:
    """Base class of layers and models.

    A subclass sets Parameters and Modules as attributes and defines ``forward(x)``. Arrays named in
    `buffers` are state that is saved but not learned.

    Attributes
    ----------
    training : bool
        True in training, False in evaluation; see `train` and `eval`.
    takes_rows : bool
        Of the class: whether an example may be a row of numbers. False for layers of images and
        sequences; `nbbn.train.fit` then keeps the shape of the examples of a pair (x, y).
    """

    buffers: ClassVar[tuple[str, ...]] = ()
    # Attribute -> name in the state, where the two differ.
    state_names: ClassVar[Mapping[str, str]] = {}

    # Buffers that Python counts in: they stay on the host.
    host_buffers: ClassVar[tuple[str, ...]] = ()

    training: bool = True
    takes_rows: ClassVar[bool] = True

    # By this a recorded step notices that an attribute changes: changes are counted above the bits
    # of the switches thrown, so that eval() and train() bring back the number that there was.
    _version: int = 0

    def __setattr__(self, name: str, value: Any) -> None:
        old = vars(self).get(name, getattr(type(self), name, _MISSING))
        object.__setattr__(self, name, value)
        if isinstance(old, bool) and isinstance(value, bool):
            if old is not value:
                vars(self)["_version"] = self._version ^ hash(name) % _CHANGE
        elif old is not value:
            vars(self)["_version"] = self._version + _CHANGE

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)
        vars(self)["_version"] = self._version + _CHANGE

    def __call__(self, x: Tensor | np.ndarray) -> Tensor:
        """Apply `forward` to a Tensor or an array."""
        return self.forward(as_tensor(x))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def forward(self, x: Tensor) -> Tensor:
        """Compute the output for `x`."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(x)")

    def children(self) -> Iterator[tuple[str, Module]]:
        """Direct submodules with their names."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value

    def modules(self) -> Iterator[Module]:
        """Yield this module and all below it, each once."""
        seen: set[int] = set()
        stack: list[Module] = [self]
        while stack:
            module = stack.pop()
            if id(module) not in seen:
                seen.add(id(module))
                yield module
                stack.extend(reversed([child for _, child in module.children()]))

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Yield this module and all below it with their names in the state dict, "" for itself."""
        yield prefix.removesuffix("."), self
        for name, child in self.children():
            yield from child.named_modules(f"{prefix}{name}.")

    def parameters(self) -> list[Parameter]:
        """All parameters, each once, in the order of their definition.

        A RuntimeWarning tells of layers and parameters in a list, tuple, set or dictionary: these
        are not part of the model. Set each as an attribute, or layers as a `nbbn.Sequential`.
        """
        found: dict[int, Parameter] = {}
        modules = list(self.modules())
        _warn_of_hidden(modules)
        for module in modules:
            for value in vars(module).values():
                if isinstance(value, Parameter):
                    found.setdefault(id(value), value)
        return list(found.values())

    def to(self, device: str) -> Module:
        """Move all parameters, gradients and buffers to "cpu" or "cuda"; return this module.

        Make the optimizer afterwards: it keeps the parameters' memory. A DeviceError says what is
        missing where the device cannot be used.
        """
        backend.require(device)
        for parameter in self.parameters():
            parameter.data = backend.to(parameter.data, device)
            if parameter.grad is not None:
                parameter.grad = backend.to(parameter.grad, device)
            parameter._buffer = None
        for module in self.modules():
            for name in set(module.buffers) - set(module.host_buffers):
                array = getattr(module, name)
                if array is not None:
                    setattr(module, name, backend.to(array, device))
        return self

    def zero_grad(self) -> None:
        """Forget the gradient of every parameter."""
        for parameter in self.parameters():
            parameter.zero_grad()

    def train(self, mode: bool = True) -> Module:
        """Switch this module and all below it to training; return it."""
        mode = switch(mode, "mode")
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Module:
        """Switch this module and all below it to evaluation; return it."""
        return self.train(False)

    def _state(self, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
        for attribute, value in vars(self).items():
            name = prefix + self.state_names.get(attribute, attribute)
            if isinstance(value, Parameter):
                yield name, value.data
            elif attribute in self.buffers and value is not None:
                yield name, value
        for name, child in self.children():
            yield from child._state(f"{prefix}{name}.")

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all parameters and buffers by name; names and shapes are PyTorch's."""
        return {name: np.array(backend.host(array)) for name, array in self._state()}

    def load_state_dict(self, state: Mapping[str, np.ndarray], *, strict: bool = True) -> None:
        """Copy arrays by name into the parameters and buffers.

        Nothing is changed unless everything fits.

        Parameters
        ----------
        state : mapping of str to ndarray
        strict : bool, default True
            Whether names that only one side has are an error.

        Raises
        ------
        ArgumentError
            Missing or unexpected names; running statistics that are not finite, or a variance
            below 0.
        ShapeError, DTypeError
            An array that does not fit.
        """
        own = dict(self._state())
        for name, array in self._fitting(state, strict=strict).items():
            backend.assign(own[name], array)

    def _fitting(self, state: Mapping[str, np.ndarray], *, strict: bool) -> dict[str, np.ndarray]:
        """Return the arrays of a state that this module takes, after checking each."""
        checks.mapping(state, "state")
        strict = switch(strict, "strict")
        for name in state:
            instance(name, str, "a name in state")
        own = dict(self._state())
        # PyTorch wrote no batch counter before version 2 of its format.
        # A model with the non-finite guard and one without load each other's state.
        optional = {name for name in (*own, *state) if name.rpartition(".")[2] in checks.COUNTERS}
        missing = sorted(own.keys() - state.keys() - optional)
        unexpected = sorted(state.keys() - own.keys() - optional)
        if strict and (missing or unexpected):
            raise ArgumentError(
                "the state does not fit this model: "
                f"missing {missing or 'nothing'}, unexpected {unexpected or 'nothing'}"
            )
        arrays = {name: as_array(state[name], name) for name in own if name in state}
        for name, array in arrays.items():
            if array.shape != own[name].shape:
                raise ShapeError(f"{name} must have shape {own[name].shape}, got {array.shape}")
            if array.dtype.kind not in "fiu":
                raise DTypeError(f"{name} must hold numbers, got {array.dtype}")
            checks.running_statistic(array, name.rpartition(".")[2], own[name].dtype, name)
        return arrays


def _warn_of_hidden(modules: list[Module]) -> None:
    """Tell of layers and parameters that are in a container, where nothing finds them."""
    known = {id(part) for module in modules for part in (module, *vars(module).values())}
    for module in modules:
        for name, value in vars(module).items():
            hidden = [part for part in _contained(value) if id(part) not in known]
            if hidden:
                first = hidden[0]
                what = f"a {first.shape} parameter" if isinstance(first, Tensor) else repr(first)
                warnings.warn(
                    f"the {type(value).__name__} `{name}` of {type(module).__name__} holds {what}, "
                    "which is not part of the model: it is neither trained nor saved. Set it as an "
                    f"attribute of its own, or layers as self.{name} = nbbn.Sequential(*layers)",
                    RuntimeWarning,
                    stacklevel=3,
                )


def _contained(value: Any) -> Iterator[Module | Parameter]:
    """Find layers and parameters in a list or the like, and in those inside it."""
    containers: list[Any] = [[value]]
    seen = set()
    for container in containers:
        for item in container.values() if isinstance(container, dict) else container:
            if isinstance(item, Module | Parameter):
                yield item
            elif isinstance(item, list | tuple | set | dict) and id(item) not in seen:
                seen.add(id(item))
                containers.append(item)


@contextlib.contextmanager
def evaluating(model: Module) -> Iterator[None]:
    """Switch a model to evaluation, and every module back to its own mode at the end."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode
