"""Float arithmetic of PTX.

Exact are add, sub, mul, fma, div and sqrt rounded to nearest, and fma in the other directions. The
approximations (ex2, lg2, rcp, rsqrt, sin, cos, tanh, div.approx, div.full) are exact functions
rounded once, or off by the errors in `BOUNDS` where `errors_of` says so: a device may differ in the
last bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numba import vectorize
from numba.extending import intrinsic

from tests.gpu.ptx_ops import BOOL, F32, F64, TYPES, U64, Operation, op, same


def flushed(x: Any) -> Any:
    """Subnormals become zeros of their sign."""
    tiny = np.finfo(x.dtype).smallest_normal
    return np.where(np.abs(x) < tiny, np.copysign(x.dtype.type(0), x), x)


def _float(kind: str, count: int, compute: Callable[..., Any], ftz: Any, sat: Any) -> Operation:
    """A float operation, with subnormals flushed and results clamped to [0, 1] if asked for."""

    def run(*values: Any) -> Any:
        if ftz:
            values = tuple(map(flushed, values))
        result = compute(*values)
        if ftz:
            result = flushed(result)
        return saturated(result) if sat else result

    return same(kind, count, run if ftz or sat else compute)


def saturated(x: Any) -> Any:
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


@op(r"(add|sub|mul)(?:\.rn)?(\.ftz)?(\.sat)?\.(f16|f32|f64)")
def _(name, ftz, sat, kind):
    compute = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[name]
    return _float(kind, 2, compute, ftz, sat)


@op(r"(?:fma|mad)\.(rn|rz|rm|rp)(\.ftz)?(\.sat)?\.(f32|f64)")
def _(mode, ftz, sat, kind):
    if mode != "rn" and kind == "f64":
        raise NotImplementedError(f"fma.{mode}.f64")
    return _float(kind, 3, fma if mode == "rn" else _directed(mode), ftz, sat)


@op(r"div\.(?:rn|approx|full)(\.ftz)?\.(f32|f64)")
def _(ftz, kind):
    return _float(kind, 2, np.divide, ftz, None)


@op(r"(sqrt|rcp)\.rn(\.ftz)?\.(f32|f64)")
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


@op(r"(ex2|lg2|rcp|sqrt|rsqrt|sin|cos|tanh)\.approx(\.ftz)?\.f32")
def _(name, ftz):
    function = _APPROXIMATED[name]

    def run(x: Any) -> Any:
        return (function(x.astype(F64)) * (1 + _off_by * BOUNDS.get(name, 0))).astype(F32)

    return _float("f32", 1, run, ftz, None)


@op(r"(rcp|rsqrt)\.approx\.ftz\.f64")
def _(name):
    """Only the upper halves of source and result count."""
    function, high = _APPROXIMATED[name], U64.type(0xFFFFFFFF00000000)

    def upper(x: Any) -> Any:
        return (np.asarray(x).view(U64) & high).view(F64)

    return _float("f64", 1, lambda x: upper(function(upper(x))), ".ftz", None)


@op(r"(min|max)(\.ftz)?(\.NaN)?\.(f32|f64)")
def _(name, ftz, keep_nan, kind):
    """-0 is less than 0."""
    functions = {"min": (np.fmin, np.minimum), "max": (np.fmax, np.maximum)}
    compute = functions[name][bool(keep_nan)]

    def run(a: Any, b: Any) -> Any:
        first = np.signbit(a) == (name == "min")
        return np.where((a == b), np.where(first, a, b), compute(a, b))

    return _float(kind, 2, run, ftz, None)


@op(r"(abs|neg)(\.ftz)?\.(f16|f32|f64)")
def _(name, ftz, kind):
    return _float(kind, 1, np.abs if name == "abs" else np.negative, ftz, None)


@op(r"copysign\.(f32|f64)")
def _(kind):
    return same(kind, 2, lambda sign, size: np.copysign(size, sign))


@op(r"testp\.(finite|infinite|number|notanumber|normal|subnormal)\.(f32|f64)")
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
