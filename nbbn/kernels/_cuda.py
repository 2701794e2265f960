"""How nbbn compiles for CUDA and launches: variants, the disk cache, packed arguments, scratch.

numba-cuda is only the compiler here, and the simulator (`NUMBA_ENABLE_CUDASIM=1`). A compiled
kernel is loaded and launched through the driver: numba's dispatcher would add tens of microseconds
to every launch. Kernels see flat arrays, so that an array is an address and a size.

`current_stream` says on which stream to launch. Scratch is private to a stream and never moves, so
that a captured graph may keep its address.
"""

from __future__ import annotations

import ctypes
import functools
import struct
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import cuda

from ._cache import cached
from ._cuda_lanes import SIMULATED, lanes, load, store

# Threads of a block, and about how many blocks share a reduction: enough to fill any GPU, and
# independent of which it is, so that all of them give the same bits.
THREADS = 256
BLOCKS = 1056
# Partial sums that one block leaves for the last one, at most: a tile of 256 bytes of float32.
PARTIALS = 3 * 128


def current_stream() -> int:
    """Handle of the stream to launch on: the default stream. The backend puts its own here."""
    return 0


def device_function(function: Callable[..., Any]) -> Any:
    """Compile a helper that kernels call; its code becomes part of theirs."""
    if SIMULATED and "cuda" not in function.__code__.co_names:
        return function
    return cuda.jit(device=True)(function)


class Kernel:
    """A kernel and all its variants: `build` takes compile-time constants and returns one."""

    def __init__(self, build: Callable[..., Any]) -> None:
        self.__name__, self.__doc__ = build.__name__, build.__doc__
        self.build = build
        self._variants: dict[tuple[Any, ...], Variant] = {}

    def __getitem__(self, constants: Any) -> Variant:
        constants = constants if isinstance(constants, tuple) else (constants,)
        key = (THREADS, *constants)
        found = self._variants.get(key)
        if found is None:
            found = self._variants[key] = Variant(self, constants)
        return found


class Elementwise:
    """A kernel that treats each element by itself: in whole lanes, one by one at the end.

    `body(i, like, operands)` treats the elements from i on, as many as `like` has lanes.
    """

    def __init__(self, body: Callable[..., None]) -> None:
        compiled = device_function(body)

        def build(V: int, acc: Any) -> Callable[..., None]:
            def kernel(size, operands):  # type: ignore[no-untyped-def]
                i = cuda.grid(1) * V
                if i + V <= size:
                    compiled(i, lanes(acc(0), V), operands)
                elif V > 1:
                    while i < size:
                        compiled(i, lanes(acc(0), 1), operands)
                        i += 1

            return kernel

        self.kernel = Kernel(named_as(body, build))
        self.__name__, self.__doc__ = body.__name__, body.__doc__

    def __call__(self, *operands: Any, aligned: tuple[Any, ...] = (), length: int = 0) -> None:
        """Run over the elements of the last of `aligned`: the arrays that move in whole lanes.

        That is all operands if it is empty. Lanes cross no multiple of `length`, if given.
        """
        aligned = aligned or operands
        size = aligned[-1].size
        if size:
            V = vector_width(length, *aligned)
            blocks = -(-size // (V * THREADS))
            self.kernel[V, accumulator(aligned[-1].dtype)]((blocks,), (THREADS, 1), size, operands)


class Pointwise(Elementwise):
    """The launcher that makes each element of its last operand from those of the one or two others.

    `of` is the function of these elements, in lanes.
    """

    def __init__(self, of: Callable[..., Any]) -> None:
        lanes_of = device_function(of)

        def of_one(i, like, operands):  # type: ignore[no-untyped-def]
            x, y = operands
            store(y, i, lanes_of(load(x, i, like)))

        def of_two(i, like, operands):  # type: ignore[no-untyped-def]
            a, b, y = operands
            store(y, i, lanes_of(load(a, i, like), load(b, i, like)))

        super().__init__(named_as(of, of_one if of.__code__.co_argcount == 1 else of_two))


def named_as(function: Callable[..., Any], other: Callable[..., Any]) -> Callable[..., Any]:
    """The other function under the name of this one."""
    other.__name__, other.__module__ = function.__name__, function.__module__
    other.__doc__ = function.__doc__
    return other


class Variant:
    """One kernel for one choice of its compile-time constants."""

    def __init__(self, kernel: Kernel, constants: tuple[Any, ...]) -> None:
        self.name = f"{kernel.build.__module__.rpartition('.')[2]}.{kernel.__name__}"
        self.constants = constants
        self.function = kernel.build(*constants)
        self._loaded: dict[tuple[Any, ...], _Loaded] = {}
        self._simulated = cuda.jit(self.function) if SIMULATED else None

    def __call__(self, grid: tuple[int, ...], block: tuple[int, int], *args: Any) -> None:
        """Launch on `grid` blocks of `block` threads.

        Arguments are arrays, tuples of arrays, ints and NumPy floats.
        """
        if self._simulated is not None:
            with warnings.catch_warnings():
                # A device says nothing about NaN and Inf.
                warnings.simplefilter("ignore", RuntimeWarning)
                self._simulated[grid, block](*map(_simulated_argument, args))
            return
        kinds, fields = packed(args)
        loaded = self._loaded.get(kinds)
        if loaded is None:
            # Compiling twice in a race is harmless.
            loaded = self._loaded[kinds] = _Loaded(self, kinds)
        loaded.launch(grid, block, fields)


# -------------------------------------------------------------------------------- arguments

_ARRAYS = {
    "float32": numba.float32,
    "float64": numba.float64,
    "float16": numba.types.float16,
    "bfloat16": numba.uint16,
    "uint16": numba.uint16,
    "uint8": numba.uint8,
    "uint32": numba.uint32,
    "int64": numba.int64,
    "uint64": numba.uint64,
}
_SCALARS = {"int": numba.int64, "float32": numba.float32, "float64": numba.float64}
# An array argument: two unused pointers, size, item size, address, shape, stride.
_ARRAY_FIELDS = "QQqqQqq"
_FIELDS = {"int": "q", "float32": "f", "float64": "d"}


def accumulator(dtype: Any) -> Any:
    """Numba type in which arrays of `dtype` are summed: float64 for itself, else float32."""
    return numba.float64 if dtype == np.float64 else numba.float32


def scalar(value: float, acc: Any) -> Any:
    """`value` as a kernel argument of numba type `acc`."""
    return np.float64(value) if acc is numba.float64 else np.float32(value)


def address(array: Any) -> int:
    """Where an array starts in its device's memory."""
    if isinstance(array, np.ndarray):
        return int(array.ctypes.data)
    try:
        return int(array.data.ptr)
    except AttributeError:
        return int(array.__cuda_array_interface__["data"][0])


def vector_width(length: int, *arrays: Any) -> int:
    """Lanes per 16-byte access: 1 unless all arrays allow it along an axis of `length`."""
    V = 16 // max(array.dtype.itemsize for array in arrays)
    if length % V or any(array.size and address(array) % 16 for array in arrays):
        return 1
    return V


def packed(args: tuple[Any, ...]) -> tuple[tuple[Any, ...], list[Any]]:
    """Return what a kernel is compiled for, and the numbers that the driver gets, in their order.

    Of each argument, the first is "int", "float32", "float32[]" ..., or a tuple of them.
    """
    fields: list[Any] = []
    return tuple([_pack(value, fields) for value in args]), fields


def _pack(value: Any, fields: list[Any]) -> Any:
    """Append the fields of one argument; return its kind."""
    if isinstance(value, int):
        fields.append(value)
        return "int"
    if isinstance(value, tuple):
        return tuple([_pack(item, fields) for item in value])
    number, array, item = _names(value.dtype)
    if isinstance(value, np.generic):
        fields.append(value)
        return number
    size = value.size
    # An empty array stands for "not given"; it may live on the host.
    fields += (0, 0, size, item, address(value) if size else 0, size, item)
    return array


@functools.cache
def _names(dtype: Any) -> tuple[str, str, int]:
    """Kinds of a number and of an array of `dtype`, and its item size."""
    return dtype.name, f"{dtype.name}[]", dtype.itemsize


def _type(kind: Any) -> Any:
    if isinstance(kind, tuple):
        return numba.types.Tuple(tuple(map(_type, kind)))
    return _ARRAYS[kind[:-2]][::1] if kind.endswith("[]") else _SCALARS[kind]


def _format(kind: Any) -> str:
    if isinstance(kind, tuple):
        return "".join(map(_format, kind))
    return _ARRAY_FIELDS if kind.endswith("[]") else _FIELDS[kind]


def _simulated_argument(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_simulated_argument, value))
    if not isinstance(value, np.ndarray):
        return value
    from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

    flat = value.view(np.ndarray).reshape(-1)
    return FakeCUDAArray(flat.view(np.uint16) if flat.dtype.name == "bfloat16" else flat)


# -------------------------------------------------------------------------------- compiling


def compile_kernel(variant: Variant, kinds: tuple[Any, ...], cc: tuple[int, int]) -> bytes:
    """PTX of a variant for argument kinds such as "float32[]", "int" and "float64"."""
    signature = numba.void(*map(_type, kinds))
    ptx, _ = cuda.compile(
        variant.function, signature, cc=cc, device=False, abi="numba", output="ptx"
    )
    return ptx.encode() if isinstance(ptx, str) else bytes(ptx)


def link(ptx: bytes, cc: tuple[int, int], *options: str) -> tuple[bytes, str]:
    """Machine code of a PTX text and the linker's report; needs no device."""
    from cuda.bindings import nvjitlink

    arguments = [f"-arch=sm_{cc[0]}{cc[1]}", "-O3", *options]
    handle = nvjitlink.create(len(arguments), arguments)
    try:
        nvjitlink.add_data(handle, nvjitlink.InputType.PTX, ptx, len(ptx), "nbbn")
        nvjitlink.complete(handle)
        cubin = bytearray(nvjitlink.get_linked_cubin_size(handle))
        nvjitlink.get_linked_cubin(handle, cubin)
        report = bytearray(nvjitlink.get_info_log_size(handle))
        nvjitlink.get_info_log(handle, report)
    finally:
        nvjitlink.destroy(handle)
    return bytes(cubin), report.decode(errors="replace")


def entry_name(ptx: bytes) -> bytes:
    """Name of the one kernel of a PTX text."""
    return ptx.split(b".entry", 1)[1].split(b"(", 1)[0].strip()


# -------------------------------------------------------------------------------- launching


class _Loaded:
    """A variant compiled for the device and the kinds of its arguments."""

    def __init__(self, variant: Variant, kinds: tuple[Any, ...]) -> None:
        cc = _device.capability()
        if cc < _LEAST_FOR_16_BITS and "16" in repr(kinds):
            raise RuntimeError(
                f"16-bit types need a device of compute capability 8.0 or more, this one has "
                f"{cc[0]}.{cc[1]}: use float32"
            )

        def build() -> bytes:
            ptx = compile_kernel(variant, kinds, cc)
            return entry_name(ptx) + b"\0" + link(ptx, cc)[0]

        key = (variant.constants, kinds, cc, THREADS, _compiler_version())
        name, code = cached(f"{variant.name}-cuda", key, build).split(b"\0", 1)
        self._module = _check(_driver().cuModuleLoadData(code))
        self._function = _check(_driver().cuModuleGetFunction(self._module, name))
        fields = _format(kinds)
        self._struct = struct.Struct("@" + fields)
        self._memory = ctypes.create_string_buffer(self._struct.size)
        base = ctypes.addressof(self._memory)
        ends = [struct.calcsize("@" + fields[: k + 1]) for k in range(len(fields))]
        starts = [
            end - struct.calcsize("@" + field) for end, field in zip(ends, fields, strict=True)
        ]
        self._starts = (ctypes.c_void_p * len(fields))(*(base + start for start in starts))
        self._pointers = ctypes.addressof(self._starts)
        # One set of argument memory: the driver copies it during the call.
        self._lock = threading.Lock()

    def launch(self, grid: tuple[int, ...], block: tuple[int, int], fields: list[Any]) -> None:
        """Queue the kernel on the current stream."""
        _device.bind()
        x, y, z = (*grid, 1, 1)[:3]
        with self._lock:
            self._struct.pack_into(self._memory, 0, *fields)
            status = _driver().cuLaunchKernel(
                self._function, x, y, z, block[0], block[1], 1, 0, current_stream(),
                self._pointers, 0,
            )  # fmt: skip
        _check(status)


class Memory:
    """Device memory of this module's own: `size` elements of `dtype` at an address."""

    def __init__(self, size: int, dtype: Any, pointer: int) -> None:
        self.size, self.dtype, self.ptr = size, np.dtype(dtype), pointer

    @property
    def data(self) -> Memory:
        """What has the address, as in CuPy's arrays."""
        return self


class _Device(threading.local):
    """The device that this thread uses: its current one, or the first."""

    bound = False

    def bind(self) -> None:
        """Make sure that this thread has a context: the one that every CUDA library shares."""
        if self.bound:
            return
        driver = _driver()
        _check(driver.cuInit(0))
        if not int(_check(driver.cuCtxGetCurrent())):
            context = _check(driver.cuDevicePrimaryCtxRetain(_check(driver.cuDeviceGet(0))))
            _check(driver.cuCtxSetCurrent(context))
        self.bound = True

    def capability(self) -> tuple[int, int]:
        """Compute capability, such as (9, 0)."""
        self.bind()
        driver = _driver()
        device = _check(driver.cuCtxGetDevice())
        names = driver.CUdevice_attribute
        major = names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        minor = names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR
        return tuple(int(_check(driver.cuDeviceGetAttribute(a, device))) for a in (major, minor))


_device = _Device()
_scratch: dict[tuple[int, int], tuple[Any, Any]] = {}
_PER_THREAD_STREAM = 2
# Rounding pairs of numbers in one instruction.
_LEAST_FOR_16_BITS = (8, 0)


def scratch(acc: Any) -> tuple[Any, Any]:
    """Partial sums of type `acc`, and tickets that are all zero, private to the current stream."""
    stream = current_stream()
    # One handle stands for the default streams of all threads.
    key = stream, threading.get_ident() if stream == _PER_THREAD_STREAM else 0
    if key not in _scratch:
        _scratch[key] = _zeros(BLOCKS * PARTIALS, np.float32), _zeros(BLOCKS, np.uint32)
    partials, tickets = _scratch[key]
    if acc is numba.float64:
        partials = _as_float64(partials)
    return partials, tickets


def _as_float64(memory: Any) -> Any:
    if isinstance(memory, np.ndarray):
        return memory.view(np.float64)
    return Memory(memory.size // 2, np.float64, memory.ptr)


def _zeros(size: int, dtype: Any) -> Any:
    if SIMULATED:
        return np.zeros(size, dtype)
    _device.bind()
    pointer = int(_check(_driver().cuMemAlloc(4 * size)))
    # In the only stream that uses it: nothing needs to wait, and nothing outside it is touched.
    _check(_driver().cuMemsetD32Async(pointer, 0, size, current_stream()))
    return Memory(size, dtype, pointer)


@functools.cache
def _driver() -> Any:
    from cuda.bindings import driver

    return driver


def _compiler_version() -> tuple[str, str]:
    import cuda.bindings
    import numba_cuda

    return str(numba_cuda.__version__), str(cuda.bindings.__version__)


def _check(status: Any) -> Any:
    """Result of a driver call, or RuntimeError with the driver's name for what went wrong."""
    code, *values = status
    if int(code):
        raise RuntimeError(f"CUDA driver: {code.name}")
    return values[0] if values else None
