"""Convolutions of images and transposed ones. Every gradient of a convolution is one again."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...functional.activation import relu_backward
from ...functional.convolution import Convolution
from ._common import RecordableOp, Tensor
from .masks import through_relu


class Conv2d(RecordableOp):
    """y = x * weight + bias for images x (N, C, H, W) or (N, H, W, C)."""

    fresh = True

    @staticmethod
    def forward(
        ctx: Any, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, *,
        activation: Any = None, **window: Any,
    ) -> np.ndarray:  # fmt: skip
        found = Convolution(x, weight, **window)
        y = found.forward(x, weight, bias, activation=activation)
        ctx.found, ctx.x, ctx.weight = found, x, weight
        ctx.y = y if activation else None
        return y

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        found, (_, dweight, dbias) = ctx.found, ctx.buffers
        if ctx.y is not None:
            dy = relu_backward(dy, ctx.y)
        return (
            found.input_gradient(dy, ctx.weight, None) if ctx.needs[0] else None,
            found.weight_gradient(dy, ctx.x, dweight) if ctx.needs[1] else None,
            found.bias_gradient(dy, dbias) if ctx.needs[2] else None,
        )

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        (x, weight, _), found, dx, dweight = inputs, ctx.found, None, None
        dy = through_relu(dy, ctx.y)
        if ctx.needs[0]:
            dx = _input_gradient(dy, weight, found)
        if ctx.needs[1]:
            dweight = dy._apply(ConvWeightGradient, dy, x, found=found)
        return dx, dweight, _over_channels(dy, found) if ctx.needs[2] else None


class ConvTranspose2d(RecordableOp):
    """The gradient of x in y = x * weight, given the one of y, plus a bias."""

    fresh = True

    @staticmethod
    def forward(
        ctx: Any, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, **window: Any
    ) -> np.ndarray:
        found = Convolution.of_output(x, weight, **window)
        ctx.found, ctx.x, ctx.weight = found, x, weight
        return found.input_gradient(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        found, (_, dweight, dbias) = ctx.found, ctx.buffers
        return (
            found.forward(dy, ctx.weight, None) if ctx.needs[0] else None,
            found.weight_gradient(ctx.x, dy, dweight) if ctx.needs[1] else None,
            found.bias_gradient(dy, dbias) if ctx.needs[2] else None,
        )

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        (x, weight, _), found, dx, dweight = inputs, ctx.found, None, None
        if ctx.needs[0]:
            dx = dy._apply(Conv2d, dy, weight, None, **found.options)
        if ctx.needs[1]:
            dweight = dy._apply(ConvWeightGradient, x, dy, found=found)
        return dx, dweight, _over_channels(dy, found) if ctx.needs[2] else None


class ConvWeightGradient(RecordableOp):
    """The gradient of the weight as a function of dy and x, linear in both."""

    fresh = True

    @staticmethod
    def forward(ctx: Any, dy: np.ndarray, x: np.ndarray, *, found: Convolution) -> np.ndarray:
        ctx.dy, ctx.x, ctx.found = dy, x, found
        return found.weight_gradient(dy, x)

    @staticmethod
    def backward(ctx: Any, ddweight: np.ndarray) -> Any:
        return (
            ctx.found.forward(ctx.x, ddweight, None) if ctx.needs[0] else None,
            ctx.found.input_gradient(ctx.dy, ddweight, None) if ctx.needs[1] else None,
        )

    @staticmethod
    def backward_graph(ctx: Any, ddweight: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        (dy, x), found, ddy, dx = inputs, ctx.found, None, None
        if ctx.needs[0]:
            ddy = ddweight._apply(Conv2d, x, ddweight, None, **found.options)
        if ctx.needs[1]:
            dx = _input_gradient(dy, ddweight, found)
        return ddy, dx


def _input_gradient(dy: Any, weight: Tensor, found: Convolution) -> Tensor:
    return weight._apply(
        ConvTranspose2d, dy, weight, None, output_padding=found.output_padding, **found.options
    )


def _over_channels(dy: Tensor, found: Convolution) -> Tensor:
    return dy.sum(axis=(0, 1, 2) if found.last else (0, 2, 3))
