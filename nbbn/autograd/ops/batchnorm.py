"""Batch normalization, with the batch's statistics and with given ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import backend
from ... import functional as F  # noqa: N812 - the usual name
from ...distributed import Ranks
from ...functional.layout import all_but
from ...functional.stats import merge_ranks
from ._common import RecordableOp, Tensor, compute
from .masks import through_relu


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
        out = _place_of_dx(ctx, dy, dresidual)
        dx, dgamma, dbeta = F.batch_norm_backward(
            dy, ctx.x, ctx.stats, ctx.gamma, axis=ctx.axis, y=ctx.y, out=out,
            out_dgamma=ctx.buffers[1], out_dbeta=ctx.buffers[2],
        )  # fmt: skip
        return dx, dgamma, dbeta, dresidual

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        x, gamma, *_ = inputs
        g, others = through_relu(dy, ctx.y), all_but(ctx.axis, ctx.x)
        dx = dgamma = None
        if ctx.needs[0]:
            dx = dy._apply(BatchNormInputGradient, g, x, gamma, stats=ctx.stats, axis=ctx.axis)
        if ctx.needs[1]:
            x_hat = dy._apply(
                BatchNormTrain, x, None, None, None,
                eps=ctx.eps, axis=ctx.axis, activation=None, single=True,
            )  # fmt: skip
            dgamma = (g * x_hat).sum(axis=others)
        return dx, dgamma, g.sum(axis=others) if ctx.needs[2] else None, g


class BatchNormSync(RecordableOp):
    """Batch normalization with the statistics of the batches of all ranks.

    dgamma and dbeta are this rank's sums. With those of all ranks, over m values in all,
    dx = gamma * inv_std * g - gamma * inv_std * (dbeta + x_hat * dgamma) / m: what constant
    statistics give, plus another normalization of x.
    """

    fresh = True

    @staticmethod
    def forward(
        ctx: Any, x: np.ndarray, gamma: Any, beta: Any, residual: Any, *,
        ranks: Ranks, eps: float, axis: int, activation: str | None, single: bool,
    ) -> np.ndarray:  # fmt: skip
        y, own = F.batch_norm_train(x, eps=eps, axis=axis, single=True)
        ctx.stats = merge_ranks(ranks, own, eps=eps, single=single)
        y = F.batch_norm_infer(
            x, ctx.stats.mean, ctx.stats.var, gamma, beta, eps=eps, axis=axis,
            activation=activation, residual=residual, out=y,
        )  # fmt: skip
        ctx.x, ctx.gamma, ctx.ranks, ctx.eps, ctx.axis = x, gamma, ranks, eps, axis
        ctx.y = y if activation == "relu" else None
        return y

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        dresidual = residual_gradient(ctx, dy)
        out = _place_of_dx(ctx, dy, dresidual)
        moments, options = (ctx.stats.mean, ctx.stats.var), {"eps": ctx.eps, "axis": ctx.axis}
        dx, dgamma, dbeta = F.batch_norm_infer_backward(
            dy, ctx.x, *moments, ctx.gamma, **options, y=ctx.y, out=out,
            out_dgamma=ctx.buffers[1], out_dbeta=ctx.buffers[2],
        )  # fmt: skip
        sums = backend.empty((2, dgamma.size), np.float64)
        scale, shift = (backend.empty(dgamma.size, np.float64) for _ in range(2))
        backend.run(_pack_sums, dgamma, dbeta, sums)
        backend.run(ctx.ranks.sum, sums)
        _, _, inv_std, count, _ = ctx.stats
        backend.run(_pull_of_all, sums, ctx.gamma, inv_std, count, scale, shift)
        device = backend.device_of(dx)
        if device != "cpu":
            scale, shift = (backend.to(a.astype(dgamma.dtype), device) for a in (scale, shift))
        dx = F.batch_norm_infer(ctx.x, *moments, scale, shift, **options, residual=dx, out=dx)
        return dx, dgamma, dbeta, dresidual


def _pack_sums(dgamma: Any, dbeta: Any, sums: np.ndarray) -> None:
    sums[0], sums[1] = backend.host(dgamma), backend.host(dbeta)


def _pull_of_all(
    sums: np.ndarray, gamma: Any, inv_std: Any, count: np.ndarray,
    scale: np.ndarray, shift: np.ndarray,
) -> None:  # fmt: skip
    """Write what x_hat and 1 are multiplied by in the second part of dx."""
    factor = backend.host(inv_std) / -np.maximum(count, 1)
    if gamma is not None:
        factor = factor * backend.host(gamma)
    np.multiply(sums[0], factor, out=scale)
    np.multiply(sums[1], factor, out=shift)


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

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        (x, _, _, gamma, *_), axis = inputs, ctx.axis
        g, others = through_relu(dy, ctx.y), all_but(axis, ctx.x)
        inv_std, center = (backend.empty(ctx.var.shape, ctx.x.dtype) for _ in range(2))
        backend.run(inverse_std, ctx.var, ctx.eps, inv_std)
        backend.run(np.copyto, center, ctx.mean, "same_kind")
        inv_std, center = (_per_channel(v, ctx.x, axis) for v in (inv_std, center))
        scaled = g * inv_std
        dx = scaled if gamma is None else scaled * _per_channel(gamma, ctx.x, axis)
        dgamma = (scaled * (x - center)).sum(axis=others) if ctx.needs[3] else None
        return dx, None, None, dgamma, g.sum(axis=others) if ctx.needs[4] else None, g


def _place_of_dx(ctx: Any, dy: np.ndarray, dresidual: np.ndarray | None) -> np.ndarray | None:
    """Return dy where nobody needs it any more and dx can take its place."""
    free = ctx.owns_dy and dresidual is None and dy.dtype == ctx.x.dtype
    return dy if free else None


def residual_gradient(ctx: Any, dy: np.ndarray) -> np.ndarray | None:
    """Gradient of a residual, an operation's last input, added before a ReLU or nothing."""
    if not ctx.needs[-1]:
        return None
    if ctx.y is not None:
        return F.relu_backward(dy, ctx.y)
    return dy if ctx.owns_dy else compute(np.positive, dy)


class BatchNormInputGradient(RecordableOp):
    """dx of batch normalization with batch statistics, as a function of g, x and gamma.

    With means over the channel's m values, i = 1 / sqrt(var + eps), x_hat = (x - mean) * i and
    D(v) = i * (v - mean(v) - x_hat * mean(v * x_hat)), it is dx = gamma * D(g). D is linear and
    symmetric in v, so for an incoming u:

    - dg = gamma * D(u), and dgamma = sum(u * D(g));
    - sum(u * dx) = gamma * i * m * (mean(u g) - mean(u) mean(g) - mean(u x_hat) mean(g x_hat)).
      Derived by x, with di/dx = -i^2 x_hat / m and the gradient of mean(v * x_hat), D(v) / m:
      dx = -gamma * i * (x_hat * mean(u * D(g)) + mean(g x_hat) * D(u) + mean(u x_hat) * D(g)).

    Derived here by hand; `gradgradcheck` confirms it.
    """

    fresh = True

    @staticmethod
    def forward(
        ctx: Any, g: np.ndarray, x: np.ndarray, gamma: Any, *, stats: F.BatchNormStats, axis: int
    ) -> np.ndarray:
        ctx.g, ctx.x, ctx.gamma, ctx.stats, ctx.axis = g, x, gamma, stats, axis
        return F.batch_norm_backward(g, x, stats, gamma, axis=axis)[0]

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        x, stats, axis = ctx.x, ctx.stats, ctx.axis
        channels = stats.mean.size
        d_u, u_x_hat, _ = F.batch_norm_backward(dy, x, stats, axis=axis)
        d_g, g_x_hat, _ = F.batch_norm_backward(ctx.g, x, stats, axis=axis)
        dg, dx = (backend.empty(x.shape, x.dtype) for _ in range(2))
        dgamma = backend.empty(channels, np.float64)
        backend.run(
            _differentiate_input_gradient, dy, d_u, d_g, u_x_hat, g_x_hat, x, ctx.gamma,
            stats.mean, stats.inv_std, stats.count, axis, dg, dx, dgamma,
        )  # fmt: skip
        return dg, dx, None if ctx.gamma is None else dgamma


def _differentiate_input_gradient(
    u: np.ndarray, d_u: np.ndarray, d_g: np.ndarray, u_x_hat: np.ndarray, g_x_hat: np.ndarray,
    x: np.ndarray, gamma: Any, mean: np.ndarray, inv_std: np.ndarray, count: int, axis: int,
    dg: np.ndarray, dx: np.ndarray, dgamma: np.ndarray,
) -> None:  # fmt: skip
    """Write the formulas of BatchNormInputGradient's backward; ``*_x_hat`` are sums."""
    np.sum(u * d_g, axis=all_but(axis, x), dtype=np.float64, out=dgamma)
    m = max(count, 1)
    scale = np.ones_like(mean) if gamma is None else gamma.astype(np.float64)
    vectors = scale, dgamma / m, g_x_hat / m, u_x_hat / m, mean, inv_std
    scale, u_d_g, b, a, mean, inv_std = (_per_channel(v, x, axis) for v in vectors)
    np.multiply(scale, d_u, out=dg, casting="same_kind")
    pull = (x - mean) * inv_std * u_d_g + b * d_u + a * d_g
    np.multiply(-scale * inv_std, pull, out=dx, casting="same_kind")


def _per_channel(vector: Any, like: Any, axis: int) -> Any:
    """Reshape a vector over the channels so that it broadcasts against `like`."""
    shape = [1] * like.ndim
    shape[axis] = like.shape[axis]
    return vector.reshape(tuple(shape))


def inverse_std(var: np.ndarray, eps: float, inv_std: np.ndarray) -> None:
    """Write 1 / sqrt(var + eps)."""
    np.divide(1.0, np.sqrt(var + eps), out=inv_std, casting="same_kind")
