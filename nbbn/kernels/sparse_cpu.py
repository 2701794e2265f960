"""Sparse rows times a dense matrix, and the gradient of that matrix, on the CPU.

Rows i of x (N, F) have `values` in columns `indices` from `indptr[i]` to `indptr[i + 1]`; the
weight is (O, F). Each output unit has a row of the weight of its own, so that units are shared out:
every sum belongs to one thread and runs in the order of the values, whatever the number of threads.
Outputs are summed in float64, gradients in their own type. Columns that no row has are not read.
"""

import numpy as np
from numba import prange

from ._jit import Kernel, bounds, workers

# ---------------------------------------------------------------- kernels


@Kernel
def _sparse_linear(values, indices, indptr, weight, threads, y):
    """y = x @ weight.T; weight (O, F), y (N, O)."""
    for t in prange(threads):
        first, last = bounds(t, threads, weight.shape[0])
        for o in range(first, last):
            unit = weight[o]
            for i in range(y.shape[0]):
                total = 0.0
                for k in range(indptr[i], indptr[i + 1]):
                    total += np.float64(values[k]) * unit[indices[k]]
                y[i, o] = total


@Kernel
def _sparse_gradient(dy, values, indices, indptr, threads, dweight):
    """dweight = dy.T @ x; dy (N, O), dweight (O, F)."""
    for t in prange(threads):
        first, last = bounds(t, threads, dweight.shape[0])
        for o in range(first, last):
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
