"""Elementwise operations on flat arrays (size,) and the bias of rows (M, C), on a CUDA device.

Each thread treats 16 bytes of neighbouring elements. Arithmetic is in float32, in float64 for
float64 arrays; results are rounded once, to the type of the array they go to.
"""

from . import _cuda_reduction
from ._cuda import Elementwise
from ._cuda_lanes import choose, exp, load, load_any, positive_part, spread, store
from ._cuda_lanes import tanh as tanh_of

# ---------------------------------------------------------------- kernels


@Elementwise
def _relu(i, like, operands):
    """y = max(x, 0), NaN kept; x, y (size,)."""
    x, y = operands
    store(y, i, positive_part(load(x, i, like)))


@Elementwise
def _relu_backward(i, like, operands):
    """dx = dy where y > 0, else 0; dy, y, dx (size,)."""
    dy, y, dx = operands
    store(dx, i, choose(load(y, i, like), load(dy, i, like), spread(0, like)))


@Elementwise
def _masked(i, like, operands):
    """y = x * mask where mask > 0, else 0, whatever x is there; x, mask, y (size,)."""
    x, mask, y = operands
    factor = load(mask, i, like)
    store(y, i, choose(factor, load(x, i, like) * factor, spread(0, like)))


@Elementwise
def _sigmoid(i, like, operands):
    """y = 1 / (1 + exp(-x)), from exp(-|x|), which cannot overflow; x, y (size,)."""
    x, y = operands
    value, one = load(x, i, like), spread(1, like)
    e = exp(choose(value, spread(0, like) - value, value))
    store(y, i, choose(value, one, e) / (one + e))


@Elementwise
def _sigmoid_backward(i, like, operands):
    """dx = dy * y * (1 - y); dy, y, dx (size,)."""
    dy, y, dx = operands
    output = load(y, i, like)
    store(dx, i, load(dy, i, like) * output * (spread(1, like) - output))


@Elementwise
def _tanh(i, like, operands):
    """y = tanh(x); x, y (size,)."""
    x, y = operands
    store(y, i, tanh_of(load(x, i, like)))


@Elementwise
def _tanh_backward(i, like, operands):
    """dx = dy * (1 - y^2); dy, y, dx (size,)."""
    dy, y, dx = operands
    output = load(y, i, like)
    store(dx, i, load(dy, i, like) * (spread(1, like) - output * output))


@Elementwise
def _add_bias(i, like, operands):
    """y = x + bias; x, y (M, C), bias (C,)."""
    x, bias, y = operands
    store(y, i, load(x, i, like) + load_any(bias, i % bias.size, like))


# ---------------------------------------------------------------- launchers


def relu(x, y):
    """Rectify: y = max(x, 0)."""
    _relu(x, y)


def relu_backward(dy, y, dx):
    """Pass the gradient where the output is positive."""
    _relu_backward(dy, y, dx)


def masked(x, mask, y):
    """Scale by a mask that is not negative; 0 where it is 0, even of NaN and Inf."""
    _masked(x, mask, y)


def sigmoid(x, y):
    """Logistic function."""
    _sigmoid(x, y)


def sigmoid_backward(dy, y, dx):
    """Gradient of the logistic function, from its output."""
    _sigmoid_backward(dy, y, dx)


def tanh(x, y):
    """Hyperbolic tangent."""
    _tanh(x, y)


def tanh_backward(dy, y, dx):
    """Gradient of the hyperbolic tangent, from its output."""
    _tanh_backward(dy, y, dx)


def add_bias(x, bias, y):
    """Add a bias to every row; y may be x."""
    _add_bias(x, bias, y, aligned=(x, y), length=bias.size)


def bias_gradient(dy, dbias):
    """Sum over rows."""
    _cuda_reduction.column_sums(dy, dbias)
