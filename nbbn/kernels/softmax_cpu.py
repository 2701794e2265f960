"""Softmax, log-softmax and softmax-cross-entropy on rows (M, K), forward and backward.

Each row is shifted by its maximum; sums are in float64. Rows are independent, so threads share
them out freely. The backward of the cross-entropy recomputes the exponentials: cheaper than storing
them, and exact where a stored log-sum-exp of large logits would lose digits.
"""

import math

import numpy as np
from numba import prange

from ._jit import Kernel, SerialKernel, bounds, device_function, workers
from .elementwise_cpu import exp

# ---------------------------------------------------------------- kernels


@device_function
def _maximum(row):
    """Largest value of a row (K,), NaN if it holds one."""
    largest = row[0]
    for j in range(row.size):
        if not row[j] <= largest:
            largest = row[j]
    return largest


@device_function
def _exp_sum(row, largest, target):
    """Write exp(row - largest) to target (K,) and return the sum."""
    for j in range(row.size):
        target[j] = exp(row[j] - largest)
    total = 0.0
    for j in range(row.size):
        total += target[j]
    return total


@device_function
def _log_sum_exp(row, largest):
    """log(sum(exp(row - largest))) of a row (K,)."""
    total = 0.0
    for j in range(row.size):
        total += exp(row[j] - largest)
    return math.log(total)


@Kernel
def _softmax(x, threads, y):
    """Y = exp(x) / sum(exp(x)) per row; x, y (M, K)."""
    for t in prange(threads):
        first, last = bounds(t, threads, x.shape[0])
        for i in range(first, last):
            target = y[i]
            total = _exp_sum(x[i], _maximum(x[i]), target)
            scale = x.dtype.type(1.0 / total)
            for j in range(target.size):
                target[j] *= scale


@Kernel
def _softmax_backward(dy, y, threads, dx):
    """Dx = y * (dy - sum(dy * y)) per row; dy, y, dx (M, K)."""
    for t in prange(threads):
        first, last = bounds(t, threads, y.shape[0])
        for i in range(first, last):
            output, gradient, target = y[i], dy[i], dx[i]
            dot = 0.0
            for j in range(output.size):
                dot += np.float64(gradient[j]) * output[j]
            center = y.dtype.type(dot)
            for j in range(output.size):
                target[j] = output[j] * (gradient[j] - center)


@Kernel
def _log_softmax(x, threads, y):
    """Y = x - log(sum(exp(x))) per row; x, y (M, K)."""
    for t in prange(threads):
        first, last = bounds(t, threads, x.shape[0])
        for i in range(first, last):
            source, target = x[i], y[i]
            largest = _maximum(source)
            log_total = x.dtype.type(_log_sum_exp(source, largest))
            for j in range(source.size):
                target[j] = (source[j] - largest) - log_total


@Kernel
def _log_softmax_backward(dy, y, threads, dx):
    """Dx = dy - exp(y) * sum(dy) per row; dy, y, dx (M, K)."""
    for t in prange(threads):
        first, last = bounds(t, threads, y.shape[0])
        for i in range(first, last):
            output, gradient, target = y[i], dy[i], dx[i]
            total = 0.0
            for j in range(output.size):
                total += gradient[j]
            weight = y.dtype.type(total)
            for j in range(output.size):
                target[j] = gradient[j] - exp(output[j]) * weight


@Kernel
def _cross_entropy(logits, labels, threads, loss):
    """Loss = log(sum(exp(logits))) - logits[label] per row; logits (M, K), labels, loss (M,)."""
    for t in prange(threads):
        first, last = bounds(t, threads, logits.shape[0])
        for i in range(first, last):
            row = logits[i]
            largest = _maximum(row)
            loss[i] = _log_sum_exp(row, largest) - (row[labels[i]] - largest)


@Kernel
def _cross_entropy_backward(logits, labels, dloss, scale, threads, dlogits):
    """Dlogits = (softmax(logits) - onehot) * dloss * scale; dloss (M,) or (1,)."""
    for t in prange(threads):
        first, last = bounds(t, threads, logits.shape[0])
        for i in range(first, last):
            row, target = logits[i], dlogits[i]
            total = _exp_sum(row, _maximum(row), target)
            weight = np.float64(dloss[i if dloss.size > 1 else 0]) * scale
            factor = logits.dtype.type(weight / total)
            for j in range(row.size):
                target[j] *= factor
            target[labels[i]] -= weight


@SerialKernel
def _scaled_sum(values, scale, total):
    """total[0] = sum(values) * scale, added up in float64 in order; values (M,), total (1,)."""
    s = 0.0
    for i in range(values.size):
        s += values[i]
    total[0] = s * scale


@SerialKernel
def _first_bad_label(labels, classes, found):
    """found[0] = position of the first label outside [0, classes), or -1; labels (M,)."""
    found[0] = -1
    for i in range(labels.size):
        if labels[i] < 0 or labels[i] >= classes:
            found[0] = i
            break


# ---------------------------------------------------------------- launchers


def softmax(x, y):
    """Softmax of every row."""
    threads = workers(x.size)
    _softmax(threads, x, threads, y)


def softmax_backward(dy, y, dx):
    """Gradient of softmax, from its output."""
    threads = workers(y.size)
    _softmax_backward(threads, dy, y, threads, dx)


def log_softmax(x, y):
    """Logarithm of the softmax of every row."""
    threads = workers(x.size)
    _log_softmax(threads, x, threads, y)


def log_softmax_backward(dy, y, dx):
    """Gradient of log-softmax, from its output."""
    threads = workers(y.size)
    _log_softmax_backward(threads, dy, y, threads, dx)


def cross_entropy(logits, labels, loss):
    """Cross-entropy of every row; labels must lie in [0, K)."""
    threads = workers(logits.size)
    _cross_entropy(threads, logits, labels, threads, loss)


def cross_entropy_backward(logits, labels, dloss, scale, dlogits):
    """Gradient of the cross-entropy with respect to the logits."""
    threads = workers(logits.size)
    _cross_entropy_backward(threads, logits, labels, dloss, scale, threads, dlogits)


def scaled_sum(values, scale, total):
    """Sum of values times scale, into total (1,)."""
    _scaled_sum(values, scale, total)


def first_bad_label(labels, classes, found):
    """Position of the first label outside [0, classes), or -1, into found (1,)."""
    _first_bad_label(labels, classes, found)
