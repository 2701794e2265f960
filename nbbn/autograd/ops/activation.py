"""ReLU, sigmoid, tanh and softplus."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import functional as F  # noqa: N812 - the usual name
from ...functional import checks
from ._common import RecordableOp, compute


class ReLU(RecordableOp):
    """max(x, 0)."""

    fresh = True

    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        ctx.y = F.relu(x)
        return ctx.y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return F.relu_backward(dy, ctx.y)


class Sigmoid(RecordableOp):
    """1 / (1 + exp(-x))."""

    fresh = True

    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        ctx.y = F.sigmoid(x)
        return ctx.y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return F.sigmoid_backward(dy, ctx.y)


class Tanh(RecordableOp):
    """Hyperbolic tangent."""

    fresh = True

    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        ctx.y = F.tanh(x)
        return ctx.y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return F.tanh_backward(dy, ctx.y)


class Softplus(RecordableOp):
    """log(1 + exp(x)), which neither overflows nor cancels."""

    fresh = True

    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        checks.floating(x, "x")
        ctx.x = x
        return compute(np.logaddexp, x, 0)

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return compute(np.multiply, dy, F.sigmoid(ctx.x))
