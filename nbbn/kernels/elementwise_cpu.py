"""Elementwise operations on flat arrays (size,) and the bias of rows (M, C), forward and backward.

float32 exp, tanh and the normal distribution are polynomials that vectorize, the first two accurate
to about one unit in the last place, the last to a few; the C library's functions would be called
one value at a time. float64 uses the C library.
"""

import math

import numpy as np
from numba import prange, types
from numba.extending import overload

from ._jit import (
    Kernel,
    Launcher,
    Pointwise,
    SerialKernel,
    bounds,
    device_function,
    loop,
    prepares,
    same,
    scratch,
    workers,
)

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
# Relative minimax fit of (1 - Phi(z)) / exp(-z^2 / 2) (z + 2.5) in w = (z - 2.5) / (z + 2.5), for z
# in [0, 14.5], behind which the result is 0 in float32.
_N0, _N1, _N2, _N3, _N4 = (
    _F(0.70665663), _F(-0.433692), _F(0.13198696), _F(0.009235915), _F(-0.01638602),
)  # fmt: skip
_N5, _N6, _N7, _N8, _N9 = (
    _F(-0.0016009611), _F(0.0025232967), _F(0.00068434427), _F(-0.0003108644), _F(-0.00015726639),
)  # fmt: skip
_NORMAL_MIDDLE = _F(2.5)
# Behind these the sigmoid and the normal distribution are 0 in float64 too.
_FAR, _FAR_NORMAL = 1000.0, 40.0
_SQRT_HALF, _NORMAL_PEAK = math.sqrt(0.5), 1 / math.sqrt(2 * math.pi)
# 2 u of the approximation: x Phi(x) is about x / (1 + exp(-2 u)).
_GELU_LINEAR, _GELU_CUBIC = 2 * math.sqrt(2 / math.pi), 2 * math.sqrt(2 / math.pi) * 0.044715


@device_function
def _exp32(x):
    """exp(x) in float32, NaN and both infinities included."""
    return _exp32_less(x, _F(0))


@device_function
def _exp32_less(x, rest):
    """exp(x - rest) in float32, for a rest that x has no digits for."""
    c = min(max(x, _LOWEST), _HIGHEST)
    n = np.floor(c * _LOG2_E + _F(0.5))
    r = (c - n * _LN2_HIGH) - n * _LN2_LOW - rest
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


@device_function
def _normal32(x):
    """Phi(x) and exp(-x^2 / 2) in float32, for |x| <= 40 and NaN."""
    z = abs(x)
    # The square of 12 bits is exact; what is left is small.
    bits = np.float32(z).view(np.int32) & np.int32(-4096)
    high = np.int32(bits).view(np.float32)
    e = _exp32_less(_F(-0.5) * high * high, _F(0.5) * (z - high) * (z + high))
    t = _F(1) / (z + _NORMAL_MIDDLE)
    w = (z - _NORMAL_MIDDLE) * t
    q = ((((_N9 * w + _N8) * w + _N7) * w + _N6) * w + _N5) * w + _N4
    q = ((((q * w + _N3) * w + _N2) * w + _N1) * w + _N0) * t * e
    return q if x < _F(0) else _F(1) - q, e


@device_function
def _normal64(x):
    return 0.5 * math.erfc(-_SQRT_HALF * x), math.exp(-0.5 * x * x)


# The bodies of these three run without compilation only, under NUMBA_DISABLE_JIT=1.


def exp(x):
    """exp(x) in x's type."""
    return _exp32(x) if isinstance(x, np.float32) else np.exp(x)


def _tanh(x):
    return _tanh32(x) if isinstance(x, np.float32) else np.tanh(x)


def _normal(x):
    return _normal32(x) if isinstance(x, np.float32) else _normal64(x)


@overload(_normal)
def _normal_overload(x):
    if x == types.float32:
        return lambda x: _normal32(x)
    return lambda x: _normal64(x)


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


@device_function
def _within(x, bound):
    """x or the bound, positive or negative, that it is behind; NaN is kept."""
    most = type(x)(bound)
    return min(max(x, -most), most) if x == x else x


@device_function
def _gelu_of(x):
    """x Phi(x), Phi the normal distribution, and its derivative, Phi(x) + x Phi'(x)."""
    number = type(x)
    c = _within(x, _FAR_NORMAL)
    share, e = _normal(c)
    return max(x, c) * share, share + c * e * number(_NORMAL_PEAK)


@device_function
def _sigmoid_of(x, z, slope):
    """1 / (1 + exp(-z)), and the derivative of x times it, for a z of that slope."""
    one = type(x)(1)
    e = exp(-abs(z))
    part = one / (one + e)
    share = (e if z < 0 else one) * part
    return share, share + x * slope * (e * part * part)


@device_function
def _silu_of(x):
    """x / (1 + exp(-x)) and its derivative."""
    c = _within(x, _FAR)
    share, derivative = _sigmoid_of(c, c, type(x)(1))
    return max(x, c) * share, derivative


@device_function
def _gelu_tanh_of(x):
    """x (1 + tanh(u)) / 2 = x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    number = type(x)
    c = _within(x, _FAR_NORMAL)
    square = c * c
    z = c * (number(_GELU_LINEAR) + number(_GELU_CUBIC) * square)
    slope = number(_GELU_LINEAR) + number(3 * _GELU_CUBIC) * square
    share, derivative = _sigmoid_of(c, z, slope)
    return max(x, c) * share, derivative


@loop
def _rectify(target, values, source, slope):
    for i in range(target.size):
        small = values[i] * slope
        target[i] = values[i] if source[i] > 0 else small


@Kernel
def _leaky_relu(x, slope, threads, y):
    """y = x where x > 0, else slope x; x, y (size,)."""
    for t in prange(threads):
        first, last = bounds(t, threads, x.size)
        source, target, number = x[first:last], y[first:last], x.dtype.type(slope)
        if same(target, source):
            _rectify(target, target, target, number)
        else:
            _rectify(target, source, source, number)


@Kernel
def _leaky_relu_backward(dy, x, slope, threads, dx):
    """dx = dy where x > 0, else slope dy; dy, x, dx (size,)."""
    for t in prange(threads):
        first, last = bounds(t, threads, x.size)
        gradient, source, target = dy[first:last], x[first:last], dx[first:last]
        number = x.dtype.type(slope)
        if same(target, gradient):
            _rectify(target, target, source, number)
        else:
            _rectify(target, gradient, source, number)


@loop
def _add(target, source, bias):
    for j in range(bias.size):
        target[j] = source[j] + bias[j]


@Launcher
def add_bias(x, bias, y):
    """y = x + bias; x, y (M, C), bias (C,); y may be x."""
    for row in prange(x.shape[0]):
        source, target = x[row], y[row]
        if same(target, source):
            _add(target, target, bias)
        else:
            _add(target, source, bias)


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


@Pointwise
def relu(x):
    """max(x, 0), NaN kept."""
    zero = type(x)(0)
    return zero if x < zero else x


@Pointwise
def relu_backward(dy, y):
    """dy where y > 0, else 0."""
    zero = type(y)(0)
    return dy if y > zero else zero


@Pointwise
def masked(x, mask):
    """x * mask where mask > 0, else 0, whatever x is there."""
    zero = type(x)(0)
    product = x * mask
    return product if mask > zero else zero


@Pointwise
def sigmoid(x):
    """1 / (1 + exp(-x)), from exp(-|x|), which cannot overflow."""
    one = type(x)(1)
    e = exp(-abs(x))
    return (e if x < 0 else one) / (one + e)


@Pointwise
def sigmoid_backward(dy, y):
    """dy * y * (1 - y)."""
    return dy * y * (type(y)(1) - y)


@Pointwise
def tanh(x):
    """Hyperbolic tangent."""
    return _tanh(x)


@Pointwise
def tanh_backward(dy, y):
    """dy * (1 - y^2)."""
    return dy * (type(y)(1) - y * y)


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


@prepares
def leaky_relu(x, slope, y):
    """Rectify, with a slope where x is negative."""
    threads = workers(x.size)
    _leaky_relu(threads, x, slope, threads, y)


@prepares
def leaky_relu_backward(dy, x, slope, dx):
    """Pass the gradient where the input is positive, and slope times it elsewhere."""
    threads = workers(x.size)
    _leaky_relu_backward(threads, dy, x, slope, threads, dx)


@prepares
def bias_gradient(dy, dbias):
    """Sum over rows."""
    _bias_gradient(dy, scratch(dbias.size, 0, dy.dtype)[0], dbias)
