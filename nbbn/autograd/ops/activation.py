"""ReLU, sigmoid, tanh and softplus."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ... import functional as F  # noqa: N812 - the usual name
from ...functional import checks
from ._common import RecordableOp, compute
from .masks import through_relu

if TYPE_CHECKING:
    from ..tensor import Tensor


class OfOutput(RecordableOp):
    """y = f(x), whose gradient follows from y: a subclass names the functional pair."""

    fresh = True
    pair: ClassVar[tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]]

    @classmethod
    def forward(cls, ctx: Any, x: np.ndarray) -> np.ndarray:
        ctx.y = cls.pair[0](x)
        return ctx.y  # type: ignore[no-any-return]

    @classmethod
    def backward(cls, ctx: Any, dy: np.ndarray) -> Any:
        return cls.pair[1](dy, ctx.y)


class ReLU(OfOutput):
    """max(x, 0)."""

    pair = F.relu, F.relu_backward

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        return through_relu(dy, ctx.y)


class Sigmoid(OfOutput):
    """1 / (1 + exp(-x))."""

    pair = F.sigmoid, F.sigmoid_backward

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        return dy * (output * (1 - output))


class Tanh(OfOutput):
    """Hyperbolic tangent."""

    pair = F.tanh, F.tanh_backward

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        return dy * (1 - output * output)


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

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        return dy * dy._apply(Sigmoid, *inputs)
