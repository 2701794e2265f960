"""Matrix products by cuBLAS, called directly: CuPy refuses its own calls during a stream capture.

One handle and one workspace per thread. The workspace is fixed, so that a captured product finds in
every replay the memory that it was captured with.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import threading
from typing import Any

import numpy as np

from ..errors import DeviceError

__all__ = ["gemm", "library"]

# NVIDIA's advice for the Hopper generation; older ones need less.
_WORKSPACE_BYTES = 32 << 20
_NO_TRANSPOSE, _TRANSPOSE = 0, 1
_GEMM = {
    np.dtype(np.float32): ("cublasSgemm_v2", ctypes.c_float),
    np.dtype(np.float64): ("cublasDgemm_v2", ctypes.c_double),
}


@functools.cache
def library() -> ctypes.CDLL:
    """Load cuBLAS.

    Returns
    -------
    CDLL

    Raises
    ------
    DeviceError
        It is not installed.
    """
    try:
        finder = importlib.import_module("cuda.pathfinder")
        return ctypes.CDLL(finder.load_nvidia_dynamic_lib("cublas").abs_path)
    except Exception as error:  # the finder has error classes of its own
        reason = " ".join(str(error).split())[:120]
        raise DeviceError(f"cuBLAS cannot be loaded ({reason}): install nvidia-cublas") from error


class _Local(threading.local):
    handle: ctypes.c_void_p | None = None
    workspace: Any = None


_local = _Local()


def _check(status: int, call: str) -> None:
    if status:
        raise DeviceError(f"cuBLAS reports status {status} for {call}")


def _handle(stream: int) -> ctypes.c_void_p:
    cublas = library()
    if _local.handle is None:
        handle = ctypes.c_void_p()
        _check(cublas.cublasCreate_v2(ctypes.byref(handle)), "cublasCreate")
        _local.workspace = importlib.import_module("cupy").empty(_WORKSPACE_BYTES, np.uint8)
        _local.handle = handle
    # Setting the stream takes the workspace away.
    _check(cublas.cublasSetStream_v2(_local.handle, ctypes.c_void_p(stream)), "cublasSetStream")
    memory, size = ctypes.c_void_p(_local.workspace.data.ptr), ctypes.c_size_t(_WORKSPACE_BYTES)
    _check(cublas.cublasSetWorkspace_v2(_local.handle, memory, size), "cublasSetWorkspace")
    return _local.handle


def _operand(array: Any) -> tuple[int, int]:
    """Whether a matrix is stored by columns, transposed to cuBLAS, and its leading dimension."""
    rows, columns = array.shape
    down, right = (stride // array.dtype.itemsize for stride in array.strides)
    if (right == 1 or columns == 1) and (down >= columns or rows == 1):
        return _NO_TRANSPOSE, max(down if rows > 1 else columns, columns, 1)
    return _TRANSPOSE, max(right if columns > 1 else rows, rows, 1)


def gemm(a: Any, b: Any, out: Any, stream: int) -> None:
    """Write a @ b to out on a stream, in full precision of the type.

    cuBLAS counts by columns, so it is asked for out.T = b.T @ a.T.

    Parameters
    ----------
    a, b : device array, shapes (m, k) and (k, n)
        By rows or by columns without gaps inside a row or column.
    out : device array, shape (m, n)
        C-contiguous.
    stream : int
        CUDA stream.

    Raises
    ------
    DeviceError
        cuBLAS is missing or reports an error.
    """
    name, scalar = _GEMM[out.dtype]
    (m, k), n = a.shape, b.shape[1]
    (a_transposed, lda), (b_transposed, ldb) = _operand(a), _operand(b)
    one, zero = scalar(1), scalar(0)
    status = getattr(library(), name)(
        _handle(stream), b_transposed, a_transposed, n, m, k, ctypes.byref(one),
        ctypes.c_void_p(b.data.ptr), ldb, ctypes.c_void_p(a.data.ptr), lda,
        ctypes.byref(zero), ctypes.c_void_p(out.data.ptr), max(n, 1),
    )  # fmt: skip
    _check(status, name)
