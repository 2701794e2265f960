"""The linear layer, and the loss at the end."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import backend, checks
from .. import functional as F  # noqa: N812 - the usual name
from ..autograd import Tensor, apply
from ..errors import ShapeError
from ._common import RecordableOp, empty_beside, matmul

__all__ = ["cross_entropy", "linear"]


class Linear(RecordableOp):
    """x @ weight.T + bias for x (N, in), weight (out, in), bias (out,)."""

    fresh = True

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        checks.floating(weight, "weight")
        if weight.ndim != 2:
            raise ShapeError(f"weight must have shape (out, in), got {weight.shape}")
        dtype = checks.floating(x, "x")
        if x.ndim != 2 or x.shape[1] != weight.shape[1]:
            raise ShapeError(
                f"a linear layer of weight {weight.shape} takes x of shape "
                f"(N, {weight.shape[1]}), got {x.shape}"
            )
        device = backend.device_of(x)
        checks.on_device(weight, device, "weight")
        x = backend.contiguous(x, dtype)
        ctx.x, ctx.weight, ctx.bias = x, weight, bias
        y = matmul(x, weight.T)
        if bias is not None:
            bias = checks.channel_vector(bias, weight.shape[0], y.dtype, "bias", device)
            backend.run(backend.kernels("elementwise", device).add_bias, y, bias, y)
        return y

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        dy = backend.contiguous(dy, dy.dtype)
        dx = matmul(dy, ctx.weight) if ctx.needs[0] else None
        dweight = matmul(dy.T, ctx.x, ctx.buffers[1]) if ctx.needs[1] else None
        dbias = None
        if ctx.needs[2]:
            dbias = ctx.buffers[2]
            if dbias is None:
                dbias = empty_beside(ctx.bias.shape, ctx.bias)
            kernels = backend.kernels("elementwise", backend.device_of(dy))
            backend.run(kernels.bias_gradient, dy, dbias)
        return dx, dweight, dbias


class CrossEntropy(RecordableOp):
    """Softmax-cross-entropy of logits (N, K) against labels (N,)."""

    fresh = True

    @staticmethod
    def forward(ctx: Any, logits: np.ndarray, labels: np.ndarray, *, reduction: str) -> np.ndarray:
        ctx.logits, ctx.labels, ctx.reduction = logits, labels, reduction
        return F.cross_entropy(logits, labels, reduction=reduction)

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        dlogits = F.cross_entropy_backward(ctx.logits, ctx.labels, dy, reduction=ctx.reduction)
        return dlogits, None


def linear(x: Any, weight: Any, bias: Any = None) -> Tensor:
    """``x @ weight.T + bias``.

    Parameters
    ----------
    x : Tensor or ndarray, shape (N, in)
    weight : Tensor or ndarray, shape (out, in)
    bias : Tensor or ndarray, shape (out,), optional

    Returns
    -------
    Tensor, shape (N, out)
    """
    return apply(Linear, x, weight, bias)


def cross_entropy(logits: Any, labels: np.ndarray, *, reduction: str = "mean") -> Tensor:
    """Differentiable `nbbn.functional.cross_entropy`.

    Parameters
    ----------
    logits : Tensor or ndarray, shape (N, K)
    labels : ndarray of int, shape (N,)
    reduction : {"mean", "sum", "none"}, default "mean"

    Returns
    -------
    Tensor
    """
    return apply(CrossEntropy, logits, labels, reduction=reduction)
