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


class GlobalMemory:
    """Regions of this process's memory, by address."""

    def __init__(self) -> None:
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
        index = self._index(addresses, owners, dtype.itemsize * width) // dtype.itemsize
        view = self._bytes.view(dtype)
        return [view[index + k] for k in range(width)]

    def store(self, addresses: np.ndarray, owners: Any, values: list[Any]) -> None:
        """Write neighbouring elements to each address."""
        dtype = values[0].dtype
        index = self._index(addresses, owners, dtype.itemsize * len(values)) // dtype.itemsize
        view = self._bytes.view(dtype)
        for k, value in enumerate(values):
            view[index + k] = value


class Parameters(PrivateMemory):
    """The bytes of a launch's parameters, shared by all threads."""

    def __init__(self, symbols: dict[str, tuple[int, int]], values: list[bytes]) -> None:
        super().__init__(symbols, 1)
        for (start, _), value in zip(symbols.values(), values, strict=True):
            self._bytes[start : start + len(value)] = np.frombuffer(value, np.uint8)

    def load(self, addresses: np.ndarray, owners: Any, dtype: Any, width: int) -> list[np.ndarray]:
        """As that of the base, whose owner is always the launch."""
        return super().load(addresses, 0, dtype, width)
