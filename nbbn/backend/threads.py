"""How many threads kernels and matrix products use: both run on Numba's."""

from __future__ import annotations

from .._validation import positive
from ..errors import ArgumentError

__all__ = ["limit"]


def limit(threads: int) -> None:
    """Use `threads` threads for kernels and matrix products that this thread calls.

    The results have the same bits for every number. NumPy's own BLAS is left as it is.

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

    from ..kernels import _jit  # noqa: F401 - finds TBB before Numba starts its threads

    threads = positive(threads, "threads")
    if threads > most():
        raise ArgumentError(f"threads must be at most {most()}, the number of cores; got {threads}")
    numba.set_num_threads(threads)


def most() -> int:
    """Return how many threads Numba was started with."""
    import numba

    return int(numba.config.NUMBA_NUM_THREADS)
