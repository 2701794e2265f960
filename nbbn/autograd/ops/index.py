"""Indexing."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import backend
from ...errors import DTypeError, ShapeError
from ._common import RecordableOp, Tensor, empty_beside


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
        return _scatter(dy, ctx.x.shape, ctx.index)

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        return dy._apply(Scatter, dy, shape=ctx.x.shape, index=ctx.index)


class Scatter(RecordableOp):
    """Put dy where `Index` took it from; du = u[index]."""

    @staticmethod
    def forward(ctx: Any, dy: np.ndarray, *, shape: tuple[int, ...], index: Any) -> np.ndarray:
        ctx.index = _beside(dy, index)
        return _scatter(dy, shape, ctx.index)

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return Index.forward(ctx, dy, index=ctx.index)

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        return dy._apply(Index, dy, index=ctx.index)


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


def _scatter(dy: np.ndarray, shape: tuple[int, ...], index: Any) -> np.ndarray:
    dx = empty_beside(shape, dy)
    backend.run(_put, dy, dx, *_parts(index))
    return dx


def _put(dy: np.ndarray, dx: np.ndarray, *index: Any) -> None:
    dx[...] = 0
    if all(part is None or part is ... or isinstance(part, int | slice) for part in index):
        # No place twice, and several times faster.
        dx[index] = dy
    else:
        backend.add_at(dx, index, dy)
