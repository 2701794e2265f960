"""Softmax and its logarithm, along an axis."""

from __future__ import annotations

from typing import Any

from ... import functional as F  # noqa: N812 - the usual name
from ._common import Tensor
from .activation import OfOutput


class Softmax(OfOutput):
    """exp(x) / sum(exp(x)); dx = y * (dy - sum(dy * y))."""

    pair = F.softmax, F.softmax_backward

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        return output * (dy - _sum_along(dy * output, **ctx.options))


class LogSoftmax(OfOutput):
    """x - log(sum(exp(x))); dx = dy - exp(y) * sum(dy)."""

    pair = F.log_softmax, F.log_softmax_backward

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        return dy - output.exp() * _sum_along(dy, **ctx.options)


def _sum_along(x: Tensor, axis: int = -1) -> Tensor:
    """Sum along the axis of a softmax, which one number has none of."""
    return x.sum(axis=axis, keepdims=True) if x.ndim else x
