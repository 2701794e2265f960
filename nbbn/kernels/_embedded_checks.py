"""What `embedded` checks: types while it compiles, the rest while it runs.

A type that no kernel takes would end in pages of the compiler's, and a result in integers would be
cut silently. `checked` makes a function that takes the operands of one in `embedded`, looks at
their types, and returns the first: what follows depends on it, so the compiler stops there.
"""

import numpy as np
from numba import typeof, types
from numba.core.errors import NumbaError, TypingError
from numba.extending import overload, register_jitable

_FLOATS = (types.float32, types.float64)


# ---------------------------------------------------------------- types


def _kind(expected, advice, fits, written=False):
    """Make a check of one operand, whose type `fits` beside that of the first one, or does not."""

    def look(name, found, first):
        if not fits(found, first) or (written and not found.mutable):
            raise TypingError(f"{name} must be {expected}, got {found}: {advice.format(name)}")

    return look


def _array(found, ranks, dtypes):
    return isinstance(found, types.Array) and found.ndim in ranks and found.dtype in dtypes


def _rows_or_planes(found, first):
    return _array(found, (2, 3), _FLOATS)


def _like_first(found, first):
    return _array(found, (first.ndim,), (first.dtype,))


def _vector(found, first):
    return _array(found, (1,), _FLOATS)


def _vector_or_none(found, first):
    # Chosen between both at run time, it is Optional.
    inner = found.type if isinstance(found, types.Optional) else found
    return isinstance(found, types.NoneType) or _vector(inner, first)


def _statistic(found, first):
    return _array(found, (1,), (types.float64,))


def _prepared(found, first):
    return _array(found, (1,), (first.dtype,))


def _sample(found, first):
    if not isinstance(found, types.Array) or found.ndim == 0:
        return False
    return found.dtype in _FLOATS or isinstance(found.dtype, types.Integer | types.Boolean)


def _integer(found, first):
    return isinstance(found, types.Integer)


def _number(found, first):
    return isinstance(found, types.Integer) or found in _FLOATS


ROWS_OR_PLANES = _kind(
    "an array of float32 or float64, rows (M, C) or planes (N, C, S)",
    "convert it with numpy.asarray({0}, numpy.float32), and join or add axes with reshape",
    _rows_or_planes,
)
LIKE_X = _kind(
    "an array of the shape and type of x", "convert it with {0}.astype(x.dtype)", _like_first
)
RESULT_LIKE_X = _kind(
    "a writeable array of the shape and type of x", "pass numpy.empty_like(x)", _like_first, True
)
VECTOR = _kind(
    "an array of float32 or float64 and one axis",
    "convert it with numpy.asarray({0}, numpy.float64).ravel()",
    _vector,
)
VECTOR_OR_NONE = _kind(
    "None or an array of float32 or float64, shape (C,)",
    "convert it with numpy.asarray({0}, numpy.float64).ravel()",
    _vector_or_none,
)
RESULT_VECTOR = _kind(
    "a writeable array of float32 or float64 and one axis",
    "pass numpy.empty of its length, in the type of x",
    _vector,
    True,
)
STATISTIC = _kind(
    "an array of float64, shape (C,)",
    "convert it with numpy.asarray({0}, numpy.float64).ravel()",
    _statistic,
)
RESULT_STATISTIC = _kind(
    "a writeable array of float64, shape (C,)", "pass numpy.empty(C)", _statistic, True
)
PREPARED = _kind(
    "an array of the type of x, shape (3 * C,)",
    "have affine write to numpy.empty(3 * C, x.dtype)",
    _prepared,
)
SAMPLE = _kind(
    "an array of float32, float64, integers or truth values, with an axis",
    "convert it with numpy.atleast_1d({0}).astype(numpy.float64)",
    _sample,
)
INTEGER = _kind("an integer", "convert it with int({0})", _integer)
NUMBER = _kind("a number", "convert it with float({0})", _number)


def _type_of(operand):
    """Its type of Numba's, or why there is none."""
    try:
        return typeof(operand)
    except (ValueError, NumbaError) as error:
        return error


def checked(**kinds):
    """Make the check of operands, in the order of `kinds`, which returns the first of them."""

    def look(*found):
        for (name, kind), one in zip(kinds.items(), found, strict=True):
            kind(name, one, found[0])

    def check(*operands):
        look(*map(_type_of, operands))
        return operands[0]

    @overload(check, strict=False)
    def compiled(*found):
        look(*found)
        return lambda *operands: operands[0]

    return check


# ---------------------------------------------------------------- values


@register_jitable
def check_channels(x):
    """At least one channel."""
    if x.shape[1] == 0:
        raise ValueError("x has no channels: axis 1 has length 0")


@register_jitable
def check_like(array, x):
    """An array of the shape of x."""
    if array.shape != x.shape:
        raise ValueError("y, dy and dx must have the shape of x")


@register_jitable
def check_vector(array, channels):
    """A per-channel array."""
    if array.size != channels:
        raise ValueError("a per-channel array must have one element per channel of x")


@register_jitable
def check_apart(first, second):
    """Two results: of one array, the last would be left."""
    if first.size > 0 and first.ctypes.data == second.ctypes.data:
        raise ValueError("results must not share memory: pass an array for each")


@register_jitable
def check_eps(eps, zero_allowed):
    """What keeps 1 / sqrt(var + eps) finite, or may: given statistics need none."""
    if not 0.0 <= eps < np.inf:
        raise ValueError("eps must be finite and not negative")
    if eps == 0.0 and not zero_allowed:
        raise ValueError("eps must be above 0 in training")


@register_jitable
def vector(array, channels, like):
    """Return gamma or beta as kernels take them: in the type of `like`, and empty for None."""
    if array is None:
        return np.empty(0, like.dtype)
    if array.size != channels:
        raise ValueError("gamma and beta must have one element per channel of x")
    return np.asarray(array, like.dtype)
