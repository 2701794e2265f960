"""Large results on the host take over the memory of earlier ones.

The C library gives blocks of 32 MiB and more back to the system as soon as they are freed. Taking
one again costs a page fault for every page, several times what batch normalization costs. The last
few such blocks are kept for the next result instead.
"""

from __future__ import annotations

import math
import sys
import weakref
from collections import deque
from typing import Any

import numpy as np

from .._validation import integer

__all__ = ["keep"]

# glibc's highest threshold for giving memory back; 4 KiB less, for what it adds to a request.
SMALLEST = (1 << 25) - 4096
LARGEST = 1 << 27
_BLOCKS = 2
_WIDEST = 8  # bytes of an element

# Only its atomic operations are used: a block comes back whenever and wherever its array dies.
_free: deque[np.ndarray] = deque(maxlen=_BLOCKS)


def keep(blocks: int) -> None:
    """Set how many blocks of memory wait for the next large result.

    Parameters
    ----------
    blocks : int
        Of 32 to 128 MiB each; 2 at the start. 0 keeps none and frees those that wait.

    Raises
    ------
    ArgumentError, DTypeError
        `blocks` is no count.
    """
    global _free
    _free = deque(maxlen=integer(blocks, "blocks", least=0, most=sys.maxsize))


def empty(shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
    """Allocate an uninitialized array, large ones from memory that was used before."""
    size = shape if isinstance(shape, int) else math.prod(shape)
    if size * _WIDEST < SMALLEST:
        return np.empty(shape, dtype)
    nbytes = size * np.dtype(dtype).itemsize
    if not SMALLEST <= nbytes <= LARGEST:
        return np.empty(shape, dtype)
    memory = _take(nbytes)
    # The buffer in between makes this array, not the memory's, the base of all its views.
    root = np.frombuffer(memory[:nbytes].data, dtype)
    weakref.finalize(root, _give_back, memory).atexit = False
    return root.reshape(shape)


def _take(nbytes: int) -> np.ndarray:
    free = _free
    for _ in range(len(free)):
        try:
            memory = free.popleft()
        except IndexError:  # another thread was faster
            break
        if nbytes <= memory.nbytes <= 2 * nbytes:
            return memory
        free.append(memory)
    return np.empty(nbytes, np.uint8)


def _give_back(memory: np.ndarray) -> None:
    _free.append(memory)
