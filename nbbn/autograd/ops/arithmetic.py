"""Arithmetic on tensors, with NumPy's broadcasting."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ..._validation import real
from ._common import RecordableOp, Tensor, compute, unbroadcast, unbroadcast_graph, zeros_beside
from .activation import OfInput, OfOutput
from .masks import masked_graph


class Add(RecordableOp):
    """a + b."""

    @staticmethod
    def forward(ctx: Any, a: Any, b: Any) -> np.ndarray:
        ctx.inputs = a, b
        return compute(np.add, a, b)

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return tuple(unbroadcast(dy, x) if need else None
                     for x, need in zip(ctx.inputs, ctx.needs, strict=True))  # fmt: skip

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        return tuple(unbroadcast_graph(dy, x) for x in inputs)


class Subtract(RecordableOp):
    """a - b."""

    @staticmethod
    def forward(ctx: Any, a: Any, b: Any) -> np.ndarray:
        ctx.inputs = a, b
        return compute(np.subtract, a, b)

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        a, b = ctx.inputs
        da = unbroadcast(dy, a) if ctx.needs[0] else None
        db = compute(np.negative, unbroadcast(dy, b)) if ctx.needs[1] else None
        return da, db

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        a, b = inputs
        return unbroadcast_graph(dy, a), unbroadcast_graph(-dy, b)


class Multiply(RecordableOp):
    """a * b."""

    @staticmethod
    def forward(ctx: Any, a: Any, b: Any) -> np.ndarray:
        ctx.inputs = a, b
        return compute(np.multiply, a, b)

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        a, b = ctx.inputs
        da = unbroadcast(compute(np.multiply, dy, b), a) if ctx.needs[0] else None
        db = unbroadcast(compute(np.multiply, dy, a), b) if ctx.needs[1] else None
        return da, db

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        a, b = inputs
        return unbroadcast_graph(dy * b, a), unbroadcast_graph(dy * a, b)


class Divide(RecordableOp):
    """a / b; da = dy / b, db = -dy * y / b."""

    @staticmethod
    def forward(ctx: Any, a: Any, b: Any) -> np.ndarray:
        ctx.inputs = a, b
        ctx.y = compute(np.divide, a, b)
        return ctx.y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        a, b = ctx.inputs
        quotient = compute(np.divide, dy, b)
        da = unbroadcast(quotient, a) if ctx.needs[0] else None
        if not ctx.needs[1]:
            return da, None
        db = compute(np.negative, compute(np.multiply, quotient, ctx.y))
        return da, unbroadcast(db, b)

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        a, b = inputs
        quotient = dy / b
        return unbroadcast_graph(quotient, a), unbroadcast_graph(-(quotient * output), b)


class Power(RecordableOp):
    """x ** p for a number p; dx = dy * p * x ** (p - 1)."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, p: float) -> np.ndarray:
        ctx.x, ctx.p = x, real(p, "the exponent")
        return compute(np.power, x, ctx.p)

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        if ctx.p == 0:
            # Not 0 * x ** -1, which is NaN at 0.
            return zeros_beside(dy)
        slope = compute(np.multiply, compute(np.power, ctx.x, ctx.p - 1), ctx.p)
        return compute(np.multiply, dy, slope)

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        if ctx.p == 0:
            return masked_graph(dy, zeros_beside(dy.data))
        return dy * (inputs[0] ** (ctx.p - 1) * ctx.p)


class Exp(OfOutput):
    """exp(x); dx = dy * y."""

    pair = partial(compute, np.exp), partial(compute, np.multiply)

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        return dy * output


class Log(OfInput):
    """Natural logarithm; dx = dy / x."""

    pair = partial(compute, np.log), partial(compute, np.divide)

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        return dy / inputs[0]
