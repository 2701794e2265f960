"""The arguments of cuBLAS, against a library that multiplies by columns in host memory."""

from __future__ import annotations

import ctypes
import types

import numpy as np
import pytest

from nbbn.device import cublas
from nbbn.errors import DeviceError


class Array:
    """A matrix with the attributes of a device array."""

    def __init__(self, host):
        self.host, self.shape, self.strides, self.dtype = host, host.shape, host.strides, host.dtype
        self.data = types.SimpleNamespace(ptr=host.ctypes.data)


class Library:
    """What cuBLAS does with matrices that are stored by columns."""

    def __init__(self):
        self.calls = []
        self.cublasSgemm_v2_64 = self._gemm(np.float32)
        self.cublasDgemm_v2_64 = self._gemm(np.float64)

    def _gemm(self, dtype):
        kind = ctypes.c_float if dtype == np.float32 else ctypes.c_double

        def matrix(pointer, rows, columns, leading):
            assert leading >= max(rows, 1)
            memory = ctypes.cast(pointer, ctypes.POINTER(kind))
            flat = np.ctypeslib.as_array(memory, (leading * (columns - 1) + rows,))
            strides = (flat.itemsize, leading * flat.itemsize)
            return np.lib.stride_tricks.as_strided(flat, (rows, columns), strides)

        def call(handle, first_op, second_op, m, n, k, one, first, ld1, second, ld2, zero, c, ldc):
            m, n, k, ld1, ld2, ldc = (size.value for size in (m, n, k, ld1, ld2, ldc))
            assert one._obj.value == 1
            assert zero._obj.value == 0
            x = matrix(first, *((k, m) if first_op else (m, k)), ld1)
            y = matrix(second, *((n, k) if second_op else (k, n)), ld2)
            matrix(c, m, n, ldc)[...] = (x.T if first_op else x) @ (y.T if second_op else y)
            self.calls.append((m, n, k))
            return 0

        return call


@pytest.fixture
def library(monkeypatch):
    found = Library()
    monkeypatch.setattr(cublas, "library", lambda: found)
    monkeypatch.setattr(cublas, "_prepared", lambda stream: None)
    return found


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("m", "k", "n"), [(3, 4, 5), (1, 4, 5), (3, 1, 5), (3, 4, 1), (1, 1, 1)])
@pytest.mark.parametrize("a_by_columns", [False, True])
@pytest.mark.parametrize("b_by_columns", [False, True])
def test_products_of_matrices_by_rows_and_by_columns(
    library, rng, dtype, m, k, n, a_by_columns, b_by_columns
):
    a, b = rng.normal(size=(m, k)).astype(dtype), rng.normal(size=(k, n)).astype(dtype)
    if a_by_columns:
        a = np.asfortranarray(a)
    if b_by_columns:
        b = np.asfortranarray(b)
    out = np.full((m, n), np.nan, dtype)
    cublas.gemm(Array(a), Array(b), Array(out), 0)
    np.testing.assert_allclose(out, a @ b, rtol=1e-5)
    assert len(library.calls) == 1


def test_rows_with_gaps_between_them(library, rng):
    a, b = rng.normal(size=(3, 9))[:, :4], rng.normal(size=(8, 5))[::2]
    out = np.empty((3, 5))
    cublas.gemm(Array(a), Array(b), Array(out), 0)
    np.testing.assert_allclose(out, a @ b)


def test_a_status_that_is_not_0_is_an_error(library, monkeypatch):
    monkeypatch.setattr(library, "cublasDgemm_v2_64", lambda *args: 13)
    square = Array(np.ones((2, 2)))
    with pytest.raises(DeviceError, match="status 13 for cublasDgemm"):
        cublas.gemm(square, square, square, 0)
