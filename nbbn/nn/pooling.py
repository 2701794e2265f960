"""Pooling of images as layers."""

from __future__ import annotations

from typing import Any

from .._validation import switch
from ..autograd import functions as ops
from ..autograd.tensor import Tensor
from ..functional.layout import image_axis, pair, sides
from ..functional.pooling import Padding, Pair, half_windows
from .module import Module

__all__ = ["AvgPool2d", "GlobalAvgPool2d", "GlobalMaxPool2d", "MaxPool2d"]


class _Pool2d(Module):
    """Pooling over windows; a subclass names its function."""

    takes_rows = False

    def __init__(
        self, size: Pair, *, stride: Pair | None = None, padding: Padding = 0, dilation: Pair = 1,
        ceil_mode: bool = False, axis: int = 1,
    ) -> None:  # fmt: skip
        self.size = pair(size, "size", least=1)
        self.stride = self.size if stride is None else pair(stride, "stride", least=1)
        self.padding = sides(padding)
        self.dilation = pair(dilation, "dilation", least=1)
        half_windows(self.size, self.padding, self.dilation)
        self.ceil_mode = switch(ceil_mode, "ceil_mode")
        self.axis = image_axis(axis)

    def _windows(self) -> dict[str, Any]:
        names = ("size", "stride", "padding", "dilation", "ceil_mode", "axis")
        return {name: getattr(self, name) for name in names}

    def __repr__(self) -> str:
        usual: dict[str, Any] = {
            "stride": self.size, "padding": ((0, 0), (0, 0)), "dilation": (1, 1),
            "ceil_mode": False, "count_include_pad": True, "axis": 1,
        }  # fmt: skip
        own = vars(self)
        told = [f", {k}={own[k]}" for k in usual if own.get(k, usual[k]) != usual[k]]
        return f"{type(self).__name__}({self.size}{''.join(told)})"


class MaxPool2d(_Pool2d):
    """Maximum of each window of images, as PyTorch's; see `nbbn.functional.max_pool2d`.

    Parameters
    ----------
    size : int or pair
        Of a window: one number for rows and columns, or one for each.
    stride : int or pair, optional
        From one window to the next; the size unless given.
    padding : int, pair, or ((top, bottom), (left, right)), default 0
        Around the image, at most half a window; padding is never a maximum.
    dilation : int or pair, default 1
        Distance between the pixels of a window.
    ceil_mode : bool, default False
        Round the number of windows up, not down.
    axis : {1, -1}, default 1
        The channel axis, of images (N, C, H, W) or (N, H, W, C).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the maxima, (N, C, OH, OW) or (N, OH, OW, C)."""
        return ops.max_pool2d(x, **self._windows())


class AvgPool2d(_Pool2d):
    """Mean of each window of images, as PyTorch's; see `nbbn.functional.avg_pool2d`.

    Otherwise as `MaxPool2d`.

    Parameters
    ----------
    count_include_pad : bool, default True
        Count padding, as zeros.
    """

    def __init__(
        self, size: Pair, *, stride: Pair | None = None, padding: Padding = 0, dilation: Pair = 1,
        ceil_mode: bool = False, count_include_pad: bool = True, axis: int = 1,
    ) -> None:  # fmt: skip
        super().__init__(
            size, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode, axis=axis
        )
        self.count_include_pad = switch(count_include_pad, "count_include_pad")

    def forward(self, x: Tensor) -> Tensor:
        """Return the means, (N, C, OH, OW) or (N, OH, OW, C)."""
        return ops.avg_pool2d(x, count_include_pad=self.count_include_pad, **self._windows())


class GlobalAvgPool2d(Module):
    """Mean of each channel of each image. Otherwise as `nbbn.functional.global_avg_pool2d`."""

    takes_rows = False

    def __init__(self, *, axis: int = 1, keepdims: bool = False) -> None:
        self.axis, self.keepdims = image_axis(axis), switch(keepdims, "keepdims")

    def forward(self, x: Tensor) -> Tensor:
        """Return a number for each channel of each image."""
        return ops.global_avg_pool2d(x, axis=self.axis, keepdims=self.keepdims)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(axis={self.axis}, keepdims={self.keepdims})"


class GlobalMaxPool2d(GlobalAvgPool2d):
    """Maximum of each channel of each image. Otherwise as `GlobalAvgPool2d`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a number for each channel of each image."""
        return ops.global_max_pool2d(x, axis=self.axis, keepdims=self.keepdims)
