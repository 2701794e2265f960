"""The arguments of cuBLAS, against a library that multiplies by columns in host memory."""

from __future__ import annotations

import ctypes
import types

import numpy as np
import pytest

from nbbn.backend import device
from nbbn.backend.device import cublas
from nbbn.errors import DeviceError


class Array:
    """A matrix with the attributes of a device array."""

    def __init__(self, host):
        self.host, self.shape, self.strides, self.dtype = host, host.shape, host.strides, host.dtype
        self.ndim, self.data = host.ndim, types.SimpleNamespace(ptr=host.ctypes.data)

    def __len__(self):
        return len(self.host)


class Library:
    """What cuBLAS does with matrices that are stored by columns."""

    def __init__(self):
        self.calls = []
        for letter, kind in (("S", ctypes.c_float), ("D", ctypes.c_double)):
            for form in ("_v2", "StridedBatched"):
                setattr(self, f"cublas{letter}gemm{form}_64", self._gemm(kind, form != "_v2"))

    def _gemm(self, kind, stacked):
        def stack(pointer, count, rows, columns, leading, step=0):
            assert leading >= max(rows, 1)
            memory = ctypes.cast(pointer, ctypes.POINTER(kind))
            size = (count - 1) * step + leading * (columns - 1) + rows
            flat = np.ctypeslib.as_array(memory, (size,))
            strides = [n * flat.itemsize for n in (step, 1, leading)]
            return np.lib.stride_tricks.as_strided(flat, (count, rows, columns), strides)

        def call(handle, first_op, second_op, m, n, k, one, *rest):
            m, n, k = (size.value for size in (m, n, k))
            width = 3 if stacked else 2
            count = rest[-1].value if stacked else 1
            first, second, result = (
                (pointer, *(number.value for number in numbers))
                for pointer, *numbers in (
                    rest[:width], rest[width : 2 * width], rest[2 * width + 1 : 3 * width + 1]
                )
            )  # fmt: skip
            assert one._obj.value == 1
            assert rest[2 * width]._obj.value == 0

            def operand(place, flipped, rows, columns):
                pointer, *numbers = place
                if flipped:
                    return stack(pointer, count, columns, rows, *numbers).swapaxes(1, 2)
                return stack(pointer, count, rows, columns, *numbers)

            x, y = operand(first, first_op, m, k), operand(second, second_op, k, n)
            operand(result, False, m, n)[...] = x @ y
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


STACKS = [
    ((2, 3, 4), (2, 4, 5)),
    ((2, 3, 4), (4, 5)),
    ((3, 4), (2, 4, 5)),
    ((2, 1, 3, 4), (1, 6, 4, 5)),
    ((1, 3, 4), (2, 4, 5)),
    ((2, 3, 1), (2, 1, 5)),
    ((1, 1, 4), (1, 4, 1)),
]


@pytest.mark.parametrize(("a_shape", "b_shape"), STACKS)
@pytest.mark.parametrize("by_columns", [(False, False), (True, False), (False, True)])
def test_products_of_stacks(library, rng, monkeypatch, a_shape, b_shape, by_columns):
    """The operands as `device.matmul` lays them out, with NumPy in CuPy's place."""
    monkeypatch.setattr(device, "xp", np)
    a, b = (
        np.swapaxes(rng.normal(size=(*shape[:-2], shape[-1], shape[-2])), -1, -2)
        if flipped else rng.normal(size=shape)
        for shape, flipped in zip((a_shape, b_shape), by_columns, strict=True)
    )  # fmt: skip
    expected = a @ b
    operands = [device._matrices(array, expected.shape[:-2]) for array in (a, b)]
    out = np.full((expected.size // np.prod(expected.shape[-2:]), *expected.shape[-2:]), np.nan)
    cublas.gemm(*map(Array, operands), Array(out), 0)
    np.testing.assert_allclose(out.reshape(expected.shape), expected)
    assert len(library.calls) == 1
    # Matrices without gaps are not copied, unless they are spread over others.
    for array, operand in zip((a, b), operands, strict=True):
        spread = array.ndim > 2 and array.shape[:-2] != expected.shape[:-2]
        assert np.may_share_memory(array, operand) is not spread


def test_a_status_that_is_not_0_is_an_error(library, monkeypatch):
    monkeypatch.setattr(library, "cublasDgemm_v2_64", lambda *args: 13)
    square = Array(np.ones((2, 2)))
    with pytest.raises(DeviceError, match="status 13 for cublasDgemm"):
        cublas.gemm(square, square, square, 0)
