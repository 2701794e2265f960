"""Local response normalization on a CUDA device: the twin of `localresponse_cpu`.

A thread adds up the window of one element, along an axis whose neighbours are `inner` elements
apart. The powers are exp(-b * log(d)). Sums and powers are float32, float64 for float64 arrays.
"""

from numba import cuda

from . import _cuda
from ._cuda import Elementwise, Kernel, accumulator, scalar
from ._cuda_lanes import exp, lanes, load, log, spread, store

# ---------------------------------------------------------------- kernels


@Kernel
def _window_sums(acc):
    """y = sum of x, or of x^2, from `before` places before each to `after` behind; (O, L, I)."""

    def kernel(x, squared, before, after, length, inner, y):
        zero = lanes(acc(0), 1)
        i = cuda.grid(1)
        if i < y.size:
            place = i // inner % length
            total = zero
            for other in range(max(place - before, 0), min(place + after + 1, length)):
                value = load(x, i + (other - place) * inner, zero)
                total = total + (value * value if squared else value)
            store(y, i, total)

    return kernel


@Elementwise
def _powers(i, like, operands):
    """p = (k + a * sums)^-exponent."""
    sums, k, a, exponent, p = operands
    store(p, i, exp(log(load(sums, i, like) * a + k) * (-exponent)))


@Elementwise
def _multiply(i, like, operands):
    """y = x * p."""
    x, p, y = operands
    store(y, i, load(x, i, like) * load(p, i, like))


@Elementwise
def _ratio(i, like, operands):
    """ratio = dy * x * p / (k + a * sums)."""
    dy, x, sums, p, k, a, result = operands
    quotient = load(p, i, like) / (load(sums, i, like) * a + k)
    store(result, i, load(dy, i, like) * load(x, i, like) * quotient)


@Elementwise
def _combine(i, like, operands):
    """dx = dy * p - factor * x * windows."""
    dy, p, x, windows, factor, dx = operands
    rest = load(x, i, like) * load(windows, i, like) * spread(factor, like)
    store(dx, i, load(dy, i, like) * load(p, i, like) - rest)


# ---------------------------------------------------------------- launchers


def window_sums(x, squared, before, after, y):
    """Sum x, or its squares, over windows along the middle axis; windows end at the array's."""
    _, length, inner = map(int, x.shape)
    blocks = -(-x.size // _cuda.THREADS)
    # No element is further away than the axis is long: the sums stay within int64.
    reach = min(before, length - 1), min(after, length - 1)
    _window_sums[(accumulator(x.dtype),)](
        (blocks,), (_cuda.THREADS, 1), x, int(squared), *reach, length, inner, y
    )


def powers(sums, k, a, exponent, p):
    """(k + a * sums)^-exponent."""
    numbers = (scalar(number, accumulator(sums.dtype)) for number in (k, a, exponent))
    _powers(sums, *numbers, p, aligned=(sums, p))


def multiply(x, p, y):
    """x * p."""
    _multiply(x, p, y)


def ratio(dy, x, sums, p, k, a, result):
    """What the windows of the gradient add up: dy * x * p / (k + a * sums)."""
    numbers = (scalar(number, accumulator(sums.dtype)) for number in (k, a))
    _ratio(dy, x, sums, p, *numbers, result, aligned=(dy, x, sums, p, result))


def combine(dy, p, x, windows, factor, dx):
    """dy * p - factor * x * windows."""
    number = scalar(factor, accumulator(p.dtype))
    _combine(dy, p, x, windows, number, dx, aligned=(dy, p, x, windows, dx))
