"""Local response normalization on the CPU: sums over windows, and what follows from them.

A window runs along one axis of an array (outer, length, inner), whose neighbours along it are
`inner` elements apart; beyond the ends there are zeros. The numbers of a window are added one by
one, in the type of x: a running sum would keep what has left it. Windows over several axes are sums
along one after the other. With d = k + a * sum and the exponent b, y = x * d^-b.
"""

import numpy as np
from numba import prange

from ._jit import Kernel, Pointwise, bounds, workers

# Sums of so many elements stay in a core's own cache while a window is added up.
BLOCK = 4096

# ---------------------------------------------------------------- kernels


@Kernel
def _window_sums(x, squared, before, after, blocks, y):
    """y = sum of x, or of x^2, from `before` places before each to `after` behind; x, y (O, L, I).

    `blocks` to an outer index; before, after < L.
    """
    O, L, inner = x.shape  # noqa: E741
    run = L * inner
    for u in prange(O * blocks):
        source, target = x[u // blocks].reshape(run), y[u // blocks].reshape(run)
        start, stop = bounds(u % blocks, blocks, run)
        for i in range(start, stop):
            target[i] = source[i] * source[i] if squared else source[i]
        for place in range(-before, after + 1):
            if place != 0:
                step = place * inner
                low, high = max(start, -step), min(stop, run - step)
                if low < high:
                    out, values = target[low:high], source[low + step : high + step]
                    for i in range(out.size):
                        out[i] += values[i] * values[i] if squared else values[i]


@Kernel
def _powers(sums, k, a, exponent, threads, p):
    """p = (k + a * sums)^-exponent; sums, p (size,)."""
    number = p.dtype.type
    for t in prange(threads):
        first, last = bounds(t, threads, sums.size)
        source, target = sums[first:last], p[first:last]
        if exponent == 0.75:
            # The usual one by square roots, which vectorize.
            for i in range(source.size):
                root = np.sqrt(number(k) + number(a) * source[i])
                target[i] = number(1) / (root * np.sqrt(root))
        else:
            for i in range(source.size):
                target[i] = (number(k) + number(a) * source[i]) ** number(-exponent)


@Kernel
def _ratio(dy, x, sums, p, k, a, threads, ratio):
    """ratio = dy * x * p / (k + a * sums), all (size,)."""
    number = p.dtype.type
    for t in prange(threads):
        first, last = bounds(t, threads, x.size)
        gradient, source, target = dy[first:last], x[first:last], ratio[first:last]
        total, power = sums[first:last], p[first:last]
        for i in range(source.size):
            d = number(k) + number(a) * total[i]
            target[i] = gradient[i] * source[i] * (power[i] / d)


@Kernel
def _combine(dy, p, x, windows, factor, threads, dx):
    """dx = dy * p - factor * x * windows, all (size,)."""
    number = p.dtype.type
    for t in prange(threads):
        first, last = bounds(t, threads, x.size)
        gradient, source, target = dy[first:last], x[first:last], dx[first:last]
        power, total = p[first:last], windows[first:last]
        for i in range(source.size):
            target[i] = gradient[i] * power[i] - number(factor) * source[i] * total[i]


@Pointwise
def multiply(x, p):
    """x * p."""
    return x * p


# ---------------------------------------------------------------- launchers


def window_sums(x, squared, before, after, y):
    """Sum x, or its squares, over windows along the middle axis; windows end at the array's."""
    _, length, inner = x.shape
    reach = min(before, length - 1), min(after, length - 1)
    blocks = max(1, length * inner // BLOCK)
    _window_sums(workers(x.size), x, squared, *reach, blocks, y)


def powers(sums, k, a, exponent, p):
    """(k + a * sums)^-exponent."""
    threads = workers(sums.size)
    _powers(threads, sums, k, a, exponent, threads, p)


def ratio(dy, x, sums, p, k, a, result):
    """What the windows of the gradient add up: dy * x * p / (k + a * sums)."""
    threads = workers(x.size)
    _ratio(threads, dy, x, sums, p, k, a, threads, result)


def combine(dy, p, x, windows, factor, dx):
    """dy * p - factor * x * windows."""
    threads = workers(x.size)
    _combine(threads, dy, p, x, windows, factor, threads, dx)
