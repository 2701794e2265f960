"""Batch normalization for callers that are compiled themselves: `batchnorm_cpu`, serial.

What users call from jitted code of their own (`nbbn.jit`). Unlike a launcher, each function here
checks the shapes it is given, since an index out of range would take the process down, and brings
its own scratch. The blocks are those of the launchers, and so are the bits.
"""

import numpy as np
from numba import types
from numba.cpython.unsafe.tuple import tuple_setitem
from numba.extending import overload, register_jitable

from ._channels_cpu import forward_affine, invert, merge, merge_parts
from ._embedded_checks import (
    INTEGER,
    LIKE_X,
    NUMBER,
    PREPARED,
    RESULT_LIKE_X,
    RESULT_STATISTIC,
    RESULT_VECTOR,
    ROWS_OR_PLANES,
    SAMPLE,
    STATISTIC,
    VECTOR,
    VECTOR_OR_NONE,
    check_apart,
    check_channels,
    check_eps,
    check_like,
    check_vector,
    checked,
    vector,
)
from ._jit import bounds, inlined_device_function, inlined_function, library_function
from ._planes_cpu import (
    backward_planes,
    backward_slabs,
    grid_of_planes,
    normalize_planes,
    scratch_of_backward_planes,
    scratch_of_backward_slabs,
    scratch_of_train_planes,
    scratch_of_train_slabs,
    slabs_of_channels,
    stats_planes,
    train_planes,
    train_slabs,
    unit,
    variances_planes,
)
from ._rows_cpu import (
    backward_rows,
    blocks_of_rows,
    normalize_rows,
    scratch_of_backward_rows,
    scratch_of_train_rows,
    stats_rows,
    train_rows,
    variances_rows,
)

_train_rows, _train_planes = train_rows.serial, train_planes.serial
_backward_rows, _backward_planes = backward_rows.serial, backward_planes.serial
_train_slabs, _backward_slabs = train_slabs.serial, backward_slabs.serial

_channel_stats_types = checked(x=ROWS_OR_PLANES, mean=RESULT_STATISTIC, var=RESULT_STATISTIC)
_merge_stats_types = checked(
    mean=RESULT_STATISTIC, var=RESULT_STATISTIC, other_mean=STATISTIC, other_var=STATISTIC,
    count=INTEGER, other_count=INTEGER,
)  # fmt: skip
_mean_types = checked(x=SAMPLE, axis=INTEGER)
_var_types = checked(x=SAMPLE, axis=INTEGER, ddof=NUMBER)
_train_types = checked(
    x=ROWS_OR_PLANES, gamma=VECTOR_OR_NONE, beta=VECTOR_OR_NONE, eps=NUMBER, y=RESULT_LIKE_X,
    mean=RESULT_STATISTIC, var=RESULT_STATISTIC, inv_std=RESULT_STATISTIC,
)  # fmt: skip
_affine_types = checked(
    mean=VECTOR, var=VECTOR, gamma=VECTOR_OR_NONE, beta=VECTOR_OR_NONE, eps=NUMBER,
    out=RESULT_VECTOR,
)  # fmt: skip
_normalize_types = checked(x=ROWS_OR_PLANES, prepared=PREPARED, y=RESULT_LIKE_X)
_infer_types = checked(
    x=ROWS_OR_PLANES, mean=VECTOR, var=VECTOR, gamma=VECTOR_OR_NONE, beta=VECTOR_OR_NONE,
    eps=NUMBER, y=RESULT_LIKE_X,
)  # fmt: skip
_backward_types = checked(
    x=ROWS_OR_PLANES, dy=LIKE_X, mean=STATISTIC, inv_std=STATISTIC, gamma=VECTOR_OR_NONE,
    dx=RESULT_LIKE_X, dgamma=RESULT_VECTOR, dbeta=RESULT_VECTOR,
)  # fmt: skip
_infer_backward_types = checked(
    x=ROWS_OR_PLANES, dy=LIKE_X, mean=VECTOR, var=VECTOR, gamma=VECTOR_OR_NONE, eps=NUMBER,
    dx=RESULT_LIKE_X, dgamma=RESULT_VECTOR, dbeta=RESULT_VECTOR,
)  # fmt: skip


# ---------------------------------------------------------------- scratch


@register_jitable
def _values_per_channel(x):
    return x.size // x.shape[1]


def _floating(x):
    return x if x.dtype.kind == "f" else x.astype(np.float64)


@overload(_floating)
def _floating_overload(x):
    if isinstance(x.dtype, types.Float):
        return lambda x: x
    return lambda x: x.astype(np.float64)


@register_jitable
def _scratch(sizes, x):
    return np.empty(sizes[0]), np.empty(sizes[1], x.dtype)


@register_jitable
def _stats_of_rows(x, mean, var):
    M, C = x.shape
    blocks = blocks_of_rows(M, C)
    wide, narrow = _scratch(scratch_of_train_rows(C, blocks), x)
    shift = narrow[:C]
    for b in range(blocks):
        first, last = bounds(b, blocks, M)
        stats_rows(x, first, last, shift, wide[4 * C * b : 4 * C * (b + 1)])
    merge_parts(wide, M, blocks, 1, 1, mean, var)
    variances_rows(x, mean, var)


@register_jitable
def _stats_of_planes(x, mean, var):
    N, C, S = x.shape
    shift = np.empty(C, x.dtype)
    if slabs_of_channels(x, 1, 1) > 0:
        stats_planes(x, 0, N, 0, C, 0, S, shift, mean, var)
    else:
        grid = grid_of_planes(x.shape)
        wide, _ = _scratch(scratch_of_train_planes(C, grid), x)
        for u in range(grid[0] * grid[1]):
            n0, n1, s0, s1 = unit(u, grid, x.shape)
            own = wide[4 * C * u : 4 * C * u + 2 * C]
            stats_planes(x, n0, n1, 0, C, s0, s1, shift, own[:C], own[C:])
        merge_parts(wide, N, grid[0], S, grid[1], mean, var)
    variances_planes(x, 0, mean, var)


# ---------------------------------------------------------------- statistics


@register_jitable
def _stats(x, mean, var):
    if x.ndim == 2:
        _stats_of_rows(x, mean, var)
    else:
        _stats_of_planes(np.ascontiguousarray(x), mean, var)


@library_function
def channel_stats(x, mean, var):
    """Mean and biased variance of each channel.

    Parameters
    ----------
    x : ndarray of float32 or float64, rows (M, C) or planes (N, C, S)
        Any strides.
    mean, var : ndarray of float64, shape (C,)
        Receive the result: 0 where there are no values.

    Returns
    -------
    int
        Values per channel.
    """
    x = _channel_stats_types(x, mean, var)
    check_channels(x)
    check_vector(mean, x.shape[1])
    check_vector(var, x.shape[1])
    check_apart(mean, var)
    count = _values_per_channel(x)
    if count == 0:
        mean[:] = 0.0
        var[:] = 0.0
    else:
        _stats(x, mean, var)
    return count


@library_function
def merge_stats(count, mean, var, other_count, other_mean, other_var):
    """Fold the statistics of another sample into `mean` and `var`, as if seen in one.

    Parameters
    ----------
    count : int
        Values per channel so far; 0 at the start.
    mean, var : ndarray of float64, shape (C,)
        Mean and biased variance so far, updated in place.
    other_count : int
        Values per channel of the other sample.
    other_mean, other_var : ndarray of float64, shape (C,)
        Its mean and biased variance.

    Returns
    -------
    int
        Values per channel of both.

    References
    ----------
    Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
    Variances" (1979).
    """
    mean = _merge_stats_types(mean, var, other_mean, other_var, count, other_count)
    check_apart(mean, var)
    C = mean.size
    if var.size != C or other_mean.size != C or other_var.size != C:
        raise ValueError("means and variances must have one length")
    total = count + other_count
    if other_count == 0:
        return total
    if count == 0:
        mean[:] = other_mean
        var[:] = other_var
        return total
    # Before var is written, which may be the other's.
    other_m2 = other_var * other_count
    for j in range(var.size):
        var[j] *= count
    merge(float(count), mean, var, float(other_count), other_mean, other_m2)
    for j in range(var.size):
        var[j] /= total
    return total


@register_jitable
def _stats_along(x, axis):
    """Mean and biased variance along one axis, each flat, and the length of the axis."""
    axis = axis + x.ndim if axis < 0 else axis
    if axis < 0 or axis >= x.ndim:
        raise ValueError("axis is out of range for x")
    outer, inner = 1, 1
    for d in range(x.ndim):
        if d < axis:
            outer *= x.shape[d]
        elif d > axis:
            inner *= x.shape[d]
    n = x.shape[axis]
    mean, var = np.empty(outer * inner), np.empty(outer * inner)
    if n == 0:
        mean[:] = np.nan
        var[:] = np.nan
    elif inner == 1 and mean.size > 0:
        _stats_of_planes(np.ascontiguousarray(x).reshape((1, outer, n)), mean, var)
    elif mean.size > 0:
        folded = np.ascontiguousarray(x).reshape((outer, n, inner))
        for o in range(outer):
            part = slice(o * inner, (o + 1) * inner)
            _stats_of_rows(folded[o], mean[part], var[part])
    return mean, var, n


def _without(x, axis):
    """Allocate an array of the shape and type of x without one axis."""
    return np.empty(np.delete(x.shape, axis), x.dtype)


@overload(_without)
def _without_overload(x, axis):
    if x.ndim == 1:
        return lambda x, axis: np.empty((), x.dtype)

    def allocate(x, axis):
        axis = axis + x.ndim if axis < 0 else axis
        shape = x.shape[1:]
        for d in range(x.ndim - 1):
            shape = tuple_setitem(shape, d, x.shape[d] if d < axis else x.shape[d + 1])
        return np.empty(shape, x.dtype)

    return allocate


@library_function
def mean(x, axis):
    """Mean along an axis, which NumPy's function lacks in compiled code.

    Parameters
    ----------
    x : ndarray of float32, float64, int or bool
        Any rank from 1, any strides. What is not C-contiguous is copied.
    axis : int

    Returns
    -------
    ndarray, shape of `x` without `axis`
        Computed in float64 and rounded to the type of `x` (float64 for integers and truth values).
        NaN along an axis of length 0.
    """
    values = _floating(_mean_types(x, axis))
    found = _stats_along(values, axis)[0]
    result = _without(values, axis)
    result.ravel()[:] = found
    return result


@library_function
def var(x, axis, ddof=0):
    """Variance along an axis, which NumPy's function lacks in compiled code.

    Parameters
    ----------
    x, axis
        As for `mean`.
    ddof : int or float, default 0
        The sum of squared deviations is divided by the length of the axis minus this.

    Returns
    -------
    ndarray
        As of `mean`.
    """
    values = _floating(_var_types(x, axis, ddof))
    _, biased, n = _stats_along(values, axis)
    result = _without(values, axis)
    result.ravel()[:] = biased * (n / float(n - ddof))
    return result


# ---------------------------------------------------------------- forward


@register_jitable
def _put_back(result, y):
    """Copy a result that was computed apart, because y has gaps, to y."""
    if result.ctypes.data != y.ctypes.data:
        y[...] = result


@register_jitable
def _train(x, gamma, beta, eps, y, mean, var, inv_std):
    C = x.shape[1]
    if x.ndim == 2:
        blocks = blocks_of_rows(x.shape[0], C)
        wide, narrow = _scratch(scratch_of_train_rows(C, blocks), x)
        _train_rows(
            x, x[:0], gamma, beta, eps, False, 1, blocks,
            y, mean, var, inv_std, wide, narrow,
        )  # fmt: skip
    else:
        planes, result = np.ascontiguousarray(x), np.ascontiguousarray(y)
        slabs = slabs_of_channels(planes, 1, 1)
        if slabs > 0:
            _, narrow = _scratch(scratch_of_train_slabs(C), x)
            _train_slabs(
                planes, planes[:0], gamma, beta, eps, False, 1, slabs,
                result, mean, var, inv_std, narrow,
            )  # fmt: skip
        else:
            grid = grid_of_planes(x.shape)
            wide, narrow = _scratch(scratch_of_train_planes(C, grid), x)
            _train_planes(
                planes, planes[:0], gamma, beta, eps, False, 1, grid,
                result, mean, var, inv_std, wide, narrow,
            )  # fmt: skip
        _put_back(result, y)


@library_function
def batch_norm_train(x, gamma, beta, eps, y, mean, var, inv_std):
    """Normalize `x` with its own statistics: ``y = gamma * (x - mean) * inv_std + beta``.

    Parameters
    ----------
    x : ndarray of float32 or float64, rows (M, C) or planes (N, C, S)
        At least two values per channel, or none.
    gamma, beta : ndarray of float32 or float64, shape (C,), or None
        None means 1 and 0. Used in the type of `x`.
    eps : float
        Added to the variance: finite and above 0.
    y : ndarray, shape and type of `x`
        Receives the result. It may be `x` itself, and must not overlap it otherwise.
    mean, var, inv_std : ndarray of float64, shape (C,)
        Receive mean, biased variance and 1 / sqrt(var + eps).
    """
    x = _train_types(x, gamma, beta, eps, y, mean, var, inv_std)
    check_channels(x)
    check_like(y, x)
    check_eps(eps, False)
    C = x.shape[1]
    # One by one: a loop would need them to be of one type.
    check_vector(mean, C)
    check_vector(var, C)
    check_vector(inv_std, C)
    check_apart(mean, var)
    check_apart(mean, inv_std)
    check_apart(var, inv_std)
    scale, shift = vector(gamma, C, x), vector(beta, C, x)
    count = _values_per_channel(x)
    if count == 1:
        raise ValueError("Expected more than 1 value per channel when training")
    if count == 0:
        mean[:] = 0.0
        var[:] = 0.0
        inv_std[:] = 1.0 / np.sqrt(eps)
    else:
        _train(x, scale, shift, float(eps), y, mean, var, inv_std)


@library_function
def affine(mean, var, gamma, beta, eps, out):
    """Prepare `normalize` for fixed statistics, so that it divides nothing, and allocates nothing.

    But for planes with gaps between their elements, of which it makes copies.

    Parameters
    ----------
    mean, var, gamma, beta, eps
        As for `batch_norm_infer`.
    out : ndarray, shape (3 * C,), type of the arrays to normalize
        Receives shift, scale and offset: ``y = (x - shift) * scale + offset``.
    """
    mean = _affine_types(mean, var, gamma, beta, eps, out)
    check_eps(eps, True)
    C = mean.size
    if C == 0 or var.size != C or out.size != 3 * C:
        raise ValueError("var must have the length of mean, and out three times that")
    inv_std = np.empty(C)
    invert(var, eps, inv_std)
    forward_affine(vector(gamma, C, out), vector(beta, C, out), mean, inv_std, out)


@inlined_device_function
def _normalize(x, prepared, y):
    if x.ndim == 2:
        normalize_rows(x, x[:0], False, prepared, y, 0, x.shape[0])
    else:
        planes, result = np.ascontiguousarray(x), np.ascontiguousarray(y)
        normalize_planes(planes, planes[:0], False, prepared, 0, result, 0, x.size)
        _put_back(result, y)


@inlined_function
def normalize(x, prepared, y):
    """Compute ``y = (x - shift) * scale + offset`` per channel.

    Parameters
    ----------
    x : ndarray of float32 or float64, rows (M, C) or planes (N, C, S)
    prepared : ndarray, shape (3 * C,), type of `x`
        What `affine` made.
    y : ndarray, shape and type of `x`
        Receives the result. It may be `x` itself, and must not overlap it otherwise.
    """
    x = _normalize_types(x, prepared, y)
    check_channels(x)
    check_like(y, x)
    if prepared.size != 3 * x.shape[1]:
        raise ValueError("the prepared array must have three elements per channel of x")
    _normalize(x, prepared, y)


@library_function
def batch_norm_infer(x, mean, var, gamma, beta, eps, y):
    """Normalize `x` with given statistics: ``y = gamma * (x - mean) / sqrt(var + eps) + beta``.

    Parameters
    ----------
    x : ndarray of float32 or float64, rows (M, C) or planes (N, C, S)
    mean, var : ndarray of float32 or float64, shape (C,)
        Statistics to normalize with.
    gamma, beta
        As for `batch_norm_train`.
    eps : float
        Added to the variance: finite and not negative.
    y
        As for `batch_norm_train`.
    """
    x = _infer_types(x, mean, var, gamma, beta, eps, y)
    check_channels(x)
    check_vector(mean, x.shape[1])
    prepared = np.empty(3 * x.shape[1], x.dtype)
    affine(mean, var, gamma, beta, eps, prepared)
    normalize(x, prepared, y)


# ---------------------------------------------------------------- backward


@register_jitable
def _backward(dy, x, mean, inv_std, gamma, fixed, dx, dgamma, dbeta):
    check_channels(x)
    check_like(dy, x)
    check_like(dx, x)
    C = x.shape[1]
    check_vector(mean, C)
    check_vector(inv_std, C)
    check_vector(dgamma, C)
    check_vector(dbeta, C)
    check_apart(dgamma, dbeta)
    scale = vector(gamma, C, x)
    if x.size == 0:
        dgamma[:] = 0
        dbeta[:] = 0
        return
    if x.ndim == 2:
        blocks = blocks_of_rows(x.shape[0], C)
        wide, narrow = _scratch(scratch_of_backward_rows(C, blocks), x)
        _backward_rows(
            dy, x, x[:0], scale, mean, inv_std, fixed, 1, blocks, dx, dgamma, dbeta, wide, narrow
        )
    else:
        planes, gradient = np.ascontiguousarray(x), np.ascontiguousarray(dy)
        result = np.ascontiguousarray(dx)
        slabs = slabs_of_channels(planes, 2, 1)
        if slabs > 0:
            wide, narrow = _scratch(scratch_of_backward_slabs(C), x)
            _backward_slabs(
                gradient, planes, planes[:0], scale, mean, inv_std, fixed, 1, slabs,
                result, dgamma, dbeta, wide, narrow,
            )  # fmt: skip
        else:
            grid = grid_of_planes(x.shape)
            wide, narrow = _scratch(scratch_of_backward_planes(C, grid), x)
            _backward_planes(
                gradient, planes, planes[:0], scale, mean, inv_std, fixed, 1, grid,
                result, dgamma, dbeta, wide, narrow,
            )  # fmt: skip
        _put_back(result, dx)


@library_function
def batch_norm_backward(dy, x, mean, inv_std, gamma, dx, dgamma, dbeta):
    """Gradients of `batch_norm_train`, the statistics being functions of `x`.

    Parameters
    ----------
    dy : ndarray, shape and type of `x`
        Gradient of the loss with respect to the output.
    x : ndarray of float32 or float64, rows (M, C) or planes (N, C, S)
        The forward's input.
    mean, inv_std : ndarray of float64, shape (C,)
        What the forward wrote.
    gamma : ndarray of float32 or float64, shape (C,), or None
        The forward's scale.
    dx : ndarray, shape and type of `x`
        Receives the gradient of `x`. It may be `dy` or `x` itself.
    dgamma, dbeta : ndarray of float32 or float64, shape (C,)
        Receive the gradients of gamma and beta.
    """
    x = _backward_types(x, dy, mean, inv_std, gamma, dx, dgamma, dbeta)
    _backward(dy, x, mean, inv_std, gamma, False, dx, dgamma, dbeta)


@library_function
def batch_norm_infer_backward(dy, x, mean, var, gamma, eps, dx, dgamma, dbeta):
    """Gradients of `batch_norm_infer`, the statistics being constants.

    Parameters
    ----------
    dy, x
        As for `batch_norm_backward`.
    mean, var : ndarray of float32 or float64, shape (C,)
        The statistics that the forward used.
    gamma
        The forward's scale, or None.
    eps : float
        The forward's eps.
    dx, dgamma, dbeta
        As for `batch_norm_backward`.
    """
    x = _infer_backward_types(x, dy, mean, var, gamma, eps, dx, dgamma, dbeta)
    check_eps(eps, True)
    inv_std = np.empty(var.size)
    invert(var, eps, inv_std)
    _backward(dy, x, mean, inv_std, gamma, True, dx, dgamma, dbeta)
