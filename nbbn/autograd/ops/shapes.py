"""Shapes, the order of axes, and the way between devices and between types."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import backend
from ...errors import DTypeError, ShapeError
from ..op import Op
from ._common import RecordableOp, Tensor, axes_of


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

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        return dy.reshape(ctx.shape)


class To(Op):
    """The same elements on another device; the gradient comes back to where x is."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, device: str) -> np.ndarray:
        ctx.device = backend.device_of(x)
        return backend.to(x, device)

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return backend.to(dy, ctx.device)

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        return dy.to(ctx.device)


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

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        return dy.transpose(*ctx.inverse)


class Cast(RecordableOp):
    """The same numbers in another floating type; the gradient comes back in x's."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, dtype: np.dtype[Any]) -> np.ndarray:
        ctx.dtype = x.dtype
        return backend.contiguous(x, dtype)

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return backend.contiguous(dy, ctx.dtype)

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        return dy._apply(Cast, dy, dtype=ctx.dtype)
