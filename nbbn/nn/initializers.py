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
Draw = Callable[[np.random.Generator, Shape, int, int], np.ndarray]


def _scaled(numerator: float, both: bool = False, *, uniform: bool = False) -> Draw:
    """Make what draws with the variance ``numerator / fan_in``, or / (fan_in + fan_out)."""

    def draw(rng: np.random.Generator, shape: Shape, fan_in: int, fan_out: int) -> np.ndarray:
        fan = fan_in + fan_out if both else fan_in
        if not uniform:
            return rng.standard_normal(shape) * math.sqrt(numerator / fan)
        bound = math.sqrt(3 * numerator / fan)
        return rng.uniform(-bound, bound, shape)

    return draw


def _orthogonal(rng: np.random.Generator, shape: Shape, fan_in: int, fan_out: int) -> np.ndarray:
    from threadpoolctl import threadpool_limits

    rows, columns = shape[0], math.prod(shape[1:])
    normal = rng.standard_normal((max(rows, columns), min(rows, columns)))
    # The same bits for any number of threads.
    with threadpool_limits(1, "blas"):
        q, r = np.linalg.qr(normal)
    # Uniform over all such matrices: QR alone prefers some signs (Mezzadri, 2007).
    q *= np.copysign(1.0, r.diagonal())
    return np.ascontiguousarray(q if rows >= columns else q.T).reshape(shape)


_HE, _HE_UNIFORM = _scaled(2.0), _scaled(2.0, uniform=True)
_GLOROT, _GLOROT_UNIFORM = _scaled(2.0, both=True), _scaled(2.0, both=True, uniform=True)
_LECUN, _LECUN_UNIFORM = _scaled(1.0), _scaled(1.0, uniform=True)

# By the names of Keras, and of PyTorch, which has xavier for glorot and kaiming for he.
INITIALIZERS: dict[str, Draw] = {
    "he": _HE, "he_normal": _HE, "he_uniform": _HE_UNIFORM,
    "kaiming": _HE, "kaiming_normal": _HE, "kaiming_uniform": _HE_UNIFORM,
    "glorot": _GLOROT, "glorot_normal": _GLOROT, "glorot_uniform": _GLOROT_UNIFORM,
    "xavier": _GLOROT, "xavier_normal": _GLOROT, "xavier_uniform": _GLOROT_UNIFORM,
    "lecun": _LECUN, "lecun_normal": _LECUN, "lecun_uniform": _LECUN_UNIFORM,
    "orthogonal": _orthogonal,
    "zeros": lambda rng, shape, *fans: np.zeros(shape),
    "ones": lambda rng, shape, *fans: np.ones(shape),
}  # fmt: skip


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
    name : str or float
        One of `INITIALIZERS`: "he" (also "kaiming"; variance 2 / fan_in), "glorot" (also "xavier";
        2 / (fan_in + fan_out)) or "lecun" (1 / fan_in), normal as they are or with "_normal", else
        with "_uniform"; "orthogonal", whose rows or columns are orthonormal; "zeros", "ones". A
        number is the standard deviation of a normal distribution with mean 0. No distribution is
        truncated, as those of Keras are.
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

    References
    ----------
    LeCun et al., "Efficient BackProp" (1998); Glorot and Bengio (2010); He et al. (2015),
    arXiv:1502.01852; Saxe, McClelland and Ganguli (2014), arXiv:1312.6120, for "orthogonal".
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
        pair = (shape[1] * pixels, shape[0] * pixels) if fans is None else fans
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise DTypeError(f"fans must be (fan_in, fan_out), got {fans!r:.80}")
        return draw(rng, shape, *(positive(fan, "fans") for fan in pair)).astype(dtype)
    sigma = real(name, "init, the standard deviation of the weights,", least=0)
    with np.errstate(over="ignore"):
        weights = (rng.standard_normal(shape) * sigma).astype(dtype)
    if not np.isfinite(weights).all():
        raise ArgumentError(f"init, {sigma:g}, gives weights beyond {dtype}: use a smaller one")
    return weights
