"""Softmax, log-softmax and softmax-cross-entropy on rows (M, K), on a CUDA device.

A row belongs to blockDim.x threads of a block, which reduce it in shared memory. Each row is
shifted by its maximum; sums are in float32, in float64 for float64 rows, one per thread and then
pairwise. A label outside [0, K) gives a NaN loss and no gradient; `first_bad_label` finds it.
"""

import numpy as np
from numba import cuda, int64

from . import _cuda
from ._cuda import Kernel, accumulator, device_function, named_as, scalar
from ._cuda_lanes import choose, exp, lanes, load, load_any, log, spread, store
from ._cuda_reduction import over_row

# ---------------------------------------------------------------- kernels


def _rows(body):
    """Make a kernel over the rows of its first operand, (M, K).

    `body(memory, one, start, K, operands)` treats the row from element `start` on, with memory for
    `over_row` and lanes of 1; K is 0 beyond the last row.
    """
    row_of = device_function(body)

    def build(acc):
        threads = _cuda.THREADS

        def kernel(M, operands):
            memory, one = cuda.shared.array(threads, acc), lanes(acc(1), 1)
            K, row = operands[0].size // M, cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y
            row_of(memory, one, row * K, K if row < M else 0, operands)

        return kernel

    return Kernel(named_as(body, build))


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


@_rows
def _softmax(memory, one, start, K, operands):
    """y = exp(x) / sum(exp(x)) per row; x, y (M, K)."""
    x, y = operands
    largest, total = _largest_and_sum(x, start, K, memory, one)
    scale = one / total
    for j in range(cuda.threadIdx.x, K, cuda.blockDim.x):
        store(y, start + j, exp(load(x, start + j, one) - largest) * scale)


@_rows
def _softmax_backward(memory, one, start, K, operands):
    """dx = y * (dy - sum(dy * y)) per row; dy, y, dx (M, K)."""
    dy, y, dx = operands
    dot = spread(0, one)
    for j in range(cuda.threadIdx.x, K, cuda.blockDim.x):
        dot = dot + load(dy, start + j, one) * load(y, start + j, one)
    dot = over_row(memory, dot, False)
    for j in range(cuda.threadIdx.x, K, cuda.blockDim.x):
        store(dx, start + j, load(y, start + j, one) * (load(dy, start + j, one) - dot))


@_rows
def _log_softmax(memory, one, start, K, operands):
    """y = x - log(sum(exp(x))) per row; x, y (M, K)."""
    x, y = operands
    largest, total = _largest_and_sum(x, start, K, memory, one)
    log_total = log(total)
    for j in range(cuda.threadIdx.x, K, cuda.blockDim.x):
        store(y, start + j, (load(x, start + j, one) - largest) - log_total)


@_rows
def _log_softmax_backward(memory, one, start, K, operands):
    """dx = dy - exp(y) * sum(dy) per row; dy, y, dx (M, K)."""
    dy, y, dx = operands
    total = spread(0, one)
    for j in range(cuda.threadIdx.x, K, cuda.blockDim.x):
        total = total + load(dy, start + j, one)
    total = over_row(memory, total, False)
    for j in range(cuda.threadIdx.x, K, cuda.blockDim.x):
        store(dx, start + j, load(dy, start + j, one) - exp(load(y, start + j, one)) * total)


@device_function
def _weight_of(weight, j, one):
    """Weight of class j, 1 where none are given; weight (K,) or empty."""
    return load_any(weight, j, one) if weight.size > 0 else one


@_rows
def _cross_entropy(memory, one, start, K, operands):
    """loss = w[label] (1 - s) nll[label] + s / K sum(w nll), nll = -log(softmax(logits)), per row.

    logits (M, K), labels, loss (M,); weight w (K,) or empty, where it is 1; s the smoothing. Rows
    of the label `ignored` are 0.
    """
    logits, labels, weight, ignored, hard, soft, loss = operands
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


@_rows
def _cross_entropy_backward(memory, one, start, K, operands):
    """dlogits = (softmax(logits) sum(c) - c) * dloss * scale; dloss (M,) or (1,).

    c = w[label] (1 - s) onehot + s / K w are the coefficients of nll in the loss.
    """
    logits, labels, weight, dloss, ignored, scale, hard, soft, dlogits = operands
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


def _launch(kernel, x, *operands):
    """Launch over the rows of x (M, K), the first operand: as many threads as a row can use."""
    M, K = x.shape
    if M == 0:
        return
    threads = min(_cuda.THREADS, 1 << (K - 1).bit_length())
    rows = _cuda.THREADS // threads
    kernel[accumulator(x.dtype)]((-(-M // rows),), (threads, rows), M, (x, *operands))


def softmax(x, y):
    """Softmax of every row."""
    _launch(_softmax, x, y)


def softmax_backward(dy, y, dx):
    """Gradient of softmax, from its output."""
    _launch(_softmax_backward, dy, y, dx)


def log_softmax(x, y):
    """Logarithm of the softmax of every row."""
    _launch(_log_softmax, x, y)


def log_softmax_backward(dy, y, dx):
    """Gradient of log-softmax, from its output."""
    _launch(_log_softmax_backward, dy, y, dx)


def cross_entropy(logits, labels, weight, ignored, smoothing, loss):
    """Cross-entropy of every row; labels should lie in [0, K) or be `ignored`."""
    shares = _shares(logits, smoothing)
    _launch(_cross_entropy, logits, labels, weight, ignored, *shares, loss)


def cross_entropy_backward(logits, labels, weight, ignored, smoothing, dloss, scale, dlogits):
    """Gradient of the cross-entropy with respect to the logits."""
    factors = scalar(scale, accumulator(logits.dtype)), *_shares(logits, smoothing)
    operands = logits, labels, weight, dloss, ignored, *factors, dlogits
    _launch(_cross_entropy_backward, *operands)


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
