"""The losses that are operations of their own; others are made of several."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import backend
from ... import functional as F  # noqa: N812 - the usual name
from ...functional import checks
from ._common import RecordableOp, Tensor, empty_beside, reduced
from .masks import masked_graph
from .softmax import Softmax


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

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        logits = inputs[0]
        axis = min(1, logits.ndim - 1)
        counts, known = (backend.empty(logits.shape, logits.dtype) for _ in range(2))
        total = backend.empty(reduced(logits.shape, (axis,), True), logits.dtype)
        options = ctx.options.values()
        backend.run(_count_classes, ctx.labels, axis, *options, counts, total, known)
        if ctx.options["reduction"] == "none":
            dy = dy.reshape(total.shape)
        probabilities = dy._apply(Softmax, masked_graph(logits, known), axis=axis)
        return (probabilities * total - counts) * dy, None


def _count_classes(
    labels: np.ndarray, axis: int, weight: Any, ignored: int | None, smoothing: float,
    reduction: str, counts: np.ndarray, total: np.ndarray, known: np.ndarray,
) -> None:  # fmt: skip
    """Write the coefficients of -log(softmax) in the loss, their sums, and which rows have any."""
    labels = np.expand_dims(labels, axis)
    classes = counts.shape[axis]
    counted = np.ones(labels.shape, np.bool_) if ignored is None else labels != ignored
    known[...] = counted
    labels = np.where(counted, labels, 0)
    counts[...] = smoothing / classes
    np.put_along_axis(counts, labels, 1 - smoothing + smoothing / classes, axis)
    counts *= counted
    of_labels = counted * 1.0
    if weight is not None:
        counts *= weight.reshape(classes, *(1,) * (counts.ndim - axis - 1))
        of_labels = weight[labels] * counted
    if reduction == "mean":
        counts /= of_labels.sum()
    np.sum(counts, axis=axis, keepdims=True, out=total)


class Huber(RecordableOp):
    """x^2 / 2 where |x| <= delta, else delta * (|x| - delta / 2)."""

    fresh = True

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, delta: float) -> np.ndarray:
        checks.floating(x, "x")
        # A delta beyond the type's largest number clips nothing.
        delta = min(delta, float(np.finfo(x.dtype).max))
        ctx.x, ctx.delta = x, delta
        y = empty_beside(x.shape, x)
        backend.run(_huber, x, delta, y)
        return y

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        dx = empty_beside(dy.shape, dy)
        backend.run(_huber_backward, dy, ctx.x, ctx.delta, dx)
        return dx

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        x = inputs[0]
        near, rest = (backend.empty(x.shape, x.dtype) for _ in range(2))
        backend.run(_split_at, x.data, ctx.delta, near, rest)
        return dy * (masked_graph(x, near) + rest)


def _huber(x: np.ndarray, delta: float, y: np.ndarray) -> None:
    near = np.clip(x, -delta, delta)
    np.multiply(near, x - 0.5 * near, y)


def _huber_backward(dy: np.ndarray, x: np.ndarray, delta: float, dx: np.ndarray) -> None:
    np.multiply(dy, np.clip(x, -delta, delta), dx)


def _split_at(x: np.ndarray, delta: float, near: np.ndarray, rest: np.ndarray) -> None:
    """Write 1 where |x| <= delta, and x clipped elsewhere."""
    near[...] = np.abs(x) <= delta
    rest[...] = np.where(near != 0, 0, np.clip(x, -delta, delta))
