"""Pooling of images. Means are linear; a maximum's gradient goes where its index says."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ... import functional as F  # noqa: N812 - the usual name
from ...functional.pooling import max_pool2d_at
from ._common import LinearMap, RecordableOp, Tensor


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
        taken = partial(max_pool2d_at, index=ctx.index, **ctx.windows)
        return dy._apply(LinearMap, dy, function=partial(MaxPool2d.backward, ctx), adjoint=taken)


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
        means = partial(F.avg_pool2d, **ctx.windows)
        return dy._apply(LinearMap, dy, function=partial(AvgPool2d.backward, ctx), adjoint=means)


class GlobalAvgPool2d(RecordableOp):
    """Mean of each channel of each image."""

    fresh = True

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, axis: int, keepdims: bool) -> np.ndarray:
        y = F.global_avg_pool2d(x, axis=axis, keepdims=keepdims)
        ctx.shape, ctx.axis, ctx.keepdims = x.shape, axis, keepdims
        return y

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return F.global_avg_pool2d_backward(dy, ctx.shape, axis=ctx.axis)

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        means = partial(F.global_avg_pool2d, axis=ctx.axis, keepdims=ctx.keepdims)
        spread = partial(GlobalAvgPool2d.backward, ctx)
        return dy._apply(LinearMap, dy, function=spread, adjoint=means)
