"""Integer arithmetic and bits of PTX, all exact."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from tests.gpu.ptx_ops import TYPES, U32, U64, Operation, op, same


@op(r"(add|sub|min|max|and|or|xor)\.([sub]\d+|pred)")
def _(name, kind):
    functions = {
        "add": np.add, "sub": np.subtract, "min": np.minimum, "max": np.maximum,
        "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    }  # fmt: skip
    return same(kind, 2, functions[name])


@op(r"mov\.([subf]\d+|pred)")
def _(kind):
    return same(kind, 1, lambda x: x)


@op(r"(not|cnot|neg|abs)\.([sub]\d+|pred)")
def _(name, kind):
    functions = {
        "not": np.invert, "neg": np.negative, "abs": np.abs,
        "cnot": lambda x: (x == 0).astype(x.dtype),
    }  # fmt: skip
    return same(kind, 1, functions[name])


def _high_half(a: Any, b: Any) -> Any:
    """The upper 64 bits of a product of two 64-bit integers."""
    mask, half = U64.type(0xFFFFFFFF), U64.type(32)
    x, y = np.asarray(a).view(U64), np.asarray(b).view(U64)
    x0, x1, y0, y1 = x & mask, x >> half, y & mask, y >> half
    middle = x1 * y0 + (x0 * y0 >> half)
    high = x1 * y1 + (middle >> half) + ((middle & mask) + x0 * y1 >> half)
    if np.asarray(a).dtype.kind == "i":
        high = high - np.where(a < 0, y, U64.type(0)) - np.where(b < 0, x, U64.type(0))
    return high.view(np.asarray(a).dtype)


@op(r"(mul|mad)\.(lo|hi|wide)\.([su])(16|32|64)")
def _(name, part, sign, bits):
    kind, wide = TYPES[sign + bits], TYPES.get(f"{sign}{2 * int(bits)}")

    def multiply(a: Any, b: Any) -> Any:
        if part == "lo":
            return a * b
        if wide is None:
            return _high_half(a, b)
        product = np.multiply(a, b, dtype=wide)
        return product if part == "wide" else (product >> wide.type(int(bits))).astype(kind)

    result = wide if part == "wide" else kind
    if name == "mul":
        return Operation((result,), (kind, kind), multiply)
    return Operation((result,), (kind, kind, result), lambda a, b, c: multiply(a, b) + c)


@op(r"(div|rem)\.([su]\d+)")
def _(name, kind):
    """Rounded towards zero; a quotient by zero is all ones."""

    def run(a: Any, b: Any) -> Any:
        one, zero = a.dtype.type(1), a.dtype.type(0)
        quotient = a // b
        rest = a - quotient * b
        if a.dtype.kind == "i":
            # NumPy rounds down.
            quotient = quotient + np.where((rest != 0) & ((a < 0) != (b < 0)), one, zero)
        quotient = np.where(b == 0, ~zero, quotient)
        return quotient if name == "div" else a - quotient * b

    return same(kind, 2, run)


@op(r"(shl|shr)\.([bsu])(16|32|64)")
def _(name, sign, bits):
    """Shifts by too much give zeros, or copies of the sign."""
    kind, most = TYPES[sign + bits], int(bits) - 1

    def run(a: Any, count: Any) -> Any:
        within = np.minimum(count, U32.type(most)).astype(kind)
        if name == "shl":
            return np.where(count > most, kind.type(0), a << within)
        shifted = a >> within
        return shifted if sign == "s" else np.where(count > most, kind.type(0), shifted)

    return Operation((kind,), (kind, U32), run)


@op(r"shf\.(l|r)\.(clamp|wrap)\.b32")
def _(direction, mode):
    """The upper (l) or lower (r) word of a pair of words that is shifted."""

    def run(low: Any, high: Any, count: Any) -> Any:
        count = np.minimum(count, U32.type(32)) if mode == "clamp" else count & U32.type(31)
        pair = high.astype(U64) << U64.type(32) | low
        if direction == "l":
            return (pair << count.astype(U64) >> U64.type(32)).astype(U32)
        return (pair >> count.astype(U64)).astype(U32)

    return same("b32", 3, run)


@op(r"(popc|clz|brev)\.b(32|64)")
def _(name, bits):
    kind = TYPES["b" + bits]

    def run(a: Any) -> Any:
        if name == "popc":
            return np.bitwise_count(a).astype(U32)
        one_by_one = [a >> kind.type(k) & kind.type(1) for k in range(int(bits))]
        if name == "brev":
            return sum(bit << kind.type(int(bits) - 1 - k) for k, bit in enumerate(one_by_one))
        length = functools.reduce(
            lambda found, k: np.where(one_by_one[k] > 0, k + 1, found), range(int(bits)), 0
        )
        return (int(bits) - length).astype(U32)

    return Operation((kind if name == "brev" else U32,), (kind,), run)


@op(r"bfe\.([su])(32|64)")
def _(sign, bits):
    """The `length` bits from position `start` on, with the sign extended."""
    kind, size = TYPES[sign + bits], int(bits)

    def run(a: Any, start: Any, length: Any) -> Any:
        start, length = (np.minimum(n & U32.type(255), U32.type(size)) for n in (start, length))
        wide = np.empty(np.broadcast(a, start, length).shape, kind)
        for k, (x, p, n) in enumerate(np.broadcast(a, start, length)):
            n, x = int(n), int(x)
            field = (x >> int(p)) & ((1 << n) - 1)
            negative = sign == "s" and n > 0 and x >> min(int(p) + n - 1, size - 1) & 1
            field |= -1 << min(n, size - int(p)) if negative else 0
            wide.reshape(-1)[k] = field if sign == "s" else field & ((1 << size) - 1)
        return wide

    return Operation((kind,), (kind, U32, U32), run)


@op(r"bfi\.b(32|64)")
def _(bits):
    """B with `length` bits from position `start` on replaced by the lowest of a."""
    kind, size = TYPES["b" + bits], int(bits)

    def run(a: Any, b: Any, start: Any, length: Any) -> Any:
        result = np.empty(np.broadcast(a, b, start, length).shape, kind)
        for k, (x, y, p, n) in enumerate(np.broadcast(a, b, start, length)):
            mask = ((1 << (int(n) & 255)) - 1) << (int(p) & 255) & ((1 << size) - 1)
            result.reshape(-1)[k] = int(y) & ~mask | int(x) << (int(p) & 255) & mask
        return result

    return Operation((kind,), (kind, kind, U32, U32), run)


@op(r"prmt\.b32")
def _():
    """Four bytes picked from eight by the nibbles of the selector; bit 3 repeats a byte's sign."""

    def run(a: Any, b: Any, selector: Any) -> Any:
        pair = b.astype(U64) << U64.type(32) | a
        result = np.zeros_like(pair, U32)
        for k in range(4):
            nibble = selector >> U32.type(4 * k) & U32.type(15)
            byte = pair >> (8 * (nibble & U32.type(7))).astype(U64) & U64.type(255)
            sign = np.where(byte > 127, 255, 0)
            byte = np.where(nibble > 7, sign, byte).astype(U32)
            result = result | byte << U32.type(8 * k)
        return result

    return same("b32", 3, run)


@op(r"lop3\.b32")
def _():
    """Any function of three bits, by its table of eight results."""

    def run(a: Any, b: Any, c: Any, table: Any) -> Any:
        result = np.zeros_like(a | b | c)
        for k in range(8):
            x, y, z = (v if k >> p & 1 else ~v for v, p in ((a, 2), (b, 1), (c, 0)))
            result = np.where(table >> U32.type(k) & U32.type(1) > 0, result | x & y & z, result)
        return result

    return same("b32", 4, run)
