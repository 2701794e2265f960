"""Batch normalization on the CPU, forward and backward, for `(M, C)` rows and `(N, C, S)` planes.

Training forward: one pass for the statistics, one that normalizes. Statistics are sums about a
value near the mean, of planes in float64, of rows in the array's own precision over eight rows and
in float64 from there up; all in float64 where a channel has few values, or where the value turns
out to lie far from the mean. Blocks merge by Chan's formula in an order that the shape alone fixes.
Hence the same bits for every number of threads.

Normalizing computes `(x - shift) * scale + offset`, where `shift` is the mean rounded to x's type
and the rest of the mean goes into `offset`: no cancellation even for |mean| >> std.

Backward: a pass for sum(g) and sum(g * (x - shift)), one for `dx = a * (g + b * (x - shift) + d)`.
With a ReLU behind the normalization, g is dy where the forward's output y is positive, else 0.

The second pass of each thread takes large pieces in reverse: what was read last is still in cache.
Planes go by slabs, groups of channels that fit the cache whole, wherever such groups exist: one
region, no merging, and memory is read once for both passes.
An empty array stands for "not given" in residual, gamma, beta and y.

The loops are in `_rows_cpu` and `_planes_cpu`, what they share in `_channels_cpu`.
"""

import numpy as np
from numba import types

from ._channels_cpu import forward_affine, invert
from ._jit import CheckedKernel, SerialKernel, device_function, prepares, scratch, workers
from ._planes_cpu import (
    backward_planes,
    backward_slabs,
    grid_of_planes,
    infer_planes,
    scratch_of_backward_planes,
    scratch_of_backward_slabs,
    scratch_of_train_planes,
    scratch_of_train_slabs,
    slabs_of_channels,
    train_planes,
    train_slabs,
)
from ._rows_cpu import (
    backward_rows,
    blocks_of_rows,
    infer_rows,
    normalize_rows,
    scratch_of_backward_rows,
    scratch_of_train_rows,
    train_rows,
)

# ---------------------------------------------------------------- kernels: statistics


@SerialKernel
def _inverse_std(var, eps, inv_std):
    """inv_std = 1 / sqrt(var + eps); var, inv_std (C,)."""
    invert(var, eps, inv_std)


@device_function
def _correction(count, unbiased):
    """Factor from the biased to the wanted variance."""
    return count / (count - 1.0) if unbiased else 1.0


@device_function
def _move_running(mean, var, count, momentum, unbiased, running_mean, running_var):
    """Move the running statistics (C,) towards the batch's by `momentum`, in place."""
    correction = _correction(count, unbiased)
    for j in range(mean.size):
        running_mean[j] += momentum * (mean[j] - running_mean[j])
        running_var[j] += momentum * (var[j] * correction - running_var[j])


@SerialKernel
def _update_running(mean, var, count, momentum, unbiased, running_mean, running_var):
    """Running-statistics update (C,), whatever the batch held."""
    _move_running(mean, var, count, momentum, unbiased, running_mean, running_var)


@SerialKernel
def _update_running_within(
    mean, var, count, momentum, unbiased, limit, running_mean, running_var, skipped
):
    """Running-statistics update (C,) where all is finite and within `limit`, else skipped (1,)."""
    correction = _correction(count, unbiased)
    inside = True
    for j in range(mean.size):
        # A NaN fails every comparison.
        inside &= abs(mean[j]) <= limit and var[j] * correction <= limit
    if inside:
        _move_running(mean, var, count, momentum, unbiased, running_mean, running_var)
    else:
        skipped[0] += 1


# ---------------------------------------------------------------- small arrays, checked here


@device_function
def _fits(x, first, second, gamma, beta, eps, y):
    """Whether these are rows and four vectors for them, and y is x or lies apart from it."""
    C = x.shape[1]
    return (
        x.size > 0
        and C > 1
        and first.size == second.size == gamma.size == beta.size == C
        and 0.0 < eps < np.inf
        and _same_or_apart(x, y)
    )


@device_function
def _same_or_apart(x, y):
    """Whether two arrays of rows have one shape, and are one or share no memory."""
    distance = abs(y.ctypes.data - x.ctypes.data)
    return y.shape == x.shape and (distance == 0 or distance >= x.size * x.itemsize)


def _small_types(number):
    """Types of rows of `number`, a flag, a float, per-channel results, and vectors of two kinds."""
    usual = types.Array(number, 1, "C")
    # Any strides, read-only and misaligned.
    other = types.Array(number, 1, "A", readonly=True, aligned=False)
    wide = types.Array(types.float64, 1, "C")
    for vector in (usual, other):
        yield types.Array(number, 2, "C"), types.boolean, types.float64, usual, wide, vector


def _infer_types(number):
    return [
        (rows, vector, vector, vector, flag, vector, flag, eps, rows)
        for rows, flag, eps, _, _, vector in _small_types(number)
    ]


def _infer_small(x, mean, var, gamma, scaled, beta, shifted, eps, y):
    C = x.shape[1]
    if not _fits(x, mean, var, gamma, beta, eps, y):
        return False
    inv_std, narrow = np.empty(C), np.empty(3 * C, x.dtype)
    invert(var, eps, inv_std)
    # What is not given has no elements.
    scale, shift = gamma[: C * scaled], beta[: C * shifted]
    forward_affine(scale, shift, mean, inv_std, narrow)
    normalize_rows(x, x[:0], False, narrow, y, 0, x.shape[0])
    return True


infer_small = CheckedKernel(_infer_small, _infer_types)


def _train_types(number):
    return [
        (rows, vector, flag, vector, flag, eps, rows, wide, wide, wide)
        for rows, flag, eps, _, wide, vector in _small_types(number)
    ]


_train_rows, _backward_rows = train_rows.serial, backward_rows.serial


def _train_small(x, gamma, scaled, beta, shifted, eps, y, mean, var, inv_std):
    M, C = x.shape
    if M < 2 or not _fits(x, mean, var, gamma, beta, eps, y):
        return False
    blocks = blocks_of_rows(M, C)
    wide, narrow = scratch_of_train_rows(C, blocks)
    _train_rows(
        x, x[:0], gamma[: C * scaled], beta[: C * shifted], eps, False, 1, blocks,
        y, mean, var, inv_std, np.empty(wide), np.empty(narrow, x.dtype),
    )  # fmt: skip
    return True


train_small = CheckedKernel(_train_small, _train_types)


def _backward_types(number):
    return [
        (rows, rows, vector, flag, wide, wide, rows, usual, usual)
        for rows, flag, _, usual, wide, vector in _small_types(number)
    ]


def _backward_small(dy, x, gamma, scaled, mean, inv_std, dx, dgamma, dbeta):
    M, C = x.shape
    if dy.shape != x.shape or not _same_or_apart(dy, dx):
        return False
    if not _fits(x, mean, inv_std, gamma, gamma, 1.0, dx):
        return False
    blocks = blocks_of_rows(M, C)
    wide, narrow = scratch_of_backward_rows(C, blocks)
    _backward_rows(
        dy, x, x[:0], gamma[: C * scaled], mean, inv_std, False, 1, blocks,
        dx, dgamma, dbeta, np.empty(wide), np.empty(narrow, x.dtype),
    )  # fmt: skip
    return True


backward_small = CheckedKernel(_backward_small, _backward_types)


# ---------------------------------------------------------------- launchers


@prepares
def train(x, residual, gamma, beta, eps, relu, y, mean, var, inv_std):
    """Normalize x with its own statistics; fills y, mean, var (biased) and inv_std."""
    threads = workers(x.size)
    C = x.shape[1]
    operands = (x, residual, gamma, beta, eps, relu, threads)
    results = (y, mean, var, inv_std)
    if x.ndim == 2:
        blocks = blocks_of_rows(*x.shape)
        wide, narrow = scratch(*scratch_of_train_rows(C, blocks), x.dtype)
        train_rows(threads, *operands, blocks, *results, wide, narrow)
    elif slabs := slabs_of_channels(x, 1, threads):
        _, narrow = scratch(*scratch_of_train_slabs(C), x.dtype)
        train_slabs(threads, *operands, slabs, *results, narrow)
    else:
        grid = grid_of_planes(x.shape)
        wide, narrow = scratch(*scratch_of_train_planes(C, grid), x.dtype)
        train_planes(threads, *operands, grid, *results, wide, narrow)


@prepares
def infer(x, residual, gamma, beta, mean, var, eps, relu, y):
    """Normalize x with the given statistics; fills y."""
    threads = workers(x.size)
    C = x.shape[1]
    wide, narrow = scratch(C, 3 * C, x.dtype)
    kernel = infer_rows if x.ndim == 2 else infer_planes
    kernel(threads, x, residual, gamma, beta, mean, var, eps, relu, threads, y, wide, narrow)


@prepares
def backward(dy, x, y, gamma, mean, inv_std, fixed, dx, dgamma, dbeta):
    """Gradients of `train`, or of `infer` where `fixed`."""
    threads = workers(x.size)
    C = x.shape[1]
    operands = (dy, x, y, gamma, mean, inv_std, fixed, threads)
    results = (dx, dgamma, dbeta)
    if x.ndim == 2:
        blocks = blocks_of_rows(*x.shape)
        wide, narrow = scratch(*scratch_of_backward_rows(C, blocks), x.dtype)
        backward_rows(threads, *operands, blocks, *results, wide, narrow)
    elif slabs := slabs_of_channels(x, 2 if y.size == 0 else 3, threads):
        wide, narrow = scratch(*scratch_of_backward_slabs(C), x.dtype)
        backward_slabs(threads, *operands, slabs, *results, wide, narrow)
    else:
        grid = grid_of_planes(x.shape)
        wide, narrow = scratch(*scratch_of_backward_planes(C, grid), x.dtype)
        backward_planes(threads, *operands, grid, *results, wide, narrow)


@prepares
def inverse_std(var, eps, inv_std):
    """1 / sqrt(var + eps), per channel."""
    _inverse_std(var, eps, inv_std)


@prepares
def update_running(mean, var, count, momentum, unbiased, running_mean, running_var):
    """Running-statistics update, in place; count and momentum may be arrays (), read now."""
    if count > 0:
        numbers = float(count), float(momentum), unbiased
        _update_running(mean, var, *numbers, running_mean, running_var)


@prepares
def update_running_within(
    mean, var, count, momentum, unbiased, limit, running_mean, running_var, skipped
):
    """Running-statistics update that counts a batch beyond `limit` and leaves it out."""
    if count > 0:
        numbers = float(count), float(momentum), unbiased, limit
        _update_running_within(mean, var, *numbers, running_mean, running_var, skipped)
