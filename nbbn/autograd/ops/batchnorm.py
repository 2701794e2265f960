"""Batch normalization, with the batch's statistics and with given ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import functional as F  # noqa: N812 - the usual name
from ._common import RecordableOp, compute


class BatchNormTrain(RecordableOp):
    """Batch normalization with the batch's own statistics."""

    fresh = True

    @staticmethod
    def forward(
        ctx: Any, x: np.ndarray, gamma: Any, beta: Any, residual: Any, *,
        eps: float, axis: int, activation: str | None, single: bool,
    ) -> np.ndarray:  # fmt: skip
        y, ctx.stats = F.batch_norm_train(
            x, gamma, beta, eps=eps, axis=axis, activation=activation, residual=residual,
            single=single,
        )  # fmt: skip
        ctx.x, ctx.gamma, ctx.eps, ctx.axis = x, gamma, eps, axis
        ctx.y = y if activation == "relu" else None
        return y

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        dresidual = residual_gradient(ctx, dy)
        in_place = ctx.owns_dy and dresidual is None and dy.dtype == ctx.x.dtype
        dx, dgamma, dbeta = F.batch_norm_backward(
            dy, ctx.x, ctx.stats, ctx.gamma, axis=ctx.axis, y=ctx.y, out=dy if in_place else None,
            out_dgamma=ctx.buffers[1], out_dbeta=ctx.buffers[2],
        )  # fmt: skip
        return dx, dgamma, dbeta, dresidual


class BatchNormInfer(RecordableOp):
    """Batch normalization with given, constant statistics."""

    @staticmethod
    def forward(
        ctx: Any, x: np.ndarray, mean: Any, var: Any, gamma: Any, beta: Any, residual: Any, *,
        eps: float, axis: int, activation: str | None,
    ) -> np.ndarray:  # fmt: skip
        y = F.batch_norm_infer(
            x, mean, var, gamma, beta, eps=eps, axis=axis, activation=activation, residual=residual
        )
        ctx.x, ctx.mean, ctx.var, ctx.gamma = x, mean, var, gamma
        ctx.eps, ctx.axis = eps, axis
        ctx.y = y if activation == "relu" else None
        return y

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        dx, dgamma, dbeta = F.batch_norm_infer_backward(
            dy, ctx.x, ctx.mean, ctx.var, ctx.gamma, eps=ctx.eps, axis=ctx.axis, y=ctx.y,
            out_dgamma=ctx.buffers[3], out_dbeta=ctx.buffers[4],
        )  # fmt: skip
        return dx, None, None, dgamma, dbeta, residual_gradient(ctx, dy)


def residual_gradient(ctx: Any, dy: np.ndarray) -> np.ndarray | None:
    """Gradient of a residual, an operation's last input, added before a ReLU or nothing."""
    if not ctx.needs[-1]:
        return None
    if ctx.y is not None:
        return F.relu_backward(dy, ctx.y)
    return dy if ctx.owns_dy else compute(np.positive, dy)
