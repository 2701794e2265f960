"""Convolutions of images in NumPy arrays, forward and backward, and transposed ones.

With kernel position (i, j), stride s, dilation d and padding p in front, for one group,
``y[n, o, r, q] = bias[o] + sum over c, i, j of weight[o, c, i, j] * x[n, c, r*s - p + i*d,
q*s - p + j*d]``, where x is 0 outside. A transposed convolution is the gradient of that with
respect to x, and every gradient is a convolution again.

What the functions have in common:

- `x` and `dy` may have any strides, and are (N, C, H, W), or (N, H, W, C) for ``axis=-1``, the
  channel axis. `weight` is as PyTorch's for both. float16 and bfloat16 compute in float32.
- `stride` and `dilation` are a number, or two: height, width.
- `padding` is a number of zeros around x, two (height, width), or two pairs ((top, bottom),
  (left, right)); "valid" is 0. "same" makes the output ``ceil(size / stride)`` long, with the odd
  zero behind, as Keras and ONNX's SAME_UPPER do; PyTorch has it for stride 1.
- `groups` splits the channels: with groups = C, each channel has its own filters (depthwise).
- Gradients: `needs` says which to compute; None stands for the others. `out` receives dx,
  `out_dweight` and `out_dbias` those two, whose dtype is that of `x` (float32 for the half types).
- They raise ShapeError for shapes that do not fit together, DTypeError for an operand that is not
  an array of real floating numbers, and ArgumentError for a bad number and an array that is
  read-only or overlaps itself where a result goes.

Source: Dumoulin and Visin, "A guide to convolution arithmetic for deep learning" (2016),
arXiv:1603.07285.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import backend
from .._validation import choice, positive, possible, switch
from ..errors import ArgumentError, DTypeError, ShapeError
from . import checks
from ._kind import in_kind
from ._out import hand_over, share
from .layout import image_axis, pair, placed, sides

__all__ = ["conv2d", "conv2d_backward", "conv_transpose2d", "conv_transpose2d_backward"]

Pair = tuple[int, int]
# Of strides and the like, and of elements that are allocated without asking whether they can be.
_FEW = 2**28
# Axes of images and of weights, channels last from channels first, and back.
_LAST, _FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


@in_kind
def conv2d(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    stride: int | Pair = 1,
    padding: Any = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
    axis: int = 1,
    activation: str | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Convolve images, without turning the kernel over.

    Parameters
    ----------
    x : ndarray of float, shape (N, C, H, W), or (N, H, W, C) for axis -1
    weight : ndarray of float, shape (O, C / groups, kh, kw)
    bias : ndarray of float, shape (O,), optional
    stride : int or (int, int), default 1
    padding : int, (int, int), ((int, int), (int, int)), "same" or "valid", default 0
    dilation : int or (int, int), default 1
    groups : int, default 1
    axis : {1, -1}, default 1
    activation : {None, "relu"}, default None
        Applied to each block of the result while it is in the cache.
    out : ndarray, shape of the result, dtype of `x`, optional

    Returns
    -------
    ndarray, shape (N, O, OH, OW) or (N, OH, OW, O), dtype of `x`
        With ``OH = (H + padding - dilation * (kh - 1) - 1) // stride + 1``, OW alike.
    """
    found = Convolution(x, weight, stride, padding, dilation, groups, axis)
    return found.forward(x, weight, bias, out, activation=activation)


@in_kind
def conv2d_backward(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    *,
    stride: int | Pair = 1,
    padding: Any = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
    axis: int = 1,
    needs: tuple[bool, bool, bool] = (True, True, True),
    out: np.ndarray | None = None,
    out_dweight: np.ndarray | None = None,
    out_dbias: np.ndarray | None = None,
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """Gradients of `conv2d`. Otherwise as `conv2d`, with its operands and options.

    Parameters
    ----------
    dy : ndarray of float, shape of the output
        Gradient of the loss with respect to the output.
    needs : (bool, bool, bool), default (True, True, True)
    out : ndarray, shape and dtype of `x`, optional
    out_dweight : ndarray, shape of `weight`, optional
    out_dbias : ndarray, shape (O,), optional

    Returns
    -------
    dx : ndarray, shape and dtype of `x`, or None
    dweight : ndarray, shape of `weight`, or None
    dbias : ndarray, shape (O,), or None
    """
    found = Convolution(x, weight, stride, padding, dilation, groups, axis)
    _check_dy(dy, found.y_shape, found.device)
    outs = out, out_dweight, out_dbias
    return found.gradients(found.input_gradient, (dy, x), (dy, x, weight), _needs(needs), outs)


@in_kind
def conv_transpose2d(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    stride: int | Pair = 1,
    padding: Any = 0,
    output_padding: int | Pair = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
    axis: int = 1,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Transposed convolution: the gradient of `conv2d` with respect to its input, plus a bias.

    Otherwise as `conv2d`.

    Parameters
    ----------
    weight : ndarray of float, shape (C, O / groups, kh, kw)
    padding : int, (int, int), ((int, int), (int, int)) or "valid", default 0
        What the convolution pads, and this takes away from its result.
    output_padding : int or (int, int), default 0
        Rows and columns behind that the convolution leaves out; below the stride.

    Returns
    -------
    ndarray, shape (N, O, OH, OW) or (N, OH, OW, O), dtype of `x`
        With ``OH = (H - 1) * stride - padding + dilation * (kh - 1) + output_padding + 1``.
    """
    found = Convolution.of_output(
        x, weight, stride, padding, output_padding, dilation, groups, axis
    )
    return found.input_gradient(x, weight, bias, out)


@in_kind
def conv_transpose2d_backward(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    *,
    stride: int | Pair = 1,
    padding: Any = 0,
    output_padding: int | Pair = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
    axis: int = 1,
    needs: tuple[bool, bool, bool] = (True, True, True),
    out: np.ndarray | None = None,
    out_dweight: np.ndarray | None = None,
    out_dbias: np.ndarray | None = None,
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """Gradients of `conv_transpose2d`. Otherwise as `conv2d_backward`.

    Parameters
    ----------
    weight : ndarray of float, shape (C, O / groups, kh, kw)
    padding, output_padding
        The forward's.
    """
    found = Convolution.of_output(
        x, weight, stride, padding, output_padding, dilation, groups, axis
    )
    _check_dy(dy, found.x_shape, found.device)
    outs = out, out_dweight, out_dbias
    return found.gradients(found.forward, (x, dy), (dy, x, weight), _needs(needs), outs)


class Convolution:
    """A convolution from x to y of known shapes: checked, and what computes each of its parts.

    A transposed one is that whose output is given, and whose input gradient is wanted. `options`
    are those of `conv2d`, with the padding in numbers.
    """

    def __init__(
        self, x: Any, weight: Any, stride: Any, padding: Any, dilation: Any, groups: Any, axis: Any
    ) -> None:
        self._check_operands(x, weight, groups, axis)
        filters, channels, *kernel = weight.shape
        if filters % self.groups or self._channels(x) != channels * self.groups:
            raise ShapeError(
                f"a weight of shape {weight.shape} in groups={self.groups} takes "
                f"{channels * self.groups} channels and needs a multiple of {self.groups} filters, "
                f"got {filters} filters and x of shape {x.shape}, with {self._channels(x)} "
                f"channels on axis {self.axis}"
            )
        self._set_window(stride, dilation)
        size = self._image(x.shape)
        self._pads = padding_numbers(padding, size, kernel, self.stride, self.dilation)
        reach = [d * (k - 1) + 1 for k, d in zip(kernel, self.dilation, strict=True)]
        padded = [n + sum(pads) for n, pads in zip(size, self._pads, strict=True)]
        if min(size) < 1 or any(n < r for n, r in zip(padded, reach, strict=True)):
            raise ShapeError(
                f"a kernel of {tuple(kernel)} with dilation {self.dilation} covers {tuple(reach)} "
                f"pixels, but x of shape {x.shape} has {tuple(size)}, {tuple(padded)} with its "
                "padding: pad more, or use a smaller kernel"
            )
        steps = zip(padded, reach, self.stride, strict=True)
        self.x_shape = x.shape
        self.y_shape = self._shape(x.shape[0], filters, *((n - r) // s + 1 for n, r, s in steps))

    @classmethod
    def of_output(
        cls, y: Any, weight: Any, stride: Any, padding: Any, output_padding: Any, dilation: Any,
        groups: Any, axis: Any,
    ) -> Convolution:  # fmt: skip
        """Make the convolution that gives y: the input x of a transposed one."""
        self = cls.__new__(cls)
        self._check_operands(y, weight, groups, axis)
        filters, channels, *kernel = weight.shape
        if filters % self.groups or self._channels(y) != filters:
            raise ShapeError(
                f"a transposed weight of shape {weight.shape} takes {filters} channels, a multiple "
                f"of groups={self.groups}, got x of shape {y.shape}, with {self._channels(y)} "
                f"channels on axis {self.axis}"
            )
        self._set_window(stride, dilation)
        refuse_same(padding)
        size = self._image(y.shape)
        self._pads = padding_numbers(padding, size, kernel, self.stride, self.dilation)
        more = pair(output_padding, "output_padding", least=0)
        if any(n >= s for n, s in zip(more, self.stride, strict=True)):
            raise ArgumentError(
                f"output_padding must be below the stride {self.stride}, got {more}"
            )
        image = [
            (n - 1) * s - sum(pads) + d * (k - 1) + 1 + extra
            for n, s, pads, d, k, extra in zip(
                size, self.stride, self._pads, self.dilation, kernel, more, strict=True
            )
        ]
        if min(size) < 1 or min(image) < 1:
            raise ShapeError(
                f"the result would have {tuple(image)} pixels, for x of shape {y.shape} and a "
                f"kernel of {tuple(kernel)} with padding {self._pads}: pad less"
            )
        self.x_shape = self._shape(y.shape[0], channels * self.groups, *image)
        self.y_shape = y.shape
        return self

    def _check_operands(self, x: Any, weight: Any, groups: Any, axis: Any) -> None:
        dtype = checks.floating(x, "x")
        checks.floating(weight, "weight")
        self.groups = positive(groups, "groups")
        self.axis = image_axis(axis)
        self.last = self.axis == -1
        if x.ndim != 4:
            kind = "H, W, C" if self.last else "C, H, W"
            raise ShapeError(
                f"x must have shape (N, {kind}), got {x.shape}{checks.rows_advice(x.shape, kind)}"
            )
        if weight.ndim != 4 or not weight.size:
            raise ShapeError(
                "weight must have shape (filters, channels / groups, height, width), at least 1 "
                f"each, got {weight.shape}"
            )
        self._place = placed(x, None, x.shape, dtype)
        self.device = self._place.device
        checks.on_device(weight, self.device, "weight")
        self._weight_shape, self._dtype = weight.shape, x.dtype

    def _set_window(self, stride: Any, dilation: Any) -> None:
        self.stride = pair(stride, "stride", least=1)
        self.dilation = pair(dilation, "dilation", least=1)

    @property
    def options(self) -> dict[str, Any]:
        """Options of `conv2d`."""
        return {
            "stride": self.stride, "padding": self._pads, "dilation": self.dilation,
            "groups": self.groups, "axis": self.axis,
        }  # fmt: skip

    @property
    def output_padding(self) -> Pair:
        """What makes the transposed convolution give an image of x's size."""
        size, kernel = self._image(self.x_shape), self._weight_shape[2:]
        parts = zip(size, self._pads, self.dilation, kernel, self.stride, strict=True)
        height, width = ((n + sum(p) - d * (k - 1) - 1) % s for n, p, d, k, s in parts)
        return height, width

    def _channels(self, array: Any) -> int:
        return int(array.shape[-1 if self.last else 1])

    def _image(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape[1:3] if self.last else shape[2:]

    def _shape(self, count: int, channels: int, *image: int) -> tuple[int, ...]:
        shape = (count, *image, channels) if self.last else (count, channels, *image)
        if math.prod(shape) > _FEW:
            possible(shape, self._place.dtype, "a result")
        return shape

    # ---------------------------------------------------------------- computing

    def forward(
        self, x: Any, weight: Any, bias: Any, out: Any = None, *, activation: Any = None
    ) -> np.ndarray:
        """Compute y."""
        relu = choice(activation, (None, "relu"), "activation") is not None
        bias = self._bias(bias, self._weight_shape[0])
        operands = self._image_for_kernels(x), self._weight_for_kernels(weight), bias

        def launch(y: Any) -> None:
            self._run("forward", *operands, relu, self._geometry, y)

        return self._filled(launch, out, self.y_shape, (x, weight, bias))

    def input_gradient(self, dy: Any, weight: Any, bias: Any, out: Any = None) -> np.ndarray:
        """Compute the gradient of x, plus a bias."""
        bias = self._bias(bias, self._weight_shape[1] * self.groups)
        operands = self._image_for_kernels(dy), self._weight_for_kernels(weight), bias

        def launch(dx: Any) -> None:
            self._run("input_gradient", *operands, self._geometry, dx)

        return self._filled(launch, out, self.x_shape, (dy, weight, bias))

    def weight_gradient(self, dy: Any, x: Any, out: Any = None) -> np.ndarray:
        """Compute the gradient of the weight."""
        operands = self._image_for_kernels(dy), self._image_for_kernels(x)

        def launch(dweight: Any) -> None:
            if dy.size:
                self._run("weight_gradient", *operands, self._geometry, dweight)
            else:
                backend.run(np.copyto, dweight, 0)

        return self._filled(launch, out, self._weight_shape, (dy, x), "out_dweight", weight=True)

    def bias_gradient(self, dy: Any, out: Any = None) -> np.ndarray:
        """Sum dy, or any image, over all but its channels."""
        channels = self._channels(dy)
        folded = self._image_for_kernels(dy)

        def launch(dbias: Any) -> None:
            if self._kernels_last:
                kernels = backend.kernels("elementwise", self.device)
                backend.run(kernels.bias_gradient, folded.reshape(-1, channels), dbias)
            else:
                pixels = math.prod(folded.shape[2:])
                self._run("bias_gradient", folded.reshape(-1, channels, pixels), dbias)

        return self._filled(launch, out, (channels,), (dy,), "out_dbias", weight=True)

    def gradients(
        self, dx: Callable[..., Any], images: tuple[Any, Any], inputs: tuple[Any, Any, Any],
        wanted: tuple[bool, ...], outs: tuple[Any, ...],
    ) -> tuple[Any, ...]:  # fmt: skip
        """Compute those wanted of dx, dweight, of two images in this order, and dbias."""
        dy, x, weight = inputs
        shapes = x.shape, weight.shape, (self._channels(dy),)
        types = self._dtype, self._place.dtype, self._place.dtype
        names = "out", "out_dweight", "out_dbias"
        for out, shape, dtype, name in zip(outs, shapes, types, names, strict=True):
            if out is not None:
                checks.output(out, shape, dtype, name, self.device)
        # What another one still has to read is written last.
        direct = [
            out if out is None or not any(share(out, array) for array in inputs) else None
            for out in outs
        ]
        found = (
            dx(dy, weight, None, direct[0]) if wanted[0] else None,
            self.weight_gradient(*images, direct[1]) if wanted[1] else None,
            self.bias_gradient(dy, direct[2]) if wanted[2] else None,
        )
        return tuple(
            result if result is None else hand_over(result, out)
            for result, out in zip(found, outs, strict=True)
        )

    @property
    def _kernels_last(self) -> bool:
        # They know groups with the channels first only.
        return self.last and self.groups == 1

    @property
    def _geometry(self) -> tuple[int, ...]:
        (top, _), (left, _) = self._pads
        filters, channels, *kernel = self._weight_shape
        return (
            channels * self.groups, *self._image(self.x_shape), filters, *kernel,
            *self._image(self.y_shape), *self.stride, top, left, *self.dilation, self.groups,
            int(self._kernels_last),
        )  # fmt: skip

    def _run(self, name: str, *args: Any) -> None:
        backend.run(getattr(backend.kernels("convolution", self.device), name), *args)

    def _image_for_kernels(self, array: Any) -> Any:
        turned = array.transpose(_FIRST) if self.last and self.groups > 1 else array
        return backend.contiguous(turned, self._place.storage)

    def _weight_for_kernels(self, weight: Any) -> Any:
        turned = weight.transpose(_LAST) if self._kernels_last else weight
        return backend.contiguous(turned, self._place.dtype)

    def _bias(self, bias: Any, channels: int) -> Any:
        return checks.channel_vector(bias, channels, self._place.dtype, "bias", self.device)

    def _filled(
        self, launch: Callable[[Any], None], out: Any, shape: tuple[int, ...],
        inputs: tuple[Any, ...], name: str = "out", *, weight: bool = False,
    ) -> np.ndarray:  # fmt: skip
        """Let a kernel write a result to `out`, or to a temporary where it cannot."""
        place = self._place
        dtype = place.dtype if weight else self._dtype
        if out is None:
            out = backend.empty(shape, dtype, self.device)
        else:
            checks.output(out, shape, dtype, name, self.device)
        view = out
        if len(shape) == 4 and self.last and weight == (self.groups == 1):
            view = out.transpose(_LAST if weight else _FIRST)
        # A device stores x's own type, bfloat16 as its bits.
        stored = place.dtype if weight or self.device == "cpu" else self._dtype
        whole = view.flags.carray if self.device == "cpu" else view.flags.c_contiguous
        target = view
        if not whole or out.dtype != stored or any(share(out, array) for array in inputs):
            target = backend.empty(view.shape, stored, self.device)
        if out.size:
            launch(target if weight or stored is place.storage else target.view(place.storage))
        if target is not view:
            backend.run(np.copyto, view, target, "unsafe")
        return out  # type: ignore[no-any-return]


def padding_numbers(
    padding: Any, size: Any, kernel: Any, stride: Pair, dilation: Pair
) -> tuple[Pair, Pair]:
    """Return the zeros in front and behind, along height and width."""
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise ArgumentError(f'padding must be numbers, "same" or "valid", got {padding!r}')
        if padding == "valid":
            return (0, 0), (0, 0)
        parts = zip(size, kernel, stride, dilation, strict=True)
        totals = [max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0) for n, k, s, d in parts]
        first, second = ((total // 2, total - total // 2) for total in totals)
        return first, second
    return sides(padding)


def refuse_same(padding: Any) -> None:
    """Refuse padding by the size of an image that is not known."""
    if isinstance(padding, str) and padding == "same":
        raise ArgumentError(
            'a transposed convolution takes no padding "same": give the numbers, such as '
            "((0, 1), (0, 1))"
        )


def _needs(needs: Any) -> tuple[bool, ...]:
    if not isinstance(needs, tuple | list) or len(needs) != 3:
        raise DTypeError(f"needs must be three of True and False, got {needs!r:.80}")
    return tuple(switch(need, "needs") for need in needs)


def _check_dy(dy: Any, shape: tuple[int, ...], device: str) -> None:
    checks.floating(dy, "dy")
    checks.on_device(dy, device, "dy")
    checks.shape_of(dy, shape, "dy", "the output")
