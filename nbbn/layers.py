"""Modules: what a model is made of."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from . import backend, checks, ops
from .autograd import Parameter, Tensor, as_tensor
from .errors import ArgumentError, DTypeError, ShapeError
from .functional import update_running_stats
from .initializers import generator, initialize

__all__ = [
    "BatchNorm",
    "Dense",
    "Dropout",
    "Flatten",
    "Module",
    "ReLU",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "Tanh",
    "mlp",
]

_log = logging.getLogger("nbbn")
# Counts every change of an attribute of any module, so that recorded steps notice it cheaply.
_version = 0
_MISSING = object()
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def version() -> int:
    """Return a number that changes whenever an attribute of any module does."""
    return _version


class Module:
    """Base class of layers and models.

    A subclass sets Parameters and Modules as attributes and defines ``forward(x)``. Arrays named in
    `buffers` are state that is saved but not learned.

    Attributes
    ----------
    training : bool
        True in training, False in evaluation; see `train` and `eval`.
    """

    buffers: ClassVar[tuple[str, ...]] = ()
    # Attribute -> name in the state, where the two differ.
    state_names: ClassVar[Mapping[str, str]] = {}

    training: bool = True

    def __setattr__(self, name: str, value: Any) -> None:
        global _version
        if vars(self).get(name, _MISSING) is not value:
            _version += 1
        object.__setattr__(self, name, value)

    def __call__(self, x: Tensor | np.ndarray) -> Tensor:
        """Apply `forward` to a Tensor or an array."""
        return self.forward(as_tensor(x))

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

    def parameters(self) -> list[Parameter]:
        """All parameters, each once, in the order of their definition."""
        found: dict[int, Parameter] = {}
        for module in self.modules():
            for value in vars(module).values():
                if isinstance(value, Parameter):
                    found.setdefault(id(value), value)
        return list(found.values())

    def zero_grad(self) -> None:
        """Forget the gradient of every parameter."""
        for parameter in self.parameters():
            parameter.zero_grad()

    def train(self, mode: bool = True) -> Module:
        """Switch this module and all below it to training; return it."""
        for module in self.modules():
            module.training = bool(mode)
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
        """Copies of all parameters and buffers by name; names and shapes are PyTorch's.

        Returns
        -------
        dict of str to ndarray
        """
        return {name: array.copy() for name, array in self._state()}

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
            Missing or unexpected names.
        ShapeError, DTypeError
            An array that does not fit.
        """
        own = dict(self._state())
        # PyTorch wrote no batch counter before version 2 of its format.
        optional = {name for name in own if name.endswith("num_batches_tracked")}
        missing = sorted(own.keys() - state.keys() - optional)
        unexpected = sorted(state.keys() - own.keys())
        if strict and (missing or unexpected):
            raise ArgumentError(
                "the state does not fit this model: "
                f"missing {missing or 'nothing'}, unexpected {unexpected or 'nothing'}"
            )
        arrays = {name: np.asarray(state[name]) for name in own if name in state}
        for name, array in arrays.items():
            if array.shape != own[name].shape:
                raise ShapeError(f"{name} must have shape {own[name].shape}, got {array.shape}")
            if array.dtype.kind not in "fiu":
                raise DTypeError(f"{name} must hold numbers, got {array.dtype}")
        for name, array in arrays.items():
            own[name][...] = array


class Dense(Module):
    """Fully connected layer, ``x @ weight.T + bias``.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool, default True
        Leave it out in front of a BatchNorm, which subtracts it again.
    init : str or float, default "he"
        Initializer of the weight, see `nbbn.initializers.initialize`; the bias starts at 0.
    rng : Generator, int or None
        Source of the weights.
    dtype : {float32, float64}

    Attributes
    ----------
    weight : Parameter, shape (out_features, in_features)
    bias : Parameter, shape (out_features,), or None
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        init: str | float = "he",
        rng: np.random.Generator | int | None = None,
        dtype: Any = np.float32,
    ) -> None:
        shape = (
            checks.positive(out_features, "out_features"),
            checks.positive(in_features, "in_features"),
        )
        dtype = _float_type(dtype)
        self.weight = Parameter(initialize(init, shape, rng, dtype))
        self.bias = Parameter(np.zeros(shape[0], dtype)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map x (N, in_features) to (N, out_features)."""
        return ops.linear(x, self.weight, self.bias)

    def __repr__(self) -> str:
        out_features, in_features = self.weight.shape
        return f"Dense({in_features}, {out_features}{', bias=False' if self.bias is None else ''})"


class BatchNorm(Module):
    """Batch normalization for inputs of any rank from 2 to 5.

    In training the batch's statistics normalize and the running ones move towards them:
    ``running = (1 - momentum) * running + momentum * batch``, with the unbiased variance. In
    evaluation the running ones normalize. These are PyTorch's conventions.

    Parameters
    ----------
    channels : int
        Length of the channel axis, C.
    eps : float, default 1e-5
        Added to the variance.
    momentum : float or None, default 0.1
        Weight of the new value; None averages all batches equally.
    affine : bool, default True
        Learn gamma and beta.
    track_running_stats : bool, default True
        Without running statistics the batch's are used in evaluation too.
    axis : int, default 1
        The channel axis.
    activation : {None, "relu"}, default None
        Applied in the same pass over memory.
    dtype : {float32, float64}

    Attributes
    ----------
    gamma, beta : Parameter, shape (C,), or None
        "weight" and "bias" in the state dict.
    running_mean, running_var : ndarray, shape (C,), or None
    num_batches_tracked : ndarray of int64, 0-dimensional, or None
    """

    buffers = ("running_mean", "running_var", "num_batches_tracked")
    state_names: ClassVar[Mapping[str, str]] = {"gamma": "weight", "beta": "bias"}

    def __init__(
        self,
        channels: int,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        axis: int = 1,
        activation: str | None = None,
        dtype: Any = np.float32,
    ) -> None:
        channels = checks.positive(channels, "channels")
        dtype = _float_type(dtype)
        self.eps = checks.epsilon(eps, zero_allowed=False)
        self.momentum = None if momentum is None else checks.fraction(momentum, "momentum")
        self.axis = checks.integer(axis, "axis")
        self.activation = checks.choice(activation, (None, "relu"), "activation")
        self.gamma = Parameter(np.ones(channels, dtype)) if affine else None
        self.beta = Parameter(np.zeros(channels, dtype)) if affine else None
        self.running_mean = np.zeros(channels, dtype) if track_running_stats else None
        self.running_var = np.ones(channels, dtype) if track_running_stats else None
        self.num_batches_tracked = np.zeros((), np.int64) if track_running_stats else None
        self._channels = channels

    def forward(self, x: Tensor, residual: Tensor | np.ndarray | None = None) -> Tensor:
        """Normalize `x`; a `residual` of the same shape is added before the activation."""
        found = x.shape[self.axis] if -x.ndim <= self.axis < x.ndim else None
        if found != self._channels:
            raise ShapeError(
                f"this BatchNorm has {self._channels} channels on axis {self.axis}, "
                f"got x of shape {x.shape}"
            )
        if self.running_mean is not None and not self.training:
            return ops.batch_norm_infer(
                x, self.running_mean, self.running_var, self.gamma, self.beta, residual,
                eps=self.eps, axis=self.axis, activation=self.activation,
            )  # fmt: skip
        y, stats = ops.batch_norm_train(
            x, self.gamma, self.beta, residual,
            eps=self.eps, axis=self.axis, activation=self.activation,
        )  # fmt: skip
        if self.training and self.running_mean is not None and self.running_var is not None:
            backend.run(_increment, self.num_batches_tracked)
            momentum = self.momentum
            if momentum is None:
                backend.not_recordable("BatchNorm(momentum=None) weighs every batch differently")
                momentum = 1.0 / float(self.num_batches_tracked)  # type: ignore[arg-type]
            update_running_stats(self.running_mean, self.running_var, stats, momentum=momentum)
        return y

    def __call__(
        self, x: Tensor | np.ndarray, residual: Tensor | np.ndarray | None = None
    ) -> Tensor:
        """Apply `forward` to a Tensor or an array."""
        return self.forward(as_tensor(x), residual)

    def __repr__(self) -> str:
        fused = f", activation={self.activation!r}" if self.activation else ""
        return f"BatchNorm({self._channels}{fused})"


class ReLU(Module):
    """Rectified linear unit."""

    def forward(self, x: Tensor) -> Tensor:
        """Return max(x, 0)."""
        return ops.relu(x)

    def __repr__(self) -> str:
        return "ReLU()"


class Sigmoid(Module):
    """Logistic function."""

    def forward(self, x: Tensor) -> Tensor:
        """Return 1 / (1 + exp(-x))."""
        return ops.sigmoid(x)

    def __repr__(self) -> str:
        return "Sigmoid()"


class Tanh(Module):
    """Hyperbolic tangent."""

    def forward(self, x: Tensor) -> Tensor:
        """Return tanh(x)."""
        return ops.tanh(x)

    def __repr__(self) -> str:
        return "Tanh()"


class Softmax(Module):
    """Softmax along an axis; train it with `losses.nll`, which goes through its logits.

    Parameters
    ----------
    axis : int, default -1
    """

    def __init__(self, axis: int = -1) -> None:
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        """Return probabilities along the axis."""
        return ops.softmax(x, axis=self.axis)

    def __repr__(self) -> str:
        return f"Softmax(axis={self.axis})"


class Dropout(Module):
    """Zero elements at random in training; the identity in evaluation.

    Parameters
    ----------
    p : float
        Probability of zeroing an element, in [0, 1). The others are scaled by 1 / (1 - p).
    rng : Generator, int or None
        Source of the masks.
    """

    def __init__(self, p: float, *, rng: np.random.Generator | int | None = None) -> None:
        self.p = checks.real(p, "p")
        if not 0 <= self.p < 1:
            raise ArgumentError(f"the dropout probability must lie in [0, 1), got {p}")
        self.rng = generator(rng)

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements in training."""
        return ops.dropout(x, self.p, self.rng) if self.training and self.p else x

    def __repr__(self) -> str:
        return f"Dropout({self.p})"


class Flatten(Module):
    """Turn (N, ...) into (N, features)."""

    def forward(self, x: Tensor) -> Tensor:
        """Flatten all axes but the first."""
        if x.ndim == 0:
            raise ShapeError(f"Flatten takes (N, ...), got shape {x.shape}")
        return x if x.ndim == 2 else x.reshape(x.shape[0], math.prod(x.shape[1:]))

    def __repr__(self) -> str:
        return "Flatten()"


class Sequential(Module):
    """Modules one after the other.

    Parameters
    ----------
    *layers : Module
    """

    def __init__(self, *layers: Module) -> None:
        for layer in layers:
            if not isinstance(layer, Module):
                raise DTypeError(f"Sequential takes Modules, got {type(layer).__name__}")
        self.layers = layers
        for before, after in itertools.pairwise(layers):
            if (
                isinstance(before, Dense)
                and before.bias is not None
                and isinstance(after, BatchNorm)
            ):
                _log.info("%r has a bias that %r subtracts again: use bias=False", before, after)

    def children(self) -> Iterator[tuple[str, Module]]:
        """Layers, named by their position."""
        for position, layer in enumerate(self.layers):
            yield str(position), layer

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers in order."""
        for layer in self.layers:
            x = layer(x)
        return x

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, position: int) -> Module:
        return self.layers[position]

    def __iter__(self) -> Iterator[Module]:
        return iter(self.layers)

    def __repr__(self) -> str:
        return "Sequential(\n" + "".join(f"    {layer!r},\n" for layer in self.layers) + ")"


_ACTIVATIONS: dict[str, Callable[[], Module]] = {"relu": ReLU, "sigmoid": Sigmoid, "tanh": Tanh}


def mlp(
    sizes: Sequence[int],
    *,
    batch_norm: bool = True,
    activation: str = "relu",
    dropout: float = 0.0,
    init: str | float = "he",
    rng: np.random.Generator | int | None = None,
    dtype: Any = np.float32,
) -> Sequential:
    """Build a multi-layer perceptron that ends in logits.

    Each hidden layer is Dense, BatchNorm, activation, Dropout; with a BatchNorm behind it, a Dense
    has no bias, and a ReLU runs inside the BatchNorm.

    Parameters
    ----------
    sizes : sequence of int
        Features from input to output, such as (784, 256, 128, 10).
    batch_norm : bool, default True
    activation : {"relu", "sigmoid", "tanh"}, default "relu"
    dropout : float, default 0
        Probability of zeroing a hidden unit in training.
    init : str or float, default "he"
        Initializer of the weights.
    rng : Generator, int or None
        Source of weights and dropout masks.
    dtype : {float32, float64}

    Returns
    -------
    Sequential

    Raises
    ------
    ArgumentError
        Fewer than two sizes, an unknown activation or initializer, dropout outside [0, 1).
    """
    if not isinstance(sizes, Sequence):
        raise DTypeError(f"sizes must be a sequence of integers, got {type(sizes).__name__}")
    if len(sizes) < 2:
        raise ArgumentError(f"sizes needs an input and an output, got {sizes!r}")
    checks.choice(activation, tuple(_ACTIVATIONS), "activation")
    rng = generator(rng)
    layers: list[Module] = []
    for features, width in itertools.pairwise(sizes[:-1]):
        layers.append(Dense(features, width, bias=not batch_norm, init=init, rng=rng, dtype=dtype))
        if batch_norm:
            fused = activation if activation == "relu" else None
            layers.append(BatchNorm(width, activation=fused, dtype=dtype))
        if not (batch_norm and activation == "relu"):
            layers.append(_ACTIVATIONS[activation]())
        if dropout:
            layers.append(Dropout(dropout, rng=rng))
    layers.append(Dense(sizes[-2], sizes[-1], init=init, rng=rng, dtype=dtype))
    return Sequential(*layers)


def _increment(counter: np.ndarray) -> None:
    counter += 1


def _float_type(dtype: Any) -> np.dtype[Any]:
    with contextlib.suppress(TypeError):
        for accepted in _FLOATS:
            if np.dtype(dtype) == accepted:
                return accepted
    raise DTypeError(f"dtype must be float32 or float64, got {dtype}")
