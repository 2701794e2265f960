"""Memory of the PTX interpreter: every access is checked as compute-sanitizer's memcheck would.

Global memory is this process's own: addresses are real, and only what has been registered may be
touched. Shared and local memory hold one copy per block or thread, full of NaN at first.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from typing import Any

import numpy as np


class AccessError(Exception):
    """An access that a device would refuse, or worse. `place` is where in the batch of threads."""

    def __init__(self, message: str, place: int) -> None:
        super().__init__(message)
        self.place = place


def _first(wrong: np.ndarray) -> int:
    return int(np.flatnonzero(wrong)[0])


def _check_alignment(addresses: np.ndarray, size: int) -> None:
    wrong = addresses & (size - 1)
    if wrong.any():
        k = _first(wrong)
        raise AccessError(f"{size} bytes at the misaligned address {int(addresses[k]):#x}", k)


class Traffic:
    """What the blocks of one launch pass to each other through global memory.

    A block may read what another has stored only past the first-level cache, and only if the one
    that stored it has let a fence follow. Regions of more than 16 MiB are not watched.

    Parameters
    ----------
    threads, per_block : int
        Threads of the launch and of a block.
    """

    _MOST = 1 << 24

    def __init__(self, threads: int, per_block: int) -> None:
        self._per_block = per_block
        self._stores: dict[int, np.ndarray] = {}
        self.fences = np.zeros(threads, np.int32)
        # The batch says who is at work, and whether its loads go past the cache; None: an atomic.
        self.threads: Any = None
        self.fresh: bool | None = False

    def look(self, region: Any, at: np.ndarray, which: Any) -> None:
        """Before a load of elements, `at` bytes from the start of a region."""
        stores = self._stores.get(region[0])
        if stores is None or self.fresh is None:
            return
        writers, fences = stores[0, at] - 1, stores[1, at]
        threads = self.threads[which]
        others = (writers >= 0) & (writers // self._per_block != threads // self._per_block)
        for wrong, message in (
            (others & (not self.fresh), "an ordinary load of another block's store"),
            (others & (self.fences[writers] == fences), "no fence after another block's store"),
        ):
            if wrong.any():
                raise AccessError(message, int(np.arange(self.threads.size)[which][_first(wrong)]))

    def note(self, region: Any, at: np.ndarray, which: Any) -> None:
        """Remember a store."""
        start, end, _ = region
        if end - start > self._MOST or self.fresh is None:
            return
        if start not in self._stores:
            self._stores[start] = np.zeros((2, end - start), np.int32)
        threads = self.threads[which]
        self._stores[start][0, at] = threads + 1
        self._stores[start][1, at] = self.fences[threads]


class GlobalMemory:
    """Regions of this process's memory, by address."""

    def __init__(self) -> None:
        # Between the blocks of the launch that runs.
        self.traffic: Traffic | None = None
        self._starts: list[int] = []
        self._regions: list[tuple[int, int, str]] = []
        self._views: dict[Any, np.ndarray] = {}
        self._alive: dict[int, Any] = {}

    def register(self, start: int, size: int, name: str = "", owner: Any = None) -> None:
        """Allow accesses to `size` bytes; `owner` is kept alive. What was there is replaced."""
        k = bisect_right(self._starts, start)
        if k and start < self._regions[k - 1][1]:
            k -= 1
        while k < len(self._regions) and self._regions[k][0] < start + size:
            # Parts of one array may be registered by themselves: allow all of them.
            first, end, _ = self._regions.pop(k)
            self._starts.pop(k)
            start, size = min(start, first), max(start + size, end) - min(start, first)
        self._starts.insert(k, start)
        self._regions.insert(k, (start, start + size, name))
        self._alive[start] = owner

    def add(self, array: np.ndarray, name: str = "") -> int:
        """Allow accesses to an array's bytes; return its address."""
        self.register(array.ctypes.data, array.nbytes, name, array)
        return int(array.ctypes.data)

    def clear(self) -> None:
        """Allow nothing."""
        self.__init__()  # type: ignore[misc]

    def _region(self, address: int) -> tuple[int, int, str] | None:
        k = bisect_right(self._starts, address) - 1
        if k >= 0 and address < self._regions[k][1]:
            return self._regions[k]
        return None

    def _view(self, region: tuple[int, int, str], dtype: Any) -> tuple[int, np.ndarray]:
        """The aligned start of a region, and its elements from there."""
        start, end, _ = region
        start = -(-start // dtype.itemsize) * dtype.itemsize
        key = start, end, dtype
        if key not in self._views:
            memory = (ctypes.c_char * (end - start)).from_address(start)
            count = (end - start) // dtype.itemsize
            self._views[key] = np.frombuffer(memory, dtype, count)
        return start, self._views[key]

    def _parts(self, addresses: np.ndarray, size: int) -> Any:
        """Yield (region, which accesses) after having checked that all are in some region."""
        rest = np.arange(addresses.size)
        while rest.size:
            here = addresses[rest]
            region = self._region(int(here[0]))
            inside = np.zeros(rest.size, bool)
            if region is not None:
                inside = (here >= region[0]) & (here + np.uint64(size) <= region[1])
            if not inside[0]:
                message = f"{size} bytes at {int(here[0]):#x}, which belongs to nothing registered"
                raise AccessError(f"{message}; {self._nearest(int(here[0]))}", int(rest[0]))
            yield region, (slice(None) if rest.size == addresses.size and inside.all()
                           else rest[inside])  # fmt: skip
            rest = rest[~inside]

    def _nearest(self, address: int) -> str:
        """What lies next to an address, in words."""
        if not self._regions:
            return "nothing is registered"

        def distance(region: tuple[int, int, str]) -> int:
            return max(region[0] - address, address - region[1] + 1)

        start, end, name = min(self._regions, key=distance)
        place = (
            f"{start - address} bytes before"
            if address < start
            else (f"{address - end} bytes after")
        )
        return f"{place} {name or 'a region'} of {end - start} bytes"

    def load(self, addresses: np.ndarray, owners: Any, dtype: Any, width: int) -> list[np.ndarray]:
        """`width` neighbouring elements from each address."""
        size = dtype.itemsize * width
        _check_alignment(addresses, size)
        found = [np.empty(addresses.size, dtype) for _ in range(width)]
        for region, which in self._parts(addresses, size):
            start, view = self._view(region, dtype)
            index = (addresses[which] - np.uint64(start)) // np.uint64(dtype.itemsize)
            for k in range(width):
                if self.traffic is not None:
                    at = (index + np.uint64(k)) * np.uint64(dtype.itemsize)
                    self.traffic.look(region, at, which)
                found[k][which] = view[index + np.uint64(k)]
        return found

    def store(self, addresses: np.ndarray, owners: Any, values: list[Any]) -> None:
        """Write neighbouring elements to each address."""
        dtype, size = values[0].dtype, values[0].dtype.itemsize * len(values)
        _check_alignment(addresses, size)
        for region, which in self._parts(addresses, size):
            start, view = self._view(region, dtype)
            index = (addresses[which] - np.uint64(start)) // np.uint64(dtype.itemsize)
            for k, value in enumerate(values):
                value = np.broadcast_to(value, addresses.shape)
                if self.traffic is not None:
                    at = (index + np.uint64(k)) * np.uint64(dtype.itemsize)
                    self.traffic.note(region, at, which)
                view[index + np.uint64(k)] = value[which]


class PrivateMemory:
    """Memory of which each owner, a block or a thread, has its own copy.

    Parameters
    ----------
    symbols : dict of str to (start, size)
    owners : int
    """

    def __init__(self, symbols: dict[str, tuple[int, int]], owners: int) -> None:
        end = max((start + size for start, size in symbols.values()), default=0)
        self.size = -(-end // 16) * 16
        # 1 where an access may begin or go on: between symbols nobody may touch anything.
        self._allowed = np.zeros(self.size + 16, np.uint8)
        for start, size in symbols.values():
            self._allowed[start : start + size] = 1
        self._bytes = np.full(owners * self.size, 0xFF, np.uint8)

    def _index(self, addresses: np.ndarray, owners: Any, size: int) -> np.ndarray:
        _check_alignment(addresses, size)
        inside = addresses + np.uint64(size - 1) < self.size
        wrong = ~inside
        safe = np.where(inside, addresses, np.uint64(0)).astype(np.int64)
        if self.size:
            wrong |= (self._allowed[safe] & self._allowed[safe + size - 1]) == 0
        if wrong.any():
            k = _first(wrong)
            raise AccessError(f"{size} bytes at {int(addresses[k]):#x}, outside of variables", k)
        return owners * self.size + safe

    def load(self, addresses: np.ndarray, owners: Any, dtype: Any, width: int) -> list[np.ndarray]:
        """`width` neighbouring elements from each address."""
        start = self._index(addresses, owners, dtype.itemsize * width)
        self._look(start, dtype.itemsize * width)
        index, view = start // dtype.itemsize, self._bytes.view(dtype)
        return [view[index + k] for k in range(width)]

    def store(self, addresses: np.ndarray, owners: Any, values: list[Any]) -> None:
        """Write neighbouring elements to each address."""
        dtype, size = values[0].dtype, values[0].dtype.itemsize * len(values)
        start = self._index(addresses, owners, size)
        index, view = start // dtype.itemsize, self._bytes.view(dtype)

        def write() -> None:
            for k, value in enumerate(values):
                view[index + k] = value

        self._change(start, size, values, write)

    def _look(self, start: np.ndarray, size: int) -> None:
        """Before a load of bytes from `start` on."""

    def _change(self, start: np.ndarray, size: int, values: list[Any], write: Any) -> None:
        """Do a store."""
        write()


class SharedMemory(PrivateMemory):
    """Memory of blocks, which also looks for races: accesses that no barrier keeps apart.

    Two threads may write the same value to one place; nothing else, unless both are atomic. Words
    of four bytes are watched; accesses to parts of a word are not.
    """

    _NOBODY, _SEVERAL = -1, -2

    def __init__(self, symbols: dict[str, tuple[int, int]], owners: int) -> None:
        super().__init__(symbols, owners)
        self._words = self._bytes.view(np.uint32)
        # Who wrote and read each word since the last barrier, and whether by an atomic.
        self._writer, self._reader = np.full((2, self._words.size), self._NOBODY)
        self._atomic = np.zeros(self._words.size, bool)
        # The batch says who is at work.
        self.threads: Any = None
        self.in_atomic = False

    def barrier(self, owner: int) -> None:
        """A block starts anew."""
        mine = slice(owner * self.size // 4, (owner + 1) * self.size // 4)
        self._writer[mine] = self._reader[mine] = self._NOBODY
        self._atomic[mine] = False

    def _check(self, others: np.ndarray, message: str) -> None:
        wrong = (others != self._NOBODY) & (others != self.threads)
        if wrong.any():
            raise AccessError(f"a race: no barrier after {message}", _first(wrong))

    def _writers(self, word: np.ndarray) -> np.ndarray:
        """Who has written a word, those left out that may have."""
        writers = self._writer[word]
        return np.where(self._atomic[word], self._NOBODY, writers) if self.in_atomic else writers

    def _look(self, start: np.ndarray, size: int) -> None:
        """Remember who reads, after a look at who has written."""
        for word in (start // 4 + k for k in range(size // 4)):
            self._check(self._writers(word), "another thread's store")
            if not self.in_atomic:
                readers = self._reader[word]
                alone = (readers == self._NOBODY) | (readers == self.threads)
                self._reader[word] = self.threads
                # Of several threads that read one place now, only one has left its number.
                alone &= self._reader[word] == self.threads
                self._reader[word[~alone]] = self._SEVERAL

    def _change(self, start: np.ndarray, size: int, values: list[Any], write: Any) -> None:
        """Remember who writes, after a look at who has read or written."""
        words = [start // 4 + k for k in range(size // 4)]
        for word in words:
            self._check(self._reader[word], "another thread's load")
        before = [self._words[word] for word in words]
        write()
        if not words:
            return
        new = np.stack([np.broadcast_to(value, start.shape) for value in values], 1)
        new = np.ascontiguousarray(new).view(np.uint32).reshape(len(start), -1)
        for k, word in enumerate(words):
            lost = self._words[word] != new[:, k]
            self._check(np.where(lost, self._SEVERAL, self._NOBODY),
                        "another thread's store at the same time")  # fmt: skip
            same = before[k] == new[:, k]
            self._check(np.where(same, self._NOBODY, self._writers(word)), "another thread's store")
            if self.in_atomic:
                # A store that was not atomic stays one.
                self._atomic[word] |= self._writer[word] == self._NOBODY
            else:
                self._atomic[word] = False
            self._writer[word] = self.threads


class Parameters(PrivateMemory):
    """The bytes of a launch's parameters, shared by all threads."""

    def __init__(self, symbols: dict[str, tuple[int, int]], values: list[bytes]) -> None:
        super().__init__(symbols, 1)
        for (start, _), value in zip(symbols.values(), values, strict=True):
            self._bytes[start : start + len(value)] = np.frombuffer(value, np.uint8)

    def load(self, addresses: np.ndarray, owners: Any, dtype: Any, width: int) -> list[np.ndarray]:
        """As that of the base, whose owner is always the launch."""
        return super().load(addresses, 0, dtype, width)
