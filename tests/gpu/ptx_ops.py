"""What PTX instructions compute: a table from opcodes, as patterns, to NumPy functions.

Arrays hold one value per thread. An opcode that no pattern matches, modifiers included, is an
error. Exact are: integers, comparisons, conversions, and add, sub, mul, fma, div and sqrt rounded
to nearest, fma also in the other directions. The approximations (ex2, lg2, rcp, rsqrt, sin, cos,
tanh, div.approx, div.full) are exact functions rounded once, or off by the errors in `BOUNDS` where
`errors_of` says so: a device may differ in the last bits.

Source: NVIDIA, "Parallel Thread Execution ISA", version 9.0, chapter 9.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numba import vectorize
from numba.extending import intrinsic

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


def _op(pattern: str) -> Callable[..., Any]:
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


def _same(kind: str, count: int, compute: Callable[..., Any]) -> Operation:
    """`count` sources and a result, all of one type."""
    return Operation((TYPES[kind],), (TYPES[kind],) * count, compute)


def _unsigned(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(f"u{dtype.itemsize}")


# ------------------------------------------------------------------------------ floats


def _flushed(x: Any) -> Any:
    """Subnormals become zeros of their sign."""
    tiny = np.finfo(x.dtype).smallest_normal
    return np.where(np.abs(x) < tiny, np.copysign(x.dtype.type(0), x), x)


def _float(kind: str, count: int, compute: Callable[..., Any], ftz: Any, sat: Any) -> Operation:
    """A float operation, with subnormals flushed and results clamped to [0, 1] if asked for."""

    def run(*values: Any) -> Any:
        if ftz:
            values = tuple(map(_flushed, values))
        result = compute(*values)
        if ftz:
            result = _flushed(result)
        return _saturated(result) if sat else result

    return _same(kind, count, run if ftz or sat else compute)


def _saturated(x: Any) -> Any:
    """Clamped to [0, 1]; NaN becomes 0."""
    return np.where(x > 0, np.minimum(x, x.dtype.type(1)), x.dtype.type(0))


@intrinsic
def _llvm_fma(typing_context, a, b, c):  # type: ignore[no-untyped-def]
    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.fma(*args)

    return a(a, a, a), generate


@vectorize(["f4(f4, f4, f4)", "f8(f8, f8, f8)"])
def fma(a, b, c):  # type: ignore[no-untyped-def]
    """A * b + c, rounded once: the host's own instruction, or its exact library function."""
    return _llvm_fma(a, b, c)


def _directed(direction: str) -> Callable[..., Any]:
    """Fma of float32, rounded towards zero (rz), down (rm) or up (rp)."""

    def compute(a: Any, b: Any, c: Any) -> Any:
        product, addend = np.multiply(a, b, dtype=F64), np.asarray(c, F64)
        total = product + addend
        part = total - product
        lost = (product - (total - part)) + (addend - part)
        nearest = total.astype(F32)
        # How far the exact value is above the nearest float32.
        above = np.where(nearest == total, lost, total - nearest)
        down = {"rm": above < 0, "rp": False, "rz": (above < 0) & (nearest > 0)}[direction]
        up = {"rm": False, "rp": above > 0, "rz": (above > 0) & (nearest < 0)}[direction]
        nearest = np.where(down, np.nextafter(nearest, F32.type(-np.inf)), nearest)
        return np.where(up, np.nextafter(nearest, F32.type(np.inf)), nearest)

    return compute


@_op(r"(add|sub|mul)(?:\.rn)?(\.ftz)?(\.sat)?\.(f16|f32|f64)")
def _(name, ftz, sat, kind):
    compute = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[name]
    return _float(kind, 2, compute, ftz, sat)


@_op(r"(?:fma|mad)\.(rn|rz|rm|rp)(\.ftz)?(\.sat)?\.(f32|f64)")
def _(mode, ftz, sat, kind):
    if mode != "rn" and kind == "f64":
        raise NotImplementedError(f"fma.{mode}.f64")
    return _float(kind, 3, fma if mode == "rn" else _directed(mode), ftz, sat)


@_op(r"div\.(?:rn|approx|full)(\.ftz)?\.(f32|f64)")
def _(ftz, kind):
    return _float(kind, 2, np.divide, ftz, None)


@_op(r"(sqrt|rcp)\.rn(\.ftz)?\.(f32|f64)")
def _(name, ftz, kind):
    return _float(kind, 1, np.sqrt if name == "sqrt" else lambda x: 1 / x, ftz, None)


_APPROXIMATED = {
    "ex2": np.exp2,
    "lg2": np.log2,
    "rcp": lambda x: 1 / x,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
}


# The largest relative errors that the ISA allows; for lg2 it allows as much, absolute, around 1.
BOUNDS = {"ex2": 2**-22, "lg2": 2**-22, "rcp": 2**-23, "sqrt": 2**-23, "rsqrt": 2**-22.9}
_off_by = 0.0


@contextmanager
def errors_of(share: float) -> Iterator[None]:
    """Let the approximations be off by a share of their bounds, such as 1 or -1."""
    global _off_by
    before, _off_by = _off_by, share
    try:
        yield
    finally:
        _off_by = before


@_op(r"(ex2|lg2|rcp|sqrt|rsqrt|sin|cos|tanh)\.approx(\.ftz)?\.f32")
def _(name, ftz):
    function = _APPROXIMATED[name]

    def run(x: Any) -> Any:
        return (function(x.astype(F64)) * (1 + _off_by * BOUNDS.get(name, 0))).astype(F32)

    return _float("f32", 1, run, ftz, None)


@_op(r"(rcp|rsqrt)\.approx\.ftz\.f64")
def _(name):
    """Only the upper halves of source and result count."""
    function, high = _APPROXIMATED[name], U64.type(0xFFFFFFFF00000000)

    def upper(x: Any) -> Any:
        return (np.asarray(x).view(U64) & high).view(F64)

    return _float("f64", 1, lambda x: upper(function(upper(x))), ".ftz", None)


@_op(r"(min|max)(\.ftz)?(\.NaN)?\.(f32|f64)")
def _(name, ftz, keep_nan, kind):
    """-0 is less than 0."""
    functions = {"min": (np.fmin, np.minimum), "max": (np.fmax, np.maximum)}
    compute = functions[name][bool(keep_nan)]

    def run(a: Any, b: Any) -> Any:
        first = np.signbit(a) == (name == "min")
        return np.where((a == b), np.where(first, a, b), compute(a, b))

    return _float(kind, 2, run, ftz, None)


@_op(r"(abs|neg)(\.ftz)?\.(f16|f32|f64)")
def _(name, ftz, kind):
    return _float(kind, 1, np.abs if name == "abs" else np.negative, ftz, None)


@_op(r"copysign\.(f32|f64)")
def _(kind):
    return _same(kind, 2, lambda sign, size: np.copysign(size, sign))


@_op(r"testp\.(finite|infinite|number|notanumber|normal|subnormal)\.(f32|f64)")
def _(name, kind):
    tiny = np.finfo(TYPES[kind]).smallest_normal
    test = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "number": lambda x: ~np.isnan(x),
        "notanumber": np.isnan,
        "normal": lambda x: np.isfinite(x) & (np.abs(x) >= tiny),
        "subnormal": lambda x: (np.abs(x) < tiny) & (x != 0),
    }[name]
    return Operation((BOOL,), (TYPES[kind],), test)


# ---------------------------------------------------------------------------- integers


@_op(r"(add|sub|min|max|and|or|xor)\.([sub]\d+|pred)")
def _(name, kind):
    functions = {
        "add": np.add, "sub": np.subtract, "min": np.minimum, "max": np.maximum,
        "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    }  # fmt: skip
    return _same(kind, 2, functions[name])


@_op(r"(not|cnot|neg|abs|mov)\.([sub]\d+|pred|f\d+)")
def _(name, kind):
    functions = {
        "not": np.invert, "neg": np.negative, "abs": np.abs, "mov": lambda x: x,
        "cnot": lambda x: (x == 0).astype(x.dtype),
    }  # fmt: skip
    return _same(kind, 1, functions[name])


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


@_op(r"(mul|mad)\.(lo|hi|wide)\.([su])(16|32|64)")
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


@_op(r"(div|rem)\.([su]\d+)")
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

    return _same(kind, 2, run)


@_op(r"(shl|shr)\.([bsu])(16|32|64)")
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


@_op(r"shf\.(l|r)\.(clamp|wrap)\.b32")
def _(direction, mode):
    """The upper (l) or lower (r) word of a pair of words that is shifted."""

    def run(low: Any, high: Any, count: Any) -> Any:
        count = np.minimum(count, U32.type(32)) if mode == "clamp" else count & U32.type(31)
        pair = high.astype(U64) << U64.type(32) | low
        if direction == "l":
            return (pair << count.astype(U64) >> U64.type(32)).astype(U32)
        return (pair >> count.astype(U64)).astype(U32)

    return _same("b32", 3, run)


@_op(r"(popc|clz|brev)\.b(32|64)")
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


@_op(r"bfe\.([su])(32|64)")
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


@_op(r"bfi\.b(32|64)")
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


@_op(r"prmt\.b32")
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

    return _same("b32", 3, run)


@_op(r"lop3\.b32")
def _():
    """Any function of three bits, by its table of eight results."""

    def run(a: Any, b: Any, c: Any, table: Any) -> Any:
        result = np.zeros_like(a | b | c)
        for k in range(8):
            x, y, z = (v if k >> p & 1 else ~v for v, p in ((a, 2), (b, 1), (c, 0)))
            result = np.where(table >> U32.type(k) & U32.type(1) > 0, result | x & y & z, result)
        return result

    return _same("b32", 4, run)


# ------------------------------------------------------------- comparisons, conversions

_COMPARISONS = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le,
    "gt": operator.gt, "ge": operator.ge,
    "lo": operator.lt, "ls": operator.le, "hi": operator.gt, "hs": operator.ge,
}  # fmt: skip
_UNORDERED = {"equ": "eq", "neu": "ne", "ltu": "lt", "leu": "le", "gtu": "gt", "geu": "ge"}


def _comparison(name: str, ftz: Any, kind: np.dtype[Any]) -> Callable[..., Any]:
    """Compare; with NaN, all but the unordered forms are false."""

    def run(a: Any, b: Any) -> Any:
        if kind.kind != "f":
            return _COMPARISONS[name](a, b)
        if ftz:
            a, b = _flushed(a), _flushed(b)
        unordered = np.isnan(a) | np.isnan(b)
        if name in ("num", "nan"):
            return unordered == (name == "nan")
        if name in _UNORDERED:
            return unordered | _COMPARISONS[_UNORDERED[name]](a, b)
        return ~unordered & _COMPARISONS[name](a, b)

    return run


@_op(r"setp\.(\w+?)(?:\.(and|or|xor))?(\.ftz)?\.([bsuf]\d+)")
def _(name, combined, ftz, kind):
    """The comparison and its opposite, each combined with a predicate if there is one."""
    compare = _comparison(name, ftz, TYPES[kind])
    sources = (TYPES[kind],) * 2
    if combined is None:
        return Operation((BOOL, BOOL), sources, lambda a, b: (found := compare(a, b), ~found))
    combine = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}[combined]

    def run(a: Any, b: Any, c: Any) -> Any:
        found = compare(a, b)
        return combine(found, c), combine(~found, c)

    return Operation((BOOL, BOOL), (*sources, BOOL), run)


@_op(r"set\.(\w+?)(\.ftz)?\.([us]32|f32)\.([bsuf]\d+)")
def _(name, ftz, result, kind):
    """All ones, or 1.0, where the comparison holds."""
    compare, true = _comparison(name, ftz, TYPES[kind]), 1 if result == "f32" else -1
    values = np.array([0, true], "f4" if result == "f32" else "i4").view(TYPES[result])
    return Operation(
        (TYPES[result],), (TYPES[kind],) * 2, lambda a, b: values[compare(a, b).astype(int)]
    )


@_op(r"selp\.([bsuf]\d+)")
def _(kind):
    return Operation(
        (TYPES[kind],), (TYPES[kind],) * 2 + (BOOL,), lambda a, b, p: np.where(p, a, b)
    )


def bfloat16_bits(x: Any) -> Any:
    """The upper halves of float32, rounded to nearest even; NaN becomes 0x7FFF."""
    bits = np.asarray(x).view(U32).astype(U64)
    rounded = (bits + U64.type(0x7FFF) + (bits >> U64.type(16) & U64.type(1))) >> U64.type(16)
    return np.where(np.isnan(x), U64.type(0x7FFF), rounded).astype(U16)


def _half_bits(x: Any) -> Any:
    """Float16, rounded to nearest even, as bits; NaN becomes 0x7FFF."""
    return np.where(np.isnan(x), U16.type(0x7FFF), x.astype(np.float16).view(U16))


@_op(r"cvt\.rn(\.relu)?\.(f16x2|bf16x2)\.f32")
def _(relu, kind):
    """The first source goes into the upper half of the result."""
    bits = _half_bits if kind == "f16x2" else bfloat16_bits

    def run(high: Any, low: Any) -> Any:
        return bits(high).astype(U32) << U32.type(16) | bits(low)

    if relu:
        raise NotImplementedError("cvt.rn.relu")
    return Operation((U32,), (F32, F32), run)


@_op(r"cvt\.rn\.bf16\.f32")
def _():
    return Operation((U16,), (F32,), bfloat16_bits)


@_op(r"cvt\.f32\.bf16")
def _():
    return Operation((F32,), (U16,), lambda x: (x.astype(U32) << U32.type(16)).view(F32))


_TO_INTEGER = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


@_op(r"cvt(?:\.(rn|rni|rzi|rmi|rpi))?(\.ftz)?(\.sat)?\.([suf]\d+)\.([suf]\d+)")
def _(mode, ftz, sat, to, kind):
    target, source = TYPES[to], TYPES[kind]
    from_float, to_float = source.kind == "f", target.kind == "f"
    narrowing = to_float and (not from_float or target.itemsize < source.itemsize)
    if (mode == "rn") != narrowing or (from_float and not to_float and mode not in _TO_INTEGER):
        raise NotImplementedError(f"cvt with mode {mode} to {to} from {kind}")

    def run(x: Any) -> Any:
        if ftz and from_float:
            x = _flushed(x)
        if mode in _TO_INTEGER:
            x = _TO_INTEGER[mode](x)
        if from_float and not to_float:
            return _to_integer(x, target)
        if sat and not to_float:
            limits = np.iinfo(target)
            least, most = (
                max(limits.min, np.iinfo(source).min),
                min(limits.max, np.iinfo(source).max),
            )
            x = np.clip(x, source.type(least), source.type(most))
        x = x.astype(target)
        return _saturated(x) if sat and to_float else x

    return Operation((target,), (source,), run)


def _to_integer(x: Any, target: np.dtype[Any]) -> Any:
    """Whole numbers in float as integers, clamped; NaN as a device has it."""
    limits = np.iinfo(target)
    wide = target.itemsize == 8 or x.dtype == F64
    nan = target.type(1 << 63 if target == U64 else -1 << 63) if target.itemsize == 8 else 0
    if wide and target.itemsize == 4:
        nan = target.type(1 << 31 if target == U32 else -1 << 31)
    # Both limits as floats: the upper one may round up to the first number that is too large.
    too_large, too_small = x >= x.dtype.type(2.0 ** limits.max.bit_length()), x <= limits.min
    safe = np.where(too_large | too_small | np.isnan(x), x.dtype.type(0), x).astype(target)
    found = np.where(too_large, target.type(limits.max), safe)
    found = np.where(too_small, target.type(limits.min), found)
    return np.where(np.isnan(x), nan, found).astype(target)


@_op(r"cvta(\.to)?\.(global|shared|local|const|param)\.u64")
def _(to, space):
    window = U64.type(WINDOWS[space])
    return _same("u64", 1, (lambda x: x - window) if to else (lambda x: x + window))
