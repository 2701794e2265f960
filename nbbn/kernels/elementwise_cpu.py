"""Elementwise operations on flat arrays (size,) and the bias of rows (M, C), forward and backward.

float32 exp and tanh are polynomials that vectorize, accurate to about one unit in the last place;
the C library's functions would be called one value at a time. float64 uses the C library.
"""

import math

import numpy as np
from numba import prange, types
from numba.extending import overload

from ._jit import Kernel, SerialKernel, bounds, device_function, scratch, workers

# ---------------------------------------------------------------- kernels

_F = np.float32
# exp(x) = 2^n exp(r) with n = round(x / ln 2); ln 2 in two parts keeps r exact.
_LOG2_E, _LN2_HIGH, _LN2_LOW = _F(1.4426950408889634), _F(0.693359375), _F(-2.12194440e-4)
# Beyond these the result is 0 or Inf in float32.
_LOWEST, _HIGHEST = _F(-104.0), _F(89.0)
# Chebyshev interpolants of (exp(r) - 1 - r) / r^2 and, in z = x^2, of (tanh(x) - x) / x^3.
_E0, _E1, _E2, _E3, _E4 = _F(0.5), _F(0.16666577), _F(0.04166655), _F(0.0083632), _F(0.00139262)
_T0, _T1, _T2 = _F(-0.33333333), _F(0.13333303), _F(-0.05395923)
_T3, _T4, _T5 = _F(0.02176866), _F(-0.00834309), _F(0.00229177)
_TANH_SMALL = _F(0.625)


@device_function
def _exp32(x):
    """exp(x) in float32, NaN and both infinities included."""
    c = min(max(x, _LOWEST), _HIGHEST)
    n = np.floor(c * _LOG2_E + _F(0.5))
    r = (c - n * _LN2_HIGH) - n * _LN2_LOW
    q = (((_E4 * r + _E3) * r + _E2) * r + _E1) * r + _E0
    e = r * r * q + r + _F(1)
    # Two factors, since 2^n itself may be subnormal.
    exponent = np.int32(n)
    half = exponent >> np.int32(1)
    low = np.int32((half + np.int32(127)) << np.int32(23)).view(np.float32)
    high = np.int32((exponent - half + np.int32(127)) << np.int32(23)).view(np.float32)
    return e * low * high if x == x else x


@device_function
def _tanh32(x):
    """tanh(x) in float32, NaN and both infinities included."""
    z = x * x
    q = ((((_T5 * z + _T4) * z + _T3) * z + _T2) * z + _T1) * z + _T0
    e = _exp32(_F(-2) * abs(x))
    large = math.copysign((_F(1) - e) / (_F(1) + e), x)
    return x + x * z * q if abs(x) < _TANH_SMALL else large


# The bodies of these two run without compilation only, under NUMBA_DISABLE_JIT=1.


def exp(x):
    """exp(x) in x's type."""
    return _exp32(x) if isinstance(x, np.float32) else np.exp(x)


def _tanh(x):
    return _tanh32(x) if isinstance(x, np.float32) else np.tanh(x)


@overload(exp)
def _exp_overload(x):
    if x == types.float32:
        return lambda x: _exp32(x)
    return lambda x: math.exp(x)


@overload(_tanh)
def _tanh_overload(x):
    if x == types.float32:
        return lambda x: _tanh32(x)
    return lambda x: math.tanh(x)


@Kernel
def _relu(x, threads, y):
    """y = max(x, 0), NaN kept; x, y (size,)."""
    for t in prange(threads):
        first, last = bounds(t, threads, x.size)
        source, target = x[first:last], y[first:last]
        zero = x.dtype.type(0)
        for i in range(source.size):
            target[i] = zero if source[i] < zero else source[i]


@Kernel
def _relu_backward(dy, y, threads, dx):
    """dx = dy where y > 0, else 0; dy, y, dx (size,)."""
    for t in prange(threads):
        first, last = bounds(t, threads, y.size)
        gradient, output, target = dy[first:last], y[first:last], dx[first:last]
        zero = y.dtype.type(0)
        for i in range(output.size):
            g = gradient[i]
            target[i] = g if output[i] > zero else zero


@Kernel
def _masked(x, mask, threads, y):
    """y = x * mask where mask > 0, else 0, whatever x is there; x, mask, y (size,)."""
    for t in prange(threads):
        first, last = bounds(t, threads, x.size)
        source, factor, target = x[first:last], mask[first:last], y[first:last]
        zero = x.dtype.type(0)
        for i in range(source.size):
            product = source[i] * factor[i]
            target[i] = product if factor[i] > zero else zero


@Kernel
def _sigmoid(x, threads, y):
    """y = 1 / (1 + exp(-x)), from exp(-|x|), which cannot overflow; x, y (size,)."""
    for t in prange(threads):
        first, last = bounds(t, threads, x.size)
        source, target = x[first:last], y[first:last]
        for i in range(source.size):
            one = x.dtype.type(1)
            e = exp(-abs(source[i]))
            target[i] = (e if source[i] < 0 else one) / (one + e)


@Kernel
def _sigmoid_backward(dy, y, threads, dx):
    """dx = dy * y * (1 - y); dy, y, dx (size,)."""
    for t in prange(threads):
        first, last = bounds(t, threads, y.size)
        gradient, output, target = dy[first:last], y[first:last], dx[first:last]
        for i in range(output.size):
            target[i] = gradient[i] * output[i] * (y.dtype.type(1) - output[i])


@Kernel
def _tanh_forward(x, threads, y):
    """y = tanh(x); x, y (size,)."""
    for t in prange(threads):
        first, last = bounds(t, threads, x.size)
        source, target = x[first:last], y[first:last]
        for i in range(source.size):
            target[i] = _tanh(source[i])


@Kernel
def _tanh_backward(dy, y, threads, dx):
    """dx = dy * (1 - y^2); dy, y, dx (size,)."""
    for t in prange(threads):
        first, last = bounds(t, threads, y.size)
        gradient, output, target = dy[first:last], y[first:last], dx[first:last]
        for i in range(output.size):
            target[i] = gradient[i] * (y.dtype.type(1) - output[i] * output[i])


@Kernel
def _add_bias(x, bias, threads, y):
    """y = x + bias; x, y (M, C), bias (C,)."""
    for t in prange(threads):
        first, last = bounds(t, threads, x.shape[0])
        for row in range(first, last):
            source, target = x[row], y[row]
            for j in range(bias.size):
                target[j] = source[j] + bias[j]


@SerialKernel
def _bias_gradient(dy, wide, dbias):
    """dbias = sum of dy over rows, in float64; dy (M, C), dbias (C,)."""
    C = dbias.size
    for j in range(C):
        wide[j] = 0.0
    for row in range(dy.shape[0]):
        gradient = dy[row]
        for j in range(C):
            wide[j] += gradient[j]
    for j in range(C):
        dbias[j] = wide[j]


# ---------------------------------------------------------------- launchers


def relu(x, y):
    """Rectify: y = max(x, 0)."""
    threads = workers(x.size)
    _relu(threads, x, threads, y)


def relu_backward(dy, y, dx):
    """Pass the gradient where the output is positive."""
    threads = workers(y.size)
    _relu_backward(threads, dy, y, threads, dx)


def masked(x, mask, y):
    """Scale by a mask that is not negative; 0 where it is 0, even of NaN and Inf."""
    threads = workers(x.size)
    _masked(threads, x, mask, threads, y)


def sigmoid(x, y):
    """Logistic function."""
    threads = workers(x.size)
    _sigmoid(threads, x, threads, y)


def sigmoid_backward(dy, y, dx):
    """Gradient of the logistic function, from its output."""
    threads = workers(y.size)
    _sigmoid_backward(threads, dy, y, threads, dx)


def tanh(x, y):
    """Hyperbolic tangent."""
    threads = workers(x.size)
    _tanh_forward(threads, x, threads, y)


def tanh_backward(dy, y, dx):
    """Gradient of the hyperbolic tangent, from its output."""
    threads = workers(y.size)
    _tanh_backward(threads, dy, y, threads, dx)


def add_bias(x, bias, y):
    """Add a bias to every row; y may be x."""
    threads = workers(x.size)
    _add_bias(threads, x, bias, threads, y)


def bias_gradient(dy, dbias):
    """Sum over rows."""
    _bias_gradient(dy, scratch(dbias.size, 0, dy.dtype)[0], dbias)
