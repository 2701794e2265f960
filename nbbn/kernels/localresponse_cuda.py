"""Local response normalization on a CUDA device: the twin of `localresponse_cpu`.

A thread adds up the window of one element, along an axis whose neighbours are `inner` elements
apart. The powers are exp(-b * log(d)). Sums and powers are float32, float64 for float64 arrays.
"""

from ._cuda import Elementwise, Pointwise, accumulator, scalar
from ._cuda_lanes import exp, load, log, spread, store

# ---------------------------------------------------------------- kernels


@Elementwise
def _window_sums(i, like, operands):
    """y = sum of x, or of x^2, from `before` places before each to `after` behind; (O, L, I)."""
    x, squared, before, after, length, inner, y = operands
    place = i // inner % length
    total = spread(0, like)
    for other in range(max(place - before, 0), min(place + after + 1, length)):
        value = load(x, i + (other - place) * inner, like)
        total = total + (value * value if squared else value)
    store(y, i, total)


@Elementwise
def _powers(i, like, operands):
    """p = (k + a * sums)^-exponent."""
    sums, k, a, exponent, p = operands
    store(p, i, exp(log(load(sums, i, like) * a + k) * (-exponent)))


@Pointwise
def multiply(x, p):
    """x * p."""
    return x * p


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
    # No element is further away than the axis is long: the sums stay within int64.
    reach = min(before, length - 1), min(after, length - 1)
    _window_sums(x, int(squared), *reach, length, inner, y, aligned=(y,), length=1)


def powers(sums, k, a, exponent, p):
    """(k + a * sums)^-exponent."""
    numbers = (scalar(number, accumulator(sums.dtype)) for number in (k, a, exponent))
    _powers(sums, *numbers, p, aligned=(sums, p))


def ratio(dy, x, sums, p, k, a, result):
    """What the windows of the gradient add up: dy * x * p / (k + a * sums)."""
    numbers = (scalar(number, accumulator(sums.dtype)) for number in (k, a))
    _ratio(dy, x, sums, p, *numbers, result, aligned=(dy, x, sums, p, result))


def combine(dy, p, x, windows, factor, dx):
    """dy * p - factor * x * windows."""
    number = scalar(factor, accumulator(p.dtype))
    _combine(dy, p, x, windows, number, dx, aligned=(dy, p, x, windows, dx))
