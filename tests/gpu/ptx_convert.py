"""Comparisons and conversions of PTX, all exact."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.gpu.ptx_floats import flushed, saturated
from tests.gpu.ptx_ops import BOOL, F32, F64, TYPES, U16, U32, U64, WINDOWS, Operation, op, same

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
            a, b = flushed(a), flushed(b)
        unordered = np.isnan(a) | np.isnan(b)
        if name in ("num", "nan"):
            return unordered == (name == "nan")
        if name in _UNORDERED:
            return unordered | _COMPARISONS[_UNORDERED[name]](a, b)
        return ~unordered & _COMPARISONS[name](a, b)

    return run


@op(r"setp\.(\w+?)(?:\.(and|or|xor))?(\.ftz)?\.([bsuf]\d+)")
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


@op(r"set\.(\w+?)(\.ftz)?\.([us]32|f32)\.([bsuf]\d+)")
def _(name, ftz, result, kind):
    """All ones, or 1.0, where the comparison holds."""
    compare, true = _comparison(name, ftz, TYPES[kind]), 1 if result == "f32" else -1
    values = np.array([0, true], "f4" if result == "f32" else "i4").view(TYPES[result])
    return Operation(
        (TYPES[result],), (TYPES[kind],) * 2, lambda a, b: values[compare(a, b).astype(int)]
    )


@op(r"selp\.([bsuf]\d+)")
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


@op(r"cvt\.rn(\.relu)?\.(f16x2|bf16x2)\.f32")
def _(relu, kind):
    """The first source goes into the upper half of the result."""
    bits = _half_bits if kind == "f16x2" else bfloat16_bits

    def run(high: Any, low: Any) -> Any:
        return bits(high).astype(U32) << U32.type(16) | bits(low)

    if relu:
        raise NotImplementedError("cvt.rn.relu")
    return Operation((U32,), (F32, F32), run)


@op(r"cvt\.rn\.bf16\.f32")
def _():
    return Operation((U16,), (F32,), bfloat16_bits)


@op(r"cvt\.f32\.bf16")
def _():
    return Operation((F32,), (U16,), lambda x: (x.astype(U32) << U32.type(16)).view(F32))


_TO_INTEGER = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


@op(r"cvt(?:\.(rn|rni|rzi|rmi|rpi))?(\.ftz)?(\.sat)?\.([suf]\d+)\.([suf]\d+)")
def _(mode, ftz, sat, to, kind):
    target, source = TYPES[to], TYPES[kind]
    from_float, to_float = source.kind == "f", target.kind == "f"
    narrowing = to_float and (not from_float or target.itemsize < source.itemsize)
    if (mode == "rn") != narrowing or (from_float and not to_float and mode not in _TO_INTEGER):
        raise NotImplementedError(f"cvt with mode {mode} to {to} from {kind}")

    def run(x: Any) -> Any:
        if ftz and from_float:
            x = flushed(x)
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
        return saturated(x) if sat and to_float else x

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


@op(r"cvta(\.to)?\.(global|shared|local|const|param)\.u64")
def _(to, space):
    window = U64.type(WINDOWS[space])
    return same("u64", 1, (lambda x: x - window) if to else (lambda x: x + window))
