"""Pooling of images. Means are linear; a maximum's gradient goes where its index says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ... import functional as F  # noqa: N812 - the usual name
from ...functional.pooling import max_pool2d_at
from ._common import RecordableOp

if TYPE_CHECKING:
    from ..tensor import Tensor


class MaxPool2d(RecordableOp):
    """Maximum of each window."""

    fresh = True

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, **windows: Any) -> np.ndarray:
        y, ctx.index = F.max_pool2d(x, **windows)
        ctx.shape, ctx.windows = x.shape, windows
        return y

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return F.max_pool2d_backward(dy, ctx.index, ctx.shape, **ctx.windows)

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        return dy._apply(Unpool, dy, index=ctx.index, shape=ctx.shape, windows=ctx.windows)


class Unpool(RecordableOp):
    """Put dy where `MaxPool2d` found its maxima; du = u there."""

    fresh = True

    @staticmethod
    def forward(
        ctx: Any, dy: np.ndarray, *, index: np.ndarray, shape: tuple[int, ...],
        windows: dict[str, Any],
    ) -> np.ndarray:  # fmt: skip
        ctx.index, ctx.windows = index, windows
        return F.max_pool2d_backward(dy, index, shape, **windows)

    @staticmethod
    def backward(ctx: Any, du: np.ndarray) -> Any:
        return max_pool2d_at(du, ctx.index, **ctx.windows)


class AvgPool2d(RecordableOp):
    """Mean of each window."""

    fresh = True

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, **windows: Any) -> np.ndarray:
        y = F.avg_pool2d(x, **windows)
        ctx.shape, ctx.windows = x.shape, windows
        return y

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return F.avg_pool2d_backward(dy, ctx.shape, **ctx.windows)

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        return dy._apply(AvgUnpool, dy, shape=ctx.shape, windows=ctx.windows)


class AvgUnpool(RecordableOp):
    """Spread dy over the windows of `AvgPool2d`; du are their means."""

    fresh = True

    @staticmethod
    def forward(
        ctx: Any, dy: np.ndarray, *, shape: tuple[int, ...], windows: dict[str, Any]
    ) -> np.ndarray:
        ctx.windows = windows
        return F.avg_pool2d_backward(dy, shape, **windows)

    @staticmethod
    def backward(ctx: Any, du: np.ndarray) -> Any:
        return F.avg_pool2d(du, **ctx.windows)


class GlobalAvgPool2d(RecordableOp):
    """Mean of each channel of each image."""

    fresh = True

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, axis: int, keepdims: bool) -> np.ndarray:
        y = F.global_avg_pool2d(x, axis=axis, keepdims=keepdims)
        ctx.shape, ctx.axis = x.shape, axis
        return y

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return F.global_avg_pool2d_backward(dy, ctx.shape, axis=ctx.axis)

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        return dy._apply(GlobalAvgUnpool, dy, shape=ctx.shape, axis=ctx.axis)


class GlobalAvgUnpool(RecordableOp):
    """Spread dy over the images of `GlobalAvgPool2d`; du are their means."""

    fresh = True

    @staticmethod
    def forward(ctx: Any, dy: np.ndarray, *, shape: tuple[int, ...], axis: int) -> np.ndarray:
        ctx.axis, ctx.keepdims = axis, dy.ndim == 4
        return F.global_avg_pool2d_backward(dy, shape, axis=axis)

    @staticmethod
    def backward(ctx: Any, du: np.ndarray) -> Any:
        return F.global_avg_pool2d(du, axis=ctx.axis, keepdims=ctx.keepdims)
