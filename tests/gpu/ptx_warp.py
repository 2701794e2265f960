"""Instructions of the PTX interpreter by which the threads of a warp exchange values."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.gpu.ptx_memory import AccessError
from tests.gpu.ptx_ops import TYPES, U32
from tests.gpu.ptx_parser import Instruction, Vector

WARP = 32
EXITED = 2


class WarpInstructions:
    """Part of the batch of threads: see `ptx.py`."""

    warp: np.ndarray
    lane: np.ndarray
    state: np.ndarray
    threads: np.ndarray
    _read: Any
    _write: Any

    def _active_lanes(self) -> tuple[np.ndarray, np.ndarray]:
        """For each running thread: the bits of the running lanes of its warp, and their lanes."""
        lanes = self.lane[self.threads]
        masks = np.zeros(int(self.warp[-1]) + 1, np.uint32)
        np.bitwise_or.at(masks, self.warp[self.threads], U32.type(1) << lanes.astype(U32))
        return masks[self.warp[self.threads]], lanes

    def _do_activemask(self, instruction: Instruction, at: int) -> None:
        self._write(instruction.operands[0], U32, self._active_lanes()[0])

    def _check_members(self, members: Any) -> None:
        masks, _ = self._active_lanes()
        missing = np.asarray(members, U32) & ~masks
        exited = np.zeros_like(missing)
        for k in np.flatnonzero(missing):
            # Lanes that have exited, or that the block has never had, need not come.
            same = (self.warp == self.warp[self.threads[k]]) & (self.state != EXITED)
            alive = np.bitwise_or.reduce(U32.type(1) << self.lane[same].astype(U32))
            exited[k] = ~alive
        if (missing & ~exited).any():
            raise AccessError("not all lanes of the mask are here", 0)

    def _do_vote(self, instruction: Instruction, at: int) -> None:
        """vote.sync.{any,all,uni,ballot}."""
        target, predicate, members = instruction.operands
        mode, kind = instruction.parts[-2:]
        if "sync" not in instruction.parts:
            raise NotImplementedError("vote without .sync")
        wanted = np.broadcast_to(self._read(members, U32), self.threads.shape)
        self._check_members(wanted)
        values = np.broadcast_to(self._read(predicate, TYPES["pred"]), self.threads.shape)
        lanes, warps = self.lane[self.threads].astype(U32), self.warp[self.threads]
        ballots = np.zeros(int(self.warp[-1]) + 1, np.uint32)
        np.bitwise_or.at(ballots, warps, values.astype(U32) << lanes)
        ballot = ballots[warps] & wanted
        here = self._active_lanes()[0] & wanted
        found = {"ballot": ballot, "any": ballot != 0, "all": ballot == here,
                 "uni": (ballot == 0) | (ballot == here)}[mode]  # fmt: skip
        self._write(target, TYPES[kind], found)

    def _do_shfl(self, instruction: Instruction, at: int) -> None:
        """shfl.sync.{up,down,bfly,idx}.b32 d|p, a, b, c, mask."""
        if instruction.parts[:1] != ["sync"]:
            raise NotImplementedError("shfl without .sync")
        target, value, distance, control, members = instruction.operands
        self._check_members(self._read(members, U32))
        shape = self.threads.shape
        values = np.broadcast_to(self._read(value, U32), shape)
        b, c = (np.broadcast_to(self._read(o, U32), shape).astype(int) & 0x1F1F
                for o in (distance, control))  # fmt: skip
        lane, b = self.lane[self.threads], b & 31
        segment, clamp = c >> 8, c & 31
        lowest = lane & segment
        highest = lowest | (clamp & ~segment)
        mode = instruction.parts[1]
        source = {"up": lane - b, "down": lane + b, "bfly": lane ^ b,
                  "idx": lowest | (b & ~segment)}[mode]  # fmt: skip
        inside = source >= highest if mode == "up" else source <= highest
        source = np.where(inside, source, lane)
        table = np.full((int(self.warp[-1]) + 1, WARP), -1)
        table[self.warp[self.threads], lane] = np.arange(self.threads.size)
        found = table[self.warp[self.threads], source]
        if (found < 0).any():
            raise AccessError("the source lane is not here", int(np.flatnonzero(found < 0)[0]))
        targets = target.parts if isinstance(target, Vector) else (target,)
        for part, dtype, result in zip(targets, (U32, TYPES["pred"]), (values[found], inside),
                                       strict=False):  # fmt: skip
            self._write(part, dtype, result)
