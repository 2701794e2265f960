"""How launches reach the driver: compiled code, packed arguments, scratch. The driver is a fake."""

from __future__ import annotations

import ctypes
import struct
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from numba.cuda import dispatcher

from nbbn.kernels import _cache, _cuda, elementwise_cuda


class Code(int):
    """A status of the driver."""

    name = "CUDA_ERROR_NAME"


class Driver:
    """Notes what it is asked for, and reads launched arguments as a device would."""

    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=9,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=0,
    )

    def __init__(self):
        self.calls, self.launches, self.formats = [], [], {}

    def __getattr__(self, name):
        def call(*args):
            self.calls.append(name)
            results = {"cuCtxGetCurrent": 0, "cuMemAlloc": 4096, "cuDeviceGetAttribute": args[:1]}
            found = results.get(name, len(self.calls))
            return Code(0), found[0] if isinstance(found, tuple) else found

        return call

    def cuLaunchKernel(self, function, *arguments):  # noqa: N802 - the driver's name
        x, y, z, bx, by, bz, _, stream, pointers, _ = arguments
        fields = self.formats[function]
        addresses = (ctypes.c_void_p * len(fields)).from_address(pointers)
        values = [
            struct.unpack(f"@{field}", ctypes.string_at(address, struct.calcsize(f"@{field}")))[0]
            for field, address in zip(fields, addresses, strict=True)
        ]
        self.launches.append(((x, y, z), (bx, by, bz), stream, values))
        return (Code(1 if stream == 13 else 0),)

    def cuModuleGetFunction(self, module, name):  # noqa: N802
        assert name.startswith(b"_ZN")
        return Code(0), "kernel"


class Array:
    """What CuPy's arrays show of themselves."""

    def __init__(self, pointer, size, dtype):
        self.data, self.size, self.dtype = SimpleNamespace(ptr=pointer), size, np.dtype(dtype)


@pytest.fixture
def driver(monkeypatch, tmp_path):
    fake = Driver()
    monkeypatch.setenv("NBBN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(_cuda, "_driver", lambda: fake)
    monkeypatch.setattr(_cuda, "_device", _cuda._Device())
    monkeypatch.setattr(_cuda, "_scratch", {})
    stand_in = SimpleNamespace(compute_capability=(9, 0))
    monkeypatch.setattr(dispatcher, "get_current_device", lambda: stand_in)
    return fake


@pytest.fixture
def kernel():
    @_cuda.Kernel
    def example(V):
        def kernel(a, n, b, f, pair):
            if f > n:
                pair[0][0] = a[0] + b[0]

        return kernel

    return example


def test_arguments_arrive_where_the_kernel_reads_them(driver, kernel):
    driver.formats["kernel"] = "QQqqQqq" + "q" + "QQqqQqq" + "d" + 2 * "QQqqQqq"
    a, b = Array(1600, 10, "float32"), Array(3200, 5, "float64")
    nothing = np.empty(0, np.float32)
    for stream in (0, 7):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_cuda, "current_stream", lambda stream=stream: stream)
            kernel[4]((2, 3), (32, 8), a, -6, b, np.float64(0.5), (b, nothing))
    array_a, array_b = [0, 0, 10, 4, 1600, 10, 4], [0, 0, 5, 8, 3200, 5, 8]
    values = [*array_a, -6, *array_b, 0.5, *array_b, 0, 0, 0, 4, 0, 0, 4]
    assert driver.launches == [((2, 3, 1), (32, 8, 1), stream, values) for stream in (0, 7)]
    # Loaded once; this thread's context is set once.
    assert driver.calls.count("cuModuleLoadData") == 1
    assert driver.calls.count("cuCtxSetCurrent") == 1


def test_each_kind_of_argument_has_its_own_code(driver, kernel):
    driver.formats["kernel"] = "QQqqQqq" + "q" + "QQqqQqq" + "f" + 2 * "QQqqQqq"
    for dtype in ("float32", "float64", "uint16"):
        array = Array(1600, 10, dtype)
        kernel[4]((1,), (32, 8), array, 1, array, np.float32(2), (array, array))
    assert driver.calls.count("cuModuleLoadData") == 3


def test_16_bits_need_a_device_that_rounds_them(driver, kernel):
    driver.CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=7,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=5,
    )
    array = Array(1600, 10, "uint16")
    with pytest.raises(RuntimeError, match=r"8\.0 or more, this one has 7\.5"):
        kernel[4]((1,), (32, 8), array, 1, array, np.float32(2), (array, array))


def test_machine_code_is_kept_on_disk(driver, kernel, monkeypatch, tmp_path):
    driver.formats["kernel"] = "QQqqQqq" + "q" + "QQqqQqq" + "f" + 2 * "QQqqQqq"
    array = Array(1600, 10, "float32")
    compiled = []
    monkeypatch.setattr(_cache, "on_compile", compiled.append)

    def launch(build):
        again = _cuda.Kernel(build)
        again[4]((1,), (32, 8), array, 1, array, np.float32(2), (array, array))

    for _ in range(2):
        launch(kernel.build)
    assert compiled == ["test_cuda_launch.example-cuda"]
    (file,) = tmp_path.rglob("*.nbc")
    file.write_bytes(file.read_bytes()[:-7])
    monkeypatch.setattr(_cache, "_warned", False)
    with pytest.warns(RuntimeWarning, match="damaged"):
        launch(kernel.build)
    assert len(compiled) == 2


def test_scratch_belongs_to_a_stream_and_never_moves(driver, monkeypatch):
    first = _cuda.scratch(_cuda.accumulator(np.float32))
    assert (first[0].size, first[1].size) == (_cuda.BLOCKS * _cuda.PARTIALS, _cuda.BLOCKS)
    wide = _cuda.scratch(_cuda.accumulator(np.float64))
    assert wide[0].ptr == first[0].ptr
    assert 2 * wide[0].size == first[0].size
    assert driver.calls.count("cuMemAlloc") == 2
    for stream, allocations in ((7, 4), (2, 6)):
        monkeypatch.setattr(_cuda, "current_stream", lambda stream=stream: stream)
        _cuda.scratch(_cuda.accumulator(np.float32))
        assert driver.calls.count("cuMemAlloc") == allocations
    # The handle 2 is the default stream of whichever thread asks.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(_cuda.scratch, _cuda.accumulator(np.float32)).result()
    assert driver.calls.count("cuMemAlloc") == 8


def test_an_error_of_the_driver_is_raised_by_name(driver, kernel, monkeypatch):
    driver.formats["kernel"] = "QQqqQqq" + "q" + "QQqqQqq" + "f" + 2 * "QQqqQqq"
    monkeypatch.setattr(_cuda, "current_stream", lambda: 13)
    array = Array(1600, 10, "float32")
    with pytest.raises(RuntimeError, match="CUDA_ERROR_NAME"):
        kernel[4]((1,), (32, 8), array, 1, array, np.float32(2), (array, array))


@pytest.mark.parametrize(
    ("pointers", "dtype", "length", "width"),
    [
        ((1600, 3200), "float32", 8, 4),
        ((1600, 3204), "float32", 8, 1),
        ((1600, 3200), "float32", 6, 1),
        ((1600, 3200), "float32", 0, 4),
        ((1600, 3200), "float64", 6, 2),
        ((1600, 3200), "uint16", 16, 8),
        ((1600, 3200), "float16", 12, 1),
    ],
)
def test_lanes_need_alignment(pointers, dtype, length, width):
    arrays = [Array(pointer, 64, dtype) for pointer in pointers]
    # An empty array says "not given": its address means nothing.
    assert _cuda.vector_width(length, *arrays, Array(3, 0, dtype)) == width


def test_nothing_is_launched_for_no_elements(driver):
    empty = Array(0, 0, "float32")
    elementwise_cuda.relu(empty, empty)
    assert not driver.launches
