"""ReLU and its relatives, sigmoid, tanh and softplus."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from ... import backend
from ... import functional as F  # noqa: N812 - the usual name
from ...functional import checks
from ._common import RecordableOp, Tensor, compute
from .masks import masked_graph, through_relu

_SQRT_2_PI, _DENSITY_AT_0 = math.sqrt(2 / math.pi), 1 / math.sqrt(2 * math.pi)


class OfInput(RecordableOp):
    """y = f(x), whose gradient follows from x: a subclass names the functional pair."""

    fresh = True
    pair: ClassVar[tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]]

    @classmethod
    def forward(cls, ctx: Any, x: np.ndarray, **options: Any) -> np.ndarray:
        ctx.kept, ctx.options = x, options
        return cls.pair[0](x, **options)

    @classmethod
    def backward(cls, ctx: Any, dy: np.ndarray) -> Any:
        return cls.pair[1](dy, ctx.kept, **ctx.options)


class OfOutput(OfInput):
    """y = f(x), whose gradient follows from y."""

    @classmethod
    def forward(cls, ctx: Any, x: np.ndarray, **options: Any) -> np.ndarray:
        ctx.kept, ctx.options = cls.pair[0](x, **options), options
        return ctx.kept  # type: ignore[no-any-return]


class ReLU(OfOutput):
    """max(x, 0)."""

    pair = F.relu, F.relu_backward

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        return through_relu(dy, ctx.kept)


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


class GELU(OfInput):
    """x Phi(x), or x (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3)."""

    pair = F.gelu, F.gelu_backward

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        (x,) = inputs
        if ctx.options["approximate"] == "none":
            return dy * dy._apply(GELUSlope, x)
        u = _SQRT_2_PI * (x + 0.044715 * (x * x * x))
        t = dy._apply(Tanh, u)
        slope = _SQRT_2_PI * (1 + 3 * 0.044715 * (x * x))
        return dy * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * slope)


class GELUSlope(RecordableOp):
    """Phi(x) + x Phi'(x), whose derivative is (2 - x^2) Phi'(x)."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        ctx.x = x
        return F.gelu_backward(backend.ones(x.shape, x.dtype, backend.device_of(x)), x)

    @staticmethod
    def backward(ctx: Any, du: np.ndarray) -> Any:
        square = compute(np.multiply, ctx.x, ctx.x)
        density = compute(np.exp, compute(np.multiply, square, -0.5))
        factor = compute(np.multiply, compute(np.subtract, 2.0, square), density)
        return compute(np.multiply, du, compute(np.multiply, factor, _DENSITY_AT_0))


class SiLU(OfInput):
    """x / (1 + exp(-x))."""

    pair = F.silu, F.silu_backward

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        (x,) = inputs
        s = dy._apply(Sigmoid, x)
        return dy * (s * (1 + x * (1 - s)))


class LeakyReLU(OfInput):
    """x where it is positive, slope x elsewhere."""

    pair = F.leaky_relu, F.leaky_relu_backward

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        ones = backend.ones(dy.shape, dy.dtype, dy.device)
        return masked_graph(dy, F.leaky_relu_backward(ones, ctx.kept, **ctx.options))


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
