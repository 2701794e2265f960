"""Batch normalization with a weight for every position, on the CPU: what weights change.

Rows `(M, C)` have weights `(M,)`, planes `(N, C, S)` have `(N, S)`, both float64 and not negative.
With W = sum(w): mean = sum(w x) / W, var = sum(w (x - mean)^2) / W.

All sums are float64. Each block takes its mean first, about one of its own values, and its squared
deviations from that; blocks merge by Chan's formula in an order that the shape alone fixes.
Positions of weight 0 are not read, so that padding may hold anything. Normalizing, and the part of
the gradient that does not pass the statistics, are those of `batchnorm_cpu`.
"""

import numpy as np
from numba import prange

from ._channels_cpu import ELEMENTS_PER_BLOCK, MAX_BLOCKS, merge
from ._jit import Kernel, bounds, device_function, scratch, workers

# ---------------------------------------------------------------- kernels


@device_function
def _finite(value):
    """Return the value as a center to sum about: itself, or 0 where it is not finite."""
    return np.float64(value) if abs(value) < np.inf else 0.0


@device_function
def _part_rows(x, weights, first, last, wide):
    """Write mean and M2 of rows first..last to wide[: 2 * C]; return their weight."""
    C = x.shape[1]
    mean, m2 = wide[:C], wide[C : 2 * C]
    total = 0.0
    head = last
    for i in range(first, last):
        total += weights[i]
        if weights[i] > 0.0 and head == last:
            head = i
    for j in range(C):
        mean[j] = 0.0
        m2[j] = 0.0
    if head == last:
        return 0.0
    center = x[head]
    for i in range(first, last):
        if weights[i] > 0.0:
            share = weights[i] / total
            row = x[i]
            for j in range(C):
                # Not share * (x - center), which may overflow.
                mean[j] += share * np.float64(row[j]) - share * _finite(center[j])
    for j in range(C):
        mean[j] += _finite(center[j])
    for i in range(first, last):
        if weights[i] > 0.0:
            row = x[i]
            for j in range(C):
                d = np.float64(row[j]) - mean[j]
                m2[j] += weights[i] * d * d
    return total


@device_function
def _part_planes(x, weights, n0, n1, wide):
    """Write mean and M2 of planes n0..n1 to wide[: 2 * C]; return the weight of each channel."""
    C, S = x.shape[1:]
    total = 0.0
    n_head = n1
    s_head = 0
    for n in range(n0, n1):
        for s in range(S):
            total += weights[n, s]
            if weights[n, s] > 0.0 and n_head == n1:
                n_head = n
                s_head = s
    for c in range(2 * C):
        wide[c] = 0.0
    if n_head == n1:
        return 0.0
    for c in range(C):
        center = _finite(x[n_head, c, s_head])
        mean = 0.0
        for n in range(n0, n1):
            for s in range(S):
                if weights[n, s] > 0.0:
                    share = weights[n, s] / total
                    mean += share * np.float64(x[n, c, s]) - share * center
        mean += center
        m2 = 0.0
        for n in range(n0, n1):
            for s in range(S):
                if weights[n, s] > 0.0:
                    d = np.float64(x[n, c, s]) - mean
                    m2 += weights[n, s] * d * d
        wide[c] = mean
        wide[C + c] = m2
    return total


@device_function
def _finish(wide, sums, parts, eps, mean, var, inv_std, weight):
    """Merge all parts, first to last, and write the sum of the weights to weight (1,)."""
    C = mean.size
    total = 0.0
    for j in range(C):
        mean[j] = 0.0
        var[j] = 0.0
    for part in range(parts):
        if sums[part] > 0.0:
            own = wide[2 * C * part : 2 * C * (part + 1)]
            if total == 0.0:
                for j in range(C):
                    mean[j] = own[j]
                    var[j] = own[C + j]
            else:
                merge(total, mean, var, sums[part], own[:C], own[C:])
            total += sums[part]
    for j in range(C):
        if total > 0.0:
            var[j] /= total
        inv_std[j] = 1.0 / np.sqrt(var[j] + eps)
    weight[0] = total


@Kernel
def _stats(x, weights, eps, parts, mean, var, inv_std, weight, wide):
    """Weighted statistics: x (M, C) or (N, C, S), weights (M,) or (N, S); mean ... (C,)."""
    C = x.shape[1]
    sums = wide[2 * C * parts : (2 * C + 1) * parts]
    for p in prange(parts):
        first, last = bounds(p, parts, x.shape[0])
        own = wide[2 * C * p : 2 * C * (p + 1)]
        if x.ndim == 2:
            sums[p] = _part_rows(x, weights, first, last, own)
        else:
            sums[p] = _part_planes(x, weights, first, last, own)
    _finish(wide, sums, parts, eps, mean, var, inv_std, weight)


@Kernel
def _subtract_rows(x, weights, mean, constant, slope, dx):
    """Take w * (constant + slope * (x - mean)) off dx: x, dx (M, C), weights (M,)."""
    M, C = x.shape
    for i in prange(M):
        if weights[i] > 0.0:
            for j in range(C):
                pull = constant[j] + slope[j] * (np.float64(x[i, j]) - mean[j])
                dx[i, j] -= weights[i] * pull


@Kernel
def _subtract_planes(x, weights, mean, constant, slope, dx):
    """Take w * (constant + slope * (x - mean)) off dx: x, dx (N, C, S), weights (N, S)."""
    N, C, S = x.shape
    for unit in prange(N * C):
        n, c = unit // C, unit % C
        for s in range(S):
            pull = constant[c] + slope[c] * (np.float64(x[n, c, s]) - mean[c])
            # Not 0 * pull, which is NaN where padding is.
            dx[n, c, s] -= weights[n, s] * pull if weights[n, s] > 0.0 else 0.0


# ---------------------------------------------------------------- launchers


def stats(x, weights, eps, mean, var, inv_std, weight, count):
    """Weighted mean, biased variance and inv_std; sum(w), and sum(w)^2 / sum(w^2), both ()."""
    C = x.shape[1]
    parts = max(1, min(x.size // ELEMENTS_PER_BLOCK, MAX_BLOCKS, x.shape[0]))
    wide, _ = scratch((2 * C + 1) * parts, 0, x.dtype)
    results = (mean, var, inv_std, weight.reshape(1))
    _stats(workers(x.size), x, weights, eps, parts, *results, wide)
    # Relative to the largest, so that squares neither vanish nor overflow.
    shares = weights / (weights.max() or 1.0)
    count[...] = shares.sum() ** 2 / max((shares * shares).sum(), 1.0)


def subtract(x, weights, mean, constant, slope, dx):
    """Take off dx what passes the statistics: w * (constant + slope * (x - mean))."""
    kernel = _subtract_rows if x.ndim == 2 else _subtract_planes
    kernel(workers(x.size), x, weights, mean, constant, slope, dx)
