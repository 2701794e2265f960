"""Batch normalization with masks and sample weights: forward, backward.

With weights w >= 0 and W = sum(w): mean = sum(w x) / W, var = sum(w (x - mean)^2) / W,
x_hat = (x - mean) / sqrt(var + eps), y = gamma * x_hat + beta, and with g = dL/dy
dx = gamma / sqrt(var + eps) * (g - w / W * (sum(g) + x_hat * sum(g * x_hat))),
dgamma = sum(g * x_hat), dbeta = sum(g).

The sums over g are not weighted: positions of weight 0 are normalized like the others, and pull at
the statistics through their outputs. Weights are constants. Derived as in Ioffe and Szegedy (2015),
from dmean/dx = w / W and dvar/dx = 2 w (x - mean) / W. Operands, results and errors are those of
`batchnorm`, whose docstring describes them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import backend
from .._validation import switch
from ..errors import ArgumentError, DTypeError, ShapeError
from . import checks
from ._out import copied, empty_like
from .batchnorm import batch_norm_infer, batch_norm_infer_backward
from .layout import Layout, axis_index, channel_layout, fold
from .stats import WeightedStats, not_negative

__all__ = ["weighted_batch_norm_backward", "weighted_batch_norm_train"]

_FLOAT64 = np.dtype(np.float64)


def weighted_batch_norm_train(
    x: np.ndarray,
    weights: np.ndarray,
    gamma: np.ndarray | None = None,
    beta: np.ndarray | None = None,
    *,
    eps: float = 1e-5,
    axis: int = 1,
    activation: str | None = None,
    residual: np.ndarray | None = None,
    single: bool = False,
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, WeightedStats]:
    """Normalize `x` with the batch's weighted statistics.

    Where all weights are 0 there are no statistics: mean and var are then 0, and
    `update_running_stats` does nothing. Otherwise as `nbbn.functional.batch_norm_train`.

    Parameters
    ----------
    x : ndarray of float, 2 to 5 dimensions
        Positions of weight 0 may hold anything, NaN included.
    weights : ndarray of bool, int or float
        A mask or weights, >= 0, one for each position: `x`'s shape without the channel axis, or
        broadcastable to that; or shape (N,), one for each example.
    single : bool, default False
        Accept a batch of which one position has all the weight.

    Returns
    -------
    y : ndarray, shape and dtype of `x`
    stats : WeightedStats

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Also for weights that do not fit, and without `single` for one position with all the weight;
        weights that are not numbers; a weight that is negative or not finite, a sum that is not.
    """
    layout = channel_layout(x, axis)
    eps = checks.epsilon(eps, zero_allowed=False)
    folded = _fold_weights(weights, x, axis, layout)
    backend.run(_check_weights, folded, switch(single, "single"))
    stats = WeightedStats(
        *(backend.empty(layout.shape[1], _FLOAT64) for _ in range(3)),
        *(backend.empty((), _FLOAT64) for _ in range(2)),
    )
    if x.size:
        mean, var, inv_std, count, weight = stats
        kernel = backend.kernels("weighted").stats
        backend.run(kernel, fold(x, layout), folded, eps, mean, var, inv_std, weight, count)
    else:
        for array, value in zip(stats, (0.0, 0.0, eps**-0.5, 0.0, 0.0), strict=True):
            array.fill(value)
    y = batch_norm_infer(
        x, stats.mean, stats.var, gamma, beta,
        eps=eps, axis=axis, activation=activation, residual=residual, out=out,
    )  # fmt: skip
    return y, stats


def weighted_batch_norm_backward(
    dy: np.ndarray,
    x: np.ndarray,
    weights: np.ndarray,
    stats: WeightedStats,
    gamma: np.ndarray | None = None,
    *,
    axis: int = 1,
    y: np.ndarray | None = None,
    out: np.ndarray | None = None,
    out_dgamma: np.ndarray | None = None,
    out_dbeta: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of `weighted_batch_norm_train`; the module's docstring has the formula.

    Otherwise as `nbbn.functional.batch_norm_backward`.

    Parameters
    ----------
    x : ndarray of float, 2 to 5 dimensions
        The forward's input. NaN and Inf in a position of weight 0 count as the mean.
    weights : ndarray of bool, int or float
        The forward's weights.
    stats : WeightedStats
        What the forward returned.
    """
    if not isinstance(stats, WeightedStats):
        raise DTypeError(
            f"stats must be the WeightedStats of the forward, got {type(stats).__name__}"
        )
    backend.run(not_negative, stats.weight, "stats.weight")
    layout = channel_layout(x, axis)
    folded = _fold_weights(weights, x, axis, layout)
    channels = layout.shape[1]
    kept = (
        checks.statistic(stats.mean, channels, "stats.mean", _FLOAT64, "cpu"),
        checks.statistic(stats.inv_std, channels, "stats.inv_std", _FLOAT64, "cpu"),
        checks.channel_vector(gamma, channels, _FLOAT64, "gamma"),
    )
    # They are read again after dgamma and dbeta are written, perhaps over them.
    mean, inv_std, scale = (copied(vector) for vector in kept)
    var = backend.empty(channels, _FLOAT64)
    backend.run(_invert_square, inv_std, var)
    # A NaN behind a mask would reach dgamma even times 0.
    shown = empty_like(x, layout)
    positions = _spread(weights, x, axis)
    backend.run(_show, x, positions, mean, axis_index(axis, x), shown)
    direct, dgamma, dbeta = batch_norm_infer_backward(
        dy, shown, mean, var, gamma, eps=0.0, axis=axis, y=y, out=out,
        out_dgamma=out_dgamma, out_dbeta=out_dbeta,
    )  # fmt: skip
    if x.size == 0:
        return direct, dgamma, dbeta
    constant, slope = (backend.empty(channels, _FLOAT64) for _ in range(2))
    backend.run(_pull, scale, inv_std, stats.weight, dgamma, dbeta, constant, slope)
    dx = fold(direct, layout)
    backend.run(
        backend.kernels("weighted").subtract,
        fold(shown, layout), folded, mean, constant, slope, dx,
    )  # fmt: skip
    if not np.may_share_memory(dx, direct):
        target = direct if layout.order is None else direct.transpose(layout.order)
        backend.run(np.copyto, target, dx.reshape(target.shape), "unsafe")
    return direct, dgamma, dbeta


def _fold_weights(weights: np.ndarray, x: np.ndarray, axis: int, layout: Layout) -> np.ndarray:
    """Return a weight for each position in float64: (M,) for rows, (N, S) for planes."""
    spread = _spread(weights, x, axis)
    if layout.order is not None:
        channel = axis_index(axis, x)
        spread = spread.transpose([d - (d > channel) for d in layout.order if d != channel])
    folded = backend.empty(layout.shape[:1] + layout.shape[2:], _FLOAT64)
    backend.run(np.copyto, folded.reshape(spread.shape), spread, "unsafe")
    return folded


def _spread(weights: np.ndarray, x: np.ndarray, axis: int) -> np.ndarray:
    """View weights with an element for each position of x, axes in their own order."""
    checks.host_only(x, "weighted batch normalization")
    checks.unmasked(weights, "weights")
    if not isinstance(weights, np.ndarray) or weights.dtype.kind not in "biuf":
        found = weights.dtype if isinstance(weights, np.ndarray) else type(weights).__name__
        raise DTypeError(
            f"weights must be a numpy.ndarray of booleans or real numbers, got {found}"
        )
    channel = axis_index(axis, x)
    positions = x.shape[:channel] + x.shape[channel + 1 :]
    spread = weights
    if weights.shape == positions[:1]:
        spread = weights.reshape(-1, *(1 for _ in positions[1:]))
    try:
        return np.broadcast_to(spread, positions)
    except ValueError:
        raise ShapeError(
            f"weights must have shape {positions[:1]}, one per example, or broadcast to "
            f"{positions}, x's shape {x.shape} without its channels, got {weights.shape}"
        ) from None


def _show(
    x: np.ndarray, weights: np.ndarray, mean: np.ndarray, channel: int, shown: np.ndarray
) -> None:
    """Copy x, with the mean in place of what is hidden by a weight of 0 and not finite."""
    np.copyto(shown, x)
    hidden = weights == 0
    if hidden.any():
        rows = np.moveaxis(shown, channel, -1)
        values = rows[hidden]
        rows[hidden] = np.where(np.isfinite(values), values, mean)


def _check_weights(weights: np.ndarray, single: bool) -> None:
    if not np.isfinite(weights).all() or weights.min(initial=0.0) < 0.0:
        wrong = weights[~np.isfinite(weights) | (weights < 0.0)][0]
        raise ArgumentError(f"weights must be finite and not negative, got {wrong}")
    with np.errstate(over="ignore"):
        total = weights.sum()
    if total == np.inf:
        raise ArgumentError(
            f"weights must have a finite sum, got weights up to {weights.max():.3g}: scale them "
            "down, for the result depends on their ratios alone"
        )
    if not single and np.count_nonzero(weights) == 1:
        raise ShapeError(
            "Expected more than 1 value per channel when training, but one position has all the "
            "weight: use a larger batch, or normalize with running statistics"
        )


def _invert_square(inv_std: np.ndarray, var: np.ndarray) -> None:
    np.divide(1.0, inv_std * inv_std, out=var)


def _pull(
    gamma: np.ndarray, inv_std: np.ndarray, weight: np.ndarray,
    dgamma: np.ndarray, dbeta: np.ndarray, constant: np.ndarray, slope: np.ndarray,
) -> None:  # fmt: skip
    """How the statistics pull at dx: ``w * (constant + slope * (x - mean))``."""
    factor: Any = inv_std * (gamma if gamma.size else 1.0) / (float(weight) or 1.0)
    np.multiply(factor, dbeta, out=constant)
    np.multiply(factor * inv_std, dgamma, out=slope)
