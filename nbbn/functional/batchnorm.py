"""Batch normalization of NumPy arrays: forward, inference, backward, running statistics.

With m values per channel and x_hat = (x - mean) * inv_std, inv_std = 1 / sqrt(var + eps):
y = activation(gamma * x_hat + beta + residual), var = sum((x - mean)^2) / m; and with g = dL/dy,
which is 0 where a ReLU's output y is not positive: dbeta = sum(g), dgamma = sum(g * x_hat),
dx = gamma * inv_std * (g - dbeta / m - x_hat * dgamma / m), or gamma * inv_std * g where the
statistics are constants.

What the functions, those of `weighted` too, have in common:

- `x` may have any strides. float16 and bfloat16 compute in float32. `dy`, `residual` and `y` have
  the shape of `x`.
- `axis` is the channel axis, of length C. `gamma` and `beta` scale and shift; None means 1 and 0.
- `eps` is added to the variance and must be positive; with given statistics it may be 0.
- `activation` is applied in the same pass, `residual` is added before it.
- Gradients take the `y` of a forward with ``activation="relu"``, and no other. The gradient of its
  residual is then ``relu_backward(dy, y)``.
- `out` receives the result, dx in gradients. It may be `x` itself, or `dy`; any other overlap costs
  a temporary. `out_dgamma` and `out_dbeta` receive those two, whose dtype is that of `x` (float32
  for the half types).
- They raise ShapeError for a wrong rank, axis or shape and for arrays without channels, DTypeError
  for an operand that is not an array of real floating numbers, and ArgumentError for a bad `eps`,
  an unknown `activation`, and an array that is read-only or overlaps itself where a result goes.

Source: Ioffe and Szegedy, "Batch Normalization" (2015), arXiv:1502.03167.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import backend
from .._validation import choice, fraction, integer, number, switch
from ..errors import ArgumentError, DTypeError, ShapeError
from . import checks
from ._kind import in_kind
from ._out import Target, gradient, hand_over, unchanged_by
from .layout import Layout, channel_layout, fold, nothing
from .stats import BatchNormStats, WeightedStats, check_stats

__all__ = [
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_infer",
    "batch_norm_infer_backward",
    "batch_norm_train",
    "update_running_stats",
]

_ACTIVATIONS = (None, "relu")
# Beyond so many elements the checks do not count, and a kernel may use several threads.
_SMALL = 1 << 15
_FLOAT64 = np.dtype(np.float64)
ON_SINGLE = ("error", "eval", "skip")


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

    Parameters
    ----------
    x : ndarray of float, 2 to 5 dimensions
    gamma, beta : ndarray of float, shape (C,), optional
    eps : float, default 1e-5
    axis : int, default 1
    activation : {None, "relu"}, default None
    residual : ndarray of float, shape of `x`, optional
    single : bool, default False
        Accept one value per channel, whose variance is 0, as Keras and ONNX do: x_hat is then 0.
        Without it, that is a ShapeError.
    out : ndarray, shape and dtype of `x`, optional

    Returns
    -------
    y : ndarray, shape and dtype of `x`
    stats : BatchNormStats
    """
    small = None
    if residual is None is activation and single is False:
        small = _small("train_small", x, axis, eps, gamma, beta, out)
    if small is not None:
        y = np.empty(x.shape, x.dtype) if out is None else out
        mean, var, inv_std = np.empty((3, x.shape[1]))
        scaled, shifted = gamma is not None, beta is not None
        scale, shift = gamma if scaled else x[0], beta if shifted else x[0]
        try:
            if small(x, scale, scaled, shift, shifted, eps, y, mean, var, inv_std):
                return y, BatchNormStats(mean, var, inv_std, len(x))
        except TypeError:  # of the dispatcher: a wrong number of dimensions
            pass
    layout = channel_layout(x, axis)
    channels = layout.shape[1]
    eps = checks.epsilon(eps, zero_allowed=False)
    relu = choice(activation, _ACTIVATIONS, "activation") is not None
    count = x.size // channels
    if not switch(single, "single") and count == 1:
        raise ShapeError(
            "Expected more than 1 value per channel when training, got input size "
            f"{x.shape} with {channels} channels: use a larger batch, or normalize with "
            "running statistics (batch_norm_infer, or layer.eval())"
        )
    gamma = checks.channel_vector(gamma, channels, layout.dtype, "gamma", layout.device)
    beta = checks.channel_vector(beta, channels, layout.dtype, "beta", layout.device)
    addend = _optional(residual, x, layout, "residual")
    target = Target(out, x, layout, x, residual)
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

    Parameters
    ----------
    x : ndarray of float, 2 to 5 dimensions
    mean, var : ndarray of float, shape (C,)
    gamma, beta : ndarray of float, shape (C,), optional
    eps : float, default 1e-5
    axis : int, default 1
    activation : {None, "relu"}, default None
    residual : ndarray of float, shape of `x`, optional
    out : ndarray, shape and dtype of `x`, optional

    Returns
    -------
    ndarray, shape and dtype of `x`
    """
    small = None
    if residual is None is activation and type(mean) is type(var) is np.ndarray:
        small = _small("infer_small", x, axis, eps, gamma, beta, out)
    if small is not None and mean.dtype is var.dtype is x.dtype:
        y = np.empty(x.shape, x.dtype) if out is None else out
        scaled, shifted = gamma is not None, beta is not None
        scale, shift = gamma if scaled else mean, beta if shifted else mean
        try:
            if small(x, mean, var, scale, scaled, shift, shifted, eps, y):
                return y
        except TypeError:  # of the dispatcher: a wrong number of dimensions
            pass
    return _infer(x, mean, var, gamma, beta, residual, out, eps, axis, activation)


@in_kind
def _infer(
    x: np.ndarray,
    mean: np.ndarray,
    var: np.ndarray,
    gamma: np.ndarray | None,
    beta: np.ndarray | None,
    residual: np.ndarray | None,
    out: np.ndarray | None,
    eps: float,
    axis: int,
    activation: str | None,
) -> np.ndarray:
    """Normalize arrays of any kind with given statistics, or say what is wrong."""
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
    addend = _optional(residual, x, layout, "residual")
    target = Target(out, x, layout, x, residual)
    if x.size:
        backend.run(
            backend.kernels("batchnorm", layout.device).infer,
            fold(x, layout), addend, gamma, beta, mean, var, eps, relu, target.folded,
        )  # fmt: skip
    return target.finish()


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

    Parameters
    ----------
    dy : ndarray of float, shape of `x`
        Gradient of the loss with respect to the output.
    x : ndarray of float, 2 to 5 dimensions
        The forward's input.
    stats : BatchNormStats
        What the forward returned.
    gamma : ndarray of float, shape (C,), optional
    axis : int, default 1
    y : ndarray of float, shape of `x`, optional
    out : ndarray, shape and dtype of `x`, optional
    out_dgamma, out_dbeta : ndarray, shape (C,), optional

    Returns
    -------
    dx : ndarray, shape and dtype of `x`
    dgamma, dbeta : ndarray, shape (C,)
    """
    small = None
    given = y is not None or out_dgamma is not None or out_dbeta is not None
    if not given and dy is not None and type(stats) is BatchNormStats:
        small = _small("backward_small", x, axis, 1.0, gamma, dy, out)
    if small is not None and dy.flags.carray and _wide(stats, len(x)):
        dx = np.empty(x.shape, x.dtype) if out is None else out
        dgamma, dbeta = np.empty(x.shape[1], x.dtype), np.empty(x.shape[1], x.dtype)
        scale = x[0] if gamma is None else gamma
        moments = stats.mean, stats.inv_std
        try:
            if small(dy, x, scale, gamma is not None, *moments, dx, dgamma, dbeta):
                return dx, dgamma, dbeta
        except TypeError:  # of the dispatcher: a wrong number of dimensions
            pass
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
    return _backward(dy, x, y, gamma, mean, inv_std, False, layout, (out, out_dgamma, out_dbeta))


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

    Parameters
    ----------
    dy : ndarray of float, shape of `x`
        Gradient of the loss with respect to the output.
    x : ndarray of float, 2 to 5 dimensions
        The forward's input.
    mean, var : ndarray of float, shape (C,)
        The forward's statistics.
    gamma : ndarray of float, shape (C,), optional
    eps : float, default 1e-5
    axis : int, default 1
    y : ndarray of float, shape of `x`, optional
    out : ndarray, shape and dtype of `x`, optional
    out_dgamma, out_dbeta : ndarray, shape (C,), optional

    Returns
    -------
    dx : ndarray, shape and dtype of `x`
    dgamma, dbeta : ndarray, shape (C,)
    """
    layout = channel_layout(x, axis)
    channels = layout.shape[1]
    eps = checks.epsilon(eps, zero_allowed=True)
    mean = checks.statistic(mean, channels, "mean", layout.statistics, layout.device)
    var = checks.statistic(var, channels, "var", layout.statistics, layout.device)
    inv_std = backend.empty(channels, layout.statistics, layout.device)
    backend.run(backend.kernels("batchnorm", layout.device).inverse_std, var, eps, inv_std)
    return _backward(dy, x, y, gamma, mean, inv_std, True, layout, (out, out_dgamma, out_dbeta))


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
    if isinstance(momentum, np.ndarray):
        # It may hold another number when a recorded step runs again.
        backend.run(fraction, momentum, "momentum")
    else:
        momentum = fraction(momentum, "momentum")
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
    running_mean, running_var : ndarray of float, shape (C,), optional
        Both or neither.
    gamma, beta : ndarray of float, shape (C,), optional
    training : bool, default False
        Normalize with the batch's statistics.
    momentum : float, default 0.1
        Weight of the new value in the running statistics, between 0 and 1 where they are updated;
        their variance is the unbiased one.
    eps : float, default 1e-5
    axis : int, default 1
    on_single : {"error", "eval", "skip"}, default "error"
        What to do with one value per channel, which has no variance, where the batch's statistics
        are due: raise, normalize with the running ones, or return `x` as it is. The running ones
        stay as they are.
    skipped : ndarray of int64, one element, optional
        The non-finite guard, see `update_running_stats`.
    out : ndarray, shape and dtype of `x`, optional

    Returns
    -------
    ndarray, shape and dtype of `x`
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


def _wide(stats: BatchNormStats, count: int) -> bool:
    """Whether stats are as the forward has made them, of `count` values per channel."""
    return (
        type(stats.count) is int
        and stats.count == count
        and all(
            type(a) is np.ndarray and a.dtype is _FLOAT64 and a.flags.carray
            for a in (stats.mean, stats.inv_std)
        )
    )


def _small(
    kernel: str, x: Any, axis: Any, eps: Any, first: Any, second: Any, out: Any
) -> Callable[..., bool] | None:
    """Return the kernel that checks shapes itself, for small arrays of the usual types.

    Whatever it refuses goes the way of all other calls, which says what is wrong.
    """
    if type(x) is not np.ndarray or type(axis) is not int or type(eps) is not float:
        return None
    dtype = x.dtype
    if axis != 1 or x.ndim != 2 or not 0 < x.size <= _SMALL or not x.flags.carray:
        return None
    for array in (first, second, out):
        if array is not None and (type(array) is not np.ndarray or array.dtype is not dtype):
            return None
    if out is not None and not out.flags.carray:
        return None
    return backend.checked(getattr(backend.kernels("batchnorm"), kernel), dtype)


def _optional(array: Any, x: np.ndarray, layout: Layout, name: str) -> np.ndarray:
    """Return an operand of x's shape as a kernel takes it, given or not."""
    if array is None:
        return nothing(layout)
    checks.same_shape(array, x, name)
    return fold(array, layout)


def _backward(
    dy: np.ndarray,
    x: np.ndarray,
    y: np.ndarray | None,
    gamma: np.ndarray | None,
    mean: np.ndarray,
    inv_std: np.ndarray,
    fixed: bool,
    layout: Layout,
    outs: tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Write dx, dgamma and dbeta to `outs`, where given, and return them."""
    out, out_dgamma, out_dbeta = outs
    channels = layout.shape[1]
    checks.same_shape(dy, x, "dy")
    gamma = checks.channel_vector(gamma, channels, layout.dtype, "gamma", layout.device)
    mask = _optional(y, x, layout, "y")
    target = Target(out, x, layout, dy, x, y)
    read = x, dy, mask, gamma, mean, inv_std
    dgamma = gradient(out_dgamma, (channels,), layout, "out_dgamma", *read)
    dbeta = gradient(out_dbeta, (channels,), layout, "out_dbeta", *read)
    if out_dgamma is not None or out_dbeta is not None:
        checks.separate(out_dgamma, out_dbeta, "out_dgamma and out_dbeta")
        checks.separate(out, out_dgamma, "out and out_dgamma")
        checks.separate(out, out_dbeta, "out and out_dbeta")
    gamma, mean, inv_std = unchanged_by(out, layout, gamma, mean, inv_std)
    if x.size:
        backend.run(
            backend.kernels("batchnorm", layout.device).backward,
            fold(dy, layout), fold(x, layout), mask, gamma, mean, inv_std, fixed,
            target.folded, dgamma, dbeta,
        )  # fmt: skip
    else:
        dgamma.fill(0)
        dbeta.fill(0)
    return target.finish(), hand_over(dgamma, out_dgamma), hand_over(dbeta, out_dbeta)


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
