"""Pooling in either engine, against its CPU twin, which has tests of its own."""

from __future__ import annotations

import numpy as np
import pytest

from nbbn.kernels import pooling_cpu, pooling_cuda
from tests.gpu.storage import DTYPES, ROUNDING, error, poisoned, shifted, statistics_type, stored
from tests.gpu.storage import values as wide

# (H, W), outputs, window: side by side, overlapping, with padding, dilation and gaps.
WINDOWS = [
    ((4, 6), (2, 3), (2, 2, 2, 2, 0, 0, 1, 1)),
    ((5, 4), (3, 2), (3, 3, 2, 2, 1, 1, 1, 1)),
    ((5, 6), (3, 2), (2, 3, 1, 3, 0, 1, 2, 1)),
    ((3, 5), (3, 5), (3, 3, 1, 1, 1, 1, 1, 1)),
]
# Channels first, and last: in whole lanes and one by one.
CHANNELS = [1, 8, 3]

everywhere = [
    pytest.mark.parametrize("arrange", [np.copy, shifted], ids=["aligned", "misaligned"]),
    pytest.mark.parametrize("dtype", DTYPES),
    pytest.mark.parametrize("B", CHANNELS),
    pytest.mark.parametrize(("image", "output", "window"), WINDOWS),
]


def every(function):
    for mark in everywhere:
        function = mark(function)
    return function


def random(shape, dtype, seed):
    return stored(np.random.default_rng(seed).standard_normal(shape), dtype)


@every
def test_maxima(image, output, window, B, dtype, arrange):
    x, dy = random((2, *image, B), dtype, 0), random((2, *output, B), dtype, 1)
    x[0, 2, 1, 0] = stored(np.array(np.nan), dtype)
    x, dy = arrange(x), arrange(dy)
    y, index, dx, taken = (
        poisoned(a.shape, kind) for a, kind in ((dy, dtype), (dy, "uint8"), (x, dtype), (dy, dtype))
    )
    expected, expected_index = np.empty(dy.shape), np.empty(dy.shape, np.uint8)
    gradient = np.empty(x.shape)
    pooling_cpu.max_pool(wide(x), window, expected, expected_index)
    pooling_cpu.max_pool_backward(wide(dy), expected_index, window, gradient)
    pooling_cuda.max_pool(x, window, y, index)
    np.testing.assert_array_equal(wide(y), expected)
    np.testing.assert_array_equal(index, expected_index)
    pooling_cuda.max_pool_backward(dy, index, window, dx)
    assert error(wide(dx), gradient) < ROUNDING[dtype]
    pooling_cuda.max_pool_take(x, index, window, taken)
    np.testing.assert_array_equal(wide(taken), expected)


@every
def test_means(image, output, window, B, dtype, arrange):
    x = arrange(random((2, *image, B), dtype, 0))
    dy = arrange(random((2, *output, B), dtype, 1))
    for counted in ((0, 0, *image), (-1, -1, image[0] + 1, image[1] + 1)):
        y, dx = poisoned(dy.shape, dtype), poisoned(x.shape, dtype)
        share = np.empty(dy.shape, statistics_type(dtype))
        mean, gradient, wide_share = np.empty(dy.shape), np.empty(x.shape), np.empty(dy.shape)
        pooling_cpu.avg_pool(wide(x), window, counted, mean)
        pooling_cpu.avg_pool_backward(wide(dy), window, counted, wide_share, gradient)
        pooling_cuda.avg_pool(x, window, counted, y)
        assert error(wide(y), mean) < ROUNDING[dtype]
        pooling_cuda.avg_pool_backward(dy, window, counted, share, dx)
        assert error(wide(dx), gradient) < ROUNDING[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 1, 8), (2, 20, 1), (2, 300, 3), (1, 9, 16)], ids=str)
def test_means_of_whole_images(shape, dtype):
    x, dy = random(shape, dtype, 0), random((shape[0], shape[2]), dtype, 1)
    y, dx = poisoned(dy.shape, dtype), poisoned(shape, dtype)
    pooling_cuda.global_avg_pool(x, y)
    assert error(wide(y), wide(x).mean(axis=1)) < ROUNDING[dtype]
    pooling_cuda.global_avg_pool_backward(dy, dx)
    expected = np.broadcast_to(wide(dy)[:, None] / shape[1], shape)
    assert error(wide(dx), expected) < ROUNDING[dtype]


@pytest.mark.parametrize("kind", ["uint16", "uint32"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("B", [16, 1])
def test_indices_of_large_windows(B, dtype, kind):
    # No two values of a window are equal, in any type.
    numbers = np.arange(-170.0, 170)[:, None].repeat(B, axis=1)
    numbers = np.random.default_rng(0).permuted(numbers, axis=0).reshape(1, 20, 17, B)
    x, window = stored(numbers, dtype), (20, 17, 1, 1, 0, 0, 1, 1)
    y, taken = poisoned((1, 1, 1, B), dtype), poisoned((1, 1, 1, B), dtype)
    index, dx = poisoned(y.shape, kind), poisoned(x.shape, dtype)
    pooling_cuda.max_pool(x, window, y, index)
    np.testing.assert_array_equal(index[0, 0, 0], numbers.reshape(-1, B).argmax(axis=0))
    pooling_cuda.max_pool_take(x, index, window, taken)
    np.testing.assert_array_equal(wide(taken), wide(y))
    pooling_cuda.max_pool_backward(y, index, window, dx)
    np.testing.assert_array_equal(wide(dx), np.where(numbers == 169, wide(x), 0))
