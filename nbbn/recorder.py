"""Record the launches of a step and replay them over the same memory.

The idea is a CUDA graph's: every launch is noted with its arguments, and replaying is a loop over
the notes. A step is recorded twice, on different batches. The first recording shows how long each
array lives; from that, all arrays get a place in one arena, where those that never live together
overlap. The second recording runs in the arena, and is what gets replayed.

What Python computes outside `backend.run` cannot be noted, so the two recordings are only trusted
if they agree in everything but the batch.
"""

from __future__ import annotations

import math
import weakref
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Arena", "Plan", "Recorder", "contents", "difference"]

_ALIGNMENT = 64


class _Place(NamedTuple):
    """Where an array lies: in an allocation of the recorder, or in an input of the step."""

    owner: str
    number: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]


class _Allocation:
    def __init__(self, nbytes: int, birth: int, memory: np.ndarray) -> None:
        self.nbytes, self.birth, self.memory = nbytes, birth, memory
        self.death: float = math.inf


class Arena:
    """Memory for all allocations of a recording, shared by those that never live together.

    Parameters
    ----------
    recorder : Recorder
        A recording whose allocations will come again in the same order.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.sizes = [a.nbytes for a in recorder.allocations]
        self.offsets = [0] * len(self.sizes)
        placed: list[tuple[int, int, _Allocation]] = []
        # Largest first, each at the lowest address that is free for all of its life.
        for number in sorted(range(len(self.sizes)), key=lambda n: -self.sizes[n]):
            own = recorder.allocations[number]
            length = -(-own.nbytes // _ALIGNMENT) * _ALIGNMENT
            offset = 0
            for start, end, other in sorted(placed, key=lambda item: item[0]):
                alive_together = own.birth < other.death and other.birth < own.death
                if alive_together and start < offset + length and offset < end:
                    offset = end
            self.offsets[number] = offset
            placed.append((offset, offset + length, own))
        self.memory = _aligned(max((end for _, end, _ in placed), default=0))


class Recorder:
    """Takes down the launches and allocations of one step.

    Parameters
    ----------
    inputs : sequence of ndarray
        The batch: arrays that differ from step to step.
    arena : Arena, optional
        Where to allocate; without one each array gets memory of its own.
    """

    def __init__(self, inputs: tuple[np.ndarray, ...], arena: Arena | None = None) -> None:
        # A caller may fill the same arrays with the next batch: remember what they held.
        self.contents = contents(inputs)
        self.inputs = inputs
        self.refusal: str | None = None
        self.notes: list[tuple[Callable[..., Any], list[Any]]] = []
        # The places of array arguments, by position in notes and arguments.
        self.places: dict[tuple[int, int], _Place] = {}
        self.allocations: list[_Allocation] = []
        self._arena = arena
        self._clock = 0
        self._live: dict[int, tuple[weakref.ref[Any], int]] = {}

    def empty(self, shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
        """Allocate an array and watch how long it lives."""
        shape = (shape,) if isinstance(shape, int) else shape
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        if nbytes == 0:
            return np.empty(shape, dtype)
        number = len(self.allocations)
        self._clock += 1
        allocation = _Allocation(nbytes, self._clock, self._memory(number, nbytes))
        self.allocations.append(allocation)
        # The buffer in between makes this array, not the memory's, the base of all its views.
        root = np.frombuffer(allocation.memory.data, dtype)
        key = id(root)
        if self._arena is None:
            del allocation.memory

        def release(_: Any) -> None:
            del self._live[key]
            self._clock += 1
            allocation.death = self._clock

        self._live[key] = (weakref.ref(root, release), number)
        return root.reshape(shape)

    def note(self, launcher: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Write down one launch."""
        kept = list(args)
        for index, value in enumerate(args):
            if isinstance(value, np.ndarray):
                place = self._place(value)
                if place is not None:
                    self.places[len(self.notes), index] = place
                    kept[index] = None if self._arena is None else self.resolve(place)
        self.notes.append((launcher, kept))

    def refuse(self, reason: str) -> None:
        """Give up: this step cannot be replayed."""
        self.refusal = self.refusal or reason

    def resolve(self, place: _Place) -> np.ndarray:
        """Make an array at a place that keeps only the memory alive, not the array noted."""
        if place.owner == "input":
            whole = self.inputs[place.number]
            if not place.offset and (place.shape, place.strides) == (whole.shape, whole.strides):
                return whole
            memory = whole.ravel("K").view(np.uint8)
        else:
            memory = self.allocations[place.number].memory
        return np.ndarray(place.shape, place.dtype, memory, place.offset, place.strides)

    def place(self, array: np.ndarray) -> np.ndarray:
        """Return `array`, or a lasting alias of it if it is in the arena."""
        place = self._place(array)
        return array if place is None else self.resolve(place)

    def _memory(self, number: int, nbytes: int) -> np.ndarray:
        arena = self._arena
        if arena is None:
            return _aligned(nbytes)
        if number < len(arena.sizes) and arena.sizes[number] == nbytes:
            start = arena.offsets[number]
            for _, other in self._live.values():
                first = arena.offsets[other] if other < len(arena.sizes) else math.inf
                if start < first + self.allocations[other].nbytes and first < start + nbytes:
                    break
            else:
                return arena.memory[start : start + nbytes]
        self.refuse("the arrays that the step allocates change from step to step")
        return _aligned(nbytes)

    def _place(self, array: np.ndarray) -> _Place | None:
        root: Any = array
        while isinstance(root.base, np.ndarray):
            root = root.base
        start = _address(array)
        rest = (array.shape, array.strides, array.dtype)
        if id(root) in self._live:
            number = self._live[id(root)][1]
            return _Place("allocation", number, start - _address(root), *rest)
        for number, whole in enumerate(self.inputs):
            if array is whole:
                return _Place("input", number, 0, *rest)
        for number, whole in enumerate(self.inputs):
            if whole.size and 0 <= start - _address(whole) < whole.nbytes:
                return _Place("input", number, start - _address(whole), *rest)
        return None


class Plan:
    """A step that can be replayed.

    Parameters
    ----------
    recorder : Recorder
        The recording to replay, made in an arena.
    result : ndarray
        The array that holds the step's result after each replay.
    """

    def __init__(self, recorder: Recorder, result: np.ndarray) -> None:
        self._result = recorder.place(result)
        self._notes = recorder.notes
        slots = [(at, place) for at, place in recorder.places.items() if place.owner == "input"]
        # An input that is only used as a whole is swapped for the next; one that is viewed in
        # parts is copied to where the views look.
        viewed = {
            place.number
            for (note, index), place in slots
            if recorder.notes[note][1][index] is not recorder.inputs[place.number]
        }
        self._copies = {number: recorder.inputs[number].copy("K") for number in viewed}
        recorder.inputs = tuple(
            self._copies.get(number, whole) for number, whole in enumerate(recorder.inputs)
        )
        self._slots: list[tuple[list[Any], int, int]] = []
        for (note, index), place in slots:
            arguments = recorder.notes[note][1]
            if place.number in viewed:
                arguments[index] = recorder.resolve(place)
            else:
                arguments[index] = None
                self._slots.append((arguments, index, place.number))

    def replay(self, inputs: tuple[np.ndarray, ...]) -> np.ndarray:
        """Repeat the step for inputs of the recorded layouts and types; return the result."""
        for number, copy in self._copies.items():
            np.copyto(copy, inputs[number])
        for arguments, index, number in self._slots:
            arguments[index] = inputs[number]
        try:
            for launcher, arguments in self._notes:
                launcher(*arguments)
        finally:
            for arguments, index, _ in self._slots:
                arguments[index] = None
        return self._result


def contents(inputs: tuple[np.ndarray, ...]) -> tuple[int, ...]:
    """Checksums of a batch, to tell it from the next."""
    return tuple(zlib.crc32(array.ravel("K").data) for array in inputs)


def difference(first: Recorder, second: Recorder) -> str | None:
    """Say why two recordings of the same step do not agree, or None if they do."""
    if second.refusal:
        return second.refusal
    if len(first.notes) != len(second.notes):
        return "the number of operations changes from step to step"
    if first.places != second.places:
        return "the arrays that the operations use change from step to step"
    for position, ((f, a), (g, b)) in enumerate(zip(first.notes, second.notes, strict=True)):
        if f != g or len(a) != len(b):
            return "the operations change from step to step"
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            if (position, index) not in first.places and not _same(x, y):
                name = getattr(f, "__name__", repr(f))
                return f"an argument of {name} is computed outside the recorded operations"
    return None


def _same(x: Any, y: Any) -> bool:
    if x is y:
        return True
    if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
        if x.dtype != y.dtype or x.shape != y.shape:
            return False
        # The first recording holds its arrays, so the same address is the same array.
        if (_address(x), x.strides) == (_address(y), y.strides):
            return True
        return x.tobytes() == y.tobytes()
    if isinstance(x, tuple) and isinstance(y, tuple):
        return len(x) == len(y) and all(_same(a, b) for a, b in zip(x, y, strict=True))
    if type(x) is not type(y) or isinstance(x, np.ndarray):
        return False
    return bool(x == y) or repr(x) == repr(y)


def _address(array: np.ndarray) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _aligned(nbytes: int) -> np.ndarray:
    raw = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -_address(raw) % _ALIGNMENT
    return raw[start : start + nbytes]
