"""Elementwise operations on flat arrays (size,) and the bias of rows (M, C), on a CUDA device.

Each thread treats 16 bytes of neighbouring elements. Arithmetic is in float32, in float64 for
float64 arrays; results are rounded once, to the type of the array they go to.
"""

import math

from . import _cuda_reduction
from ._cuda import Elementwise, Pointwise, accumulator, device_function, scalar
from ._cuda_lanes import choose, exp, load, load_any, normal, positive_part, spread, store
from ._cuda_lanes import tanh as tanh_of

# ---------------------------------------------------------------- kernels

# Behind these the sigmoid and the normal distribution are 0 in float64 too.
_FAR, _FAR_NORMAL = 1000.0, 40.0
_NORMAL_PEAK = 1 / math.sqrt(2 * math.pi)
# 2 u of the approximation: x Phi(x) is about x / (1 + exp(-2 u)).
_GELU_LINEAR, _GELU_CUBIC = 2 * math.sqrt(2 / math.pi), 2 * math.sqrt(2 / math.pi) * 0.044715


@device_function
def _logistic(x):
    """1 / (1 + exp(-x)), from exp(-|x|), which cannot overflow."""
    one = spread(1, x)
    e = exp(choose(x, spread(0, x) - x, x))
    return choose(x, one, e) / (one + e)


@device_function
def _sigmoid_of(x, z, slope):
    """1 / (1 + exp(-z)), and the derivative of x times it, for a z of that slope."""
    one = spread(1, z)
    e = exp(choose(z, spread(0, z) - z, z))
    part = one / (one + e)
    share = choose(z, one, e) * part
    return share, share + x * slope * (e * part * part)


@device_function
def _within(x, bound):
    """x or the bound, positive or negative, that it is behind; NaN is kept."""
    most = spread(bound, x)
    low = choose(spread(0, x) - most - x, spread(0, x) - most, x)
    return choose(low - most, most, low)


@device_function
def _larger(x, c):
    """x, or what bounds it from below; NaN is kept."""
    return choose(c - x, c, x)


@device_function
def _gelu_of(x):
    """x Phi(x), Phi the normal distribution, and its derivative, Phi(x) + x Phi'(x)."""
    c = _within(x, _FAR_NORMAL)
    share = normal(c)
    density = exp(spread(-0.5, x) * c * c) * spread(_NORMAL_PEAK, x)
    return _larger(x, c) * share, share + c * density


@device_function
def _gelu_tanh_of(x):
    """x (1 + tanh(u)) / 2 = x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    c = _within(x, _FAR_NORMAL)
    linear, square = spread(_GELU_LINEAR, x), c * c
    z = c * (linear + spread(_GELU_CUBIC, x) * square)
    share, derivative = _sigmoid_of(c, z, linear + spread(3 * _GELU_CUBIC, x) * square)
    return _larger(x, c) * share, derivative


@device_function
def _silu_of(x):
    """x / (1 + exp(-x)) and its derivative."""
    c = _within(x, _FAR)
    share, derivative = _sigmoid_of(c, c, spread(1, x))
    return _larger(x, c) * share, derivative


@Elementwise
def _leaky_relu(i, like, operands):
    """y = x where x > 0, else slope x; x, y (size,)."""
    x, slope, y = operands
    value = load(x, i, like)
    store(y, i, choose(value, value, value * slope))


@Elementwise
def _leaky_relu_backward(i, like, operands):
    """dx = dy where x > 0, else slope dy; dy, x, dx (size,)."""
    dy, x, slope, dx = operands
    gradient = load(dy, i, like)
    store(dx, i, choose(load(x, i, like), gradient, gradient * slope))


@Elementwise
def _add_bias(i, like, operands):
    """y = x + bias; x, y (M, C), bias (C,)."""
    x, bias, y = operands
    store(y, i, load(x, i, like) + load_any(bias, i % bias.size, like))


# ---------------------------------------------------------------- launchers


@Pointwise
def relu(x):
    """max(x, 0), NaN kept."""
    return positive_part(x)


@Pointwise
def relu_backward(dy, y):
    """dy where y > 0, else 0."""
    return choose(y, dy, spread(0, y))


@Pointwise
def masked(x, mask):
    """x * mask where mask > 0, else 0, whatever x is there."""
    return choose(mask, x * mask, spread(0, mask))


@Pointwise
def sigmoid(x):
    """Logistic function."""
    return _logistic(x)


@Pointwise
def sigmoid_backward(dy, y):
    """dy * y * (1 - y)."""
    return dy * y * (spread(1, y) - y)


@Pointwise
def tanh(x):
    """Hyperbolic tangent."""
    return tanh_of(x)


@Pointwise
def tanh_backward(dy, y):
    """dy * (1 - y^2)."""
    return dy * (spread(1, y) - y * y)


@Pointwise
def gelu(x):
    """x Phi(x)."""
    return _gelu_of(x)[0]


@Pointwise
def gelu_backward(dy, x):
    """dy times the derivative at x."""
    return dy * _gelu_of(x)[1]


@Pointwise
def gelu_tanh(x):
    """Its approximation by a hyperbolic tangent."""
    return _gelu_tanh_of(x)[0]


@Pointwise
def gelu_tanh_backward(dy, x):
    """dy times the derivative at x."""
    return dy * _gelu_tanh_of(x)[1]


@Pointwise
def silu(x):
    """x / (1 + exp(-x))."""
    return _silu_of(x)[0]


@Pointwise
def silu_backward(dy, x):
    """dy times the derivative at x."""
    return dy * _silu_of(x)[1]


def leaky_relu(x, slope, y):
    """Rectify, with a slope where x is negative."""
    _leaky_relu(x, scalar(slope, accumulator(x.dtype)), y, aligned=(x, y))


def leaky_relu_backward(dy, x, slope, dx):
    """Pass the gradient where the input is positive, and slope times it elsewhere."""
    _leaky_relu_backward(dy, x, scalar(slope, accumulator(x.dtype)), dx, aligned=(dy, x, dx))


def add_bias(x, bias, y):
    """Add a bias to every row; y may be x."""
    _add_bias(x, bias, y, aligned=(x, y), length=bias.size)


def bias_gradient(dy, dbias):
    """Sum over rows."""
    _cuda_reduction.column_sums(dy, dbias)
