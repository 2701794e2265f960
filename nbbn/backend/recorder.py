"""Record the launches of a step and replay them over the same memory.

The idea is a CUDA graph's: every launch is noted with its arguments, and replaying is a loop over
the notes. A step is recorded twice. The first recording shows how long each array lives; from that,
all arrays get a place in one arena, where those that never live together overlap. The second
recording runs in the arena, and is what gets replayed.

Most notes are launches that keep their order. "ahead" marks work of the host that may come before
everything else, "after" marks checks of results; what lies between is a device's graph.

What Python computes outside `backend.run` cannot be noted. So every array argument must come from
where a replay finds it again: the batch, the arena, or the state of model, optimizer and loss. And
the two recordings must agree in everything else.
"""

from __future__ import annotations

import bisect
import contextlib
import math
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from .pace import Pace


class HostMemory:
    """Raw memory of the host; a device has a class with the same members."""

    kind = np.ndarray
    # A cache line.
    alignment = 64

    @staticmethod
    def allocate(nbytes: int) -> np.ndarray:
        """Bytes that start on a cache line."""
        raw = np.empty(nbytes + HostMemory.alignment, np.uint8)
        start = -HostMemory.address(raw) % HostMemory.alignment
        return raw[start : start + nbytes]

    @staticmethod
    def root(memory: np.ndarray, dtype: Any) -> np.ndarray:
        """Flat array of `dtype` over `memory` that is the base of all its views."""
        # The buffer in between makes this array, not the memory's, the base.
        return np.frombuffer(memory.data, dtype)

    @staticmethod
    def array(
        shape: tuple[int, ...], dtype: Any, memory: np.ndarray, offset: int, strides: Any
    ) -> np.ndarray:
        """Array at an offset of `memory`."""
        return np.ndarray(shape, dtype, memory, offset, strides)

    @staticmethod
    def address(array: np.ndarray) -> int:
        """Address of the first element."""
        address: int = array.__array_interface__["data"][0]
        return address

    @staticmethod
    def content(array: np.ndarray) -> Any:
        """Bytes of all elements, in C order."""
        return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


class Note(NamedTuple):
    """One launch: a function, its arguments, and when it runs in a replay.

    `when` is "", in order; "ahead", before all that is in order; or "after", behind it.
    """

    launcher: Callable[..., Any]
    arguments: list[Any]
    when: str


class _Place(NamedTuple):
    """Where an array lies: in an allocation of the recorder, or in an input of the step."""

    owner: str
    number: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]


class _Allocation:
    def __init__(self, nbytes: int, device: str, birth: float, memory: Any) -> None:
        self.nbytes, self.device, self.birth, self.memory = nbytes, device, birth, memory
        self.death: float = math.inf


class Arena:
    """Memory for all allocations of a recording, shared by those that never live together."""

    def __init__(self, recorder: Recorder) -> None:
        self.sizes = [a.nbytes for a in recorder.allocations]
        self.offsets = [0] * len(self.sizes)
        placed: list[tuple[int, int, _Allocation]] = []
        ends: dict[str, int] = {}
        # Largest first, each at the lowest address that is free for all of its life.
        for number in sorted(range(len(self.sizes)), key=lambda n: -self.sizes[n]):
            own = recorder.allocations[number]
            alignment = recorder.memories[own.device].alignment
            length = -(-own.nbytes // alignment) * alignment
            offset = 0
            for start, end, other in sorted(placed, key=lambda item: item[0]):
                apart = own.birth >= other.death or other.birth >= own.death
                apart = apart or own.device != other.device
                if not apart and start < offset + length and offset < end:
                    offset = end
            self.offsets[number] = offset
            placed.append((offset, offset + length, own))
            ends[own.device] = max(ends.get(own.device, 0), offset + length)
        self.memory = {name: recorder.memories[name].allocate(end) for name, end in ends.items()}


class Recorder:
    """Takes down the launches and allocations of one step.

    The batch, `inputs`, differs from step to step; `known` arrays, which launches may read and
    write too, do not. Without an arena each array gets memory of its own. `device` has the members
    of `HostMemory`.
    """

    def __init__(
        self,
        inputs: tuple[Any, ...],
        known: Iterable[Any] = (),
        arena: Arena | None = None,
        device: Any = None,
    ) -> None:
        self.memories: dict[str, Any] = {"cpu": HostMemory}
        if device is not None:
            self.memories["cuda"] = device
        self.inputs = inputs
        # Where each known array starts and ends. Held, or another could take its address.
        self._known: list[tuple[int, int, Any]] = []
        for array in known:
            self.know(array)
        self.refusal: str | None = None
        # Numbers of NumPy's that do not change.
        self.numbers: list[Any] = []
        self.notes: list[Note] = []
        # The places of array arguments, by position in notes and arguments.
        self.places: dict[tuple[int, int], _Place] = {}
        self.allocations: list[_Allocation] = []
        self._arena = arena
        self._clock = 0
        self._live: dict[int, tuple[weakref.ref[Any], int]] = {}

    def empty(
        self, shape: int | tuple[int, ...], dtype: Any, device: str = "cpu", lasting: bool = False
    ) -> Any:
        """Allocate an array and watch how long it lives; a lasting one does for all of the step."""
        shape = (shape,) if isinstance(shape, int) else shape
        memory = self.memories[device]
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        if nbytes == 0:
            return memory.array(shape, dtype, memory.allocate(0), 0, None)
        number = len(self.allocations)
        self._clock += 1
        birth = 0 if lasting else self._clock
        block = self._memory(number, nbytes, device)
        allocation = _Allocation(nbytes, device, birth, block)
        self.allocations.append(allocation)
        root = memory.root(block, dtype)
        key = id(root)
        if self._arena is None:
            del allocation.memory

        def release(_: Any) -> None:
            del self._live[key]
            self._clock += 1
            allocation.death = math.inf if lasting else self._clock

        self._live[key] = (weakref.ref(root, release), number)
        return root.reshape(shape)

    def know(self, array: Any) -> None:
        """Accept an array from now on: a replay finds it as the recorded step does."""
        memory = memory_of(array, self.memories)
        if memory is None or not array.size:
            return
        spans = [(n - 1) * s for n, s in zip(array.shape, array.strides, strict=True)]
        first = memory.address(array)
        start = first + sum(span for span in spans if span < 0)
        end = first + sum(span for span in spans if span > 0) + array.dtype.itemsize
        bisect.insort(self._known, (start, end, array), key=lambda item: item[0])

    def note(self, launcher: Callable[..., Any], args: tuple[Any, ...], when: str = "") -> None:
        """Write down one launch."""
        kept = list(args)
        for index, value in enumerate(args):
            place = None
            if memory_of(value, self.memories) is not None:
                place = self._place(value)
            if place is not None:
                self.places[len(self.notes), index] = place
                kept[index] = None if self._arena is None else self.resolve(place)
            elif not self._repeats(value):
                name = getattr(launcher, "__name__", repr(launcher))
                self.refuse(
                    f"an argument of {name} is computed outside the recorded operations, "
                    "for example by NumPy instead of Tensors"
                )
        self.notes.append(Note(launcher, kept, when))

    def check(self, result: Any) -> None:
        """Refuse a result that no launch has computed."""
        if self._place(result) is None and not self._repeats(result):
            self.refuse("the loss is computed outside the recorded operations")

    def _repeats(self, value: Any) -> bool:
        """Whether an argument that has no place will be the same in a replay."""
        if isinstance(value, slice):
            value = value.start, value.stop, value.step
        if isinstance(value, tuple | list):
            return all(self._repeats(item) for item in value)
        memory = memory_of(value, self.memories)
        if memory is None:
            # What NumPy computes from arrays; a Python number is compared between recordings.
            return not isinstance(value, np.generic)
        if not value.size:
            return True
        start = memory.address(value)
        found = bisect.bisect_right(self._known, start, key=lambda item: item[0])
        # Known arrays may lie inside one another, views of one flat array.
        return any(start < end for _, end, _ in self._known[:found])

    def refuse_number(self, value: Any, name: str) -> None:
        """Give up because of a number of NumPy's that becomes one of Python's in the step."""
        if not any(value is number for number in self.numbers):
            self.refuse(
                f"{name} is given by NumPy, and a replay would not look at it again: where it "
                "never changes, make it a number of Python's before the step, by float() or int()"
            )

    def refuse(self, reason: str) -> None:
        """Give up: this step cannot be replayed."""
        self.refusal = self.refusal or reason

    def spoil(self) -> None:
        """Overwrite all that a replay has to compute."""
        assert self._arena is not None
        for own, start in zip(self.allocations, self._arena.offsets, strict=True):
            # Lasting memory, born at 0, holds what is done ahead of everything else.
            if own.birth:
                self._arena.memory[own.device][start : start + own.nbytes].fill(255)

    def resolve(self, place: _Place) -> Any:
        """Make an array at a place that keeps only the memory alive, not the array noted."""
        if place.owner == "input":
            whole = self.inputs[place.number]
            if not place.offset and (place.shape, place.strides) == (whole.shape, whole.strides):
                return whole
            block = whole.ravel("K").view(np.uint8)
            memory = memory_of(whole, self.memories)
        else:
            allocation = self.allocations[place.number]
            block, memory = allocation.memory, self.memories[allocation.device]
        return memory.array(place.shape, place.dtype, block, place.offset, place.strides)

    def place(self, array: Any) -> Any:
        """Return `array`, or a lasting alias of it if it is in the arena."""
        place = self._place(array)
        return array if place is None else self.resolve(place)

    def _memory(self, number: int, nbytes: int, device: str) -> Any:
        arena = self._arena
        memory = self.memories[device]
        if arena is None:
            return memory.allocate(nbytes)
        if number < len(arena.sizes) and arena.sizes[number] == nbytes and device in arena.memory:
            start = arena.offsets[number]
            for _, other in self._live.values():
                if self.allocations[other].device != device:
                    continue
                first = arena.offsets[other] if other < len(arena.sizes) else math.inf
                if start < first + self.allocations[other].nbytes and first < start + nbytes:
                    break
            else:
                return arena.memory[device][start : start + nbytes]
        self.refuse("the arrays that the step allocates change from step to step")
        return memory.allocate(nbytes)

    def _place(self, array: Any) -> _Place | None:
        memory = memory_of(array, self.memories)
        address = memory.address
        root: Any = array
        while isinstance(root.base, memory.kind):
            root = root.base
        start = address(array)
        rest = (array.shape, array.strides, array.dtype)
        if id(root) in self._live:
            number = self._live[id(root)][1]
            return _Place("allocation", number, start - address(root), *rest)
        for number, whole in enumerate(self.inputs):
            if array is whole:
                return _Place("input", number, 0, *rest)
        for number, whole in enumerate(self.inputs):
            if type(whole) is not type(array) or not whole.size:
                continue
            if 0 <= start - address(whole) < whole.nbytes:
                return _Place("input", number, start - address(whole), *rest)
        return None


# Arguments of a launch, the position of an input among them, and the input's number.
_Slot = tuple[list[Any], int, int]


def _places(arguments: list[Any], inputs: Sequence[Any]) -> Iterator[_Slot | None]:
    """Where the inputs are among arguments of compiled code; None for what is a view of one."""
    for index, value in enumerate(arguments):
        for number, whole in enumerate(inputs):
            if value is whole:
                yield arguments, index, number
            elif isinstance(value, np.ndarray) and np.may_share_memory(value, whole):
                yield None


class Plan:
    """A step that can be replayed: a recording in an arena, and the array of its result."""

    def __init__(self, recorder: Recorder, result: Any) -> None:
        from ..kernels import _jit

        self._jit = _jit
        self._result = recorder.place(result)
        # What a launcher enters at each call, a replay enters once.
        around = (getattr(note.launcher, "around", None) for note in recorder.notes)
        self._around = next(filter(None, around), contextlib.nullcontext())
        notes = [
            (getattr(note.launcher, "inside", note.launcher), note.arguments, note.when)
            for note in recorder.notes
        ]
        self._calls: dict[Any, tuple[list[Any], list[_Slot]]] = {}
        self._pace = Pace()
        self._notes = [note[:2] for note in notes]
        self._behind = [note[:2] for note in notes if note[2] != "ahead"]
        slots = [(at, place) for at, place in recorder.places.items() if place.owner == "input"]
        # An input that is only used as a whole is swapped for the next; one that is viewed in
        # parts is copied to where the views look.
        viewed = self._viewed(recorder, slots)
        self._copies = {number: recorder.inputs[number].copy("K") for number in viewed}
        recorder.inputs = tuple(
            self._copies.get(number, whole) for number, whole in enumerate(recorder.inputs)
        )
        self._slots: list[_Slot] = []
        for (note, index), place in slots:
            arguments = recorder.notes[note].arguments
            if place.number in viewed:
                arguments[index] = recorder.resolve(place)
            else:
                arguments[index] = None
                self._slots.append((arguments, index, place.number))

    def _viewed(self, recorder: Recorder, slots: list[tuple[tuple[int, int], _Place]]) -> set[int]:
        return {
            place.number
            for (note, index), place in slots
            if recorder.notes[note].arguments[index] is not recorder.inputs[place.number]
        }

    def replay(self, inputs: tuple[Any, ...], *, ahead: bool = True) -> Any:
        """Repeat the step for inputs of the recorded layouts and types; return the result.

        Without `ahead`, what is done ahead of everything else is left as it is.
        """
        for number, copy in self._copies.items():
            np.copyto(copy, inputs[number])
        start = time.perf_counter()
        with self._around, self._jit.serially(self._pace.alone):
            calls, slots = self._prepared(inputs, ahead)
            try:
                for arguments, index, number in slots:
                    arguments[index] = inputs[number]
                for launch, arguments in calls:
                    launch(*arguments)
            finally:
                for arguments, index, _ in slots:
                    arguments[index] = None
        self._pace.took(time.perf_counter() - start)
        # The next replay writes another one there.
        return self._result.item()

    def _prepared(self, inputs: tuple[Any, ...], ahead: bool) -> tuple[list[Any], list[_Slot]]:
        """Launches as this thread makes them: compiled code itself where a launcher has no part.

        And where the inputs stand in their arguments.
        """
        state = (*self._jit.calling_thread(), ahead)
        found = self._calls.get(state)
        if found is None:
            # Those of this thread with all threads and with one; others have gone.
            kept = {k: v for k, v in self._calls.items() if k[0] == state[0]}
            calls: list[Any] = []
            slots: list[_Slot] = []
            for launcher, arguments in self._notes if ahead else self._behind:
                own = [slot for slot in self._slots if slot[0] is arguments]
                filled = [*arguments]
                for _, index, number in own:
                    filled[index] = inputs[number]
                known = [(code, [*args]) for code, args in self._jit.calls_of(launcher, filled)]
                places: list[Any] = [
                    place for _, args in known for place in _places(args, own and inputs)
                ]
                # A view of an input is made anew by its launcher.
                if not known or None in places:
                    known, places = [(launcher, arguments)], own
                calls += known
                slots += places
            found = calls, slots
            self._calls = kept | {state: found}
        return found

    def value(self, result: Any) -> float:
        """Read the result of a replay."""
        return float(result)


class GraphPlan(Plan):
    """A step on a device: work of the host first, the launches as one graph, one small report."""

    def __init__(self, recorder: Recorder, result: Any) -> None:
        super().__init__(recorder, result)
        self._device = recorder.memories["cuda"]
        launches = [note for note in recorder.notes if not note.when and self._touches(note)]
        # The host's own arrays are only read while launching: its work may go first.
        self._ahead = [
            note for note in recorder.notes
            if note.when == "ahead" or not (note.when or self._touches(note))
        ]  # fmt: skip
        self._launches = launches
        self._checks = [note.arguments for note in recorder.notes if note.when == "after"]
        size = 1 + len(self._checks)
        self._report = self._device.array(
            (size,), np.float64, self._device.allocate(size * 8), 0, None
        )
        # A graph would keep for ever what such an array held when it was captured.
        self._capturable = not any(
            isinstance(value, np.ndarray) and value.size
            for note in launches
            for value in note.arguments
        )
        self._graph: Any = None

    def _touches(self, note: Note) -> bool:
        return any(isinstance(value, self._device.kind) for value in note.arguments)

    def _viewed(self, recorder: Recorder, slots: list[tuple[tuple[int, int], _Place]]) -> set[int]:
        return set(range(len(recorder.inputs)))

    def _work(self) -> None:
        for note in self._launches:
            note.launcher(*note.arguments)
        for position, value in enumerate([self._result, *(check[0] for check in self._checks)]):
            target = self._report[position : position + 1]
            np.copyto(target, value.reshape(1), "unsafe")

    def replay(self, inputs: tuple[Any, ...], *, ahead: bool = True) -> Any:
        """Repeat the step; return its report, on the device: the result, then what to verify."""
        for number, copy in self._copies.items():
            np.copyto(copy, inputs[number])
        for note in self._ahead:
            if ahead or note.when != "ahead":
                note.launcher(*note.arguments)
        if self._graph is None:
            self._graph = self._device.graph(self._work, self._capturable)
        else:
            self._graph.launch()
        # The next replay writes another report, maybe before this one is read.
        return self._report.copy()

    def value(self, result: Any) -> float:
        """Wait for a report and read it; raises what the checks find."""
        value, *flags = (float(number) for number in self._device.host(result))
        for (_, complain, *args), flag in zip(self._checks, flags, strict=True):
            if flag >= 0:
                complain(int(flag), *args)
        return value


def memory_of(value: Any, memories: dict[str, Any]) -> Any:
    """Return what handles the memory of an array, None for anything else."""
    for memory in memories.values():
        if isinstance(value, memory.kind):
            return memory
    return None


def difference(first: Recorder, second: Recorder) -> str | None:
    """Say why two recordings of the same step do not agree, or None if they do."""
    if second.refusal:
        return second.refusal
    if len(first.notes) != len(second.notes):
        return "the number of operations changes from step to step"
    if first.places != second.places:
        return "the arrays that the operations use change from step to step"
    for position, (own, other) in enumerate(zip(first.notes, second.notes, strict=True)):
        if own.launcher != other.launcher or len(own.arguments) != len(other.arguments):
            return "the operations change from step to step"
        for index, (x, y) in enumerate(zip(own.arguments, other.arguments, strict=True)):
            if (position, index) not in first.places and not _same(x, y, first.memories):
                name = getattr(own.launcher, "__name__", repr(own.launcher))
                return (
                    f"an argument of {name} is computed outside the recorded operations, "
                    "for example by NumPy instead of Tensors"
                )
    return None


def _same(x: Any, y: Any, memories: dict[str, Any]) -> bool:
    if x is y:
        return True
    memory = memory_of(x, memories)
    if memory is not None and isinstance(y, memory.kind):
        if x.dtype != y.dtype or x.shape != y.shape:
            return False
        # The first recording holds its arrays, so the same address is the same array.
        if (memory.address(x), x.strides) == (memory.address(y), y.strides):
            return True
        return bool(memory.content(x) == memory.content(y))
    if isinstance(x, tuple) and isinstance(y, tuple):
        pairs = zip(x, y, strict=False)
        return len(x) == len(y) and all(_same(a, b, memories) for a, b in pairs)
    if type(x) is not type(y) or memory is not None:
        return False
    return bool(x == y) or repr(x) == repr(y)
