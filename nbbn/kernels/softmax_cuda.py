"""Softmax, log-softmax and softmax-cross-entropy on rows (M, K), on a CUDA device.

A row belongs to blockDim.x threads of a block, which reduce it in shared memory. Each row is
shifted by its maximum; sums are in float32, in float64 for float64 rows, one per thread and then
pairwise. A label outside [0, K) gives a NaN loss and no gradient; `first_bad_label` finds it.
"""

import numpy as np
from numba import cuda, int64

from . import _cuda
from ._cuda import Kernel, accumulator, device_function, scalar
from ._cuda_lanes import choose, exp, lanes, load, load_any, log, spread, store
from ._cuda_reduction import over_row

# ---------------------------------------------------------------- kernels


@device_function
def _row(x, M):
    """(start, length) of this thread's row of x (M, K); the length is 0 beyond the last row."""
    K = x.size // M
    row = cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y
    return row * K, K if row < M else 0


@device_function
def _largest_and_sum(x, start, K, memory, one):
    """Maximum of a row and the sum of exp(x - maximum)."""
    largest = spread(-np.inf, one)
    for j in range(cuda.threadIdx.x, K, cuda.blockDim.x):
        value = load(x, start + j, one)
        largest = choose(value - largest, value, largest)
    largest = over_row(memory, largest, True)
    total = spread(0, one)
    for j in range(cuda.threadIdx.x, K, cuda.blockDim.x):
        total = total + exp(load(x, start + j, one) - largest)
    return largest, over_row(memory, total, False)


@Kernel
def _softmax(acc):
    """y = exp(x) / sum(exp(x)) per row; x, y (M, K)."""
    threads = _cuda.THREADS

    def kernel(x, M, y):
        memory, one = cuda.shared.array(threads, acc), lanes(acc(1), 1)
        start, K = _row(x, M)
        largest, total = _largest_and_sum(x, start, K, memory, one)
        scale = one / total
        for j in range(cuda.threadIdx.x, K, cuda.blockDim.x):
            store(y, start + j, exp(load(x, start + j, one) - largest) * scale)

    return kernel


@Kernel
def _softmax_backward(acc):
    """dx = y * (dy - sum(dy * y)) per row; dy, y, dx (M, K)."""
    threads = _cuda.THREADS

    def kernel(dy, y, M, dx):
        memory, one = cuda.shared.array(threads, acc), lanes(acc(1), 1)
        start, K = _row(y, M)
        dot = spread(0, one)
        for j in range(cuda.threadIdx.x, K, cuda.blockDim.x):
            dot = dot + load(dy, start + j, one) * load(y, start + j, one)
        dot = over_row(memory, dot, False)
        for j in range(cuda.threadIdx.x, K, cuda.blockDim.x):
            store(dx, start + j, load(y, start + j, one) * (load(dy, start + j, one) - dot))

    return kernel


@Kernel
def _log_softmax(acc):
    """y = x - log(sum(exp(x))) per row; x, y (M, K)."""
    threads = _cuda.THREADS

    def kernel(x, M, y):
        memory, one = cuda.shared.array(threads, acc), lanes(acc(1), 1)
        start, K = _row(x, M)
        largest, total = _largest_and_sum(x, start, K, memory, one)
        log_total = log(total)
        for j in range(cuda.threadIdx.x, K, cuda.blockDim.x):
            store(y, start + j, (load(x, start + j, one) - largest) - log_total)

    return kernel


@Kernel
def _log_softmax_backward(acc):
    """dx = dy - exp(y) * sum(dy) per row; dy, y, dx (M, K)."""
    threads = _cuda.THREADS

    def kernel(dy, y, M, dx):
        memory, one = cuda.shared.array(threads, acc), lanes(acc(1), 1)
        start, K = _row(y, M)
        total = spread(0, one)
        for j in range(cuda.threadIdx.x, K, cuda.blockDim.x):
            total = total + load(dy, start + j, one)
        total = over_row(memory, total, False)
        for j in range(cuda.threadIdx.x, K, cuda.blockDim.x):
            store(dx, start + j, load(dy, start + j, one) - exp(load(y, start + j, one)) * total)

    return kernel


@device_function
def _weight_of(weight, j, one):
    """Weight of class j, 1 where none are given; weight (K,) or empty."""
    return load_any(weight, j, one) if weight.size > 0 else one


@Kernel
def _cross_entropy(acc):
    """loss = w[label] (1 - s) nll[label] + s / K sum(w nll), nll = -log(softmax(logits)), per row.

    logits (M, K), labels, loss (M,); weight w (K,) or empty, where it is 1; s the smoothing. Rows
    of the label `ignored` are 0.
    """
    threads = _cuda.THREADS

    def kernel(logits, labels, weight, M, ignored, hard, soft, loss):
        memory, one = cuda.shared.array(threads, acc), lanes(acc(1), 1)
        start, K = _row(logits, M)
        largest, total = _largest_and_sum(logits, start, K, memory, one)
        log_total, smooth = log(total), spread(0, one)
        if soft > 0:
            for j in range(cuda.threadIdx.x, K, cuda.blockDim.x):
                value = log_total - (load(logits, start + j, one) - largest)
                smooth = smooth + value * _weight_of(weight, j, one)
            smooth = over_row(memory, smooth, False)
        if K > 0 and cuda.threadIdx.x == 0:
            row = start // K
            label, value = labels[row], spread(np.nan, one)
            if label == ignored:
                value = spread(0, one)
            elif 0 <= label < K:
                value = log_total - (load(logits, start + label, one) - largest)
                value = value * _weight_of(weight, label, one) * hard
                if soft > 0:
                    value = value + smooth * soft
            store(loss, row, value)

    return kernel


@Kernel
def _cross_entropy_backward(acc):
    """dlogits = (softmax(logits) sum(c) - c) * dloss * scale; dloss (M,) or (1,).

    c = w[label] (1 - s) onehot + s / K w are the coefficients of nll in the loss.
    """
    threads = _cuda.THREADS

    def kernel(logits, labels, weight, dloss, M, ignored, scale, hard, soft, dlogits):
        memory, one = cuda.shared.array(threads, acc), lanes(acc(1), 1)
        start, K = _row(logits, M)
        largest, total = _largest_and_sum(logits, start, K, memory, one)
        sum_of_weights = spread(0, one)
        if soft > 0:
            for j in range(cuda.threadIdx.x, K, cuda.blockDim.x):
                sum_of_weights = sum_of_weights + _weight_of(weight, j, one)
            sum_of_weights = over_row(memory, sum_of_weights, False)
        if K > 0:
            row = start // K
            label = labels[row]
            known = 0 <= label < K and label != ignored
            share = load_any(dloss, row if dloss.size > 1 else 0, one) * scale
            peak = _weight_of(weight, label if known else 0, one) * hard
            factor = (peak + sum_of_weights * soft) / total
            for j in range(cuda.threadIdx.x, K, cuda.blockDim.x):
                value = exp(load(logits, start + j, one) - largest) * factor
                if soft > 0:
                    value = value - _weight_of(weight, j, one) * soft
                if j == label:
                    value = value - peak
                value = value * share
                store(dlogits, start + j, value if known else spread(0, one))

    return kernel


@Kernel
def _scaled_sum(acc):
    """total[0] = sum(values) * scale; values (M,), total (1,). One block."""
    threads = _cuda.THREADS

    def kernel(values, scale, total):
        memory, one = cuda.shared.array(threads, acc), lanes(acc(1), 1)
        part = spread(0, one)
        for i in range(cuda.threadIdx.x, values.size, cuda.blockDim.x):
            part = part + load(values, i, one)
        part = over_row(memory, part, False)
        if cuda.threadIdx.x == 0:
            store(total, 0, part * scale)

    return kernel


@Kernel
def _first_bad_label():
    """found[0] = position of the first label not in [0, classes) or `ignored`, or -1. One block."""

    def kernel(labels, classes, ignored, found):
        first = cuda.shared.array(1, int64)
        if cuda.threadIdx.x == 0:
            first[0] = labels.size
        cuda.syncthreads()
        for i in range(cuda.threadIdx.x, labels.size, cuda.blockDim.x):
            if (labels[i] < 0 or labels[i] >= classes) and labels[i] != ignored:
                # Integers: their minimum does not depend on the order.
                cuda.atomic.min(first, 0, i)
        cuda.syncthreads()
        if cuda.threadIdx.x == 0:
            found[0] = first[0] if first[0] < labels.size else -1

    return kernel


# ---------------------------------------------------------------- launchers


def _launch(kernel, x, *args):
    """Launch over the rows of x (M, K): as many threads to a row as it can use."""
    M, K = x.shape
    if M == 0:
        return
    threads = min(_cuda.THREADS, 1 << (K - 1).bit_length())
    rows = _cuda.THREADS // threads
    kernel[accumulator(x.dtype)]((-(-M // rows),), (threads, rows), *args)


def softmax(x, y):
    """Softmax of every row."""
    _launch(_softmax, x, x, x.shape[0], y)


def softmax_backward(dy, y, dx):
    """Gradient of softmax, from its output."""
    _launch(_softmax_backward, y, dy, y, y.shape[0], dx)


def log_softmax(x, y):
    """Logarithm of the softmax of every row."""
    _launch(_log_softmax, x, x, x.shape[0], y)


def log_softmax_backward(dy, y, dx):
    """Gradient of log-softmax, from its output."""
    _launch(_log_softmax_backward, y, dy, y, y.shape[0], dx)


def cross_entropy(logits, labels, weight, ignored, smoothing, loss):
    """Cross-entropy of every row; labels should lie in [0, K) or be `ignored`."""
    args = logits, labels, weight, logits.shape[0], ignored, *_shares(logits, smoothing), loss
    _launch(_cross_entropy, logits, *args)


def cross_entropy_backward(logits, labels, weight, ignored, smoothing, dloss, scale, dlogits):
    """Gradient of the cross-entropy with respect to the logits."""
    factors = scalar(scale, accumulator(logits.dtype)), *_shares(logits, smoothing)
    args = logits, labels, weight, dloss, logits.shape[0], ignored, *factors, dlogits
    _launch(_cross_entropy_backward, logits, *args)


def _shares(logits, smoothing):
    """What the label gets of a target smoothed over K classes, and what each class gets."""
    acc = accumulator(logits.dtype)
    return scalar(1.0 - smoothing, acc), scalar(smoothing / logits.shape[1], acc)


def scaled_sum(values, scale, total):
    """Sum of values times scale, into total (1,)."""
    acc = accumulator(values.dtype)
    _scaled_sum[acc]((1,), (_cuda.THREADS, 1), values, scalar(scale, acc), total)


def first_bad_label(labels, classes, ignored, found):
    """Position of the first label not in [0, classes) or `ignored`, or -1, into found (1,)."""
    _first_bad_label[()]((1,), (_cuda.THREADS, 1), labels, classes, ignored, found)
