"""The losses that are operations of their own; others are made of several."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import backend
from ... import functional as F  # noqa: N812 - the usual name
from ...functional import checks
from ._common import RecordableOp, empty_beside


class CrossEntropy(RecordableOp):
    """Softmax-cross-entropy of logits (N, K, ...) against labels (N, ...)."""

    fresh = True

    @staticmethod
    def forward(ctx: Any, logits: np.ndarray, labels: np.ndarray, **options: Any) -> np.ndarray:
        ctx.logits, ctx.labels, ctx.options = logits, labels, options
        return F.cross_entropy(logits, labels, **options)

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return F.cross_entropy_backward(ctx.logits, ctx.labels, dy, **ctx.options), None


class Huber(RecordableOp):
    """x^2 / 2 where |x| <= delta, else delta * (|x| - delta / 2)."""

    fresh = True

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, delta: float) -> np.ndarray:
        checks.floating(x, "x")
        ctx.x, ctx.delta = x, delta
        y = empty_beside(x.shape, x)
        backend.run(_huber, x, delta, y)
        return y

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        dx = empty_beside(dy.shape, dy)
        backend.run(_huber_backward, dy, ctx.x, ctx.delta, dx)
        return dx


def _huber(x: np.ndarray, delta: float, y: np.ndarray) -> None:
    near = np.clip(x, -delta, delta)
    np.multiply(near, x - 0.5 * near, y)


def _huber_backward(dy: np.ndarray, x: np.ndarray, delta: float, dx: np.ndarray) -> None:
    np.multiply(dy, np.clip(x, -delta, delta), dx)
