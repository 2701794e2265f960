"""Batch normalization of NumPy arrays: forward, inference, running statistics.

With m values per channel and x_hat = (x - mean) / sqrt(var + eps):
y = gamma * x_hat + beta, var = sum((x - mean)^2) / m,
dx = gamma / sqrt(var + eps) * (dy - sum(dy) / m - x_hat * sum(dy * x_hat) / m), which is in
`batchnorm_backward`.

Source: Ioffe and Szegedy, "Batch Normalization" (2015), arXiv:1502.03167.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import backend
from .._validation import choice, fraction, number, switch
from ..errors import ArgumentError, DTypeError, ShapeError
from . import checks
from ._kind import in_kind
from ._out import Target, unchanged_by
from .layout import Layout, channel_layout, fold, nothing
from .stats import BatchNormStats, WeightedStats, check_stats

__all__ = [
    "batch_norm",
    "batch_norm_infer",
    "batch_norm_train",
    "update_running_stats",
]

_ACTIVATIONS = (None, "relu")
ON_SINGLE = ("error", "eval", "skip")
_FLOAT64 = np.dtype(np.float64)


@in_kind
def batch_norm_train(
    x: np.ndarray,
    gamma: np.ndarray | None = None,
    beta: np.ndarray | None = None,
    *,
    eps: float = 1e-5,
    axis: int = 1,
    activation: str | None = None,
    residual: np.ndarray | None = None,
    single: bool = False,
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, BatchNormStats]:
    """Normalize `x` with the statistics of the batch itself.

    Computes ``y = activation(gamma * (x - mean) / sqrt(var + eps) + beta + residual)``.

    Parameters
    ----------
    x : ndarray of float, 2 to 5 dimensions
        Any strides. float16 and bfloat16 compute in float32.
    gamma, beta : ndarray of float, shape (C,), optional
        Scale and shift; None means 1 and 0.
    eps : float, default 1e-5
        Added to the variance; must be positive.
    axis : int, default 1
        The channel axis.
    activation : {None, "relu"}, default None
        Applied to the result in the same pass.
    residual : ndarray of float, shape of `x`, optional
        Added before the activation.
    single : bool, default False
        Accept one value per channel, whose variance is 0, as Keras and ONNX do: y is then beta.
    out : ndarray, shape and dtype of `x`, optional
        Receives the result. It may be `x` itself; any other overlap costs a temporary.

    Returns
    -------
    y : ndarray, shape and dtype of `x`
    stats : BatchNormStats

    Raises
    ------
    ShapeError
        Wrong rank, axis or shape, no channels, or one value per channel without `single`.
    DTypeError
        An operand that is not an array of real floating numbers.
    ArgumentError
        `eps` not positive, unknown `activation`, read-only `out`.
    """
    layout = channel_layout(x, axis)
    channels = layout.shape[1]
    eps = checks.epsilon(eps, zero_allowed=False)
    relu = choice(activation, _ACTIVATIONS, "activation") is not None
    count = x.size // channels
    single = switch(single, "single")
    if count == 1 and not single:
        raise ShapeError(
            "Expected more than 1 value per channel when training, got input size "
            f"{x.shape} with {channels} channels: use a larger batch, or normalize with "
            "running statistics (batch_norm_infer, or layer.eval())"
        )
    gamma = checks.channel_vector(gamma, channels, layout.dtype, "gamma", layout.device)
    beta = checks.channel_vector(beta, channels, layout.dtype, "beta", layout.device)
    if residual is None:
        target = Target(out, x, layout, x)
        addend = nothing(layout)
    else:
        checks.same_shape(residual, x, "residual")
        target = Target(out, x, layout, x, residual)
        addend = fold(residual, layout)
    gamma, beta = unchanged_by(out, layout, gamma, beta)
    mean, var, inv_std = backend.empty((3, channels), layout.statistics, layout.device)
    if count == 0:
        mean.fill(0.0)
        var.fill(0.0)
        inv_std.fill(eps**-0.5)
    else:
        backend.run(
            backend.kernels("batchnorm", layout.device).train,
            fold(x, layout), addend, gamma, beta, eps, relu,
            target.folded, mean, var, inv_std,
        )  # fmt: skip
    return target.finish(), BatchNormStats(mean, var, inv_std, count)


@in_kind
def batch_norm_infer(
    x: np.ndarray,
    mean: np.ndarray,
    var: np.ndarray,
    gamma: np.ndarray | None = None,
    beta: np.ndarray | None = None,
    *,
    eps: float = 1e-5,
    axis: int = 1,
    activation: str | None = None,
    residual: np.ndarray | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Normalize `x` with given statistics, usually the running ones.

    Computes ``y = activation(gamma * (x - mean) / sqrt(var + eps) + beta + residual)``.

    Parameters
    ----------
    x : ndarray of float, 2 to 5 dimensions
        Any strides. float16 and bfloat16 compute in float32.
    mean, var : ndarray of float, shape (C,)
        Statistics to normalize with.
    gamma, beta : ndarray of float, shape (C,), optional
        Scale and shift; None means 1 and 0.
    eps : float, default 1e-5
        Added to the variance; may be 0.
    axis : int, default 1
        The channel axis.
    activation : {None, "relu"}, default None
        Applied to the result in the same pass.
    residual : ndarray of float, shape of `x`, optional
        Added before the activation.
    out : ndarray, shape and dtype of `x`, optional
        Receives the result. It may be `x` itself; any other overlap costs a temporary.

    Returns
    -------
    ndarray, shape and dtype of `x`

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        As `batch_norm_train`, but one value per channel is fine here.
    """
    layout = channel_layout(x, axis)
    channels = layout.shape[1]
    eps = checks.epsilon(eps, zero_allowed=True)
    relu = choice(activation, _ACTIVATIONS, "activation") is not None
    # Running statistics usually have the type of x; both that and float64 go in as they are.
    plain = type(mean) is type(var) is type(x) and mean.dtype is var.dtype is layout.dtype
    dtype = layout.dtype if plain else layout.statistics
    mean = checks.statistic(mean, channels, "mean", dtype, layout.device)
    var = checks.statistic(var, channels, "var", dtype, layout.device)
    gamma = checks.channel_vector(gamma, channels, layout.dtype, "gamma", layout.device)
    beta = checks.channel_vector(beta, channels, layout.dtype, "beta", layout.device)
    if residual is None:
        target = Target(out, x, layout, x)
        addend = nothing(layout)
    else:
        checks.same_shape(residual, x, "residual")
        target = Target(out, x, layout, x, residual)
        addend = fold(residual, layout)
    if x.size:
        backend.run(
            backend.kernels("batchnorm", layout.device).infer,
            fold(x, layout), addend, gamma, beta, mean, var, eps, relu, target.folded,
        )  # fmt: skip
    return target.finish()


@in_kind
def update_running_stats(
    running_mean: np.ndarray,
    running_var: np.ndarray,
    stats: BatchNormStats | WeightedStats,
    *,
    momentum: float | np.ndarray = 0.1,
    unbiased: bool = True,
    skipped: np.ndarray | None = None,
) -> None:
    """Move running statistics towards a batch's, in place.

    ``running = (1 - momentum) * running + momentum * batch``: momentum is the weight of the new
    value, as in PyTorch (Keras' momentum is one minus this).

    Parameters
    ----------
    running_mean, running_var : ndarray of float, shape (C,)
        Updated in place. Left alone where the batch was empty.
    stats : BatchNormStats or WeightedStats
        Statistics of the batch.
    momentum : float or 0-dimensional ndarray, default 0.1
        Weight of the new value, between 0 and 1. An array is read when the update runs, so that a
        recorded step sees what it holds then.
    unbiased : bool, default True
        Scale the batch's variance by m / (m - 1), as PyTorch does; Keras and ONNX do not.
    skipped : ndarray of int64, one element, optional
        Turns on the non-finite guard: a batch with a NaN or Inf, or with statistics beyond the
        range of the running ones, changes neither of them and adds one here.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Arrays that do not fit, that share memory or are read-only, a running variance below 0,
        momentum outside [0, 1].
    """
    checked = fraction(momentum, "momentum")
    if not isinstance(momentum, np.ndarray):
        momentum = checked
    if not isinstance(stats, BatchNormStats | WeightedStats):
        raise DTypeError(f"stats must be BatchNormStats, got {type(stats).__name__}")
    unbiased = switch(unbiased, "unbiased")
    device = check_stats(stats)
    _check_running(running_mean, running_var, stats.mean.size, device)
    counter = None if skipped is None else checks.counter(skipped, "skipped", device)
    if isinstance(stats.count, np.ndarray):
        # The weights may be others when a recorded step runs again.
        backend.run(_check_count, stats.count, unbiased)
    else:
        _check_count(stats.count, unbiased)
    _update_running(running_mean, running_var, stats, momentum, unbiased, counter)


@in_kind
def batch_norm(
    x: np.ndarray,
    running_mean: np.ndarray | None = None,
    running_var: np.ndarray | None = None,
    gamma: np.ndarray | None = None,
    beta: np.ndarray | None = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    axis: int = 1,
    on_single: str = "error",
    skipped: np.ndarray | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Batch normalization in one call, with the semantics of ``torch.nn.functional.batch_norm``.

    Uses the batch's statistics when `training` or when there are no running ones, and the running
    ones otherwise. In training, running statistics are updated in place.

    Parameters
    ----------
    x : ndarray of float, 2 to 5 dimensions
        Any strides. float16 and bfloat16 compute in float32.
    running_mean, running_var : ndarray of float, shape (C,), optional
        Both or neither.
    gamma, beta : ndarray of float, shape (C,), optional
        Scale and shift; None means 1 and 0.
    training : bool, default False
        Normalize with the batch's statistics.
    momentum : float, default 0.1
        Weight of the new value in the running statistics, between 0 and 1 where they are updated;
        their variance is the unbiased one.
    eps : float, default 1e-5
        Added to the variance.
    axis : int, default 1
        The channel axis.
    on_single : {"error", "eval", "skip"}, default "error"
        What to do with one value per channel, which has no variance, where the batch's statistics
        are due: raise, normalize with the running ones, or return `x` as it is. The running ones
        stay as they are.
    skipped : ndarray of int64, one element, optional
        The non-finite guard, see `update_running_stats`.
    out : ndarray, shape and dtype of `x`, optional
        Receives the result. It may be `x` itself.

    Returns
    -------
    ndarray, shape and dtype of `x`

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        As `batch_norm_train`, `batch_norm_infer` and `update_running_stats`;
        ``on_single="eval"`` without running statistics.
    """
    choice(on_single, ON_SINGLE, "on_single")
    training = switch(training, "training")
    if (running_mean is None) != (running_var is None):
        raise ArgumentError("running_mean and running_var go together: pass both or neither")
    if running_mean is None and on_single == "eval":
        raise ArgumentError(
            'on_single="eval" normalizes with running statistics: pass running_mean and running_var'
        )
    layout = channel_layout(x, axis)
    channels, device = layout.shape[1], layout.device
    number(momentum, "momentum")
    counter = None if skipped is None else checks.counter(skipped, "skipped", device)
    for name, array in (("running_mean", running_mean), ("running_var", running_var)):
        if array is not None:
            checks.channel_array(array, channels, name, device)
    single = x.size == channels and (training or running_mean is None)
    if single and on_single == "skip":
        return _copy(x, gamma, beta, layout, out)
    if running_mean is None or running_var is None:
        return batch_norm_train(x, gamma, beta, eps=eps, axis=axis, out=out)[0]
    if not training or (single and on_single == "eval"):
        return batch_norm_infer(
            x, running_mean, running_var, gamma, beta, eps=eps, axis=axis, out=out
        )
    momentum = fraction(momentum, "momentum")
    _check_running(running_mean, running_var, channels, device)
    y, stats = batch_norm_train(x, gamma, beta, eps=eps, axis=axis, out=out)
    _update_running(running_mean, running_var, stats, momentum, True, counter)
    return y


def _check_running(
    running_mean: np.ndarray, running_var: np.ndarray, channels: int, device: str
) -> None:
    """Check running statistics that are about to be updated; the device's values are not read."""
    for name, array in (("running_mean", running_mean), ("running_var", running_var)):
        checks.channel_array(array, channels, name, device)
        checks.writeable(array, name)
        checks.no_overlap_within(array, name)
    checks.separate(running_mean, running_var, "running_mean and running_var")
    if device == "cpu" and (running_var < 0).any():
        raise ArgumentError(
            f"running_var must not be negative, got {running_var.min()}: it is a variance"
        )


def _update_running(
    running_mean: np.ndarray,
    running_var: np.ndarray,
    stats: BatchNormStats | WeightedStats,
    momentum: float | np.ndarray,
    unbiased: bool,
    skipped: np.ndarray | None,
) -> None:
    """Update running statistics that have been checked."""
    if isinstance(stats, BatchNormStats) and stats.count == 0:
        return
    device = backend.device_of(stats.mean)
    kernels = backend.kernels("batchnorm", device)
    arguments: tuple[Any, ...] = (stats.mean, stats.var, stats.count, momentum, unbiased)
    update = kernels.update_running
    last: tuple[Any, ...] = ()
    arrays = running_mean, running_var
    if skipped is not None:
        limit = min(checks.largest(array.dtype) for array in arrays)
        update, arguments, last = kernels.update_running_within, (*arguments, limit), (skipped,)
    dtype = running_mean.dtype
    if running_var.dtype == dtype and dtype.isnative and dtype in (np.float32, np.float64):
        backend.run(update, *arguments, *arrays, *last)
        return
    wide = [backend.empty(stats.mean.shape, stats.mean.dtype, device) for _ in arrays]
    for copy, array in zip(wide, arrays, strict=True):
        backend.run(np.copyto, copy, array, "unsafe")
    backend.run(update, *arguments, *wide, *last)
    for copy, array in zip(wide, arrays, strict=True):
        backend.run(np.copyto, array, copy, "unsafe")


def _copy(
    x: np.ndarray, gamma: Any, beta: Any, layout: Layout, out: np.ndarray | None
) -> np.ndarray:
    for name, vector in (("gamma", gamma), ("beta", beta)):
        if vector is not None:
            checks.channel_array(vector, layout.shape[1], name, layout.device)
    if out is None:
        out = backend.empty(x.shape, x.dtype, layout.device)
    else:
        checks.output(out, x.shape, x.dtype, device=layout.device)
    backend.run(np.copyto, out, x)
    return out


def _check_count(count: int | np.ndarray, unbiased: bool) -> None:
    if unbiased and count == 1:
        raise ArgumentError(
            "the unbiased variance of one value per channel does not exist: pass unbiased=False"
        )
