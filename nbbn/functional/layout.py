"""How arrays of any accepted layout fold into the few that kernels know."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from .. import backend
from .._validation import integer
from ..errors import ArgumentError, ShapeError
from . import checks

MIN_RANK, MAX_RANK = 2, 5
# What kernels can count to, with room to spare.
MOST = 2**31 - 1
_UINT16 = np.dtype(np.uint16)
_FLOAT64 = np.dtype(np.float64)
_NOTHING = {
    (rank, dtype): np.empty((0,) * rank, dtype)
    for rank in (1, 2, 3)
    for dtype in (np.dtype(np.float32), _FLOAT64)
}


class Layout(NamedTuple):
    """How an array folds: transpose by `order` (None: as it is), then reshape to `shape`.

    Kernels compute in `dtype`. They get folded arrays in `storage`, which is the same on the host;
    a device loads and stores float16 and bfloat16 (as its bits, uint16) itself. Statistics are in
    `statistics`: float64 on the host, `dtype` on a device.
    """

    order: tuple[int, ...] | None
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    storage: np.dtype[Any]
    statistics: np.dtype[Any]
    device: str


def placed(
    array: Any, order: tuple[int, ...] | None, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Layout:
    """Make the layout of an array that kernels get in `shape`."""
    if isinstance(array, np.ndarray):
        return Layout(order, shape, dtype, dtype, _FLOAT64, "cpu")
    storage = _UINT16 if backend.is_bfloat16(array.dtype) else array.dtype
    return Layout(order, shape, dtype, storage, dtype, "cuda")


def channel_layout(x: Any, axis: int) -> Layout:
    """Find how `x` folds into rows (M, C), or planes (N, C, S), with C the channel axis."""
    dtype = checks.floating(x, "x")
    order = None if x.flags.c_contiguous else _dense_order(x)
    axis = axis if type(axis) is int else integer(axis, "axis")
    found = _layout(x.shape, axis, order, dtype)
    if type(x) is np.ndarray:
        return found
    return placed(x, order, found.shape, dtype)


@functools.lru_cache(maxsize=512)
def _layout(
    shape: tuple[int, ...], axis: int, order: tuple[int, ...] | None, dtype: np.dtype[Any]
) -> Layout:
    rank = len(shape)
    if not MIN_RANK <= rank <= MAX_RANK:
        raise ShapeError(
            f"x must have {MIN_RANK} to {MAX_RANK} dimensions, got shape {shape}: "
            f"{rank_hint(shape, axis)}"
        )
    channel = _axis_index(axis, shape, "x")
    if shape[channel] == 0:
        raise ShapeError(f"x has no channels: axis {axis} of shape {shape} has length 0")
    if order is not None:
        shape = tuple(shape[d] for d in order)
        channel = order.index(channel)
    channels = shape[channel]
    inner = math.prod(shape[channel + 1 :])
    if channels == 1:
        folded: tuple[int, ...] = (1, 1, math.prod(shape))
    elif inner == 1:
        folded = (math.prod(shape[:channel]), channels)
    else:
        folded = (math.prod(shape[:channel]), channels, inner)
    return Layout(order, folded, dtype, dtype, _FLOAT64, "cpu")


def rank_hint(shape: tuple[int, ...], axis: int) -> str:
    """Say how an x of too few or too many dimensions becomes one with a channel axis."""
    if len(shape) != 1:
        return "reshape it so that one axis counts the channels"
    one, many = "x[None, :]", "x[:, None]"
    if axis in (0, -2):
        one, many = many, one
    n = shape[0]
    return f"{one} is one example of {n} channels, {many} is {n} examples of one channel"


def row_layout(x: Any, axis: int, name: str) -> Layout:
    """Find how `x` folds into rows (M, K) along `axis`; one number is a row of its own."""
    dtype = checks.floating(x, name)
    shape = x.shape or (1,)
    last = _axis_index(integer(axis, "axis"), shape, name)
    rest = *shape[:last], *shape[last + 1 :]
    order = None
    if last != len(shape) - 1:
        order = (*all_but(last, x), last)
    return placed(x, order, (math.prod(rest), shape[last]), dtype)


def trailing_layout(x: Any, axis: int) -> Layout:
    """Find how `x` folds into (rows, 1, K, 1), the axes from `axis` on being one run of K."""
    dtype = checks.floating(x, "x")
    first = axis_index(axis, x)
    size = math.prod(x.shape[first:])
    if size == 0:
        raise ShapeError(
            f"there is nothing to normalize: the axes of x from {axis} on have shape "
            f"{x.shape[first:]}"
        )
    return placed(x, None, (math.prod(x.shape[:first]), 1, size, 1), dtype)


def group_layout(x: Any, groups: int | None, axis: int) -> Layout:
    """Find how `x` folds into (N, groups, C / groups, S); None makes each channel a group.

    The examples are along the first axis that is not the channels'.
    """
    dtype = checks.floating(x, "x")
    # A channel without positions is one value.
    least, form = (3, "(N, C, L, ...)") if groups is None else (2, "(N, C, ...)")
    if x.ndim < least:
        raise ShapeError(f"x must have {least} dimensions or more, {form}, got shape {x.shape}")
    channel = axis_index(axis, x)
    channels = x.shape[channel]
    if channels == 0:
        raise ShapeError(f"x has no channels: axis {axis} of shape {x.shape} has length 0")
    groups = channels if groups is None else groups
    if channels % groups:
        raise ShapeError(
            f"the {channels} channels of x with shape {x.shape} do not divide into {groups} groups"
        )
    others = all_but(channel, x)
    order = (others[0], channel, *others[1:])
    inner = math.prod(x.shape[d] for d in others[1:])
    shape = x.shape[others[0]], groups, channels // groups, inner
    return placed(x, None if channel == 1 else order, shape, dtype)


def flat_layout(x: Any, name: str) -> Layout:
    """Find how `x` folds into a flat array (size,)."""
    dtype = checks.floating(x, name)
    return placed(x, _dense_order(x), (x.size,), dtype)


def image_layout(x: Any, axis: int, name: str) -> Layout:
    """Find how images fold into (A, H, W, B): channels in A where they are first in memory."""
    dtype = checks.floating(x, name)
    if x.ndim != 4:
        raise ShapeError(
            f"{name} must have 4 dimensions, (N, C, H, W) with axis 1 or (N, H, W, C) with axis "
            f"-1, got shape {x.shape}"
            + checks.rows_advice(x.shape, "C, H, W" if axis == 1 else "H, W, C")
        )
    first = image_axis(axis) == 1
    swapped = (0, 2, 3, 1) if first else (0, 3, 1, 2)
    order = None
    if not x.flags.c_contiguous and x.transpose(swapped).flags.c_contiguous:
        order, first = swapped, not first
    N, a, b, c = x.shape if order is None else tuple(x.shape[d] for d in order)
    return placed(x, order, (N * a, b, c, 1) if first else (N, a, b, c), dtype)


def image_axis(axis: Any) -> int:
    """Check the channel axis of images, and return 1 or -1."""
    number = integer(axis, "axis")
    if number not in (1, -3, -1, 3):
        raise ArgumentError(f"axis must be 1, channels first, or -1, channels last, got {number}")
    return 1 if number in (1, -3) else -1


def pair(value: Any, name: str, *, least: int) -> tuple[int, int]:
    """Check a number for height and width, or one for each."""
    if not isinstance(value, tuple | list):
        number = integer(value, name, least=least, most=MOST)
        return number, number
    if len(value) != 2:
        raise ArgumentError(f"{name} must be a number or two, (height, width), got {value!r:.80}")
    height, width = (integer(number, name, least=least, most=MOST) for number in value)
    return height, width


def sides(padding: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """Check padding, and return ((top, bottom), (left, right))."""
    if isinstance(padding, tuple | list) and any(isinstance(p, tuple | list) for p in padding):
        if len(padding) != 2 or not all(isinstance(p, tuple | list) for p in padding):
            raise ArgumentError(
                "padding must be ((top, bottom), (left, right)) where it has pairs, "
                f"got {padding!r:.80}"
            )
        rows, columns = padding
    else:
        rows, columns = pair(padding, "padding", least=0)
    return pair(rows, "padding", least=0), pair(columns, "padding", least=0)


def axis_index(axis: Any, x: np.ndarray) -> int:
    """Check `axis` against the rank of `x` and return it counted from the front."""
    return _axis_index(integer(axis, "axis"), x.shape, "x")


def all_but(axis: int, x: Any) -> tuple[int, ...]:
    """Name the other axes from the front."""
    return tuple(d for d in range(x.ndim) if d != axis % x.ndim)


def plain_layout(x: Any, name: str) -> Layout:
    """Find how `x` folds into a flat array (size,) in C order, whatever its strides."""
    dtype = checks.floating(x, name)
    return placed(x, None, (x.size,), dtype)


def _axis_index(axis: int, shape: tuple[int, ...], name: str) -> int:
    rank = len(shape)
    if not -rank <= axis < rank:
        raise ShapeError(
            f"axis {axis} is out of range for {name} with shape {shape}: use {-rank} to {rank - 1}"
        )
    return axis % rank


def _dense_order(x: np.ndarray) -> tuple[int, ...] | None:
    """Order of axes in which `x` is C-contiguous, or None if it is so already or cannot be."""
    if x.flags.c_contiguous:
        return None
    order = tuple(sorted(range(x.ndim), key=lambda d: -abs(x.strides[d])))
    return order if x.transpose(order).flags.c_contiguous else None


def fold(array: np.ndarray, to: Layout) -> np.ndarray:
    """Return `array` in the canonical layout `to`: a view where possible, else a copy."""
    if to.order is not None:
        array = array.transpose(to.order)
    usual = type(array) is np.ndarray and array.dtype is to.storage and array.flags.carray
    if not usual:
        array = backend.contiguous(array, to.storage)
    return array if array.shape == to.shape else array.reshape(to.shape)


def nothing(to: Layout) -> np.ndarray:
    """Return the empty array that tells a kernel that an optional operand is not given."""
    return _NOTHING[len(to.shape), to.dtype]  # of the host always: no kernel looks into it
