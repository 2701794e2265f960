"""A fast and strict engine for the CUDA simulator of numba-cuda.

The simulator runs each CUDA thread as a thread of the operating system, and a barrier costs it
milliseconds. Here a CUDA thread is a greenlet: a switch costs a microsecond, and which thread runs
of those that could is chosen, across blocks too, so that a kernel that lacks a barrier fails every
time and not once in a while. Shared memory starts out as NaN.

`install()` replaces the simulator's engine for the process; `order.schedule` chooses the order.
"""

from __future__ import annotations

import heapq
import random
import sys
from collections.abc import Callable
from typing import Any, ClassVar

import greenlet
import numpy as np
from numba.cuda.np import numpy_support
from numba.cuda.simulator import kernel, kernelapi

from tests.gpu import order


class DivergentBarrierError(RuntimeError):
    """Some threads of a block wait at a barrier that others have left out."""


# Blocks that run at the same time, as on the multiprocessors of a small device.
_AT_ONCE = 32


class _Team:
    """The threads of one block: how many there are, still run, and wait at a barrier."""

    def __init__(self, place: tuple[int, ...], size: int) -> None:
        self.place, self.size, self.alive = place, size, size
        self.waiting: list[_Thread] = []
        self.shared: dict[tuple[str, int], np.ndarray] = {}


class _Thread:
    """One CUDA thread."""

    def __init__(self, team: _Team, index: tuple[int, ...], run: Callable[[], None]) -> None:
        self.team = team
        self.blockIdx = kernelapi.Dim3(*team.place)
        self.threadIdx = kernelapi.Dim3(*index)
        self.greenlet = greenlet.greenlet(run)


_current: _Thread


class _Blocks:
    """Takes the place of the simulator's BlockManager, which is made and run for each block."""

    _places: ClassVar[list[tuple[int, ...]]] = []

    def __init__(self, function: Any, grid: tuple, block: tuple, debug: bool) -> None:
        self._function, self._shape = function, block
        self._last = tuple(n - 1 for n in grid)

    def run(self, place: tuple[int, ...], *args: Any) -> None:
        """Put the block on a list, and run those on it once there are enough."""
        self._places.append(place)
        if place == self._last or len(self._places) == _AT_ONCE:
            places = self._places.copy()
            self._places.clear()
            self._run(places, args)

    def _run(self, places: list[tuple[int, ...]], args: tuple[Any, ...]) -> None:
        """Run, at each turn, the most urgent thread of those that do not wait at a barrier."""
        global _current
        indices = list(np.ndindex(*self._shape))
        teams = [_Team(place, len(indices)) for place in places]
        threads = [
            _Thread(team, index, lambda: self._function(*args))
            for team in teams
            for index in indices
        ]
        turns = self._turns(threads)
        ready = [turns(thread) for thread in threads]
        heapq.heapify(ready)
        while ready:
            *_, _current = heapq.heappop(ready)
            team = _current.team
            _current.greenlet.switch()
            if _current.greenlet.dead:
                team.alive -= 1
            else:
                team.waiting.append(_current)
            if 0 < len(team.waiting) == team.alive:
                if team.alive < team.size:
                    raise DivergentBarrierError(
                        f"{team.alive} of {team.size} threads of block {team.place} "
                        "wait at a barrier"
                    )
                for thread in team.waiting:
                    heapq.heappush(ready, turns(thread))
                team.waiting = []

    @staticmethod
    def _turns(threads: list[_Thread]) -> Callable[[_Thread], tuple[float, int, _Thread]]:
        """Make a function that puts a thread's turn, the smallest first, before it."""
        number = {thread: n for n, thread in enumerate(threads)}
        urgent = order.current()
        if urgent == "forward":
            return lambda thread: (0, number[thread], thread)
        if urgent == "reversed":
            return lambda thread: (0, -number[thread], thread)
        # Each time anew, and now and then so late that others get far ahead.
        draw = random.Random(urgent).random
        return lambda thread: (1 / (1 - draw()), number[thread], thread)


def _syncthreads(_: Any) -> None:
    _current.greenlet.parent.switch()


def _shared_array(_: Any, shape: Any, dtype: Any) -> np.ndarray:
    frame = sys._getframe(1)
    line, shared = (frame.f_code.co_filename, frame.f_lineno), _current.team.shared
    if line not in shared:
        array = np.empty(shape, numpy_support.as_dtype(dtype))
        array.view(np.uint8)[...] = 0xFF
        shared[line] = array
    return shared[line]


def install() -> None:
    """Use this engine from now on."""
    module = kernelapi.FakeCUDAModule
    kernel.BlockManager = _Blocks
    module.threadIdx = property(lambda _: _current.threadIdx)
    module.blockIdx = property(lambda _: _current.blockIdx)
    module.syncthreads = _syncthreads
    kernelapi.FakeCUDAShared.array = _shared_array
