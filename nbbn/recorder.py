"""Record the launches of a step once and replay them over the same memory.

The idea is a CUDA graph's: while recording, every launch is noted with its arguments, and every
array comes from slabs that are used again as soon as nothing refers to the array any more, so a
recorded step needs no more memory than an eager one. Replaying is a loop over the notes.

What Python computes outside `backend.run` cannot be noted. Hence a step is recorded twice on
different batches and only trusted if both recordings agree in everything but the batch.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Plan", "Recorder"]

_ALIGNMENT = 64


class _Place(NamedTuple):
    """Where an array lies: in a slab, or in an input of the step."""

    owner: str
    number: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]


class _Slab:
    def __init__(self, number: int, nbytes: int) -> None:
        raw = np.empty(nbytes + _ALIGNMENT, np.uint8)
        start = -raw.ctypes.data % _ALIGNMENT
        self.number = number
        self.memory = raw[start : start + nbytes]


class Recorder:
    """Takes down the launches and allocations of one step.

    Parameters
    ----------
    inputs : sequence of ndarray
        The batch: arrays that differ from step to step.
    """

    def __init__(self, inputs: tuple[np.ndarray, ...]) -> None:
        self.inputs = inputs
        self.refusal: str | None = None
        self.notes: list[tuple[Callable[..., Any], list[Any]]] = []
        # The places of array arguments, by position in notes and arguments.
        self.places: dict[tuple[int, int], _Place] = {}
        self._slabs: list[_Slab] = []
        self._free: dict[int, list[_Slab]] = {}
        self._live: dict[int, tuple[weakref.ref[Any], _Slab]] = {}

    def empty(self, shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
        """Allocate from a slab that is free, or from a new one."""
        shape = (shape,) if isinstance(shape, int) else shape
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        if nbytes == 0:
            return np.empty(shape, dtype)
        free = self._free.get(nbytes)
        if free:
            slab = free.pop()
        else:
            slab = _Slab(len(self._slabs), nbytes)
            self._slabs.append(slab)
        # The buffer between the two makes this array, not the slab's, the base of all its views.
        root = np.frombuffer(slab.memory.data, dtype)
        key = id(root)

        def release(_: Any) -> None:
            del self._live[key]
            self._free.setdefault(nbytes, []).append(slab)

        self._live[key] = (weakref.ref(root, release), slab)
        return root.reshape(shape)

    def note(self, launcher: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Write down one launch."""
        position = len(self.notes)
        kept = list(args)
        for index, value in enumerate(args):
            if isinstance(value, np.ndarray):
                place = self._place(value)
                if place is not None:
                    self.places[position, index] = place
                    kept[index] = self.resolve(place)
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
            return np.lib.stride_tricks.as_strided(
                whole.reshape(-1)[place.offset // whole.itemsize :], place.shape, place.strides
            )
        memory = self._slabs[place.number].memory
        return np.ndarray(place.shape, place.dtype, memory, place.offset, place.strides)

    def _place(self, array: np.ndarray) -> _Place | None:
        root: Any = array
        while isinstance(root.base, np.ndarray):
            root = root.base
        start = array.__array_interface__["data"][0]
        rest = (array.shape, array.strides, array.dtype)
        if id(root) in self._live:
            slab = self._live[id(root)][1]
            return _Place("slab", slab.number, start - slab.memory.ctypes.data, *rest)
        for number, whole in enumerate(self.inputs):
            first = whole.__array_interface__["data"][0]
            if whole.size and first <= start < first + whole.nbytes:
                return _Place("input", number, start - first, *rest)
        return None


class Plan:
    """A step that can be replayed.

    Parameters
    ----------
    recorder : Recorder
        The recording to replay.
    result : ndarray
        The array that holds the step's result after each replay.
    """

    def __init__(self, recorder: Recorder, result: np.ndarray) -> None:
        place = recorder._place(result)
        self._result = result if place is None else recorder.resolve(place)
        self._notes = recorder.notes
        self._inputs = recorder.inputs
        slots = [(at, place) for at, place in recorder.places.items() if place.owner == "input"]
        # An input that is only used as a whole is swapped for the next; one that is viewed in
        # parts is copied to where the views look.
        viewed = {
            place.number
            for (note, index), place in slots
            if recorder.notes[note][1][index] is not recorder.inputs[place.number]
        }
        self._viewed = sorted(viewed)
        self._slots = [
            (recorder.notes[note][1], index, place.number)
            for (note, index), place in slots
            if place.number not in viewed
        ]
        self._own_viewed_inputs(recorder)

    def _own_viewed_inputs(self, recorder: Recorder) -> None:
        """Give the plan private copies of viewed inputs: the caller's arrays stay untouched."""
        if not self._viewed:
            return
        recorder.inputs = tuple(
            whole.copy() if number in self._viewed else whole
            for number, whole in enumerate(recorder.inputs)
        )
        self._inputs = recorder.inputs
        for (note, index), place in recorder.places.items():
            if place.owner == "input" and place.number in self._viewed:
                recorder.notes[note][1][index] = recorder.resolve(place)

    def replay(self, inputs: tuple[np.ndarray, ...]) -> np.ndarray:
        """Repeat the step for inputs of the recorded shapes and types; return the result."""
        for number in self._viewed:
            np.copyto(self._inputs[number], inputs[number])
        for arguments, index, number in self._slots:
            arguments[index] = inputs[number]
        for launcher, arguments in self._notes:
            launcher(*arguments)
        for arguments, index, _ in self._slots:
            arguments[index] = None
        return self._result


def difference(first: Recorder, second: Recorder) -> str | None:
    """Say why two recordings of the same step do not agree, or None if they do."""
    if first.refusal or second.refusal:
        return first.refusal or second.refusal
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
        a, b = x.__array_interface__, y.__array_interface__
        return (a["data"], x.strides) == (b["data"], y.strides) or x.tobytes() == y.tobytes()
    if isinstance(x, tuple) and isinstance(y, tuple):
        return len(x) == len(y) and all(_same(a, b) for a, b in zip(x, y, strict=True))
    if type(x) is not type(y) or isinstance(x, np.ndarray):
        return False
    return bool(x == y) or repr(x) == repr(y)
