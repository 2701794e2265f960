"""An interpreter of PTX: runs compiled CUDA kernels on NumPy arrays, without a device.

    program = Program(ptx_text)
    program.memory.add(array)  # what a launch may touch
    program.launch("kernel", grid=(4,), block=(256,), parameters=[struct.pack("Q", address), ...])

A register is an array of one value per thread, of as many blocks as run together. Each thread has a
program counter; those whose counter is the smallest go on together, so that branches of structured
code meet again. A barrier waits for all threads of its block. What a device leaves undefined is a
Fault here: an access outside of registered memory or not aligned, a barrier that part of a block
has left out, threads of a block at different barriers, races in shared memory, and what a block
reads of another's without a fence or through its own cache. Otherwise, memory is sequentially
consistent.

`ptx_parser.py` reads the text, `ptx_ops.py` has the arithmetic, `ptx_memory.py` the memory,
`ptx_warp.py` what the threads of a warp do together.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tests.gpu import (
    ptx_convert,  # noqa: F401 - fills the table of operations
    ptx_floats,  # noqa: F401
    ptx_integers,  # noqa: F401
    ptx_ops,
)
from tests.gpu.ptx_memory import (
    AccessError,
    GlobalMemory,
    Parameters,
    PrivateMemory,
    SharedMemory,
    Traffic,
)
from tests.gpu.ptx_ops import TYPES, U32, U64, WINDOWS
from tests.gpu.ptx_parser import (
    Address,
    Function,
    Immediate,
    Instruction,
    Not,
    Register,
    Special,
    Symbol,
    Vector,
    parse,
)
from tests.gpu.ptx_warp import EXITED, WARP, WarpInstructions

# Threads that run together, about: enough to hide what one step costs in Python.
AT_ONCE = 4096
# More steps than any test needs: a loop that does not end.
MOST_STEPS = 20_000_000
_EVERY = slice(None)
_RUNNING, _WAITING, _EXITED = 0, 1, EXITED
_SPACES = ("global", "shared", "local", "const", "param")


class Fault(RuntimeError):  # noqa: N818 - a device's word
    """What a thread did that a device would refuse or leave undefined."""


class Program:
    """The kernels of a PTX text and the global memory that they may touch.

    Parameters
    ----------
    text : str or bytes
    memory : GlobalMemory, optional
    """

    def __init__(self, text: str | bytes, memory: GlobalMemory | None = None) -> None:
        text = text if isinstance(text, str) else bytes(text).rstrip(b"\0").decode()
        self.module = parse(text)
        self.memory = GlobalMemory() if memory is None else memory
        self._tables: dict[str, np.ndarray] = {}
        for variable in self.module.variables:
            if variable.space in ("global", "const"):
                # Aligned to 16 bytes, whatever NumPy does.
                memory_of = np.zeros(variable.size + 32, np.uint8)
                start = -memory_of.ctypes.data % 16
                table = memory_of[start : start + variable.size]
                table[: len(variable.data)] = np.frombuffer(variable.data, np.uint8)
                self._tables[variable.name] = table

    def launch(
        self,
        entry: str | None,
        grid: Sequence[int],
        block: Sequence[int],
        parameters: Sequence[bytes],
        dynamic_shared_bytes: int = 0,
        order: str | int = "forward",
        blocks: Iterable[Sequence[int]] | None = None,
    ) -> None:
        """Run a kernel.

        Parameters
        ----------
        entry : str or None
            None for the only one.
        grid, block : sequence of int
            One to three dimensions.
        parameters : sequence of bytes
            One for each .param.
        dynamic_shared_bytes : int
            Size of the .extern .shared variable.
        order : "forward", "reversed" or int
            Which warps of which blocks go first: all at once, the last ones, or some by a seed.
        blocks : iterable of (x, y, z), optional
            Run these only.
        """
        function = self.module.entry(entry)
        gx, gy, gz = (*grid, 1, 1)[:3]
        places = list(blocks or itertools.product(range(gz), range(gy), range(gx)))
        if blocks is None:
            places = [(x, y, z) for z, y, x in places]
        threads = int(np.prod(block))
        together = max(1, AT_ONCE // threads)
        draw = None
        if order != "forward":
            draw = random.Random(order if isinstance(order, int) else None)
        if order == "reversed":
            places.reverse()
        elif draw is not None:
            draw.shuffle(places)
        for name, table in self._tables.items():
            self.memory.add(table, name)
        self.memory.traffic = Traffic(threads * len(places), threads)
        for k in range(0, len(places), together):
            batch = _Batch(self, function, (gx, gy, gz), block, places[k : k + together],
                           parameters, dynamic_shared_bytes)  # fmt: skip
            batch.first = k * threads
            with np.errstate(all="ignore"):
                batch.run(order, draw)


class _Batch(WarpInstructions):
    """Some blocks of a launch, which run together."""

    def __init__(
        self, program: Program, function: Function, grid: Any, block: Any, places: Any,
        parameters: Any, dynamic: int,
    ) -> None:  # fmt: skip
        self.function, self.code = function, function.code
        bx, by, bz = (*block, 1, 1)[:3]
        per_block = bx * by * bz
        self.count = per_block * len(places)
        thread = np.tile(np.arange(per_block), len(places))
        self.team = np.repeat(np.arange(len(places)), per_block)
        self.places = places
        place = np.array(places).reshape(-1, 3)[self.team]
        self.special: dict[str, Any] = {
            "laneid": thread % WARP, "warpid": thread // WARP,
            "nwarpid": np.full(self.count, -(-per_block // WARP)),
        }  # fmt: skip
        index = thread % bx, thread // bx % by, thread // (bx * by)
        for k, axis in enumerate("xyz"):
            self.special[f"tid.{axis}"] = index[k]
            self.special[f"ctaid.{axis}"] = place[:, k]
            self.special[f"ntid.{axis}"] = np.full(self.count, (bx, by, bz)[k])
            self.special[f"nctaid.{axis}"] = np.full(self.count, grid[k])
        self.warp = self.team * -(-per_block // WARP) + thread // WARP
        self.lane = thread % WARP
        self.pc = np.zeros(self.count, np.int64)
        self.state = np.full(self.count, _RUNNING)
        self._views: dict[Any, np.ndarray] = {}
        self._registers: dict[int, np.ndarray] = {}
        layouts = function.layouts(dynamic)
        self.spaces: dict[str, Any] = {
            "global": program.memory,
            "const": program.memory,
            "shared": SharedMemory(layouts["shared"], len(places)),
            "local": PrivateMemory(layouts["local"], self.count),
            "param": Parameters(layouts["param"], list(parameters)),
        }
        self._owners = {"shared": self.team, "local": np.arange(self.count)}
        self.symbols = {name: table.ctypes.data for name, table in program._tables.items()}
        for space in ("shared", "local", "param"):
            self.symbols |= {name: start for name, (start, _) in layouts[space].items()}
        self.steps = 0
        # Number of the first thread in the launch.
        self.first = 0

    # -------------------------------------------------------------------- which threads run

    def run(self, order: str | int, draw: random.Random | None) -> None:
        """Run until all threads have exited."""
        while (self.state != _EXITED).any():
            for unit in self._units(order, draw):
                self._run_unit(unit)
            self._open_barriers()

    def _units(self, order: str | int, draw: random.Random | None) -> list[np.ndarray]:
        """Threads that go on together until they wait or exit, in the order of their turns."""
        if order == "forward":
            return [np.arange(self.count)]
        warps = np.split(np.arange(self.count), np.flatnonzero(np.diff(self.warp)) + 1)
        if order == "reversed":
            warps.reverse()
        elif draw is not None:
            draw.shuffle(warps)
        return warps

    def _run_unit(self, threads: np.ndarray) -> None:
        while True:
            running = threads[self.state[threads] == _RUNNING]
            if not running.size:
                return
            counters = self.pc[running]
            first = int(counters.min())
            at_first = counters == first
            others = counters[~at_first]
            limit = int(others.min()) if others.size else len(self.code)
            self._advance(running[at_first], first, limit)

    def _advance(self, threads: np.ndarray, at: int, limit: int) -> None:
        """Run threads that are at one place until they part, wait, or meet others at `limit`."""
        self.active = _EVERY if threads.size == self.count else threads
        self.threads = threads
        visited = self.function.visited
        while at < limit:
            instruction = self.code[at]
            visited[at] = 1
            self.steps += 1
            if self.steps > MOST_STEPS:
                raise self._fault(instruction, threads[:1], f"more than {MOST_STEPS} steps")
            try:
                go_to = self._step(instruction, at)
            except AccessError as error:
                raise self._fault(instruction, self._now[error.place :], str(error)) from None
            except (NotImplementedError, KeyError, TypeError, ValueError) as error:
                message = f"cannot run this: {type(error).__name__}: {error}"
                raise self._fault(instruction, threads, message) from error
            if go_to is None:
                return
            at = go_to
        self.pc[threads] = at

    def _step(self, instruction: Instruction, at: int) -> int | None:
        """Run one instruction: where all threads go on, or None if their counters tell."""
        self._now = self.threads
        if instruction.name == "bra":
            return self._branch(instruction, at)
        if instruction.guard is None:
            return self._run(instruction, at)
        chosen = self.threads[self._guard(instruction)]
        if not chosen.size:
            return at + 1
        everyone = self.threads, self.active
        if chosen.size < self.threads.size:
            if instruction.name in ("bar", "barrier"):
                raise self._fault(instruction, chosen, "a barrier for part of the threads")
            self._now = self.threads = self.active = chosen
        go_to = self._run(instruction, at)
        self.threads, self.active = everyone
        if go_to is None:
            # The others, after an exit, go on.
            rest = self.threads[self.state[self.threads] == _RUNNING]
            self.pc[rest] = at + 1
        return go_to

    def _guard(self, instruction: Instruction) -> np.ndarray:
        wanted = self._read(instruction.guard, TYPES["pred"])
        return np.broadcast_to(wanted, self.threads.shape)

    def _branch(self, instruction: Instruction, at: int) -> int | None:
        (label,) = instruction.operands
        target = self.function.labels[label.name]
        if instruction.guard is None:
            return target
        taken = self._guard(instruction)
        if taken.all():
            return target
        if not taken.any():
            return at + 1
        self.pc[self.threads] = np.where(taken, target, at + 1)
        return None

    def _run(self, instruction: Instruction, at: int) -> int | None:
        special = getattr(self, f"_do_{instruction.name}", None)
        if special is None:
            self._compute(instruction)
            return at + 1
        return at + 1 if special(instruction, at) is not False else None

    def _open_barriers(self) -> None:
        """Let the blocks go on whose threads all wait at one barrier."""
        for team in np.unique(self.team[self.state == _WAITING]):
            members = np.flatnonzero(self.team == team)
            waiting = members[self.state[members] == _WAITING]
            instruction = self.code[int(self.pc[waiting[0]]) - 1]
            if waiting.size < members.size:
                message = f"{members.size - waiting.size} of {members.size} threads never come"
                raise self._fault(instruction, waiting, f"{message} to this barrier")
            if np.unique(self.pc[waiting]).size > 1:
                raise self._fault(instruction, waiting, "others of the block wait elsewhere")
            self.spaces["shared"].barrier(int(team))
        self.state[self.state == _WAITING] = _RUNNING

    def _fault(self, instruction: Instruction, threads: np.ndarray, message: str) -> Fault:
        k = int(threads[0])
        index = tuple(int(self.special[f"tid.{axis}"][k]) for axis in "xyz")
        place = tuple(map(int, self.places[self.team[k]]))
        return Fault(
            f"{self.function.name[:120]}, line {instruction.line}, block {place}, thread {index}: "
            f"`{instruction.text}`: {message}"
        )

    # ------------------------------------------------------------------------------ registers

    def _view(self, register: Register, dtype: Any) -> np.ndarray:
        """A register of all threads, seen as a type of its size."""
        key = register.slot, dtype
        found = self._views.get(key)
        if found is None:
            if register.slot not in self._registers:
                kind = np.dtype(bool) if register.bits == 1 else np.dtype(f"u{register.bits // 8}")
                memory = np.zeros if register.bits == 1 else lambda n, t: np.full(n, -1).astype(t)
                self._registers[register.slot] = memory(self.count, kind)
            found = self._views[key] = self._registers[register.slot].view(dtype)
        return found

    def _read(self, operand: Any, dtype: Any) -> Any:
        """Values of an operand for the running threads."""
        if isinstance(operand, Register):
            size = max(register_bytes := operand.bits // 8, 1)
            if size == dtype.itemsize:
                return self._view(operand, dtype)[self.active]
            if register_bytes < dtype.itemsize:
                raise TypeError(f"{dtype} in a register of {operand.bits} bits")
            whole = self._view(operand, np.dtype(f"u{register_bytes}"))[self.active]
            return whole.astype(f"u{dtype.itemsize}").view(dtype)
        if isinstance(operand, Immediate):
            return operand.value(dtype)
        if isinstance(operand, Special):
            return np.asarray(self.special[operand.name][self.active], dtype)
        if isinstance(operand, Not):
            return ~self._read(operand.register, dtype)
        if isinstance(operand, Symbol):
            return dtype.type(self.symbols[operand.name])
        raise TypeError(f"{operand!r} as a value")

    def _write(self, operand: Any, dtype: Any, values: Any) -> None:
        """Set a register of the running threads; narrow values are extended by their sign."""
        if operand is None:
            return
        size = max(operand.bits // 8, 1)
        if size > dtype.itemsize:
            wide = np.dtype(f"{'i' if dtype.kind == 'i' else 'u'}{size}")
            values = np.asarray(values, dtype)
            if dtype.kind == "f":
                values = values.view(f"u{dtype.itemsize}")
            values, dtype = values.astype(wide), wide
        elif size < dtype.itemsize:
            raise TypeError(f"{dtype} into a register of {operand.bits} bits")
        self._view(operand, dtype)[self.active] = values

    def _compute(self, instruction: Instruction) -> None:
        """What the table of operations says."""
        operation = ptx_ops.operation(instruction.opcode)
        targets, sources = instruction.operands[:1], instruction.operands[1:]
        if isinstance(targets[0], Vector):
            targets = targets[0].parts
        if len(sources) != len(operation.sources):
            raise TypeError(f"{len(sources)} sources instead of {len(operation.sources)}")
        values = [self._read(o, t) for o, t in zip(sources, operation.sources, strict=True)]
        found = operation.compute(*values)
        results = found if isinstance(found, tuple) else (found,)
        for target, dtype, value in zip(targets, operation.results, results, strict=False):
            self._write(target, dtype, value)

    # --------------------------------------------------------------------------- instructions

    def _do_mov(self, instruction: Instruction, at: int) -> None:
        """Also packs registers into one, and takes one apart."""
        target, source = instruction.operands
        if isinstance(target, Vector):
            bits = 8 * TYPES[instruction.parts[-1]].itemsize // len(target.parts)
            whole = self._read(source, TYPES[f"u{bits * len(target.parts)}"])
            kind = TYPES[f"u{bits}"]
            for k, part in enumerate(target.parts):
                self._write(part, kind, (whole >> whole.dtype.type(bits * k)).astype(kind))
        elif isinstance(source, Vector):
            whole_type = TYPES[f"u{8 * TYPES[instruction.parts[-1]].itemsize}"]
            bits = 8 * whole_type.itemsize // len(source.parts)
            whole = whole_type.type(0)
            for k, part in enumerate(source.parts):
                value = self._read(part, TYPES[f"u{bits}"]).astype(whole_type)
                whole = whole | value << whole_type.type(bits * k)
            self._write(target, whole_type, whole)
        else:
            self._compute(instruction)

    def _addresses(self, operand: Any) -> np.ndarray:
        """Addresses of the running threads, as uint64."""
        if not isinstance(operand, Address):
            raise TypeError(f"{operand!r} as an address")
        kind = U64
        if isinstance(operand.base, Register) and operand.base.bits == 32:
            kind = U32
        base = np.asarray(self._read(operand.base, kind)).astype(U64)
        return np.broadcast_to(base + U64.type(operand.offset % 2**64), self.threads.shape)

    def _places(self, instruction: Instruction, operand: Any) -> Any:
        """(space, addresses in it, owners) of an access."""
        addresses = self._addresses(operand)
        space = next((part for part in instruction.parts if part in _SPACES), None)
        if space is None and isinstance(operand.base, Symbol):
            raise NotImplementedError("a generic access by name")
        if space is None:
            windows = addresses >> U64.type(60)
            if (windows != windows[0]).any():
                raise NotImplementedError("one generic access to several spaces")
            space = {0: "global", 1: "shared", 2: "local"}[int(windows[0])]
            addresses = addresses - U64.type(WINDOWS[space])
        memory, owners = self.spaces[space], self._owners.get(space)
        atomic = instruction.name in ("atom", "red")
        if space == "shared":
            memory.threads, memory.in_atomic = self.threads, atomic
        elif space == "global":
            traffic = memory.traffic
            traffic.threads = self.first + self.threads
            traffic.fresh = None if atomic else not _FRESH.isdisjoint(instruction.parts)
        return memory, addresses, None if owners is None else owners[self.active]

    def _do_ld(self, instruction: Instruction, at: int) -> None:
        target, source = instruction.operands
        targets = target.parts if isinstance(target, Vector) else (target,)
        dtype = TYPES[instruction.parts[-1]]
        memory, addresses, owners = self._places(instruction, source)
        found = memory.load(addresses, owners, dtype, len(targets))
        for part, values in zip(targets, found, strict=True):
            self._write(part, dtype, values)

    _do_ldu = _do_ld

    def _do_st(self, instruction: Instruction, at: int) -> None:
        target, source = instruction.operands
        sources = source.parts if isinstance(source, Vector) else (source,)
        dtype = TYPES[instruction.parts[-1]]
        values = [np.asarray(self._read(part, dtype), dtype) for part in sources]
        memory, addresses, owners = self._places(instruction, target)
        memory.store(addresses, owners, values)

    def _do_atom(self, instruction: Instruction, at: int) -> None:
        """One thread after the other, in their order."""
        kept = instruction.name == "atom"
        target, operand, *sources = instruction.operands if kept else (None, *instruction.operands)
        dtype, name = TYPES[instruction.parts[-1]], instruction.parts[-2]
        memory, addresses, owners = self._places(instruction, operand)
        shape = self.threads.shape
        values = [np.broadcast_to(self._read(source, dtype), shape) for source in sources]
        old = np.empty(shape, dtype)
        for k, thread in enumerate(self.threads):
            if isinstance(memory, SharedMemory):
                memory.threads = thread[None]
            owner = None if owners is None else owners[k : k + 1]
            (found,) = memory.load(addresses[k : k + 1], owner, dtype, 1)
            old[k] = found[0]
            new = _ATOMICS[name](found[0], *(value[k] for value in values))
            memory.store(addresses[k : k + 1], owner, [np.array([new], dtype)])
        self._write(target, dtype, old)

    _do_red = _do_atom

    def _do_bar(self, instruction: Instruction, at: int) -> bool:
        """Wait for all threads of the block; barriers for part of them are not supported."""
        if instruction.opcode not in _BARRIERS or len(instruction.operands) > 1:
            raise NotImplementedError("this kind of barrier")
        self.state[self.threads] = _WAITING
        self.pc[self.threads] = at + 1
        return False

    _do_barrier = _do_bar

    def _do_ret(self, instruction: Instruction, at: int) -> bool:
        self.state[self.threads] = _EXITED
        return False

    _do_exit = _do_ret

    def _do_trap(self, instruction: Instruction, at: int) -> None:
        raise self._fault(instruction, self.threads, "trap")

    def _do_membar(self, instruction: Instruction, at: int) -> None:
        """Memory is always up to date here; but what has gone before others may read."""
        if not {"gl", "gpu", "sys"}.isdisjoint(instruction.parts):
            self.spaces["global"].traffic.fences[self.first + self.threads] += 1

    _do_fence = _do_membar


# Loads that do not find what a cache of the multiprocessor still holds.
_FRESH = {"volatile", "relaxed", "acquire", "cg", "cv"}
_BARRIERS = ("bar.sync", "barrier.sync", "barrier.sync.aligned", "bar.cta.sync",
             "barrier.cta.sync", "barrier.cta.sync.aligned")  # fmt: skip
_ATOMICS = {
    "add": lambda old, b: old + b,
    "min": min,
    "max": max,
    "and": lambda old, b: old & b,
    "or": lambda old, b: old | b,
    "xor": lambda old, b: old ^ b,
    "exch": lambda old, b: b,
    "cas": lambda old, b, c: c if old == b else old,
    "inc": lambda old, b: 0 if old >= b else old + 1,
    "dec": lambda old, b: b if old == 0 or old > b else old - 1,
}
