"""Whole models: a multi-layer perceptron and a convolutional network."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .._validation import choice, generator, iterate, positive, positives, real, switch
from ..errors import ArgumentError, DTypeError, ShapeError
from ..functional.layout import image_axis
from .activation import GELU, LeakyReLU, ReLU, Sigmoid, SiLU, Tanh
from .batchnorm import BatchNorm, Convention
from .convolution import Conv2d
from .layers import Dense, Dropout, Flatten, Sequential, Unflatten
from .module import Module
from .pooling import MaxPool2d

__all__ = ["cnn", "mlp"]

_ACTIVATIONS: dict[str, Callable[[], Module]] = {
    "relu": ReLU, "sigmoid": Sigmoid, "tanh": Tanh, "gelu": GELU, "silu": SiLU,
    "leaky_relu": LeakyReLU,
}  # fmt: skip


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
    activation : {"relu", "sigmoid", "tanh", "gelu", "silu", "leaky_relu"}, default "relu"
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
        Fewer than two sizes, an unknown activation or initializer, dropout outside [0, 1].
    """
    if not isinstance(sizes, Sequence):
        raise DTypeError(f"sizes must be a sequence of integers, got {type(sizes).__name__}")
    if len(sizes) < 2:
        raise ArgumentError(f"sizes needs an input and an output, got {sizes!r}")
    choice(activation, tuple(_ACTIVATIONS), "activation")
    rng, batch_norm = generator(rng), switch(batch_norm, "batch_norm")
    dropout_layers = real(dropout, "dropout") != 0
    layers: list[Module] = []
    for features, width in itertools.pairwise(sizes[:-1]):
        layers.append(Dense(features, width, bias=not batch_norm, init=init, rng=rng, dtype=dtype))
        if batch_norm:
            fused = activation if activation == "relu" else None
            layers.append(BatchNorm(width, activation=fused, dtype=dtype))
        if not (batch_norm and activation == "relu"):
            layers.append(_ACTIVATIONS[activation]())
        if dropout_layers:
            layers.append(Dropout(dropout, rng=rng))
    layers.append(Dense(sizes[-2], sizes[-1], init=init, rng=rng, dtype=dtype))
    return Sequential(*layers)


def cnn(
    shape: Sequence[int],
    classes: int,
    *,
    channels: Sequence[int] = (16, 32),
    hidden: Sequence[int] = (128,),
    axis: int = 1,
    batch_norm: bool = True,
    dropout: float = 0.0,
    init: str | float = "he",
    rng: np.random.Generator | int | None = None,
    dtype: Any = np.float32,
) -> Sequential:
    """Build a convolutional network for small images that ends in logits.

    Each stage is two 3 x 3 convolutions, each with BatchNorm and ReLU, and a maximum over 2 x 2
    pixels that halves the image; `mlp` follows, on what is left of it. Otherwise as `mlp`.

    Parameters
    ----------
    shape : sequence of int
        Shape of one image: (H, W), (channels, H, W), or (H, W, channels) with `axis` -1. The
        model takes them as rows of pixels, (N, features), or as they are, (N, *shape).
    classes : int
        Number of outputs.
    channels : sequence of int
        Convolutions' output channels in each stage.
    hidden : sequence of int
        Widths of the hidden layers behind the stages.
    axis : {1, -1}
        Where images and convolutions have their channels.

    Raises
    ------
    ShapeError
        Images of another rank, or too small for so many stages.
    """
    shape = tuple(positive(n, "a length in shape") for n in iterate(shape, "shape", "integers"))
    axis = image_axis(axis)
    if len(shape) == 2:
        shape = (1, *shape) if axis == 1 else (*shape, 1)
    if len(shape) != 3:
        raise ShapeError(f"an image has 2 or 3 dimensions, got shape {shape}")
    widths = positives(channels, "channels")
    rng, batch_norm = generator(rng), switch(batch_norm, "batch_norm")
    features, height, width = shape if axis == 1 else (shape[2], *shape[:2])
    if min(height, width) >> len(widths) == 0:
        raise ShapeError(
            f"{len(widths)} stages halve an image {len(widths)} times, which {height} x {width} "
            f"pixels do not allow: give at most {min(height, width).bit_length() - 1} channels"
        )
    convention = Convention.of("torch", axis=axis)
    layers: list[Module] = [Unflatten(shape)]
    for channel in widths:
        for before in (features, channel):
            layers.append(
                Conv2d(before, channel, 3, padding=1, bias=not batch_norm, axis=axis, init=init,
                       rng=rng, dtype=dtype)
            )  # fmt: skip
            layers.append(
                BatchNorm(channel, convention=convention, activation="relu", dtype=dtype)
                if batch_norm
                else ReLU()
            )
        layers.append(MaxPool2d(2, axis=axis))
        features, height, width = channel, height // 2, width // 2
    layers.append(Flatten())
    head = mlp(
        (features * height * width, *hidden, classes),
        batch_norm=batch_norm, dropout=dropout, init=init, rng=rng, dtype=dtype,
    )  # fmt: skip
    return Sequential(*layers, *head)
