"""Matrix products by cuBLAS, called directly: CuPy refuses its own calls during a stream capture.

One handle for all threads, and a workspace per stream: products of two streams may run at the same
time. It is fixed, so that a captured product finds in every replay the memory of its capture.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import threading
from typing import Any

import numpy as np

from ...errors import DeviceError

# NVIDIA's advice for the Hopper generation; older ones need less.
_WORKSPACE_BYTES = 32 << 20
_NO_TRANSPOSE, _TRANSPOSE = 0, 1
# Types of products, and what cuBLAS calls them.
TYPES = {np.dtype(np.float32): ("S", ctypes.c_float), np.dtype(np.float64): ("D", ctypes.c_double)}


@functools.cache
def library() -> ctypes.CDLL:
    """Load cuBLAS; raises DeviceError where it is not installed."""
    try:
        finder = importlib.import_module("cuda.pathfinder")
        return ctypes.CDLL(finder.load_nvidia_dynamic_lib("cublas").abs_path)
    except Exception as error:  # the finder has error classes of its own
        reason = " ".join(str(error).split())[:120]
        raise DeviceError(f"cuBLAS cannot be loaded ({reason}): install nvidia-cublas") from error


# Each product sets the handle up again: one at a time.
_lock = threading.Lock()
_workspaces: dict[tuple[int, int], Any] = {}
_PER_THREAD_STREAM = 2


def _check(status: int, call: str) -> None:
    if status:
        raise DeviceError(f"cuBLAS reports status {status} for {call}")


@functools.cache
def _handle() -> ctypes.c_void_p:
    handle = ctypes.c_void_p()
    _check(library().cublasCreate_v2(ctypes.byref(handle)), "cublasCreate")
    return handle


def _prepared(stream: int) -> ctypes.c_void_p:
    """Return the handle, set up for a stream."""
    # One number stands for the default streams of all threads.
    key = stream, threading.get_ident() if stream == _PER_THREAD_STREAM else 0
    if key not in _workspaces:
        _workspaces[key] = importlib.import_module("cupy").empty(_WORKSPACE_BYTES, np.uint8)
    memory = ctypes.c_void_p(_workspaces[key].data.ptr)
    cublas, handle = library(), _handle()
    # Setting the stream takes the workspace away.
    _check(cublas.cublasSetStream_v2(handle, ctypes.c_void_p(stream)), "cublasSetStream")
    size = ctypes.c_size_t(_WORKSPACE_BYTES)
    _check(cublas.cublasSetWorkspace_v2(handle, memory, size), "cublasSetWorkspace")
    return handle


def forget(stream: int) -> None:
    """Give the workspace of a stream back that nothing will be launched on any more."""
    _workspaces.pop((stream, 0), None)


def _operand(array: Any) -> tuple[int, int]:
    """Whether a matrix is stored by columns, transposed to cuBLAS, and its leading dimension."""
    rows, columns = array.shape[-2:]
    down, right = (stride // array.dtype.itemsize for stride in array.strides[-2:])
    if (right == 1 or columns == 1) and (down >= columns or rows == 1):
        return _NO_TRANSPOSE, max(down if rows > 1 else columns, columns, 1)
    return _TRANSPOSE, max(right if columns > 1 else rows, rows, 1)


def gemm(a: Any, b: Any, out: Any, stream: int) -> None:
    """Write a @ b to out on a stream, in full precision of the type.

    a (m, k) and b (k, n) lie by rows or by columns, without gaps inside one; out (m, n) is
    C-contiguous, of a type in `TYPES`. Where out is a stack (count, m, n), a and b are stacks too,
    or one matrix for all. cuBLAS counts by columns, so it is asked for out.T = b.T @ a.T.
    """
    letter, scalar = TYPES[out.dtype]
    stacked = out.ndim == 3
    name = f"cublas{letter}gemm{'StridedBatched' if stacked else '_v2'}_64"
    (m, k), n = a.shape[-2:], b.shape[-1]
    (a_transposed, lda), (b_transposed, ldb) = _operand(a), _operand(b)
    one, zero = ctypes.byref(scalar(1)), ctypes.byref(scalar(0))
    places = []
    for array, leading in ((b, ldb), (a, lda), (out, max(n, 1))):
        place = [ctypes.c_void_p(array.data.ptr), ctypes.c_int64(leading)]
        if stacked:
            step = array.strides[0] // array.dtype.itemsize if array.ndim == 3 else 0
            place.append(ctypes.c_int64(step))
        places.append(place)
    count = [ctypes.c_int64(len(out))] if stacked else []
    with _lock:
        status = getattr(library(), name)(
            _prepared(stream), b_transposed, a_transposed, *map(ctypes.c_int64, (n, m, k)),
            one, *places[0], *places[1], zero, *places[2], *count,
        )  # fmt: skip
    _check(status, name)
