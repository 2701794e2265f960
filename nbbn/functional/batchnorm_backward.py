"""Gradients of batch normalization, with the batch's statistics and with given ones.

The formulas are those of `batchnorm`, which has their source.
"""

from __future__ import annotations

import numpy as np

from .. import backend
from .._validation import integer
from ..errors import DTypeError, ShapeError
from . import checks
from ._kind import in_kind
from ._out import Target, share, unchanged_by
from .layout import Layout, channel_layout, fold, nothing
from .stats import BatchNormStats

__all__ = ["batch_norm_backward", "batch_norm_infer_backward"]


@in_kind
def batch_norm_backward(
    dy: np.ndarray,
    x: np.ndarray,
    stats: BatchNormStats,
    gamma: np.ndarray | None = None,
    *,
    axis: int = 1,
    y: np.ndarray | None = None,
    out: np.ndarray | None = None,
    out_dgamma: np.ndarray | None = None,
    out_dbeta: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of `batch_norm_train`, the batch statistics being functions of `x`.

    ``dbeta = sum(g)``, ``dgamma = sum(g * x_hat)``,
    ``dx = gamma * inv_std * (g - dbeta / m - x_hat * dgamma / m)``, where g is `dy`, or `dy` where
    `y` is positive and 0 elsewhere if `y` is given.

    Parameters
    ----------
    dy : ndarray of float, shape of `x`
        Gradient of the loss with respect to the output.
    x : ndarray of float, 2 to 5 dimensions
        The forward's input.
    stats : BatchNormStats
        What the forward returned.
    gamma : ndarray of float, shape (C,), optional
        The forward's scale.
    axis : int, default 1
        The channel axis.
    y : ndarray of float, shape of `x`, optional
        The output of a forward with ``activation="relu"``. The gradient of its residual is
        ``relu_backward(dy, y)``.
    out : ndarray, shape and dtype of `x`, optional
        Receives dx. It may be `dy` or `x` itself; any other overlap costs a temporary.
    out_dgamma, out_dbeta : ndarray, shape (C,), optional
        Receive dgamma and dbeta.

    Returns
    -------
    dx : ndarray, shape and dtype of `x`
    dgamma, dbeta : ndarray, shape (C,), dtype of `x` (float32 for the half types)

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Operands that do not fit together, or `stats` that are not BatchNormStats.
    """
    layout = channel_layout(x, axis)
    if not isinstance(stats, BatchNormStats):
        raise DTypeError(
            f"stats must be the BatchNormStats of the forward, got {type(stats).__name__}"
        )
    channels = layout.shape[1]
    if integer(stats.count, "stats.count") != x.size // channels:
        raise ShapeError(
            f"stats are of {stats.count} values per channel, but x with shape {x.shape} has "
            f"{x.size // channels}: pass the x and the stats of one forward"
        )
    mean = checks.statistic(stats.mean, channels, "stats.mean", layout.statistics, layout.device)
    inv_std = checks.statistic(
        stats.inv_std, channels, "stats.inv_std", layout.statistics, layout.device
    )
    return _backward(dy, x, y, gamma, mean, inv_std, False, layout, out, out_dgamma, out_dbeta)


@in_kind
def batch_norm_infer_backward(
    dy: np.ndarray,
    x: np.ndarray,
    mean: np.ndarray,
    var: np.ndarray,
    gamma: np.ndarray | None = None,
    *,
    eps: float = 1e-5,
    axis: int = 1,
    y: np.ndarray | None = None,
    out: np.ndarray | None = None,
    out_dgamma: np.ndarray | None = None,
    out_dbeta: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of `batch_norm_infer`, the statistics being constants.

    ``dx = gamma * inv_std * g``, ``dgamma = sum(g * (x - mean) * inv_std)``, ``dbeta = sum(g)``.

    Parameters
    ----------
    dy : ndarray of float, shape of `x`
        Gradient of the loss with respect to the output.
    x : ndarray of float, 2 to 5 dimensions
        The forward's input.
    mean, var : ndarray of float, shape (C,)
        The statistics that the forward used.
    gamma : ndarray of float, shape (C,), optional
        The forward's scale.
    eps : float, default 1e-5
        The forward's eps.
    axis : int, default 1
        The channel axis.
    y : ndarray of float, shape of `x`, optional
        The output of a forward with ``activation="relu"``; g is then 0 where y is not positive.
    out : ndarray, shape and dtype of `x`, optional
        Receives dx. It may be `dy` or `x` itself; any other overlap costs a temporary.
    out_dgamma, out_dbeta : ndarray, shape (C,), optional
        Receive dgamma and dbeta.

    Returns
    -------
    dx : ndarray, shape and dtype of `x`
    dgamma, dbeta : ndarray, shape (C,), dtype of `x` (float32 for the half types)

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Operands that do not fit together.
    """
    layout = channel_layout(x, axis)
    channels = layout.shape[1]
    eps = checks.epsilon(eps, zero_allowed=True)
    mean = checks.statistic(mean, channels, "mean", layout.statistics, layout.device)
    var = checks.statistic(var, channels, "var", layout.statistics, layout.device)
    inv_std = backend.empty(channels, layout.statistics, layout.device)
    backend.run(backend.kernels("batchnorm", layout.device).inverse_std, var, eps, inv_std)
    return _backward(dy, x, y, gamma, mean, inv_std, True, layout, out, out_dgamma, out_dbeta)


def _gradient(out: np.ndarray | None, layout: Layout, name: str, *inputs: np.ndarray) -> np.ndarray:
    """Return what receives dgamma or dbeta: `out`, unless writing it would change an input."""
    if out is not None:
        checks.output(out, (layout.shape[1],), layout.dtype, name, layout.device)
        if not any(share(out, array) for array in inputs):
            return out
    return backend.empty(layout.shape[1], layout.dtype, layout.device)


def _hand_over(found: np.ndarray, out: np.ndarray | None) -> np.ndarray:
    if out is None or found is out:
        return found
    backend.run(np.copyto, out, found)
    return out


def _backward(
    dy: np.ndarray,
    x: np.ndarray,
    y: np.ndarray | None,
    gamma: np.ndarray | None,
    mean: np.ndarray,
    inv_std: np.ndarray,
    fixed: bool,
    layout: Layout,
    out: np.ndarray | None,
    out_dgamma: np.ndarray | None,
    out_dbeta: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    channels = layout.shape[1]
    checks.same_shape(dy, x, "dy")
    gamma = checks.channel_vector(gamma, channels, layout.dtype, "gamma", layout.device)
    if y is None:
        target = Target(out, x, layout, dy, x)
        mask = nothing(layout)
    else:
        checks.same_shape(y, x, "y")
        target = Target(out, x, layout, dy, x, y)
        mask = fold(y, layout)
    read = x, dy, mask, gamma, mean, inv_std
    dgamma = _gradient(out_dgamma, layout, "out_dgamma", *read)
    dbeta = _gradient(out_dbeta, layout, "out_dbeta", *read)
    if out_dgamma is not None or out_dbeta is not None:
        checks.separate(out_dgamma, out_dbeta, "out_dgamma and out_dbeta")
        checks.separate(out, out_dgamma, "out and out_dgamma")
        checks.separate(out, out_dbeta, "out and out_dbeta")
    gamma, mean, inv_std = unchanged_by(out, layout, gamma, mean, inv_std)
    if x.size == 0:
        dgamma.fill(0)
        dbeta.fill(0)
        return target.finish(), _hand_over(dgamma, out_dgamma), _hand_over(dbeta, out_dbeta)
    backend.run(
        backend.kernels("batchnorm", layout.device).backward,
        fold(dy, layout), fold(x, layout), mask, gamma, mean, inv_std, fixed,
        target.folded, dgamma, dbeta,
    )  # fmt: skip
    return target.finish(), _hand_over(dgamma, out_dgamma), _hand_over(dbeta, out_dbeta)
