"""Weight initializers by name, for weights of shape (out_features, in_features)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from . import checks
from .errors import ArgumentError

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


def generator(rng: np.random.Generator | int | None) -> np.random.Generator:
    """Return `rng` if it is a Generator, else a new one seeded by it.

    Parameters
    ----------
    rng : Generator, int or None
        None draws a fresh seed from the operating system.

    Returns
    -------
    Generator

    Raises
    ------
    ArgumentError
        Anything that cannot seed a generator.
    """
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"rng must be a numpy.random.Generator, a non-negative integer seed or None: {error}"
        ) from None


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
        Unknown name, or a negative standard deviation.
    """
    rng = generator(rng)
    if isinstance(name, str):
        draw = INITIALIZERS[checks.choice(name, tuple(INITIALIZERS), "init")]
        return draw(rng, shape).astype(dtype)
    sigma = checks.real(name, "init")
    if sigma < 0:
        raise ArgumentError(f"init as a number is a standard deviation, >= 0; got {sigma}")
    return (rng.standard_normal(shape) * sigma).astype(dtype)
