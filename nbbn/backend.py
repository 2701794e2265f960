"""The one place that knows where arrays live, how they are allocated and how work is launched.

Everything that computes goes through `run`. That makes a training step recordable: a `Recorder`
notes each launch with its arguments, and replaying the notes repeats the step over the same arrays.
"""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from .errors import DeviceError

__all__ = [
    "contiguous",
    "device_of",
    "empty",
    "kernels",
    "matmul",
    "not_recordable",
    "recording",
    "run",
]


class _Local(threading.local):
    recorder: Any = None


_local = _Local()


def device_of(array: Any) -> str:
    """Name the device that holds `array`; it follows from the data and is stored nowhere."""
    if isinstance(array, np.ndarray):
        return "cpu"
    raise DeviceError(
        f"expected a numpy.ndarray, got {type(array).__name__}: convert it with numpy.asarray first"
    )


@functools.cache
def kernels(op: str) -> Any:
    """Return the kernel module of `op`, imported on first use because it loads numba."""
    return importlib.import_module(f"nbbn.kernels.{op}_cpu")


def run(launcher: Callable[..., Any], *args: Any) -> None:
    """Call `launcher(*args)`, which writes its results into arrays, and note it while recording."""
    launcher(*args)
    if _local.recorder is not None:
        _local.recorder.note(launcher, args)


def empty(shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
    """Allocate an uninitialized array; a recorder hands out memory that it can use again."""
    if _local.recorder is not None:
        array: np.ndarray = _local.recorder.empty(shape, dtype)
        return array
    return np.empty(shape, dtype)


def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """Write ``a @ b`` to `out`, and let the kernels know that BLAS threads are about."""
    jit: Any = importlib.import_module("nbbn.kernels._jit")
    jit.alternates_with_blas = True
    run(np.matmul, a, b, out)


def contiguous(array: np.ndarray, dtype: Any) -> np.ndarray:
    """Return `array` in C order, aligned, native and of `dtype`: itself or a copy.

    A read-only array comes back as a writable alias: numba would compile every kernel again for the
    read-only type, and kernels do not write to their inputs.
    """
    flags = array.flags
    if array.dtype is dtype and flags.carray:
        return array
    if array.dtype == dtype and array.dtype.isnative and flags.c_contiguous and flags.aligned:
        return array if flags.writeable else np.asarray(_WritableAlias(array))
    copy = empty(array.shape, dtype)
    run(np.copyto, copy, array, "unsafe")
    return copy


def dense(array: np.ndarray) -> np.ndarray:
    """Return `array` native, aligned and without gaps, its axes in their own order, or a copy."""
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


class recording:  # noqa: N801 - reads as a statement: `with recording(recorder):`
    """Send launches and allocations of this thread to `recorder` for the duration."""

    def __init__(self, recorder: Any) -> None:
        self._recorder = recorder

    def __enter__(self) -> None:
        if _local.recorder is not None:
            raise RuntimeError("a recorded step cannot be recorded inside another one")
        _local.recorder = self._recorder

    def __exit__(self, *exc: object) -> None:
        _local.recorder = None
