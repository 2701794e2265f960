"""Softmax and its logarithm, along an axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ... import functional as F  # noqa: N812 - the usual name
from ._common import RecordableOp

if TYPE_CHECKING:
    from ..tensor import Tensor


class AlongAxis(RecordableOp):
    """As `OfOutput` of `activation`, along an axis."""

    pair: ClassVar[tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]]

    @classmethod
    def forward(cls, ctx: Any, x: np.ndarray, *, axis: int) -> np.ndarray:
        ctx.axis, ctx.y = axis, cls.pair[0](x, axis=axis)
        return ctx.y  # type: ignore[no-any-return]

    @classmethod
    def backward(cls, ctx: Any, dy: np.ndarray) -> Any:
        return cls.pair[1](dy, ctx.y, axis=ctx.axis)


class Softmax(AlongAxis):
    """exp(x) / sum(exp(x)); dx = y * (dy - sum(dy * y))."""

    pair = F.softmax, F.softmax_backward

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        return output * (dy - _sum_along(dy * output, ctx.axis))


class LogSoftmax(AlongAxis):
    """x - log(sum(exp(x))); dx = dy - exp(y) * sum(dy)."""

    pair = F.log_softmax, F.log_softmax_backward

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        return dy - output.exp() * _sum_along(dy, ctx.axis)


def _sum_along(x: Tensor, axis: int) -> Tensor:
    """Sum along the axis of a softmax, which one number has none of."""
    return x.sum(axis=axis, keepdims=True) if x.ndim else x
