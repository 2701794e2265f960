"""Sparse rows times a dense matrix, and the gradient of that matrix, on the CPU.

Rows i of x (N, F) have `values` in columns `indices` from `indptr[i]` to `indptr[i + 1]`; the
weight is (O, F). Each output unit has a row of the weight of its own, so that units are shared out:
every sum belongs to one thread and runs in the order of the values, whatever the number of threads.
Outputs are summed in float64, gradients in their own type. Columns that no row has are not read.
"""

import numpy as np
from numba import prange

from ._jit import Kernel, bounds, workers

# Columns of a weight beyond which one unit at a time is faster.
WIDE = 16_384

# ---------------------------------------------------------------- kernels


@Kernel
def _sparse_linear(values, indices, indptr, weight, threads, y):
    """y = x @ weight.T; weight (O, F), y (N, O)."""
    for t in prange(threads):
        first, last = bounds(t, threads, weight.shape[0])
        # Four units at once: their sums do not wait for each other.
        for o in range(first, last, 4):
            rest = min(last - o, 4) - 1
            w0, w1 = weight[o], weight[o + min(rest, 1)]
            w2, w3 = weight[o + min(rest, 2)], weight[o + rest]
            for i in range(y.shape[0]):
                s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0
                for k in range(indptr[i], indptr[i + 1]):
                    value, j = np.float64(values[k]), indices[k]
                    s0 += value * w0[j]
                    s1 += value * w1[j]
                    s2 += value * w2[j]
                    s3 += value * w3[j]
                # Where there are fewer, the last of them is written again.
                y[i, o], y[i, o + min(rest, 1)] = s0, s1
                y[i, o + min(rest, 2)], y[i, o + rest] = s2, s3


@Kernel
def _sparse_gradient(dy, values, indices, indptr, threads, dweight):
    """dweight = dy.T @ x; dy (N, O), dweight (O, F)."""
    for t in prange(threads):
        first, last = bounds(t, threads, dweight.shape[0])
        # Four units at once, as long as they fit into a cache.
        whole = first + (last - first) // 4 * 4 if dweight.shape[1] <= WIDE else first
        for o in range(first, whole, 4):
            for u in range(o, o + 4):
                unit = dweight[u]
                for j in range(unit.size):
                    unit[j] = 0
            w0, w1, w2, w3 = dweight[o], dweight[o + 1], dweight[o + 2], dweight[o + 3]
            for i in range(dy.shape[0]):
                g0, g1, g2, g3 = dy[i, o], dy[i, o + 1], dy[i, o + 2], dy[i, o + 3]
                for k in range(indptr[i], indptr[i + 1]):
                    value, j = values[k], indices[k]
                    w0[j] += g0 * value
                    w1[j] += g1 * value
                    w2[j] += g2 * value
                    w3[j] += g3 * value
        for o in range(whole, last):
            unit = dweight[o]
            for j in range(unit.size):
                unit[j] = 0
            for i in range(dy.shape[0]):
                g = dy[i, o]
                for k in range(indptr[i], indptr[i + 1]):
                    unit[indices[k]] += g * values[k]


# ---------------------------------------------------------------- launchers


def sparse_linear(values, indices, indptr, weight, y):
    """Multiply sparse rows by the transpose of a dense matrix."""
    threads = workers(int(indptr[-1]) * weight.shape[0])
    _sparse_linear(threads, values, indices, indptr, weight, threads, y)


def sparse_gradient(dy, values, indices, indptr, dweight):
    """Multiply the transpose of dy by sparse rows."""
    threads = workers(int(indptr[-1]) * dweight.shape[0] + dweight.size)
    _sparse_gradient(threads, dy, values, indices, indptr, threads, dweight)
