"""Weight initializers by name, for weights of shape (out_features, in_features)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .._validation import choice, float_type, generator, positive, possible, real
from ..errors import ArgumentError, DTypeError

__all__ = ["INITIALIZERS", "generator", "initialize"]


def _he_normal(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.standard_normal(shape) * math.sqrt(2.0 / shape[1])


def _he_uniform(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    bound = math.sqrt(6.0 / shape[1])
    return rng.uniform(-bound, bound, shape)


def _glorot_normal(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.standard_normal(shape) * math.sqrt(2.0 / sum(shape))


def _glorot_uniform(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    bound = math.sqrt(6.0 / sum(shape))
    return rng.uniform(-bound, bound, shape)


INITIALIZERS: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "he": _he_normal,
    "he_uniform": _he_uniform,
    "glorot": _glorot_normal,
    "glorot_uniform": _glorot_uniform,
}


def initialize(
    name: str | float, shape: tuple[int, int], rng: np.random.Generator | int | None, dtype: Any
) -> np.ndarray:
    """Draw a weight matrix.

    Parameters
    ----------
    name : {"he", "he_uniform", "glorot", "glorot_uniform"} or float
        He et al. (2015) and Glorot and Bengio (2010); a number is the standard deviation of a
        normal distribution with mean 0.
    shape : (int, int)
        (out_features, in_features).
    rng : Generator, int or None
        Source of randomness. The same seed gives the same bits.
    dtype : dtype
        Type of the result; drawn in float64 first, so that both types get the same weights.

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
    if not isinstance(shape, tuple | list) or len(shape) != 2:
        raise DTypeError(f"shape must be (out_features, in_features), got {shape!r:.80}")
    rows, columns = shape
    shape = positive(rows, "out_features"), positive(columns, "in_features")
    dtype = float_type(dtype)
    possible(shape, dtype, "a Dense with a weight")
    if isinstance(name, str):
        draw = INITIALIZERS[choice(name, tuple(INITIALIZERS), "init")]
        return draw(rng, shape).astype(dtype)
    sigma = real(name, "init, the standard deviation of the weights,", least=0)
    with np.errstate(over="ignore"):
        weights = (rng.standard_normal(shape) * sigma).astype(dtype)
    if not np.isfinite(weights).all():
        raise ArgumentError(f"init, {sigma:g}, gives weights beyond {dtype}: use a smaller one")
    return weights
