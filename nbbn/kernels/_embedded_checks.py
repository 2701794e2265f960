"""What `embedded` checks: types while it compiles, shapes while it runs.

Results in an array of integers would be cut silently, and other types end in pages of the
compiler's: each check is an overload that looks at the types first. The Python functions are what
runs without compilation.
"""

import numpy as np
from numba import types
from numba.core.errors import TypingError
from numba.extending import overload, register_jitable

_COMPUTED = (types.float32, types.float64)


def _require(fits, name, expected, found):
    if not fits:
        raise TypingError(f"{name} must be {expected}, got {found}")


def check_rank(x):
    """Rows or planes with at least one channel."""
    if x.ndim != 2 and x.ndim != 3:
        raise ValueError("x must be rows (M, C) or planes (N, C, S)")
    if x.shape[1] == 0:
        raise ValueError("x has no channels: axis 1 has length 0")


@overload(check_rank)
def _check_rank(x):
    fits = isinstance(x, types.Array) and x.ndim in (2, 3) and x.dtype in _COMPUTED
    _require(fits, "x", "an array of float32 or float64, rows (M, C) or planes (N, C, S)", x)
    return check_rank


def check_like(array, x):
    """An array of the shape of x."""
    if array.shape != x.shape:
        raise ValueError("y, dy and dx must have the shape of x")


@overload(check_like)
def _check_like(array, x):
    fits = isinstance(array, types.Array) and array.dtype in _COMPUTED
    _require(fits, "y, dy and dx", "arrays of float32 or float64", array)
    return check_like


def check_vector(array, channels):
    """A per-channel array."""
    if array.size != channels:
        raise ValueError("a per-channel array must have one element per channel of x")


@overload(check_vector)
def _check_vector(array, channels):
    fits = isinstance(array, types.Array) and array.ndim == 1 and array.dtype in _COMPUTED
    _require(fits, "a per-channel array", "of float32 or float64 and shape (C,)", array)
    return check_vector


@register_jitable
def vector(array, x):
    """Return gamma or beta as kernels take them: an empty array for None."""
    if array is None:
        return np.empty(0, x.dtype)
    if array.size != x.shape[1]:
        raise ValueError("gamma and beta must have one element per channel of x")
    return array
