"""A fast and strict engine for the CUDA simulator of numba-cuda.

The simulator runs each CUDA thread as a thread of the operating system, and a barrier costs it
milliseconds. Here a CUDA thread is a greenlet: a switch costs a microsecond, and the order in which
threads run between barriers is chosen, so that a kernel that lacks a barrier fails every time and
not once in a while. Shared memory starts out as NaN.

`install()` replaces the simulator's engine for the process; `schedule(order)` chooses the order.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import greenlet
import numpy as np
from numba.cuda.np import numpy_support
from numba.cuda.simulator import kernel, kernelapi

# "forward", "reversed", or a seed for a shuffle of its own between any two barriers.
_order: str | int = "forward"


class DivergentBarrierError(RuntimeError):
    """Some threads of a block wait at a barrier that others have left out."""


class _Thread:
    """One CUDA thread; `barriers` counts those that it has reached."""

    def __init__(self, block: tuple[int, ...], index: tuple[int, ...], run: Callable[[], None]):
        self.blockIdx = kernelapi.Dim3(*block)
        self.threadIdx = kernelapi.Dim3(*index)
        self.greenlet = greenlet.greenlet(run)
        self.barriers = 0


_current: _Thread


class _Block:
    """Takes the place of the simulator's BlockManager: made for one block, run once."""

    def __init__(self, function: Any, grid: tuple, block: tuple, debug: bool) -> None:
        self._function, self._grid, self._shape = function, grid, block

    def run(self, place: tuple[int, ...], *args: Any) -> None:
        global _current
        threads = [
            _Thread(self._place(place), index, lambda: self._function(*args))
            for index in np.ndindex(*self._shape)
        ]
        shuffle = random.Random(_order) if isinstance(_order, int) else None
        while threads:
            if shuffle:
                shuffle.shuffle(threads)
            for thread in threads if _order != "reversed" else threads[::-1]:
                _current = thread
                thread.greenlet.switch()
            waiting = [thread for thread in threads if not thread.greenlet.dead]
            if len({thread.barriers for thread in waiting}) > 1 or 0 < len(waiting) < len(threads):
                raise DivergentBarrierError(
                    f"{len(waiting)} of {len(threads)} threads of block {place} wait at a barrier"
                )
            threads = waiting
        _shared.clear()

    def _place(self, place: tuple[int, ...]) -> tuple[int, ...]:
        """Blocks run one after the other; in which order, no kernel may rely on."""
        if _order == "forward":
            return place
        number = int(np.ravel_multi_index(place, self._grid))
        total = int(np.prod(self._grid))
        if _order == "reversed":
            number = total - 1 - number
        else:
            number = random.Random(_order).sample(range(total), total)[number]
        return tuple(int(i) for i in np.unravel_index(number, self._grid))


def _syncthreads(_: Any) -> None:
    _current.barriers += 1
    _current.greenlet.parent.switch()


_shared: dict[tuple[str, int], np.ndarray] = {}


def _shared_array(_: Any, shape: Any, dtype: Any) -> np.ndarray:
    frame = sys._getframe(1)
    place = frame.f_code.co_filename, frame.f_lineno
    if place not in _shared:
        array = np.empty(shape, numpy_support.as_dtype(dtype))
        array.view(np.uint8)[...] = 0xFF
        _shared[place] = array
    return _shared[place]


def install() -> None:
    """Use this engine from now on."""
    module = kernelapi.FakeCUDAModule
    kernel.BlockManager = _Block
    module.threadIdx = property(lambda _: _current.threadIdx)
    module.blockIdx = property(lambda _: _current.blockIdx)
    module.syncthreads = _syncthreads
    kernelapi.FakeCUDAShared.array = _shared_array


@contextmanager
def schedule(order: str | int) -> Iterator[None]:
    """Run threads and blocks "forward", "reversed", or shuffled by a seed."""
    global _order
    before, _order = _order, order
    try:
        yield
    finally:
        _order = before
