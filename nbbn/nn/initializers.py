"""Weight initializers by name, for the weights of Dense layers and of convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .._validation import choice, float_type, generator, positive, possible, real
from ..errors import ArgumentError, DTypeError

__all__ = ["INITIALIZERS", "generator", "initialize"]


Shape = tuple[int, ...]


def _he_normal(rng: np.random.Generator, shape: Shape, fan_in: int, fan_out: int) -> np.ndarray:
    return rng.standard_normal(shape) * math.sqrt(2.0 / fan_in)


def _he_uniform(rng: np.random.Generator, shape: Shape, fan_in: int, fan_out: int) -> np.ndarray:
    bound = math.sqrt(6.0 / fan_in)
    return rng.uniform(-bound, bound, shape)


def _glorot_normal(rng: np.random.Generator, shape: Shape, fan_in: int, fan_out: int) -> np.ndarray:
    return rng.standard_normal(shape) * math.sqrt(2.0 / (fan_in + fan_out))


def _glorot_uniform(
    rng: np.random.Generator, shape: Shape, fan_in: int, fan_out: int
) -> np.ndarray:
    bound = math.sqrt(6.0 / (fan_in + fan_out))
    return rng.uniform(-bound, bound, shape)


INITIALIZERS: dict[str, Callable[[np.random.Generator, Shape, int, int], np.ndarray]] = {
    "he": _he_normal,
    "he_uniform": _he_uniform,
    "glorot": _glorot_normal,
    "glorot_uniform": _glorot_uniform,
}


def initialize(
    name: str | float,
    shape: Shape,
    rng: np.random.Generator | int | None,
    dtype: Any,
    *,
    fans: tuple[int, int] | None = None,
) -> np.ndarray:
    """Draw a weight.

    Parameters
    ----------
    name : {"he", "he_uniform", "glorot", "glorot_uniform"} or float
        He et al. (2015) and Glorot and Bengio (2010); a number is the standard deviation of a
        normal distribution with mean 0.
    shape : tuple of int
        (out_features, in_features), or (out_channels, in_channels / groups, height, width).
    rng : Generator, int or None
        Source of randomness. The same seed gives the same bits.
    dtype : dtype
        Type of the result; drawn in float64 first, so that both types get the same weights.
    fans : (int, int), optional
        How many inputs an output has, and how many outputs an input: by default the second and the
        first number in `shape`, times the pixels of a kernel.

    Returns
    -------
    ndarray of `dtype`, `shape`

    Raises
    ------
    ArgumentError
        Unknown name, a negative standard deviation, or more weights than memory can hold.
    DTypeError
        An argument of another type.
    """
    rng = generator(rng)
    if not isinstance(shape, tuple | list) or len(shape) not in (2, 4):
        raise DTypeError(
            "shape must be (out_features, in_features), or (out_channels, in_channels, height, "
            f"width), got {shape!r:.80}"
        )
    names = "out_features", "in_features", "height", "width"
    shape = tuple(positive(n, name) for n, name in zip(shape, names, strict=False))
    dtype = float_type(dtype)
    kind = "a Dense" if len(shape) == 2 else "a convolution"
    possible(shape, dtype, f"{kind} with a weight")
    if isinstance(name, str):
        draw = INITIALIZERS[choice(name, tuple(INITIALIZERS), "init")]
        pixels = math.prod(shape[2:])
        return draw(rng, shape, *(fans or (shape[1] * pixels, shape[0] * pixels))).astype(dtype)
    sigma = real(name, "init, the standard deviation of the weights,", least=0)
    with np.errstate(over="ignore"):
        weights = (rng.standard_normal(shape) * sigma).astype(dtype)
    if not np.isfinite(weights).all():
        raise ArgumentError(f"init, {sigma:g}, gives weights beyond {dtype}: use a smaller one")
    return weights
