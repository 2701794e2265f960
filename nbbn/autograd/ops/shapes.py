"""Reductions, shapes, indexing, and the way between devices."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ... import backend
from ..._validation import switch
from ...errors import DTypeError, ShapeError
from ..tensor import Op
from ._common import RecordableOp, axes_of, empty_beside, expand, reduced


class Sum(RecordableOp):
    """Sum over axes."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, axis: Any, keepdims: bool) -> np.ndarray:
        ctx.shape, ctx.axes = x.shape, axes_of(axis, x)
        keepdims = switch(keepdims, "keepdims")
        out = empty_beside(reduced(x, ctx.axes, keepdims), x)
        backend.run(np.sum, x, ctx.axes, None, out, keepdims)
        return out

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        dx = empty_beside(ctx.shape, dy)
        backend.run(np.copyto, dx, expand(dy, ctx.shape, ctx.axes))
        return dx


class Mean(RecordableOp):
    """Mean over axes."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, axis: Any, keepdims: bool) -> np.ndarray:
        ctx.shape, ctx.axes = x.shape, axes_of(axis, x)
        keepdims = switch(keepdims, "keepdims")
        ctx.count = math.prod(x.shape[d] for d in ctx.axes)
        if ctx.count == 0:
            raise ShapeError(f"the mean of no values does not exist: x has shape {x.shape}")
        out = empty_beside(reduced(x, ctx.axes, keepdims), x)
        backend.run(np.mean, x, ctx.axes, None, out, keepdims)
        return out

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        dx = empty_beside(ctx.shape, dy)
        backend.run(np.divide, expand(dy, ctx.shape, ctx.axes), ctx.count, dx)
        return dx


class Max(RecordableOp):
    """Maximum over axes; tied maxima share the gradient equally."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, axis: Any, keepdims: bool) -> np.ndarray:
        ctx.x, ctx.axes = x, axes_of(axis, x)
        keepdims = switch(keepdims, "keepdims")
        if math.prod(x.shape[d] for d in ctx.axes) == 0:
            raise ShapeError(f"the maximum of no values does not exist: x has shape {x.shape}")
        ctx.y = empty_beside(reduced(x, ctx.axes, keepdims), x)
        backend.run(np.max, x, ctx.axes, ctx.y, keepdims)
        return ctx.y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        dx = empty_beside(ctx.x.shape, dy)
        y, dy = (expand(a, ctx.x.shape, ctx.axes) for a in (ctx.y, dy))
        backend.run(_share_among_maxima, ctx.x, y, dy, ctx.axes, dx)
        return dx


def maxima(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Where x is the maximum, y; a maximum that is NaN is every NaN, as in PyTorch."""
    ties: np.ndarray = (x == y) | ((x != x) & (y != y))
    return ties


def _share_among_maxima(
    x: np.ndarray, y: np.ndarray, dy: np.ndarray, axes: tuple[int, ...], dx: np.ndarray
) -> None:
    ties = maxima(x, y)
    dx[...] = np.where(ties, dy / np.sum(ties, axis=axes, keepdims=True), 0)


class Reshape(RecordableOp):
    """The same elements in C order under another shape."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, shape: tuple[int, ...]) -> np.ndarray:
        ctx.shape = x.shape
        try:
            # As it is where possible: `contiguous` makes what cannot be written writable.
            whole = x if x.flags.c_contiguous else backend.contiguous(x, x.dtype)
            return whole.reshape(shape)
        except TypeError:
            kinds = ", ".join(type(n).__name__ for n in shape)
            raise DTypeError(f"a shape is made of integers, got {kinds}") from None
        except ValueError:
            raise ShapeError(
                f"cannot reshape {x.size} elements of shape {x.shape} into {shape}"
            ) from None

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return backend.contiguous(dy, dy.dtype).reshape(ctx.shape)


class To(Op):
    """The same elements on another device; the gradient comes back to where x is."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, device: str) -> np.ndarray:
        ctx.device = backend.device_of(x)
        return backend.to(x, device)

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return backend.to(dy, ctx.device)


class Transpose(RecordableOp):
    """Permutation of axes, as a view."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, axes: tuple[int, ...] | None) -> np.ndarray:
        order = tuple(reversed(range(x.ndim))) if axes is None else axes_of(axes, x)
        if sorted(order) != list(range(x.ndim)):
            raise ShapeError(f"axes must name each of {x.ndim} axes once, got {axes}")
        ctx.inverse = tuple(order.index(d) for d in range(x.ndim))
        return x.transpose(order)

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return dy.transpose(ctx.inverse)


class Index(RecordableOp):
    """x[index] for any NumPy index; positions taken twice add up in the gradient."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, index: Any) -> np.ndarray:
        index = _beside(x, index)
        ctx.x, ctx.index = x, index
        try:
            shape = x[index].shape
        except TypeError as error:
            raise DTypeError(f"index cannot be taken: {error}") from None
        except (IndexError, ValueError, OverflowError) as error:
            raise ShapeError(f"index does not fit shape {x.shape}: {error}") from None
        out = empty_beside(shape, x)
        backend.run(_take, x, out, *_parts(index))
        return out

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        dx = empty_beside(ctx.x.shape, dy)
        backend.run(_scatter, dy, dx, *_parts(ctx.index))
        return dx


def _beside(x: np.ndarray, index: Any) -> Any:
    """Put the arrays of an index where x is."""
    if isinstance(index, tuple):
        return tuple(_beside(x, item) for item in index)
    return backend.to(index, backend.device_of(x)) if backend.is_array(index) else index


def _parts(index: Any) -> tuple[Any, ...]:
    """Return the parts of an index, each an argument of its own: a recorder sees arrays there."""
    return index if isinstance(index, tuple) else (index,)


def _take(x: np.ndarray, out: np.ndarray, *index: Any) -> None:
    out[...] = x[index]


def _scatter(dy: np.ndarray, dx: np.ndarray, *index: Any) -> None:
    dx[...] = 0
    backend.add_at(dx, index, dy)
