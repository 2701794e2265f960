"""Sums, means and maxima over axes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ... import backend
from ..._validation import switch
from ...errors import ShapeError
from ._common import RecordableOp, Tensor, axes_of, empty_beside, expand, expand_graph, reduced
from .masks import masked_graph


class Sum(RecordableOp):
    """Sum over axes."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, axis: Any, keepdims: bool) -> np.ndarray:
        ctx.shape, ctx.axes = x.shape, axes_of(axis, x)
        keepdims = switch(keepdims, "keepdims")
        out = empty_beside(reduced(x.shape, ctx.axes, keepdims), x)
        backend.run(np.sum, x, ctx.axes, None, out, keepdims)
        return out

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        dx = empty_beside(ctx.shape, dy)
        backend.run(np.copyto, dx, expand(dy, ctx.shape, ctx.axes))
        return dx

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        return expand_graph(dy, ctx.shape, ctx.axes)


class Mean(RecordableOp):
    """Mean over axes."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, axis: Any, keepdims: bool) -> np.ndarray:
        ctx.shape, ctx.axes = x.shape, axes_of(axis, x)
        keepdims = switch(keepdims, "keepdims")
        ctx.count = math.prod(x.shape[d] for d in ctx.axes)
        if ctx.count == 0:
            raise ShapeError(f"the mean of no values does not exist: x has shape {x.shape}")
        out = empty_beside(reduced(x.shape, ctx.axes, keepdims), x)
        backend.run(np.mean, x, ctx.axes, None, out, keepdims)
        return out

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        dx = empty_beside(ctx.shape, dy)
        backend.run(np.divide, expand(dy, ctx.shape, ctx.axes), ctx.count, dx)
        return dx

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        return expand_graph(dy / ctx.count, ctx.shape, ctx.axes)


class Max(RecordableOp):
    """Maximum over axes; tied maxima share the gradient equally."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, axis: Any, keepdims: bool) -> np.ndarray:
        ctx.x, ctx.axes = x, axes_of(axis, x)
        keepdims = switch(keepdims, "keepdims")
        if math.prod(x.shape[d] for d in ctx.axes) == 0:
            raise ShapeError(f"the maximum of no values does not exist: x has shape {x.shape}")
        ctx.y = empty_beside(reduced(x.shape, ctx.axes, keepdims), x)
        backend.run(np.max, x, ctx.axes, ctx.y, keepdims)
        return ctx.y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        dx = empty_beside(ctx.x.shape, dy)
        y, dy = (expand(a, ctx.x.shape, ctx.axes) for a in (ctx.y, dy))
        backend.run(_share_among_maxima, ctx.x, y, dy, ctx.axes, dx)
        return dx

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        shape, axes = ctx.x.shape, ctx.axes
        share = backend.empty(shape, dy.dtype)
        y = ctx.y.reshape(reduced(shape, axes, True))
        backend.run(_share_of_maxima, ctx.x, y, axes, share)
        return masked_graph(expand_graph(dy, shape, axes), share)


def _maxima(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Where x is the maximum, y; a maximum that is NaN is every NaN, as in PyTorch."""
    ties: np.ndarray = (x == y) | ((x != x) & (y != y))
    return ties


def _share_among_maxima(
    x: np.ndarray, y: np.ndarray, dy: np.ndarray, axes: tuple[int, ...], dx: np.ndarray
) -> None:
    ties = _maxima(x, y)
    dx[...] = np.where(ties, dy / np.sum(ties, axis=axes, keepdims=True), 0)


def _share_of_maxima(x: np.ndarray, y: np.ndarray, axes: tuple[int, ...], out: np.ndarray) -> None:
    ties = _maxima(x, y)
    np.divide(ties, ties.sum(axis=axes, keepdims=True), out=out, casting="same_kind")
