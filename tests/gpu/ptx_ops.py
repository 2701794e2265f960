"""What PTX instructions compute: a table from opcodes, as patterns, to NumPy functions.

Arrays hold one value per thread. An opcode that no pattern matches, modifiers included, is an
error. `ptx_floats.py`, `ptx_integers.py` and `ptx_convert.py` fill the table.

Source: NVIDIA, "Parallel Thread Execution ISA", version 9.0, chapter 9.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

TYPES = {
    "pred": np.dtype(bool),
    **{f"{letter}{bits}": np.dtype(f"{kind}{bits // 8}")
       for letter, kind in (("b", "u"), ("u", "u"), ("s", "i")) for bits in (8, 16, 32, 64)},
    **{f"f{bits}": np.dtype(f"f{bits // 8}") for bits in (16, 32, 64)},
}  # fmt: skip
U8, U16, U32, U64 = (TYPES[f"u{bits}"] for bits in (8, 16, 32, 64))
F32, F64, BOOL = TYPES["f32"], TYPES["f64"], TYPES["pred"]
# Where the windows to shared and local memory lie among generic addresses.
WINDOWS = {"global": 0, "const": 0, "param": 0, "shared": 1 << 60, "local": 2 << 60}


class Operation(NamedTuple):
    """What an opcode computes: the types of results and sources, and the function."""

    results: tuple[np.dtype[Any], ...]
    sources: tuple[np.dtype[Any], ...]
    compute: Callable[..., Any]


TABLE: list[tuple[re.Pattern[str], Callable[..., Operation]]] = []


def op(pattern: str) -> Callable[..., Any]:
    """Enter a function in the table: it makes an Operation from the pattern's groups."""

    def enter(make: Callable[..., Operation]) -> Callable[..., Operation]:
        TABLE.append((re.compile(pattern), make))
        return make

    return enter


@functools.cache
def operation(opcode: str) -> Operation:
    """The Operation of an opcode such as "add.rn.f32"."""
    for pattern, make in TABLE:
        if found := pattern.fullmatch(opcode):
            return make(*found.groups())
    raise NotImplementedError(opcode)


def same(kind: str, count: int, compute: Callable[..., Any]) -> Operation:
    """`count` sources and a result, all of one type."""
    return Operation((TYPES[kind],), (TYPES[kind],) * count, compute)
