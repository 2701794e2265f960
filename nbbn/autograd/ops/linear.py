"""The linear layer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ... import backend
from ...errors import ShapeError
from ...functional import checks
from ._common import RecordableOp, Tensor, empty_beside
from .matmul import matmul


class Linear(RecordableOp):
    """x @ weight.T + bias for x (..., in), weight (out, in), bias (out,)."""

    fresh = True

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        checks.floating(weight, "weight")
        if weight.ndim != 2:
            raise ShapeError(f"weight must have shape (out, in), got {weight.shape}")
        dtype = checks.floating(x, "x")
        if x.ndim == 0 or x.shape[-1] != weight.shape[1]:
            raise ShapeError(
                f"a linear layer of weight {weight.shape} takes x of shape "
                f"(N, {weight.shape[1]}) or (..., {weight.shape[1]}), got {x.shape}"
            )
        device = backend.device_of(x)
        checks.on_device(weight, device, "weight")
        ctx.x, ctx.weight, ctx.bias = _rows(x, dtype), weight, bias
        ctx.leading = x.shape[:-1]
        y = matmul(ctx.x, weight.T)
        if bias is not None:
            bias = checks.channel_vector(bias, weight.shape[0], y.dtype, "bias", device)
            backend.run(backend.kernels("elementwise", device).add_bias, y, bias, y)
        return y if x.ndim == 2 else y.reshape(*ctx.leading, weight.shape[0])

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        dy = _rows(dy, dy.dtype)
        dx = None
        if ctx.needs[0]:
            dx = matmul(dy, ctx.weight)
            if len(ctx.leading) != 1:
                dx = dx.reshape(*ctx.leading, ctx.weight.shape[1])
        dweight = matmul(dy.T, ctx.x, ctx.buffers[1]) if ctx.needs[1] else None
        dbias = None
        if ctx.needs[2]:
            dbias = ctx.buffers[2]
            if dbias is None:
                dbias = empty_beside(ctx.bias.shape, ctx.bias)
            kernels = backend.kernels("elementwise", backend.device_of(dy))
            backend.run(kernels.bias_gradient, dy, dbias)
        return dx, dweight, dbias

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        x, weight, _ = inputs
        rows = dy.reshape(len(ctx.x), dy.shape[-1])
        return (
            (rows @ weight).reshape(x.shape) if ctx.needs[0] else None,
            rows.T @ x.reshape(ctx.x.shape) if ctx.needs[1] else None,
            rows.sum(axis=0) if ctx.needs[2] else None,
        )


def _rows(x: np.ndarray, dtype: Any) -> np.ndarray:
    """View x (..., C) as contiguous rows (M, C), or copy it so."""
    x = backend.contiguous(x, dtype)
    return x if x.ndim == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
