"""The one place that knows where arrays live, how they are allocated and how work is launched.

Everything that computes goes through `run`. That makes a training step recordable: a `Recorder`
notes each launch with its arguments, and replaying the notes repeats the step over the same arrays.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .._validation import as_array, instance, noticed
from ..errors import DeviceError
from . import pool
from .recorder import HostMemory

__all__ = [
    "add_at", "address", "adopt", "aligned_zeros", "assign", "available", "checked", "choose",
    "constant", "contiguous", "dense", "describe_devices", "device_adder", "device_module",
    "device_of", "empty", "fill", "host", "is_array", "is_bfloat16", "is_foreign",
    "is_writeable", "kernels", "matmul", "memory", "not_recordable", "on_compilation", "ones",
    "recorded", "recording", "require", "run", "run_ahead", "to", "verify", "zeros",
]  # fmt: skip

# What stands for CuPy in Numba's simulator: nbbn's tests set it before they ask for a device.
simulated: Any = None

_UINT16 = np.dtype(np.uint16)
# Views of other libraries' read-only arrays: CuPy's own are always writeable.
_read_only: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
# kDLCUDA and kDLCUDAManaged.
_DLPACK_CUDA = (2, 13)


class _Local(threading.local):
    recorder: Any = None


_local = _Local()


def device_of(array: Any) -> str:
    """Name the device that holds `array`, "cpu" or "cuda"; it follows from the data alone."""
    if isinstance(array, np.ndarray):
        return "cpu"
    if is_array(array):
        return "cuda"
    raise DeviceError(
        f"expected a numpy.ndarray or a device array, got {type(array).__name__}: "
        "convert it with numpy.asarray first"
    )


def is_array(value: Any) -> bool:
    """Whether `value` is an array that kernels can take: NumPy's, or one in device memory."""
    return isinstance(value, np.ndarray) or _is_device_class(type(value))  # type: ignore[arg-type]


@functools.lru_cache(maxsize=256)
def _is_device_class(kind: type) -> bool:
    """Whether objects of a class are the arrays in device memory that kernels can take."""
    # Loading CuPy takes a while: not before an array of its own turns up.
    return kind.__module__.startswith("cupy") and issubclass(kind, device_module().ndarray)


@functools.cache
def is_bfloat16(dtype: Any) -> bool:
    """Whether a dtype is the bfloat16 of ml_dtypes."""
    return str(dtype.name) == "bfloat16"


def is_foreign(value: Any) -> bool:
    """Whether `value` is an array in device memory that belongs to another library."""
    if value is None or is_array(value):
        return False
    if isinstance(value, np.generic | int | float | str | tuple):
        return False
    # First DLPack: PyTorch's other interface raises for a tensor that requires a gradient.
    where = getattr(value, "__dlpack_device__", None)
    if where is not None:
        return int(where()[0]) in _DLPACK_CUDA
    return hasattr(value, "__cuda_array_interface__")


def adopt(value: Any) -> Any:
    """View the device array of another library without a copy."""
    array = device_module().adopt(value)
    try:
        _, read_only = value.__cuda_array_interface__["data"]
    except Exception:  # PyTorch raises for a tensor that requires a gradient, JAX for some types
        read_only = False
    if read_only:
        _read_only[id(array)] = array
    return array


def is_writeable(array: Any) -> bool:
    """Whether `array` may be written: JAX's arrays may not, and some of the host."""
    if isinstance(array, np.ndarray):
        return array.flags.writeable
    return id(array) not in _read_only


@functools.cache
def device_module() -> Any:
    """Return the module that knows about device memory; raises DeviceError without CuPy."""
    try:
        from . import device
    except DeviceError:
        raise
    except Exception as error:  # a broken CUDA installation raises more than ImportError
        raise DeviceError(
            f"there is no CUDA support here ({error}): pip install 'nbbn[cuda13]' (or cuda12)"
        ) from error
    return device


def available(name: str) -> str | None:
    """Say in one line what keeps device `name` from being used, or return None."""
    if name == "cpu":
        return None
    if name != "cuda":
        return f"there is no device {name!r}: use 'cpu' or 'cuda'"
    try:
        return device_module().missing()  # type: ignore[no-any-return]
    except DeviceError as error:
        return str(error)


def require(name: str) -> str:
    """Return the name of a device that can be used, or raise DeviceError."""
    instance(name, str, "device")
    reason = available(name)
    if reason is not None:
        raise DeviceError(reason)
    return name


def choose(name: str) -> str:
    """Return a device that can be used; "auto" is cuda where there is one that is not simulated."""
    if name != "auto":
        return require(name)
    return "cpu" if available("cuda") or device_module().SIMULATED else "cuda"


def describe_devices() -> list[str]:
    """One line for each device, or for what is missing."""
    reason = available("cuda")
    return ["cpu", f"cuda: none, {reason}"] if reason else ["cpu", *device_module().describe()]


def to(array: Any, name: str) -> np.ndarray:
    """Return `array` on device `name`: itself, or a copy."""
    if device_of(array) == require(name):
        return array  # type: ignore[no-any-return]
    copy = device_module().to_host if name == "cpu" else device_module().to_device
    return copy(array)  # type: ignore[no-any-return]


def host(array: Any) -> np.ndarray:
    """Return a NumPy array, copied from the device where it is not one already."""
    if isinstance(array, np.ndarray):
        return array
    found: np.ndarray = device_module().to_host(array) if is_array(array) else as_array(array, "it")
    return found


@functools.cache
def kernels(op: str, name: str = "cpu") -> Any:
    """Return the kernel module of `op`, imported on first use because it loads numba."""
    if name != "cpu":
        return device_module().launchers(_cuda_kernels(op))
    match op:
        case "batchnorm":
            from ..kernels import batchnorm_cpu as module
        case "convolution":
            from ..kernels import convolution_cpu as module
        case "dropout":
            from ..kernels import dropout_cpu as module
        case "elementwise":
            from ..kernels import elementwise_cpu as module
        case "gather":
            from ..kernels import gather_cpu as module
        case "groupnorm":
            from ..kernels import groupnorm_cpu as module
        case "localresponse":
            from ..kernels import localresponse_cpu as module
        case "matmul":
            from ..kernels import matmul_cpu as module
        case "optim":
            from ..kernels import optim_cpu as module
        case "pooling":
            from ..kernels import pooling_cpu as module
        case "recurrent":
            from ..kernels import recurrent_cpu as module
        case "softmax":
            from ..kernels import softmax_cpu as module
        case "sparse":
            from ..kernels import sparse_cpu as module
        case "weighted":
            from ..kernels import weighted_cpu as module
    return module


def on_compilation(call: Callable[[], None]) -> Callable[[], None]:
    """Call a function once, when the next kernel compiles that the cache does not have.

    Return what takes that back.
    """
    from ..kernels import _cache

    def note(name: str) -> None:
        _cache.on_compile = None
        call()

    def forget() -> None:
        if _cache.on_compile is note:
            _cache.on_compile = None

    _cache.on_compile = note
    return forget


def _cuda_kernels(op: str) -> Any:
    match op:
        case "batchnorm":
            from ..kernels import batchnorm_cuda as module
        case "convolution":
            from ..kernels import convolution_cuda as module
        case "dropout":
            from ..kernels import dropout_cuda as module
        case "elementwise":
            from ..kernels import elementwise_cuda as module
        case "gather":
            from ..kernels import gather_cuda as module
        case "groupnorm":
            from ..kernels import groupnorm_cuda as module
        case "localresponse":
            from ..kernels import localresponse_cuda as module
        case "optim":
            from ..kernels import optim_cuda as module
        case "pooling":
            from ..kernels import pooling_cuda as module
        case "recurrent":
            from ..kernels import recurrent_cuda as module
        case "softmax":
            from ..kernels import softmax_cuda as module
    return module


def run(launcher: Callable[..., Any], *args: Any) -> None:
    """Call `launcher(*args)`, which writes its results into arrays, and note it while recording."""
    if _local.recorder is None:
        launcher(*args)
    else:
        _launch_and_note(launcher, args)


def _launch_and_note(launcher: Callable[..., Any], args: tuple[Any, ...], when: str = "") -> None:
    # What a launcher does with numbers, it does in a replay too.
    with noticed(None):
        launcher(*args)
    _local.recorder.note(launcher, args, when)


def checked(kernel: Any, dtype: Any) -> Callable[..., bool] | None:
    """Return what runs a kernel that checks its operands; None while recording: no note is made."""
    return None if _local.recorder is not None else kernel.compiled(dtype)


def recorded() -> bool:
    """Whether a recorder notes the launches of this thread."""
    return _local.recorder is not None


def run_ahead(function: Callable[..., Any], *args: Any) -> None:
    """As `run`, for work of the host that a replay may do before everything else of the step."""
    if _local.recorder is None:
        function(*args)
    else:
        _launch_and_note(function, args, "ahead")


def verify(flag: Any, complain: Callable[..., Any], *args: Any) -> None:
    """Call ``complain(value, *args)``, which raises, unless ``flag[0]`` is below 0.

    A replay on a device reads the flag together with the step's result, and waits only once.
    """
    _verify(flag, complain, *args)
    if _local.recorder is not None:
        _local.recorder.note(_verify, (flag, complain, *args), "after")


def _verify(flag: Any, complain: Callable[..., Any], *args: Any) -> None:
    value = int(flag[0])
    if value >= 0:
        complain(value, *args)


def ones(shape: int | tuple[int, ...], dtype: Any, name: str) -> np.ndarray:
    """Allocate an array of ones that is not part of a recording."""
    return _filled(shape, dtype, name, 1)


def zeros(shape: int | tuple[int, ...], dtype: Any, name: str) -> np.ndarray:
    """Allocate an array of zeros that is not part of a recording."""
    return _filled(shape, dtype, name, 0)


def _filled(shape: int | tuple[int, ...], dtype: Any, name: str, value: int) -> np.ndarray:
    empty = np.empty if name == "cpu" else device_module().empty
    array: np.ndarray = empty(shape, dtype)
    array.fill(value)
    constant(array)
    return array


def constant(array: Any) -> Any:
    """Return `array`, which follows from shapes alone: a recorded step may keep it."""
    if _local.recorder is not None:
        _local.recorder.know(array)
    return array


def add_at(target: Any, index: Any, values: Any) -> None:
    """As ``numpy.add.at``: positions taken twice add up."""
    if isinstance(target, np.ndarray):
        np.add.at(target, index, values)
    else:
        device_module().add_at(target, index, values)


def assign(target: Any, values: np.ndarray) -> None:
    """Copy an array of the host over `target`, wherever that is."""
    if not isinstance(target, np.ndarray):
        values = device_module().to_device(np.ascontiguousarray(values, target.dtype))
    target[...] = values


def fill(target: Any, values: Any) -> None:
    """Write a few numbers of the host into a small array, wherever it is."""
    if isinstance(target, np.ndarray):
        target[...] = values
    else:
        device_module().upload(values, target)


def empty(
    shape: int | tuple[int, ...], dtype: Any, name: str = "cpu", *, lasting: bool = False
) -> np.ndarray:
    """Allocate an uninitialized array; a recorder hands out memory that it can use again.

    `lasting` memory belongs to its array for the whole of a recorded step.
    """
    if _local.recorder is not None:
        return _local.recorder.empty(shape, dtype, name, lasting)  # type: ignore[no-any-return]
    if name == "cpu":
        return pool.empty(shape, dtype)
    return device_module().empty(shape, dtype)  # type: ignore[no-any-return]


def device_adder(exchange: Callable[[Any], list[Any]], rank: int) -> Callable[[Any], None] | None:
    """Return what sums device arrays over all processes where they are; None without NCCL.

    `exchange` returns what each of the processes passes, in the order of their ranks.
    """
    device_module()
    from .device import nccl

    library = nccl.library()
    identities = exchange(library and library.get_unique_id())
    if None in identities:
        return None
    return nccl.adder(library, len(identities), identities[0], rank)


def aligned_zeros(size: int, dtype: Any, name: str) -> np.ndarray:
    """As `zeros`, flat and from a cache line on: loops over it are up to twice as fast."""
    if name != "cpu" or not size:
        return zeros(size, dtype, name)
    array = HostMemory.root(HostMemory.allocate(size * np.dtype(dtype).itemsize), dtype)
    array.fill(0)
    return array


def memory(array: Any) -> Any:
    """Return what handles the device memory of `array` for a recorder, None on the host."""
    return None if isinstance(array, np.ndarray) else device_module().Memory


def matmul(a: Any, b: Any, out: Any) -> None:
    """Write ``a @ b`` to `out`."""
    host = isinstance(out, np.ndarray)
    run(kernels("matmul").matmul if host else device_module().matmul, a, b, out)


def contiguous(array: Any, dtype: Any) -> np.ndarray:
    """Return `array` in C order, aligned, native and of `dtype`: itself or a copy.

    A read-only array comes back as a writable alias: numba would compile every kernel again for the
    read-only type, and kernels do not write to their inputs.
    """
    if not isinstance(array, np.ndarray):
        return _contiguous_on_device(array, dtype)
    flags = array.flags
    if array.dtype is dtype and flags.carray:
        return array
    if array.dtype == dtype and array.dtype.isnative and flags.c_contiguous and flags.aligned:
        return array if flags.writeable else np.asarray(_WritableAlias(array))
    copy = empty(array.shape, dtype)
    run(np.copyto, copy, array, "unsafe")
    return copy


def _contiguous_on_device(array: Any, dtype: Any) -> np.ndarray:
    device_module().check_current(array)
    if dtype == _UINT16 and is_bfloat16(array.dtype):
        return _contiguous_on_device(array, array.dtype).view(_UINT16)
    if array.dtype == dtype and array.flags.c_contiguous:
        return array  # type: ignore[no-any-return]
    copy = empty(array.shape, dtype, "cuda")
    run(np.copyto, copy, array, "unsafe")
    return copy


def address(array: Any) -> int:
    """Address of the first element, wherever it is."""
    return int((memory(array) or HostMemory).address(array))


def dense(array: Any) -> Any:
    """Return `array` native, aligned and without gaps, its axes in their own order, or a copy."""
    if not isinstance(array, np.ndarray):
        whole = np.may_share_memory(array.ravel("K"), array)
        return array if whole else _contiguous_on_device(array, array.dtype)
    if not array.dtype.isnative or not array.flags.aligned:
        array = array.astype(array.dtype.newbyteorder("="))
    if not array.flags.c_contiguous and not np.may_share_memory(array.ravel("K"), array):
        array = np.ascontiguousarray(array)
    return array if array.flags.writeable else np.asarray(_WritableAlias(array))


class _WritableAlias:
    def __init__(self, array: np.ndarray) -> None:
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface
        self._owner = array


def not_recordable(reason: str) -> None:
    """Say that what follows depends on values, so that a recorder must not replay it blindly."""
    if _local.recorder is not None:
        _local.recorder.refuse(reason)


@contextlib.contextmanager
def recording(recorder: Any) -> Iterator[None]:
    """Send launches and allocations of this thread to `recorder` for the duration."""
    if _local.recorder is not None:
        raise RuntimeError("a recorded step cannot be recorded inside another one")
    _local.recorder = recorder
    try:
        with noticed(recorder.refuse_number):
            yield
    finally:
        _local.recorder = None
