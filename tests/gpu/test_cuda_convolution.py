"""Convolutions on a CUDA device in either engine: against the CPU twins, in every layout."""

from __future__ import annotations

import numpy as np
import pytest

from nbbn.kernels import convolution_cpu, convolution_cuda
from tests.gpu.storage import DTYPES, ROUNDING, error, poisoned, statistics_type, stored, values

# (C, H, W, F, kh, kw, OH, OW), stride, padding, dilation, (G, last).
GEOMETRIES = {
    "plain": (2, 4, 5, 3, 3, 2, 2, 4, 1, 1, 0, 0, 1, 1, 1, 0),
    "window": (2, 5, 4, 2, 3, 2, 3, 3, 2, 1, 2, 1, 2, 3, 1, 0),
    "groups": (4, 3, 3, 6, 2, 2, 2, 2, 1, 1, 0, 0, 1, 1, 2, 0),
    "depthwise": (3, 4, 4, 3, 3, 3, 4, 4, 1, 1, 1, 1, 1, 1, 3, 0),
    "last": (3, 4, 5, 2, 2, 3, 4, 2, 1, 2, 1, 0, 1, 1, 1, 1),
}
N = 3


def shapes(geometry):
    C, H, W, F, kh, kw, OH, OW = geometry[:8]
    G, last = geometry[-2:]
    if last:
        return (N, H, W, C), (F, kh, kw, C), (N, OH, OW, F)
    return (N, C, H, W), (F, C // G, kh, kw), (N, F, OH, OW)


@pytest.fixture(params=GEOMETRIES)
def geometry(request):
    return GEOMETRIES[request.param]


def operands(geometry, dtype):
    """x, w, dy and the two biases as kernels get them, and in float64."""
    rng = np.random.default_rng(0)
    x, w, dy = (rng.standard_normal(shape) for shape in shapes(geometry))
    biases = rng.standard_normal(geometry[3]), rng.standard_normal(geometry[0])
    wide = statistics_type(dtype)
    narrow = stored(x, dtype), w.astype(wide), stored(dy, dtype), *(b.astype(wide) for b in biases)
    return narrow, [values(array) for array in narrow]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_launcher_agrees_with_its_twin(geometry, dtype):
    (x, w, dy, b, c), (wide_x, wide_w, wide_dy, wide_b, wide_c) = operands(geometry, dtype)
    nothing, wide = b[:0], statistics_type(dtype)
    y, dx, dw = poisoned(dy.shape, dtype), poisoned(x.shape, dtype), poisoned(w.shape, wide)
    expected_y, expected_dx = np.empty(dy.shape), np.empty(x.shape)
    for bias, wide_bias in ((b, wide_b), (nothing, wide_b[:0])):
        for relu in (False, True):
            convolution_cuda.forward(x, w, bias, relu, geometry, y)
            convolution_cpu.forward(wide_x, wide_w, wide_bias, relu, geometry, expected_y)
            assert error(values(y), expected_y) < ROUNDING[dtype]
            assert (expected_y.min() == 0) == relu
    for bias, wide_bias in ((c, wide_c), (nothing, wide_c[:0])):
        convolution_cuda.input_gradient(dy, w, bias, geometry, dx)
        convolution_cpu.input_gradient(wide_dy, wide_w, wide_bias, geometry, expected_dx)
        assert error(values(dx), expected_dx) < ROUNDING[dtype]
    expected_dw = np.empty(w.shape)
    convolution_cuda.weight_gradient(dy, x, geometry, dw)
    convolution_cpu.weight_gradient(wide_dy, wide_x, geometry, expected_dw)
    assert error(dw, expected_dw) < ROUNDING[np.dtype(wide).name]
    if not geometry[-1]:
        planes, dbias = dy.reshape(N, geometry[3], -1), poisoned(geometry[3], wide)
        convolution_cuda.bias_gradient(planes, dbias)
        expected = values(planes).sum((0, 2))
        assert error(dbias, expected) < ROUNDING[np.dtype(wide).name]


def test_no_images_have_a_bias_gradient_of_zero():
    dbias = poisoned(2, np.float32)
    convolution_cuda.bias_gradient(np.empty((0, 2, 3), np.float32), dbias)
    assert dbias.tolist() == [0, 0]
