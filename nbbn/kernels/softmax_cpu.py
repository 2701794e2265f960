"""Softmax, log-softmax and softmax-cross-entropy on rows (M, K), forward and backward.

Each row is shifted by its maximum; sums are in float64. Rows are independent, so threads share
them out freely. The backward of the cross-entropy recomputes the exponentials: cheaper than storing
them, and exact where a stored log-sum-exp of large logits would lose digits.
"""

import math

import numpy as np
from numba import prange

from ._jit import Launcher, SerialKernel, device_function, loop, prepares, same
from .elementwise_cpu import exp

# ---------------------------------------------------------------- rows


@device_function
def _maximum(row):
    """Largest value of a row (K,), NaN if it holds one."""
    largest = row[0]
    for j in range(row.size):
        if not row[j] <= largest:
            largest = row[j]
    return largest


@loop
def _exp_less(row, largest, target):
    for j in range(row.size):
        target[j] = exp(row[j] - largest)


@device_function
def _exp_sum(row, largest, target):
    """Write exp(row - largest) to target (K,) and return the sum."""
    if same(target, row):
        _exp_less(target, largest, target)
    else:
        _exp_less(row, largest, target)
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


@device_function
def _weight_of(weight, j):
    """Weight of class j, 1 where none are given; weight (K,) or empty."""
    return np.float64(weight[j]) if weight.size > 0 else 1.0


# ---------------------------------------------------------------- kernels that are launchers


@Launcher
def softmax(x, y):
    """y = exp(x) / sum(exp(x)) per row; x, y (M, K)."""
    for i in prange(x.shape[0]):
        target = y[i]
        total = _exp_sum(x[i], _maximum(x[i]), target)
        scale = x.dtype.type(1.0 / total)
        for j in range(target.size):
            target[j] *= scale


@Launcher
def softmax_backward(dy, y, dx):
    """dx = y * (dy - sum(dy * y)) per row; dy, y, dx (M, K)."""
    for i in prange(y.shape[0]):
        output, gradient, target = y[i], dy[i], dx[i]
        dot = 0.0
        for j in range(output.size):
            dot += np.float64(gradient[j]) * output[j]
        center = y.dtype.type(dot)
        for j in range(output.size):
            target[j] = output[j] * (gradient[j] - center)


@Launcher
def log_softmax(x, y):
    """y = x - log(sum(exp(x))) per row; x, y (M, K)."""
    for i in prange(x.shape[0]):
        source, target = x[i], y[i]
        largest = _maximum(source)
        log_total = x.dtype.type(_log_sum_exp(source, largest))
        for j in range(source.size):
            target[j] = (source[j] - largest) - log_total


@Launcher
def log_softmax_backward(dy, y, dx):
    """dx = dy - exp(y) * sum(dy) per row; dy, y, dx (M, K)."""
    for i in prange(y.shape[0]):
        output, gradient, target = y[i], dy[i], dx[i]
        total = 0.0
        for j in range(output.size):
            total += gradient[j]
        weight = y.dtype.type(total)
        for j in range(output.size):
            target[j] = gradient[j] - exp(output[j]) * weight


@Launcher
def cross_entropy(logits, labels, weight, ignored, smoothing, loss):
    """loss = w[label] (1 - s) nll[label] + s / K sum(w nll), nll = -log(softmax(logits)), per row.

    logits (M, K), labels, loss (M,); weight w (K,) or empty, where it is 1; s the smoothing. Labels
    must lie in [0, K) or be `ignored`; rows of these are 0.
    """
    for i in prange(logits.shape[0]):
        label = labels[i]
        if label == ignored:
            loss[i] = 0
            continue
        row = logits[i]
        largest = _maximum(row)
        log_total = _log_sum_exp(row, largest)
        value = log_total - (row[label] - largest)
        if weight.size > 0:
            value *= weight[label]
        if smoothing > 0:
            total = 0.0
            for j in range(row.size):
                total += (log_total - (row[j] - largest)) * _weight_of(weight, j)
            value = (1.0 - smoothing) * value + smoothing / row.size * total
        loss[i] = value


@Launcher
def cross_entropy_backward(logits, labels, weight, ignored, smoothing, dloss, scale, dlogits):
    """dlogits = (softmax(logits) sum(c) - c) * dloss * scale; dloss (M,) or (1,).

    c = w[label] (1 - s) onehot + s / K w are the coefficients of nll in the loss.
    """
    for i in prange(logits.shape[0]):
        label, row, target = labels[i], logits[i], dlogits[i]
        if label == ignored:
            target[:] = 0
            continue
        total = _exp_sum(row, _maximum(row), target)
        share = np.float64(dloss[i % dloss.size]) * scale
        hard = share
        if weight.size > 0:
            hard *= weight[label]
        if smoothing > 0:
            hard *= 1.0 - smoothing
            soft = share * (smoothing / row.size)
            sum_of_weights = 0.0
            for j in range(row.size):
                sum_of_weights += _weight_of(weight, j)
            factor = logits.dtype.type((hard + soft * sum_of_weights) / total)
            for j in range(row.size):
                target[j] = target[j] * factor - soft * _weight_of(weight, j)
        else:
            factor = logits.dtype.type(hard / total)
            for j in range(row.size):
                target[j] *= factor
        target[label] -= hard


@prepares
@SerialKernel
def scaled_sum(values, scale, total):
    """total[0] = sum(values) * scale, added up in float64 in order; values (M,), total (1,)."""
    s = 0.0
    for i in range(values.size):
        s += values[i]
    total[0] = s * scale


@prepares
@SerialKernel
def first_bad_label(labels, classes, ignored, found):
    """found[0] = position of the first label not in [0, classes) or `ignored`, or -1; (M,)."""
    found[0] = -1
    for i in range(labels.size):
        if (labels[i] < 0 or labels[i] >= classes) and labels[i] != ignored:
            found[0] = i
            break
