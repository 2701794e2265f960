"""One pool of threads for kernels and matrix products.

OpenBLAS and Numba each keep a pool of their own. Their idle threads spin on the cores that the
other needs, so kernels between matrix products run serially unless both share one pool. OpenBLAS
can hand its jobs to a caller's threads (`openblas_set_threads_callback_function`): here to Numba's.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

from .._validation import positive
from ..errors import ArgumentError

__all__ = ["can_share", "limit", "share"]

_SETTERS = (
    "scipy_openblas_set_threads_callback_function64_",
    "scipy_openblas_set_threads_callback_function",
    "openblas_set_threads_callback_function64_",
    "openblas_set_threads_callback_function",
)


def limit(threads: int) -> None:
    """Use `threads` threads for kernels and for NumPy's matrix products in this process.

    Parameters
    ----------
    threads : int
        At most the number of cores.

    Raises
    ------
    ArgumentError
        Fewer than one, or more than Numba was started with.
    """
    import numba
    from threadpoolctl import threadpool_limits

    threads = positive(threads, "threads")
    most = numba.config.NUMBA_NUM_THREADS
    if threads > most:
        raise ArgumentError(f"threads must be at most {most}, the number of cores; got {threads}")
    numba.set_num_threads(threads)
    threadpool_limits(threads, user_api="blas")


def can_share() -> bool:
    """Whether NumPy's BLAS can run on the caller's threads.

    Returns
    -------
    bool
        True for an OpenBLAS that exports the function to say so.
    """
    return _setter() is not None


def share() -> bool:
    """Let NumPy's matrix products run on Numba's threads from now on.

    For a process that has its cores to itself: training steps become 5 to 30 % faster. Call it
    once, before other threads start. Where other processes want the same cores, threads that wait
    for each other lose their turns, and training is up to ten times slower than without. It changes
    the process, not the results. A forked child goes back to OpenBLAS's own threads.

    Returns
    -------
    bool
        False where nothing was changed: another BLAS, an old OpenBLAS, one thread, or a threading
        layer of Numba that is not OpenMP.
    """
    import numba

    setter = _setter()
    threads = numba.get_num_threads()
    if setter is None or threads == 1 or numba.threading_layer() != "omp":
        return False
    # OpenBLAS's jobs wait for each other: each needs a thread of its own.
    limit(threads)

    from ..kernels import _jit
    from ..kernels._blas_jobs import run_jobs

    setter(ctypes.c_void_p(run_jobs.address))
    os.register_at_fork(after_in_child=lambda: setter(ctypes.c_void_p(None)))
    _jit.shares_pool = True
    return True


def _setter() -> Any:
    # Loads NumPy's BLAS before its libraries are listed.
    import numpy  # noqa: F401
    from threadpoolctl import threadpool_info

    for pool in threadpool_info():
        folder = os.path.basename(os.path.dirname(pool["filepath"]))
        if pool["internal_api"] == "openblas" and not folder.startswith("scipy"):
            library = ctypes.CDLL(pool["filepath"])
            for name in _SETTERS:
                if hasattr(library, name):
                    return getattr(library, name)
    return None
