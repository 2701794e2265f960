"""What a model is made of."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard, overload

import numpy as np

from .._validation import float_type, fraction, generator, iterate, positive, switch
from ..autograd import functions as ops
from ..autograd.tensor import Parameter, Tensor, as_tensor
from ..errors import ArgumentError, DTypeError, ShapeError
from .batchnorm import BatchNorm
from .convolution import Conv2d, ConvTranspose2d
from .initializers import initialize
from .module import Module

__all__ = [
    "BatchNorm", "Dense", "Dropout", "Flatten", "Module", "Sequential", "Softmax", "Unflatten",
]  # fmt: skip

_log = logging.getLogger("nbbn")


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
        shape = (positive(out_features, "out_features"), positive(in_features, "in_features"))
        dtype = float_type(dtype)
        self.weight = Parameter(initialize(init, shape, rng, dtype))
        self.bias = Parameter(np.zeros(shape[0], dtype)) if switch(bias, "bias") else None

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in_features) to (..., out_features)."""
        return ops.linear(x, self.weight, self.bias)

    def __repr__(self) -> str:
        out_features, in_features = self.weight.shape
        return f"Dense({in_features}, {out_features}{', bias=False' if self.bias is None else ''})"


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
        Probability of zeroing an element, in [0, 1]. The others are scaled by 1 / (1 - p).
    rng : Generator, int or None
        Source of the masks.
    """

    def __init__(self, p: float, *, rng: np.random.Generator | int | None = None) -> None:
        self.p = fraction(p, "the dropout probability p")
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


class Unflatten(Module):
    """Turn (N, features) into (N, *shape), such as rows of pixels into images.

    Parameters
    ----------
    shape : sequence of int
        Shape of one example.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(
            positive(n, "a length in shape") for n in iterate(shape, "shape", "integers")
        )

    def forward(self, x: Tensor) -> Tensor:
        """Give every example its shape."""
        if x.ndim == 0 or math.prod(x.shape[1:]) != math.prod(self.shape):
            raise ShapeError(f"{self!r} takes (N, {math.prod(self.shape)}), got shape {x.shape}")
        return x.reshape(x.shape[0], *self.shape)

    def __repr__(self) -> str:
        return f"Unflatten({self.shape})"


def is_linear(layer: Module) -> TypeGuard[Dense | Conv2d | ConvTranspose2d]:
    """Whether a layer is linear, so that a BatchNorm behind it takes in, or subtracts, its bias."""
    weighted = isinstance(layer, Dense | Conv2d | ConvTranspose2d)
    return weighted and getattr(layer, "activation", None) is None


class Sequential(Module):
    """Modules one after the other; a slice is a Sequential of the same modules.

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
            if is_linear(before) and before.bias is not None and isinstance(after, BatchNorm):
                _log.info("%r has a bias that %r subtracts again: use bias=False", before, after)

    def children(self) -> Iterator[tuple[str, Module]]:
        """Layers, named by their position."""
        for position, layer in enumerate(self.layers):
            yield str(position), layer

    def forward(self, x: Tensor, weights: np.ndarray | None = None) -> Tensor:
        """Apply the layers in order; `weights` go to each BatchNorm, see there."""
        for layer in self.layers:
            if weights is not None and isinstance(layer, BatchNorm | Sequential):
                x = layer(x, weights=weights)
                continue
            if weights is not None and any(isinstance(m, BatchNorm) for m in layer.modules()):
                raise ArgumentError(
                    f"weights do not reach the BatchNorm inside {layer!r}: apply the layers one by "
                    "one, and pass them yourself"
                )
            x = layer(x)
        return x

    def __call__(self, x: Tensor | np.ndarray, weights: np.ndarray | None = None) -> Tensor:
        """Apply `forward` to a Tensor or an array."""
        return self.forward(as_tensor(x), weights)

    def __len__(self) -> int:
        return len(self.layers)

    @overload
    def __getitem__(self, position: int) -> Module: ...

    @overload
    def __getitem__(self, position: slice) -> Sequential: ...

    def __getitem__(self, position: int | slice) -> Module:
        found = self.layers[position]
        return Sequential(*found) if isinstance(found, tuple) else found

    def __iter__(self) -> Iterator[Module]:
        return iter(self.layers)

    def __repr__(self) -> str:
        return "Sequential(\n" + "".join(f"    {layer!r},\n" for layer in self.layers) + ")"


def unnested(module: Module, prefix: str = "") -> Iterator[tuple[str, Module]]:
    """Yield the layers of a Sequential and of those inside it, with their names in the state."""
    if not isinstance(module, Sequential):
        yield prefix.removesuffix("."), module
        return
    for name, child in module.children():
        yield from unnested(child, f"{prefix}{name}.")
