"""Scratch of kernels: as large as they need, for batch normalization wherever they are called.

Compiled code does not check its bounds: what a kernel writes past its scratch is another's memory.
"""

from __future__ import annotations

import numpy as np
import pytest

from nbbn import functional as F  # noqa: N812
from nbbn import jit
from nbbn.kernels import batchnorm_cpu, convolution_cpu, embedded

# Rows in one block and in several, planes by channels in cache, planes in parts.
SHAPES = [(7, 5), (6000, 16), (4, 3, 50), (2, 1, 40_000), (40, 3, 4000)]
MARK = -123.25


class Guarded:
    """Scratch between marks, which show whether a kernel wrote beside it."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []
        self._buffers: list[tuple[np.ndarray, int]] = []

    def take(self, wide: int, narrow: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
        self.sizes.append((wide, narrow))
        return self._array(wide, np.dtype(np.float64)), self._array(narrow, dtype)

    def _array(self, size: int, dtype: np.dtype) -> np.ndarray:
        # As much again on both sides, so that a kernel that goes astray stays inside.
        buffer = np.full(3 * (size + 1024), MARK, dtype)
        self._buffers.append((buffer, size))
        return buffer[size + 1024 : 2 * size + 1024]

    def assert_kept(self) -> None:
        for buffer, size in self._buffers:
            assert (buffer[: size + 1024] == MARK).all()
            assert (buffer[2 * size + 1024 :] == MARK).all()


@pytest.fixture
def guarded(monkeypatch):
    found = Guarded()
    monkeypatch.setattr(batchnorm_cpu, "scratch", found.take)
    monkeypatch.setattr(embedded, "_scratch", lambda sizes, x: found.take(*sizes, x.dtype))
    return found


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_write_inside_their_scratch_whoever_allocates_it(shape, rng, guarded):
    x, dy, y, dx, again = rng.normal(size=(5, *shape)).astype(np.float32)
    nothing, channels = x[:0], shape[1]
    gamma, beta, dgamma, dbeta = rng.normal(size=(4, channels)).astype(np.float32)
    mean, var, inv_std, *others = np.empty((6, channels))
    batchnorm_cpu.train(x, nothing, gamma, beta, 1e-3, False, y, mean, var, inv_std)
    jit.batch_norm_train.py_func(x, gamma, beta, 1e-3, again, *others)
    assert_same((again, *others), (y, mean, var, inv_std))
    batchnorm_cpu.backward(dy, x, nothing, gamma, mean, inv_std, False, dx, dgamma, dbeta)
    gradients = np.empty((2, channels), np.float32)
    jit.batch_norm_backward.py_func(dy, x, mean, inv_std, gamma, again, *gradients)
    assert_same((again, *gradients), (dx, dgamma, dbeta))
    launched, called = guarded.sizes[0::2], guarded.sizes[1::2]
    assert launched == called
    assert len(launched) == 2
    jit.channel_stats.py_func(x, *others[:2])
    assert_same(others[:2], (mean, var))
    guarded.assert_kept()


def inside(array: np.ndarray) -> np.ndarray:
    """The same in the middle of NaN, which shows in a result that took some of it in."""
    memory = np.full(3 * array.size, np.nan, array.dtype)
    middle = memory[array.size : 2 * array.size].reshape(array.shape)
    middle[...] = array
    return middle


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize(
    ("size", "kernel", "options"),
    [
        (6, (3, 3), {"padding": 1}),
        (6, (3, 3), {"padding": 1, "groups": 4}),
        (6, (5, 2), {"padding": (4, 1)}),
        (7, (3, 2), {"stride": (2, 3), "padding": 2, "dilation": (2, 1)}),
        (5, (2, 2), {"stride": 2, "padding": ((1, 0), (0, 3))}),
        (5, (1, 1), {"groups": 2}),
        (9, (4, 1), {"stride": 3, "dilation": 2, "padding": ((0, 6), (6, 0))}),
    ],
)
def test_convolutions_stay_inside_their_arrays(size, kernel, options, axis, rng, monkeypatch):
    guard = Guarded()
    monkeypatch.setattr(convolution_cpu, "scratch", guard.take)
    options = {"axis": axis, **options}
    x = inside(rng.normal(size=(3, 4, size, size) if axis == 1 else (3, size, size, 4)))
    weight = inside(rng.normal(size=(4, 4 // options.get("groups", 1), *kernel)))
    y = F.conv2d(x, weight, np.ones(4), **options)
    outs = [guard._array(array.size, x.dtype).reshape(array.shape) for array in (y, x, weight)]
    F.conv2d(x, weight, np.ones(4), out=outs[0], **options)
    named = {"out": outs[1], "out_dweight": outs[2]}
    F.conv2d_backward(inside(y), x, weight, **named, **options)
    for out in outs:
        assert np.isfinite(out).all()
        assert (out != MARK).all()
    guard.assert_kept()
