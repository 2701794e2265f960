"""The linear layer, and the losses at the end."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ... import backend
from ... import functional as F  # noqa: N812 - the usual name
from ..._validation import real
from ...errors import ArgumentError, ShapeError
from ...functional import checks
from ..tensor import Tensor, apply
from ._common import RecordableOp, empty_beside, matmul

__all__ = ["cross_entropy", "huber", "linear"]


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


def _rows(x: np.ndarray, dtype: Any) -> np.ndarray:
    """View x (..., C) as contiguous rows (M, C), or copy it so."""
    x = backend.contiguous(x, dtype)
    return x if x.ndim == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


class CrossEntropy(RecordableOp):
    """Softmax-cross-entropy of logits (N, K, ...) against labels (N, ...)."""

    fresh = True

    @staticmethod
    def forward(ctx: Any, logits: np.ndarray, labels: np.ndarray, **options: Any) -> np.ndarray:
        ctx.logits, ctx.labels, ctx.options = logits, labels, options
        return F.cross_entropy(logits, labels, **options)

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return F.cross_entropy_backward(ctx.logits, ctx.labels, dy, **ctx.options), None


class Huber(RecordableOp):
    """x^2 / 2 where |x| <= delta, else delta * (|x| - delta / 2)."""

    fresh = True

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, delta: float) -> np.ndarray:
        checks.floating(x, "x")
        ctx.x, ctx.delta = x, delta
        y = empty_beside(x.shape, x)
        backend.run(_huber, x, delta, y)
        return y

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        dx = empty_beside(dy.shape, dy)
        backend.run(_huber_backward, dy, ctx.x, ctx.delta, dx)
        return dx


def _huber(x: np.ndarray, delta: float, y: np.ndarray) -> None:
    near = np.clip(x, -delta, delta)
    np.multiply(near, x - 0.5 * near, y)


def _huber_backward(dy: np.ndarray, x: np.ndarray, delta: float, dx: np.ndarray) -> None:
    np.multiply(dy, np.clip(x, -delta, delta), dx)


def linear(x: Any, weight: Any, bias: Any = None) -> Tensor:
    """``x @ weight.T + bias``.

    Parameters
    ----------
    x : Tensor or ndarray, shape (N, in) or (..., in)
    weight : Tensor or ndarray, shape (out, in)
    bias : Tensor or ndarray, shape (out,), optional

    Returns
    -------
    Tensor, shape (N, out) or (..., out)
    """
    return apply(Linear, x, weight, bias)


def cross_entropy(
    logits: Any, labels: np.ndarray, *, weight: np.ndarray | None = None,
    ignore_index: int | None = None, label_smoothing: float = 0.0, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """Differentiable `nbbn.functional.cross_entropy`.

    Parameters
    ----------
    logits : Tensor or ndarray, shape (N, K), (N, K, d1, ...) or (K,)
    labels : ndarray of int, shape (N,), (N, d1, ...) or ()
    weight : ndarray of float, shape (K,), optional
    ignore_index : int, optional
    label_smoothing : float, default 0
    reduction : {"mean", "sum", "none"}, default "mean"

    Returns
    -------
    Tensor
    """
    return apply(
        CrossEntropy, logits, labels, weight=weight, ignore_index=ignore_index,
        label_smoothing=label_smoothing, reduction=reduction,
    )  # fmt: skip


def huber(x: Any, delta: float = 1.0) -> Tensor:
    """``x**2 / 2`` where ``|x| <= delta``, else ``delta * (|x| - delta / 2)``.

    Parameters
    ----------
    x : Tensor or ndarray
    delta : float, default 1
        Above 0.

    Returns
    -------
    Tensor
    """
    if real(delta, "delta") <= 0:
        raise ArgumentError(f"delta must be positive, got {delta}")
    return apply(Huber, x, delta=delta)
