"""Matrix products on the CPU: tiles, each one single-threaded BLAS call, on Numba's own threads.

The tiles follow from the shape alone, so a product has the same bits for every number of threads.
BLAS is SciPy's, called by address from compiled code; its own threads rest meanwhile, because two
pools of threads would take the cores from each other. NumPy's BLAS is another one, left as it is.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import get_cython_function_address

from ._jit import PARALLEL_MIN, Kernel, bounds, device_function, prepares, scratch, workers
from ._vector import _or_in_python

# Multiplications of a product that is worth a second thread, and of a tile that is worth a third.
_WORTH_TWO = 1 << 20
_WORTH_MORE = 1 << 23
# Packing costs a tile as much as some ten of its rows or columns: few small tiles, many large ones.
_SHORTEST_CUT, _LONG_CUT, _SHORT_TILES, _MOST_TILES = 32, 256, 8, 64
# OpenBLAS multiplies up to so many numbers without packing them first, on cores that it has loops
# for: a fifth to a third faster in such pieces than all at once, unless b alone is turned.
_UNPACKED, _NEVER = 10**6, 2**62
_UNPACKED_CORES = ("SkylakeX", "Cooperlake", "SapphireRapids")
# Depth and width of such a piece; and rows of a for which turning b first is worth it.
_DEPTH, _WIDTH = 128, 64
_WORTH_TURNING = 1024
# BLAS starts no threads for so few.
_ALONE = 1 << 16
_INT_MAX = np.iinfo(np.int32).max
AS_IT_IS, TURNED = ord("N"), ord("T")


@functools.lru_cache(maxsize=1024)
def grid(M: int, N: int, K: int) -> tuple[int, int]:
    """How many tiles the result of (M, K) @ (K, N) has along its rows and its columns."""
    rows = cols = 1
    while rows * cols < _MOST_TILES:
        height, width = M // rows, N // cols
        work, longer, tiles = height * width * K, max(height, width), rows * cols
        if tiles == 1:
            cut = work > _WORTH_TWO and longer >= _SHORTEST_CUT
        else:
            cut = work > _WORTH_MORE and longer >= _LONG_CUT * (1 if tiles < _SHORT_TILES else 4)
        if not cut:
            break
        rows, cols = (rows, 2 * cols) if width > height else (2 * rows, cols)
    return rows, cols


def _product_in_python(gemm, one, flags_a, flags_b, m, n, k, a, lda, b, ldb, beta, c, ldc):
    # BLAS reads everything by address.
    real = np.ctypeslib.as_ctypes_type(one.dtype)
    flags = [ctypes.byref(ctypes.c_byte(flag)) for flag in (flags_a, flags_b)]
    m, n, k, lda, ldb, ldc = (ctypes.byref(ctypes.c_int(v)) for v in (m, n, k, lda, ldb, ldc))
    one, beta = ctypes.byref(real(one)), ctypes.byref(real(beta))
    a, b, c = map(ctypes.c_void_p, (a, b, c))
    ctypes.CFUNCTYPE(None)(gemm)(*flags, m, n, k, one, a, lda, b, ldb, beta, c, ldc)


@_or_in_python(_product_in_python)
def product(typing_context, gemm, one, flags_a, flags_b, m, n, k, a, lda, b, ldb, beta, c, ldc):
    """c = a @ b + beta * c by the Fortran function at the address `gemm`.

    Matrices are given by address, in columns. With beta = 0, c is not read.
    """
    arguments = gemm, one, flags_a, flags_b, m, n, k, a, lda, b, ldb, beta, c, ldc

    def generate(context, builder, signature, values):
        pointer = ir.IntType(8).as_pointer()

        def by_address(value, kind):
            slot = cgutils.alloca_once(builder, kind)
            builder.store(value, slot)
            return builder.bitcast(slot, pointer)

        def flag(value):
            return by_address(builder.trunc(value, ir.IntType(8)), ir.IntType(8))

        def number(value):
            return by_address(builder.trunc(value, ir.IntType(32)), ir.IntType(32))

        def matrix(value):
            return builder.inttoptr(value, pointer)

        gemm, one, flags_a, flags_b, m, n, k, a, lda, b, ldb, beta, c, ldc = values
        parameters = [
            flag(flags_a), flag(flags_b), number(m), number(n), number(k),
            by_address(one, one.type), matrix(a), number(lda), matrix(b), number(ldb),
            by_address(beta, one.type), matrix(c), number(ldc),
        ]  # fmt: skip
        kind = ir.FunctionType(ir.VoidType(), [pointer] * len(parameters))
        builder.call(builder.inttoptr(gemm, kind.as_pointer()), parameters)
        return context.get_dummy_value()

    return types.void(*arguments), generate


@device_function
def times(gemm, one, a, a_turned, lda, b, b_turned, ldb, beta, M, N, K, c, ldc):
    """c (M, N) = a (M, K) @ b (K, N) + beta * c; a matrix that is turned lies there transposed.

    Each is given by the address of its first element; rows are lda, ldb, ldc elements apart.
    """
    function, item, whole = gemm
    depth, width, height = K, N, M
    if M * N * K > whole and (a_turned or not b_turned):
        depth, width = min(K, _DEPTH), min(N, _WIDTH)
        height = whole // (depth * width)
    for k in range(0, K, depth):
        for n in range(0, N, width):
            for m in range(0, M, height):
                # BLAS counts by columns: the transposed of c is that of b times that of a.
                product(
                    function,
                    one,
                    TURNED if b_turned else AS_IT_IS,
                    TURNED if a_turned else AS_IT_IS,
                    min(width, N - n),
                    min(height, M - m),
                    min(depth, K - k),
                    b + (n * ldb + k if b_turned else k * ldb + n) * item,
                    ldb,
                    a + (k * lda + m if a_turned else m * lda + k) * item,
                    lda,
                    beta if k == 0 else one,
                    c + (m * ldc + n) * item,
                    ldc,
                )


@Kernel
def _tiles(gemm, one, a, a_turned, b, b_turned, rows, cols, c):
    """Write a @ b to c (..., M, N) in rows * cols tiles; a matrix that is `turned` is transposed.

    All are (m, n) or (count, m, n), with rows whose elements lie side by side.
    """
    M, N = c.shape[-2:]
    K = a.shape[-2] if a_turned else a.shape[-1]
    tiles = rows * cols
    a_step = a.strides[0] if a.ndim > 2 else 0
    b_step = b.strides[0] if b.ndim > 2 else 0
    # The stride of a single row may be anything.
    a_row = a.strides[-2] if a.shape[-2] > 1 else a.itemsize * a.shape[-1]
    b_row = b.strides[-2] if b.shape[-2] > 1 else b.itemsize * b.shape[-1]
    for t in prange(c.size // (M * N) * tiles):
        i, tile = t // tiles, t % tiles
        m0, m1 = bounds(tile // cols, rows, M)
        n0, n1 = bounds(tile % cols, cols, N)
        times(
            gemm,
            one,
            a.ctypes.data + i * a_step + m0 * (a.itemsize if a_turned else a_row),
            a_turned,
            a_row // a.itemsize,
            b.ctypes.data + i * b_step + n0 * (b_row if b_turned else b.itemsize),
            b_turned,
            b_row // b.itemsize,
            one - one,
            m1 - m0,
            n1 - n0,
            K,
            c.ctypes.data + ((i * M + m0) * N + n0) * c.itemsize,
            N,
        )


@Kernel
def _turn(x, y):
    """y = x.T, in squares whose rows and columns stay in the first cache."""
    M, N = y.shape
    for square in prange((M + 31) // 32):
        for n in range(0, N, 32):
            for i in range(32 * square, min(32 * square + 32, M)):
                for j in range(n, min(n + 32, N)):
                    y[i, j] = x[j, i]


def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """Write a (..., M, K) @ b (..., K, N) to out (..., M, N)."""
    if out.size * a.shape[-1] <= _ALONE:
        matmul_inside(a, b, out)
        return
    with one_thread:
        matmul_inside(a, b, out)


@prepares
def matmul_inside(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """As `matmul`, for callers that are inside `one_thread`."""
    found = blas().get(out.dtype)
    huge = max(a.size, b.size) > _INT_MAX and max(a.shape + b.shape) > _INT_MAX
    if found is None or huge or not out.flags.carray:
        # Other types: NumPy's own loops, which use no threads.
        np.matmul(a, b, out)
        return
    (M, N), K = out.shape[-2:], a.shape[-1]
    products = out.size * K
    if not products:
        out.fill(0)
        return
    if out.ndim > 2:
        a, b = _batched(a, out), _batched(b, out)
        out = out.reshape(-1, M, N)
    rows, cols = grid(M, N, K)
    threads = workers(PARALLEL_MIN) if products > _WORTH_TWO else 1
    (a, a_turned), (b, b_turned) = _operand(a, out.dtype), _operand(b, out.dtype)
    if b_turned and b.ndim == 2 and not a_turned and M >= _WORTH_TURNING:
        turned = scratch(0, b.size, out.dtype)[1][: b.size].reshape(K, N)
        _turn(workers(b.size), b, turned)
        b, b_turned = turned, False
    _tiles(threads, *found, a, a_turned, b, b_turned, rows, cols, out)


def _batched(x: np.ndarray, out: np.ndarray) -> np.ndarray:
    """View or copy x (..., m, n) as (count, m, n); (m, n) stays what it is, for all of `out`."""
    if x.ndim == 2:
        return x
    return np.broadcast_to(x, (*out.shape[:-2], *x.shape[-2:])).reshape(-1, *x.shape[-2:])


def _operand(x: np.ndarray, dtype: np.dtype[Any]) -> tuple[np.ndarray, bool]:
    """Matrices as BLAS can read them, copied only if it cannot; and whether transposed."""
    if x.dtype == dtype:
        flags = x.flags
        if flags.carray:
            return x, False
        turned = x.swapaxes(-1, -2)
        if turned.flags.carray:
            return turned, True
        if flags.aligned:
            for view, is_turned in ((x, False), (turned, True)):
                *_, row, item = view.strides
                if item == x.itemsize and x.itemsize * view.shape[-1] <= row <= _INT_MAX:
                    return view, is_turned
    return np.array(x, dtype, order="C"), False


@functools.cache
def blas() -> dict[np.dtype[Any], tuple[tuple[int, int, int], Any]]:
    """For each type the address of its product, its bytes, what to multiply as a whole; and one."""
    addresses = [
        get_cython_function_address("scipy.linalg.cython_blas", name) for name in ("sgemm", "dgemm")
    ]
    unpacked = all(getattr(own, "architecture", "") in _UNPACKED_CORES for own in libraries())
    most = _UNPACKED if unpacked else _NEVER
    return {
        np.dtype(number): ((address, number(1).itemsize, most), number(1))
        for address, number in zip(addresses, (np.float32, np.float64), strict=True)
    }


class _OneThread:
    """While any thread is inside, SciPy's BLAS uses no threads of its own.

    A signal, such as Ctrl-C, may raise in between and keep a thread from coming out. So threads are
    noted, not counted: the next product of that one brings it out.
    """

    def __init__(self) -> None:
        # Held during a fork: a child would wait for ever for a lock that another thread holds.
        self.lock = threading.RLock()
        self._inside: set[int] = set()
        self._held: list[tuple[Any, int]] = []

    def __enter__(self) -> None:
        try:
            with self.lock:
                self._inside.add(threading.get_ident())
                if not self._held:
                    for get, put in _thread_counts():
                        threads = get()
                        if threads > 1:
                            self._held.append((put, threads))
                            put(1)
        except BaseException:
            self._leave()
            raise

    def __exit__(self, *exc: object) -> None:
        try:
            self._leave()
        except BaseException:
            self._leave()
            raise

    def _leave(self) -> None:
        with self.lock:
            self._inside.discard(threading.get_ident())
            if not self._inside:
                self._release()

    def _release(self) -> None:
        while self._held:
            put, threads = self._held[-1]
            put(threads)
            self._held.pop()

    def after_fork_in_child(self) -> None:
        """Forget the parent's other threads, which are not here."""
        self._inside.clear()
        self._release()
        self.lock.release()


one_thread = _OneThread()
# A replay enters once for all of its products.
matmul.around, matmul.inside = one_thread, matmul_inside
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=one_thread.lock.acquire,
        after_in_parent=one_thread.lock.release,
        after_in_child=one_thread.after_fork_in_child,
    )


@functools.cache
def libraries() -> list[Any]:
    """What threadpoolctl knows of SciPy's BLAS: all but NumPy's own, or the one that both use."""
    from threadpoolctl import ThreadpoolController

    # Loads it.
    get_cython_function_address("scipy.linalg.cython_blas", "sgemm")
    found = [c for c in ThreadpoolController().lib_controllers if c.user_api == "blas"]
    return [c for c in found if "numpy.libs" not in c.filepath] or found


@functools.cache
def _thread_counts() -> list[tuple[Callable[[], int], Callable[[int], None]]]:
    """Functions that read and set how many threads SciPy's BLAS uses."""
    counts = []
    for library in libraries():
        get, put = library.get_num_threads, library.set_num_threads
        # threadpoolctl lets one thread of the process alone set those of OpenBLAS.
        for name in _OPENBLAS if library.internal_api == "openblas" else ():
            own = ctypes.CDLL(library.filepath)
            if hasattr(own, name.format("set")):
                get, put = getattr(own, name.format("get")), getattr(own, name.format("set"))
        counts.append((get, put))
    return counts


_OPENBLAS = [
    prefix + "openblas_{}_num_threads" + suffix
    for prefix in ("", "scipy_")
    for suffix in ("", "64_", "_64")
]
