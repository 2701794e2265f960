"""Convolutions of images as layers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._validation import choice, float_type, positive, switch
from ..autograd import functions as ops
from ..autograd.tensor import Parameter, Tensor
from ..errors import ArgumentError
from ..functional.convolution import Pair, padding_numbers, refuse_same
from ..functional.layout import image_axis, pair
from .initializers import initialize
from .module import Module

__all__ = ["Conv2d", "ConvTranspose2d"]


class _OfImages(Module):
    """What both layers have in common."""

    takes_rows = False

    def _set_window(
        self, in_channels: Any, out_channels: Any, kernel_size: Any, stride: Any, padding: Any,
        dilation: Any, groups: Any, axis: Any,
    ) -> tuple[int, int, Pair]:  # fmt: skip
        """Set the options, checked, and return the channels and the kernel's size."""
        in_channels = positive(in_channels, "in_channels")
        out_channels = positive(out_channels, "out_channels")
        kernel = pair(kernel_size, "kernel_size", least=1)
        self.stride = pair(stride, "stride", least=1)
        self.dilation = pair(dilation, "dilation", least=1)
        # For its errors: what "same" means in numbers depends on the image.
        padding_numbers(padding, kernel, kernel, self.stride, self.dilation)
        self.padding, self.axis = padding, image_axis(axis)
        self.groups = positive(groups, "groups")
        if in_channels % self.groups or out_channels % self.groups:
            raise ArgumentError(
                f"groups={self.groups} must divide both in_channels={in_channels} and "
                f"out_channels={out_channels}"
            )
        return in_channels, out_channels, kernel

    def _set_parameters(
        self, shape: tuple[int, ...], fans: Pair, channels: int, bias: Any, init: Any,
        rng: Any, dtype: Any,
    ) -> None:  # fmt: skip
        dtype = float_type(dtype)
        self.weight = Parameter(initialize(init, shape, rng, dtype, fans=fans))
        self.bias = Parameter(np.zeros(channels, dtype)) if switch(bias, "bias") else None

    @property
    def channels(self) -> Pair:
        """How many go in and come out."""
        filters, channels = self.weight.shape[:2]
        return channels * self.groups, filters

    def __repr__(self) -> str:
        # As it is made, without the options that are as by default.
        usual = {
            "stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1, "axis": 1,
            "activation": None,
        }  # fmt: skip
        options = [
            f"{name}={value!r}"
            for name, default in usual.items()
            if (value := _short(getattr(self, name, default))) != default
        ]
        if self.bias is None:
            options.append("bias=False")
        numbers = *self.channels, _short(self.weight.shape[2:])
        return f"{type(self).__name__}({', '.join([*map(str, numbers), *options])})"


def _short(value: Any) -> Any:
    """One number for two equal ones; pairs of numbers stay."""
    equal = isinstance(value, tuple | list) and isinstance(value[0], int) and len(set(value)) == 1
    return value[0] if equal else value


class Conv2d(_OfImages):
    """Convolution of images, `nbbn.functional.conv2d`.

    Otherwise as `nbbn.Dense`, in `bias`, `init`, `rng` and `dtype`.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size : int or (int, int)
        Height and width.
    stride : int or (int, int), default 1
    padding : int, (int, int), ((int, int), (int, int)), "same" or "valid", default 0
        Zeros around the image: height and width, or ((top, bottom), (left, right)). "same" makes
        the output as large as the input, divided by the stride and rounded up.
    dilation : int or (int, int), default 1
    groups : int, default 1
        With groups = in_channels, each channel has its own filters (depthwise).
    axis : {1, -1}, default 1
        The channel axis: images are (N, C, H, W), or (N, H, W, C).
    activation : {None, "relu"}, default None
        Applied to the result in the same pass; `nbbn.fold` sets it.

    Attributes
    ----------
    weight : Parameter, shape (out_channels, in_channels / groups, height, width)
    bias : Parameter, shape (out_channels,), or None
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        *,
        stride: int | Pair = 1,
        padding: Any = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        bias: bool = True,
        axis: int = 1,
        activation: str | None = None,
        init: str | float = "he",
        rng: np.random.Generator | int | None = None,
        dtype: Any = np.float32,
    ) -> None:
        in_channels, out_channels, kernel = self._set_window(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, axis
        )
        self.activation = choice(activation, (None, "relu"), "activation")
        shape = (out_channels, in_channels // self.groups, *kernel)
        pixels = math.prod(kernel)
        fans = shape[1] * pixels, out_channels // self.groups * pixels
        self._set_parameters(shape, fans, out_channels, bias, init, rng, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve images."""
        return ops.conv2d(
            x, self.weight, self.bias, stride=self.stride, padding=self.padding,
            dilation=self.dilation, groups=self.groups, axis=self.axis, activation=self.activation,
        )  # fmt: skip


class ConvTranspose2d(_OfImages):
    """Transposed convolution of images, `nbbn.functional.conv_transpose2d`.

    Otherwise as `Conv2d`, without `activation`.

    Parameters
    ----------
    padding : int, (int, int), ((int, int), (int, int)) or "valid", default 0
        What the convolution pads, and this takes away from its result.
    output_padding : int or (int, int), default 0
        Rows and columns behind that the convolution leaves out; below the stride.

    Attributes
    ----------
    weight : Parameter, shape (in_channels, out_channels / groups, height, width)
    bias : Parameter, shape (out_channels,), or None
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        *,
        stride: int | Pair = 1,
        padding: Any = 0,
        output_padding: int | Pair = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        bias: bool = True,
        axis: int = 1,
        init: str | float = "he",
        rng: np.random.Generator | int | None = None,
        dtype: Any = np.float32,
    ) -> None:
        in_channels, out_channels, kernel = self._set_window(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, axis
        )
        refuse_same(padding)
        self.output_padding = pair(output_padding, "output_padding", least=0)
        shape = (in_channels, out_channels // self.groups, *kernel)
        # A pixel of the result meets every stride-th one of the kernel.
        met = math.prod(-(-k // s) for k, s in zip(kernel, self.stride, strict=True))
        fans = shape[0] // self.groups * met, shape[1] * math.prod(kernel)
        self._set_parameters(shape, fans, out_channels, bias, init, rng, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve images."""
        return ops.conv_transpose2d(
            x, self.weight, self.bias, stride=self.stride, padding=self.padding,
            output_padding=self.output_padding, dilation=self.dilation, groups=self.groups,
            axis=self.axis,
        )  # fmt: skip

    @property
    def channels(self) -> Pair:
        """How many go in and come out."""
        channels, filters = self.weight.shape[:2]
        return channels, filters * self.groups
