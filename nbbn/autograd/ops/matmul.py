"""Matrix products."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import backend
from ...errors import ShapeError
from ...functional import checks
from ._common import RecordableOp, Tensor, unbroadcast, unbroadcast_graph


class MatMul(RecordableOp):
    """a @ b, with NumPy's broadcasting of leading axes."""

    @staticmethod
    def forward(ctx: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        checks.floating(a, "the left operand of @")
        checks.floating(b, "the right operand of @")
        if a.ndim < 2 or b.ndim < 2:
            raise ShapeError(
                f"@ needs 2 or more dimensions on both sides, got {np.shape(a)} @ {np.shape(b)}: "
                "reshape vectors to (1, n) or (n, 1)"
            )
        if a.shape[-1] != b.shape[-2]:
            raise ShapeError(
                f"cannot multiply {a.shape} @ {b.shape}: {a.shape[-1]} columns meet "
                f"{b.shape[-2]} rows"
            )
        ctx.inputs = a, b
        return matmul(a, b)

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        a, b = ctx.inputs
        da = unbroadcast(matmul(dy, b.swapaxes(-1, -2)), a) if ctx.needs[0] else None
        db = unbroadcast(matmul(a.swapaxes(-1, -2), dy), b) if ctx.needs[1] else None
        return da, db

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        (a, b), (needs_a, needs_b) = inputs, ctx.needs
        da = unbroadcast_graph(dy @ _swapped(b), a) if needs_a else None
        return da, unbroadcast_graph(_swapped(a) @ dy, b) if needs_b else None


def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Multiply matrices, into a fresh array unless `out` is given."""
    if out is None:
        try:
            leading = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        except ValueError:
            raise ShapeError(
                f"cannot multiply {a.shape} @ {b.shape}: leading axes differ"
            ) from None
        device = backend.device_of(a)
        checks.on_device(b, device, "the right operand of @")
        shape = (*leading, a.shape[-2], b.shape[-1])
        out = backend.empty(shape, np.result_type(a.dtype, b.dtype), device)
    backend.matmul(a, b, out)
    return out


def _swapped(x: Any) -> Any:
    return x.transpose(*range(x.ndim - 2), x.ndim - 1, x.ndim - 2)
