"""Several arrays in one: concatenation, padding, selection, the larger of two."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from ... import backend
from ...errors import ArgumentError, ShapeError
from ...functional import checks
from ...functional.layout import axis_index
from ._common import RecordableOp, Tensor, compute, empty_beside, unbroadcast, unbroadcast_graph
from .masks import masked, masked_graph


class Concatenate(RecordableOp):
    """Arrays one after the other along an axis that they have."""

    @staticmethod
    def forward(ctx: Any, *arrays: np.ndarray, axis: int) -> np.ndarray:
        if not arrays:
            raise ArgumentError("concatenate needs one tensor or more, got none")
        for array in arrays:
            checks.floating(array, "a tensor to concatenate")
        first = arrays[0]
        axis = axis_index(axis, first)
        for array in arrays:
            checks.on_device(array, backend.device_of(first), "a tensor to concatenate")
            lengths = (*array.shape[:axis], first.shape[axis], *array.shape[axis + 1 :])
            if array.ndim != first.ndim or lengths != first.shape:
                raise ShapeError(
                    f"shapes {first.shape} and {array.shape} differ on other axes than {axis}, "
                    "along which they are to be concatenated"
                )
        ends = list(itertools.accumulate(array.shape[axis] for array in arrays))
        # A part of dy for each.
        ctx.parts = [
            (slice(None),) * axis + (slice(start, stop),)
            for start, stop in itertools.pairwise((0, *ends))
        ]
        shape = (*first.shape[:axis], ends[-1], *first.shape[axis + 1 :])
        dtype = np.result_type(*(array.dtype for array in arrays))
        out = backend.empty(shape, dtype, backend.device_of(first))
        for array, part in zip(arrays, ctx.parts, strict=True):
            backend.run(np.copyto, out[part], array)
        return out

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return tuple(dy[part] for part in ctx.parts)

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        return tuple(dy[part] for part in ctx.parts)


class Pad(RecordableOp):
    """A border of a constant value around an array."""

    @staticmethod
    def forward(
        ctx: Any, x: np.ndarray, *, widths: tuple[tuple[int, int], ...], value: float
    ) -> np.ndarray:
        shape = tuple(n + sum(width) for n, width in zip(x.shape, widths, strict=True))
        ctx.inside = tuple(
            slice(before, before + n) for n, (before, _) in zip(x.shape, widths, strict=True)
        )
        out = empty_beside(shape, x)
        backend.run(np.copyto, out, value)
        backend.run(np.copyto, out[ctx.inside], x)
        return out

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return dy[ctx.inside]

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        return dy[ctx.inside]


class Where(RecordableOp):
    """a where a constant condition holds, else b; nothing passes to the other, not even NaN."""

    @staticmethod
    def forward(ctx: Any, a: Any, b: Any, *, condition: np.ndarray) -> np.ndarray:
        ctx.inputs, ctx.condition = (a, b), condition
        return _select(condition, a, b)

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        (a, b), condition = ctx.inputs, ctx.condition
        return (
            unbroadcast(_select(condition, dy, 0), a) if ctx.needs[0] else None,
            unbroadcast(_select(condition, 0, dy), b) if ctx.needs[1] else None,
        )

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        def part(*operands: Any, like: Any) -> Tensor:
            return unbroadcast_graph(dy._apply(Where, *operands, condition=ctx.condition), like)

        a, b = inputs
        return (
            part(dy, 0, like=a) if ctx.needs[0] else None,
            part(0, dy, like=b) if ctx.needs[1] else None,
        )


def _select(condition: np.ndarray, a: Any, b: Any) -> np.ndarray:
    """Choose elements of a or of b, of which one is an array, into a fresh array."""
    like = a if backend.is_array(a) else b
    checks.on_device(condition, backend.device_of(like), "condition")
    shapes = condition.shape, np.shape(a), np.shape(b)
    try:
        shape = np.broadcast_shapes(*shapes)
    except ValueError:
        raise ShapeError(
            f"condition {shapes[0]}, a {shapes[1]} and b {shapes[2]} do not broadcast together"
        ) from None
    dtype = np.result_type(*(x.dtype if backend.is_array(x) else x for x in (a, b)))
    out = backend.empty(shape, dtype, backend.device_of(like))
    backend.run(_choose, condition, a, b, out)
    return out


def _choose(condition: np.ndarray, a: Any, b: Any, out: np.ndarray) -> None:
    # A number beyond float32 is infinite in it.
    with np.errstate(over="ignore"):
        np.copyto(out, b)
        np.copyto(out, a, "same_kind", condition)


class Maximum(RecordableOp):
    """The larger of two elements; equal ones share the gradient, and NaN wins, as in PyTorch."""

    @staticmethod
    def forward(ctx: Any, a: Any, b: Any) -> np.ndarray:
        ctx.inputs = a, b
        return compute(_larger, a, b)

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return tuple(
            unbroadcast(masked(dy, share), x)
            for x, share in zip(ctx.inputs, _shares(ctx, dy), strict=True)
        )

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        return tuple(
            unbroadcast_graph(masked_graph(dy, share), x)
            for x, share in zip(ctx.inputs, _shares(ctx, dy.data), strict=True)
        )


def _larger(a: Any, b: Any, out: np.ndarray | None = None) -> np.ndarray:
    # A number beyond float32 is infinite in it.
    with np.errstate(over="ignore"):
        return np.maximum(a, b, out=out)  # type: ignore[no-any-return]


def _shares(ctx: Any, dy: np.ndarray) -> list[np.ndarray]:
    """Which share of dy each operand of a maximum gets, element by element."""
    a, b = ctx.inputs
    shares = [empty_beside(dy.shape, dy) for _ in ctx.inputs]
    backend.run(_share_between, a, b, shares[0])
    backend.run(_share_between, b, a, shares[1])
    return shares


def _share_between(a: Any, b: Any, share: np.ndarray) -> None:
    share[...] = 1 - (a < b) - 0.5 * (a == b)
