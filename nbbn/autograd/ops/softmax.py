"""Softmax and its logarithm."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import functional as F  # noqa: N812 - the usual name
from ._common import RecordableOp


class Softmax(RecordableOp):
    """Softmax along an axis."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, axis: int) -> np.ndarray:
        ctx.axis = axis
        ctx.y = F.softmax(x, axis=axis)
        return ctx.y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return F.softmax_backward(dy, ctx.y, axis=ctx.axis)


class LogSoftmax(RecordableOp):
    """Log-softmax along an axis."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, axis: int) -> np.ndarray:
        ctx.axis = axis
        ctx.y = F.log_softmax(x, axis=axis)
        return ctx.y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return F.log_softmax_backward(dy, ctx.y, axis=ctx.axis)
