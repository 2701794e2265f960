"""Variants of batch normalization: weighted, ghost, renormalized, in place.

Their sources are those that their layers name, in `nbbn.nn.variants`.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from ... import backend
from ... import functional as F  # noqa: N812 - the usual name
from ...errors import DTypeError
from ...functional import checks
from ...functional.layout import axis_index, channel_layout
from ._common import RecordableOp
from .batchnorm import inverse_std, residual_gradient

_FLOAT64 = np.dtype(np.float64)


class WeightedBatchNorm(RecordableOp):
    """Batch normalization with the batch's weighted statistics; the weights are constants."""

    fresh = True

    @staticmethod
    def forward(
        ctx: Any, x: np.ndarray, weights: Any, gamma: Any, beta: Any, residual: Any, *,
        eps: float = 1e-5, axis: int = 1, activation: str | None = None, single: bool = False,
    ) -> np.ndarray:  # fmt: skip
        y, ctx.stats = F.weighted_batch_norm_train(
            x, weights, gamma, beta,
            eps=eps, axis=axis, activation=activation, residual=residual, single=single,
        )  # fmt: skip
        ctx.x, ctx.weights, ctx.gamma, ctx.axis = x, weights, gamma, axis
        ctx.y = y if activation == "relu" else None
        return y

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        dx, dgamma, dbeta = F.weighted_batch_norm_backward(
            dy, ctx.x, ctx.weights, ctx.stats, ctx.gamma, axis=ctx.axis, y=ctx.y,
            out_dgamma=ctx.buffers[2], out_dbeta=ctx.buffers[3],
        )  # fmt: skip
        return dx, None, dgamma, dbeta, residual_gradient(ctx, dy)


class GhostBatchNorm(RecordableOp):
    """Batch normalization of each of several groups of examples with the group's own statistics."""

    fresh = True

    @staticmethod
    def forward(
        ctx: Any, x: np.ndarray, gamma: Any, beta: Any, residual: Any, *,
        size: int, eps: float = 1e-5, axis: int = 1, activation: str | None = None,
        single: bool = False,
    ) -> np.ndarray:  # fmt: skip
        checks.host_only(x, "ghost batch normalization")
        channel_layout(x, axis)
        if residual is not None:
            checks.same_shape(residual, x, "residual")
        ctx.groups = _groups(x, axis, size)
        y = backend.empty(x.shape, x.dtype)
        parts = [
            F.batch_norm_train(
                x[group], gamma, beta, eps=eps, axis=axis, activation=activation, single=single,
                residual=None if residual is None else residual[group], out=y[group],
            )[1]
            for group in ctx.groups
        ]  # fmt: skip
        ctx.x, ctx.gamma, ctx.axis, ctx.parts = x, gamma, axis, parts
        ctx.y = y if activation == "relu" else None
        ctx.stats = parts[0] if len(parts) == 1 else F.merge_stats(parts, eps=eps)
        return y

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        dx = backend.empty(ctx.x.shape, ctx.x.dtype)
        total: list[np.ndarray] = []
        for group, stats in zip(ctx.groups, ctx.parts, strict=True):
            _, *found = F.batch_norm_backward(
                dy[group], ctx.x[group], stats, ctx.gamma, axis=ctx.axis,
                y=None if ctx.y is None else ctx.y[group], out=dx[group],
            )  # fmt: skip
            for sum_, one in zip(total, found, strict=False):
                backend.run(np.add, sum_, one, sum_)
            total = total or found
        return dx, *total, residual_gradient(ctx, dy)


def _groups(x: np.ndarray, axis: int, size: int) -> list[tuple[slice, ...]]:
    """Cut the first axis that is not the channels' into groups of `size` or a little more."""
    examples = 1 if axis_index(axis, x) == 0 else 0
    count = x.shape[examples]
    number = max(1, count // size)
    bounds = [count * n // number for n in range(number + 1)]
    before = (slice(None),) * examples
    return [(*before, slice(a, b)) for a, b in itertools.pairwise(bounds)]


class BatchRenorm(RecordableOp):
    """y = gamma * (x_hat * r + d) + beta, where r and d, both clipped, are constants.

    r = sigma_batch / sigma_running, d = (mean_batch - mean_running) / sigma_running.
    """

    fresh = True

    @staticmethod
    def forward(
        ctx: Any, x: np.ndarray, running_mean: np.ndarray, running_var: np.ndarray,
        limits: np.ndarray, gamma: Any, beta: Any, residual: Any, *,
        eps: float = 1e-5, axis: int = 1, activation: str | None = None, single: bool = False,
    ) -> np.ndarray:  # fmt: skip
        checks.host_only(x, "batch renormalization")
        y, ctx.stats = F.batch_norm_train(x, gamma, beta, eps=eps, axis=axis, single=single)
        channels = ctx.stats.mean.size
        ctx.r, ctx.d, scale, shift = (backend.empty(channels, _FLOAT64) for _ in range(4))
        backend.run(
            _renormalize, ctx.stats.mean, ctx.stats.var, running_mean, running_var, eps, limits,
            gamma, beta, ctx.r, ctx.d, scale, shift,
        )  # fmt: skip
        F.batch_norm_infer(
            x, ctx.stats.mean, ctx.stats.var, scale, shift,
            eps=eps, axis=axis, activation=activation, residual=residual, out=y,
        )  # fmt: skip
        ctx.x, ctx.scale, ctx.axis = x, scale, axis
        ctx.y = y if activation == "relu" else None
        return y

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        dx, dgamma, dbeta = F.batch_norm_backward(
            dy, ctx.x, ctx.stats, ctx.scale, axis=ctx.axis, y=ctx.y
        )
        backend.run(_renormalized_gradient, ctx.r, ctx.d, dbeta, dgamma)
        return dx, None, None, None, dgamma, dbeta, residual_gradient(ctx, dy)


def _renormalize(
    mean: np.ndarray, var: np.ndarray, running_mean: np.ndarray, running_var: np.ndarray,
    eps: float, limits: np.ndarray, gamma: Any, beta: Any,
    r: np.ndarray, d: np.ndarray, scale: np.ndarray, shift: np.ndarray,
) -> None:  # fmt: skip
    """Write r and d, and the scale and shift of x_hat that they make with gamma and beta."""
    r_max, d_max = limits
    sigma = np.sqrt(running_var.astype(np.float64) + eps)
    np.clip(np.sqrt(var + eps) / sigma, 1.0 / r_max, r_max, out=r)
    np.clip((mean - running_mean) / sigma, -d_max, d_max, out=d)
    np.multiply(r, 1.0 if gamma is None else gamma, out=scale)
    np.add(d * (1.0 if gamma is None else gamma), 0.0 if beta is None else beta, out=shift)


def _renormalized_gradient(
    r: np.ndarray, d: np.ndarray, dbeta: np.ndarray, dgamma: np.ndarray
) -> None:
    # A shift that is off adds nothing, not even 0 * Inf.
    shifted = np.multiply(d, dbeta, out=np.zeros_like(d), where=d != 0)
    dgamma[...] = r * dgamma + shifted


class InPlaceBatchNorm(RecordableOp):
    """Batch normalization and leaky ReLU that keep their output only, and invert it in backward.

    y = leaky_relu(scale * x_hat + beta) with scale = |gamma| + eps, which is never 0, so that
    x_hat = (leaky_relu^-1(y) - beta) / scale. The statistics are the batch's, or given.
    """

    fresh = True

    @staticmethod
    def forward(
        ctx: Any, x: np.ndarray, gamma: Any, beta: Any, mean: Any, var: Any, *,
        slope: float, eps: float = 1e-5, axis: int = 1, single: bool = False,
    ) -> np.ndarray:  # fmt: skip
        checks.host_only(x, "in-place batch normalization")
        channels = channel_layout(x, axis).shape[1]
        ctx.scale = backend.empty(channels, _FLOAT64)
        given = checks.channel_vector(gamma, channels, _FLOAT64, "gamma")
        backend.run(_never_zero, given, eps, ctx.scale)
        ctx.stats, ctx.inv_std = None, backend.empty(channels, _FLOAT64)
        if mean is None:
            y, ctx.stats = F.batch_norm_train(x, ctx.scale, beta, eps=eps, axis=axis, single=single)
            backend.run(np.copyto, ctx.inv_std, ctx.stats.inv_std)
        else:
            y = F.batch_norm_infer(x, mean, var, ctx.scale, beta, eps=eps, axis=axis)
            backend.run(inverse_std, var, eps, ctx.inv_std)
        if slope != 1:
            backend.run(_leaky, slope, y)
        ctx.y, ctx.gamma, ctx.beta, ctx.slope, ctx.axis = y, gamma, beta, slope, axis
        return y

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        linear = backend.empty(ctx.y.shape, ctx.y.dtype)
        reuse = ctx.owns_dy and dy.dtype == ctx.y.dtype
        g = dy if reuse else backend.empty(ctx.y.shape, ctx.y.dtype)
        backend.run(_invert_leaky, dy, ctx.y, ctx.slope, g, linear)
        # What entered the activation is an x of mean beta and standard deviation scale.
        mean, var, factor = (backend.empty(ctx.scale.shape, _FLOAT64) for _ in range(3))
        inverse = backend.empty(ctx.scale.shape, _FLOAT64)
        backend.run(_as_input, ctx.beta, ctx.scale, ctx.inv_std, mean, var, inverse, factor)
        if ctx.stats is None:
            dx, dgamma, dbeta = F.batch_norm_infer_backward(
                g, linear, mean, var, factor, eps=0.0, axis=ctx.axis, out=g
            )
        else:
            stats = F.BatchNormStats(mean, var, inverse, ctx.stats.count)
            dx, dgamma, dbeta = F.batch_norm_backward(
                g, linear, stats, factor, axis=ctx.axis, out=g
            )
        if ctx.gamma is not None:
            backend.run(_through_absolute, ctx.gamma, dgamma)
        return dx, dgamma, dbeta, None, None


def _never_zero(gamma: np.ndarray, eps: float, scale: np.ndarray) -> None:
    scale[...] = np.abs(gamma) + eps if gamma.size else 1.0


def _through_absolute(gamma: np.ndarray, dgamma: np.ndarray) -> None:
    np.multiply(dgamma, np.copysign(1.0, gamma), out=dgamma, casting="same_kind")


def _leaky(slope: float, y: np.ndarray) -> None:
    np.multiply(y, slope, out=y, where=y < 0)


def _invert_leaky(
    dy: np.ndarray, y: np.ndarray, slope: float, g: np.ndarray, linear: np.ndarray
) -> None:
    """From the output: the gradient and the value of what entered the activation."""
    if g is not dy:
        np.copyto(g, dy, "unsafe")
    np.copyto(linear, y)
    if slope != 1:
        # As LeakyReLU: where the input is positive, the gradient passes.
        below = y <= 0
        np.multiply(g, slope, out=g, where=below)
        np.divide(linear, slope, out=linear, where=below)


def _as_input(
    beta: Any, scale: np.ndarray, inv_std: np.ndarray,
    mean: np.ndarray, var: np.ndarray, inverse: np.ndarray, factor: np.ndarray,
) -> None:  # fmt: skip
    mean[...] = 0.0 if beta is None else beta
    np.square(scale, out=var)
    np.divide(1.0, scale, out=inverse)
    # dx = factor / scale * (...) = scale * inv_std * (...).
    np.multiply(var, inv_std, out=factor)


class Released:
    """What an input of `in_place_batch_norm` holds afterwards: its shape and type; no values."""

    def __init__(self, x: Any) -> None:
        self.shape, self.dtype, self.size, self.ndim = x.shape, x.dtype, x.size, x.ndim

    def _refuse(self, *args: Any, **options: Any) -> Any:
        raise DTypeError(
            "this Tensor was Released, its values are gone: InPlaceBatchNorm took its memory on "
            "the tape; use the layer's output, or a BatchNorm"
        )

    __array__ = __getitem__ = _refuse

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # NumPy and Python ask for protocols
            raise AttributeError(name)
        return self._refuse()
