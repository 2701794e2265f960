"""CUDA memory, streams and graphs through CuPy, or through what the tests put in its place.

Only `nbbn.backend` imports this module, once a device is asked for or a device array turns up.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
import threading
import types
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from ...errors import DeviceError
from .. import arrays
from . import cublas

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")
if SIMULATED and arrays.simulated is None:
    raise DeviceError(
        "NUMBA_ENABLE_CUDASIM is set: in Numba's simulator, device memory exists only in nbbn's "
        "own tests; unset it to use a device"
    )
xp: Any = arrays.simulated if SIMULATED else importlib.import_module("cupy")
ndarray: Any = xp.ndarray

_INSTALL = "pip install 'nbbn[cuda13]' (or cuda12)"


# ---------------------------------------------------------------- is there a device


@functools.cache
def missing() -> str | None:
    """What keeps CUDA from being used, in one line, or None."""
    if SIMULATED:
        return None
    try:
        # Without a driver CUDA complains that its version is too low.
        if not xp.cuda.runtime.driverGetVersion():
            return "there is no NVIDIA driver here"
        if not xp.cuda.runtime.getDeviceCount():
            return "the driver reports no device"
    except Exception as error:  # CuPy's errors have no common class
        return f"no CUDA device can be used ({_line(error)}): see nvidia-smi"
    try:
        importlib.import_module("numba_cuda")
        # The compiler's part that a NumPy newer than it breaks.
        importlib.import_module("numba.cuda.np.arrayobj")
    except Exception as error:
        return f"numba-cuda cannot be imported ({_line(error)}): {_INSTALL}"
    try:
        cublas.library()
    except DeviceError as error:
        return str(error)
    return None


def describe() -> list[str]:
    """One line per device, and one with the versions."""
    runtime = xp.cuda.runtime
    lines = []
    for number in range(runtime.getDeviceCount()):
        found = runtime.getDeviceProperties(number)
        name, gib = found["name"].decode(), found["totalGlobalMem"] / 2**30
        compute = f"{found['major']}.{found['minor']}"
        lines.append(f"cuda:{number} {name}, compute capability {compute}, {gib:.0f} GiB")
    driver, toolkit = runtime.driverGetVersion(), runtime.runtimeGetVersion()
    versions = f"CUDA driver {_version(driver)}, runtime {_version(toolkit)}"
    return [*lines, f"{versions}, CuPy {xp.__version__}"]


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


# ---------------------------------------------------------------- memory


def empty(shape: int | tuple[int, ...], dtype: Any) -> Any:
    """Allocate an uninitialized array in the memory of the current device."""
    return xp.empty(shape, dtype)


def to_device(array: np.ndarray) -> Any:
    """Copy an array of the host, its axes in the same order in memory."""
    # CuPy keeps the orders of C and of Fortran only.
    order = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    copy = xp.asarray(np.asarray(array.transpose(order), order="C"))
    return copy.transpose(np.argsort(order).tolist())


def to_host(array: Any) -> np.ndarray:
    """Copy to the host, once all work in the current stream is done."""
    host: np.ndarray = xp.asnumpy(array)
    return host


def check_current(array: Any) -> None:
    """Refuse an array of another device than the current one."""
    current = xp.cuda.runtime.getDevice()
    if array.data.device_id != current:
        raise DeviceError(
            f"an array is on cuda:{array.data.device_id}, but cuda:{current} is current: "
            "use one device, chosen by CUDA_VISIBLE_DEVICES"
        )


class _Staging(threading.local):
    """Pinned memory, one for each thread, for small copies that nobody waits for."""

    _SLOTS, _BYTES = 256, 256

    def __init__(self) -> None:
        shape = (self._SLOTS, self._BYTES)
        self._memory = importlib.import_module("cupyx").empty_pinned(shape, np.uint8)
        self._next = 0
        self._streams: set[Any] = set()

    def copy(self, values: np.ndarray, target: Any) -> None:
        """Copy `values` to `target` in the current stream."""
        if self._next == self._SLOTS:
            # The oldest copies may still be under way.
            for stream in self._streams:
                stream.synchronize()
            self._streams.clear()
            self._next = 0
        self._streams.add(xp.cuda.get_current_stream())
        slot = self._memory[self._next, : values.nbytes]
        self._next += 1
        slot[...] = values.reshape(-1).view(np.uint8)
        target.data.copy_from_host_async(slot.ctypes.data, values.nbytes)


@functools.cache
def _staging() -> _Staging:
    return _Staging()


def upload(values: Any, target: Any) -> None:
    """Write a few numbers to a device array without waiting for the device."""
    array = np.asarray(values, target.dtype).reshape(target.shape)
    if SIMULATED:
        target.set(array)
    else:
        _staging().copy(array, target)


class Memory:
    """Raw memory of the device for a `nbbn.recorder.Recorder`: see its `HostMemory`."""

    kind = ndarray
    # CUDA's own: cuBLAS may choose its algorithm, and so the bits, by the alignment.
    alignment = 256

    @staticmethod
    def allocate(nbytes: int) -> Any:
        """Bytes, aligned for any use."""
        return empty(nbytes, np.uint8)

    @staticmethod
    def root(memory: Any, dtype: Any) -> Any:
        """Flat array of `dtype` over `memory` that is the base of all its views."""
        return Memory.array((memory.nbytes // np.dtype(dtype).itemsize,), dtype, memory, 0, None)

    @staticmethod
    def array(shape: tuple[int, ...], dtype: Any, memory: Any, offset: int, strides: Any) -> Any:
        """Array at an offset of `memory`."""
        return ndarray(shape, dtype, memory.data + offset, strides)

    @staticmethod
    def address(array: Any) -> int:
        """Address of the first element."""
        return int(array.data.ptr)

    @staticmethod
    def content(array: Any) -> bytes:
        """Copy the bytes to the host."""
        return to_host(array).tobytes()

    host = staticmethod(to_host)

    @staticmethod
    def graph(work: Callable[[], None], capturable: bool) -> Graph:
        """Do some work, and make it repeatable."""
        return Graph(work, capturable)


# ---------------------------------------------------------------- work


def matmul(a: Any, b: Any, out: Any) -> None:
    """Write ``a @ b`` to `out`: by cuBLAS, in full precision of the type."""
    usual = a.dtype == b.dtype == out.dtype and out.dtype in cublas.TYPES
    if SIMULATED or not usual or not out.flags.c_contiguous or not out.size or not a.size:
        np.matmul(a, b, out)
        return
    stack = out.shape[:-2]
    a, b = _matrices(a, stack), _matrices(b, stack)
    if stack:
        out = out.reshape(-1, *out.shape[-2:])
    cublas.gemm(a, b, out, xp.cuda.get_current_stream().ptr)


def _matrices(array: Any, stack: tuple[int, ...]) -> Any:
    """Return an operand as `cublas.gemm` takes it: (rows, columns), or (count, rows, columns)."""
    if array.ndim > 2 and array.shape[:-2] != stack:
        array = xp.broadcast_to(array, (*stack, *array.shape[-2:]))
    leading = (-1,) if array.ndim > 2 else ()
    rows, columns = array.shape[-2:]
    by_columns = array.swapaxes(-1, -2)
    if by_columns.flags.c_contiguous:
        return by_columns.reshape(*leading, columns, rows).swapaxes(-1, -2)
    return xp.ascontiguousarray(array).reshape(*leading, rows, columns)


def add_at(target: Any, index: Any, values: Any) -> None:
    """As numpy.add.at."""
    xp.add.at(target, index, values)


def launchers(module: types.ModuleType) -> Any:
    """Return the launchers of a kernel module, for device arrays."""
    if SIMULATED:
        return xp.launchers(module)
    from ...kernels import _cuda as hooks

    hooks.current_stream = _current_stream
    return module


def _current_stream() -> int:
    stream: int = xp.cuda.get_current_stream().ptr
    return stream


class Graph:
    """Launches that are submitted as one from now on.

    `work` submits them: it is called once for real, and, if it is capturable, once more to be
    captured. Otherwise, or if that fails, each launch is submitted by itself.
    """

    def __init__(self, work: Callable[[], None], capturable: bool) -> None:
        self._work = work
        self._graph: Any = None
        if SIMULATED or not capturable:
            work()
            return
        # What the launches allocate belongs to the graph for as long as it lives.
        self._pool = xp.cuda.MemoryPool()
        self._stream = xp.cuda.Stream(non_blocking=True)
        weakref.finalize(self, cublas.forget, self._stream.ptr)
        xp.cuda.get_current_stream().synchronize()
        with xp.cuda.using_allocator(self._pool.malloc), self._stream:
            work()
            self._stream.synchronize()
            try:
                self._graph = self._capture()
            except Exception as error:  # the driver refuses in many ways
                warnings.warn(
                    f"this step is replayed launch by launch, not as a graph: {_line(error)}",
                    RuntimeWarning,
                    stacklevel=2,
                )

    def _capture(self) -> Any:
        self._stream.begin_capture()
        try:
            self._work()
        except Exception:
            # A capture that was refused cannot be ended without an error either: the first counts.
            with contextlib.suppress(Exception):
                self._stream.end_capture()
            raise
        return self._stream.end_capture()

    def launch(self) -> None:
        """Submit all of it to the current stream."""
        if self._graph is None:
            self._work()
        else:
            self._graph.launch(xp.cuda.get_current_stream())


# ---------------------------------------------------------------- arrays of others


def adopt(value: Any) -> Any:
    """View another library's device array without a copy."""
    if hasattr(value, "__dlpack_device__") and not SIMULATED:
        return xp.from_dlpack(value.detach() if hasattr(value, "detach") else value)
    return xp.asarray(value)


def restore(array: Any, like: Any) -> Any:
    """Hand a device array over in the kind of `like`, without a copy."""
    package = type(like).__module__.partition(".")[0]
    if package in ("numba", "numba_cuda"):
        return importlib.import_module("numba.cuda").as_cuda_array(array)
    # JAX keeps the class of its arrays in another package.
    library = sys.modules.get("jax" if package == "jaxlib" else package)
    for home in (library, getattr(library, "numpy", None)):
        if hasattr(home, "from_dlpack"):
            return home.from_dlpack(array)  # type: ignore[union-attr]
    return array
