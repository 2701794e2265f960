"""Pooling of images: maxima and averages over windows, or over whole images; forward and backward.

Images are of rank 4: (N, C, H, W) with `axis` 1, (N, H, W, C) with `axis` -1. Windows have a
`size`; a `stride` from one to the next, which is the size unless given; and a `dilation`, the
distance between their pixels: integers, or one for rows and one for columns each. `padding` around
the image is at most half a window: such an integer or pair, or ((top, bottom), (left, right)). The
output has ``(H + top + bottom - dilation * (size - 1) - 1) / stride + 1`` rows, rounded down; with
`ceil_mode` rounded up, but no window starts behind the image. The same for columns. All this is
PyTorch's.

Any strides are accepted; results have the memory order of what comes in. DTypeError, ShapeError and
ArgumentError are raised for arrays that are no floating numbers of rank 4, or have no pixel or
channel; windows larger than the padded image; padding of more than half a window; a gradient, index
or shape that does not fit.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from .. import backend
from .._validation import integer, possible, switch
from ..errors import ArgumentError, DTypeError, ShapeError
from . import checks
from ._kind import in_kind
from ._out import Target, empty_in
from .layout import MOST, Layout, fold, image_axis, image_layout, pair, sides

__all__ = [
    "avg_pool2d", "avg_pool2d_backward", "global_avg_pool2d", "global_avg_pool2d_backward",
    "global_max_pool2d", "global_max_pool2d_backward", "max_pool2d", "max_pool2d_backward",
]  # fmt: skip

Pair = int | tuple[int, int]
Padding = Pair | tuple[tuple[int, int], tuple[int, int]]


@in_kind
def max_pool2d(
    x: np.ndarray, size: Pair, *, stride: Pair | None = None, padding: Padding = 0,
    dilation: Pair = 1, ceil_mode: bool = False, axis: int = 1,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Maximum of each window, and where it is.

    Padding does not count. The first of equal values is the maximum; a NaN always is.

    Parameters
    ----------
    x : ndarray of float, shape (N, C, H, W), or (N, H, W, C) with `axis` -1
    size, stride, padding, dilation, ceil_mode, axis
        The windows, as the module says.

    Returns
    -------
    y : ndarray, shape (N, C, OH, OW) or (N, OH, OW, C), dtype of `x`
    index : ndarray of uint8, shape of `y`
        Position of the maximum in its window, counted row by row. Windows of more than 256 pixels
        have uint16, of more than 65536 uint32.
    """
    layout = image_layout(x, axis, "x")
    windows = _windows(x.shape, size, stride, padding, dilation, ceil_mode, axis)
    y, after = _result(windows.output, x.dtype, layout, axis)
    index = empty_in(windows.output, windows.index_type, after)
    if x.size:
        arrays = fold(x, layout), windows.window, y.folded, _in_memory(index, after)
        backend.run(backend.kernels("pooling", layout.device).max_pool, *arrays)
    return y.finish(), index


@in_kind
def max_pool2d_backward(
    dy: np.ndarray, index: np.ndarray, shape: tuple[int, ...], size: Pair, *,
    stride: Pair | None = None, padding: Padding = 0, dilation: Pair = 1, ceil_mode: bool = False,
    axis: int = 1,
) -> np.ndarray:  # fmt: skip
    """Gradient of `max_pool2d`: the sum of `dy` over the windows whose maximum a pixel is.

    Parameters
    ----------
    dy : ndarray of float, shape of the output
        Gradient of the loss with respect to the output.
    index : ndarray of unsigned integers, shape of the output
        What the forward returned.
    shape : tuple of int
        Shape of the forward's `x`.
    size, stride, padding, dilation, ceil_mode, axis
        The forward's.

    Returns
    -------
    dx : ndarray of the given shape, dtype of `dy`
    """
    windows = _windows(shape, size, stride, padding, dilation, ceil_mode, axis)
    layout = windows.layout_of(dy, axis)
    taps = _index(index, windows, layout)
    dx, _ = _result(windows.input, dy.dtype, layout, axis)
    if dy.size:
        launcher = backend.kernels("pooling", layout.device).max_pool_backward
        backend.run(launcher, fold(dy, layout), taps, windows.window, dx.folded)
    return dx.finish()


def max_pool2d_at(
    x: np.ndarray, index: np.ndarray, size: Pair, *, stride: Pair | None = None,
    padding: Padding = 0, dilation: Pair = 1, ceil_mode: bool = False, axis: int = 1,
) -> np.ndarray:  # fmt: skip
    """Values of `x` where an index of `max_pool2d` says: the gradient of its gradient."""
    layout = image_layout(x, axis, "x")
    windows = _windows(x.shape, size, stride, padding, dilation, ceil_mode, axis)
    y, after = _result(windows.output, x.dtype, layout, axis)
    taps = _index(index, windows, after)
    if x.size:
        launcher = backend.kernels("pooling", layout.device).max_pool_take
        backend.run(launcher, fold(x, layout), taps, windows.window, y.folded)
    return y.finish()


@in_kind
def avg_pool2d(
    x: np.ndarray, size: Pair, *, stride: Pair | None = None, padding: Padding = 0,
    dilation: Pair = 1, ceil_mode: bool = False, count_include_pad: bool = True, axis: int = 1,
) -> np.ndarray:  # fmt: skip
    """Mean of each window, where padding counts as zeros unless `count_include_pad` is False.

    What a last window of `ceil_mode` has behind the padding never counts. Otherwise as
    `max_pool2d`, without the index.

    Parameters
    ----------
    count_include_pad : bool, default True
    """
    layout = image_layout(x, axis, "x")
    windows = _windows(x.shape, size, stride, padding, dilation, ceil_mode, axis)
    y, _ = _result(windows.output, x.dtype, layout, axis)
    counted = windows.counted[switch(count_include_pad, "count_include_pad")]
    if x.size:
        launcher = backend.kernels("pooling", layout.device).avg_pool
        backend.run(launcher, fold(x, layout), windows.window, counted, y.folded)
    return y.finish()


@in_kind
def avg_pool2d_backward(
    dy: np.ndarray, shape: tuple[int, ...], size: Pair, *, stride: Pair | None = None,
    padding: Padding = 0, dilation: Pair = 1, ceil_mode: bool = False,
    count_include_pad: bool = True, axis: int = 1,
) -> np.ndarray:  # fmt: skip
    """Gradient of `avg_pool2d`: the sum of ``dy / count`` over the windows that a pixel is in.

    Otherwise as `max_pool2d_backward`, without the index.

    Parameters
    ----------
    count_include_pad : bool, default True
        The forward's.
    """
    windows = _windows(shape, size, stride, padding, dilation, ceil_mode, axis)
    layout = windows.layout_of(dy, axis)
    dx, _ = _result(windows.input, dy.dtype, layout, axis)
    counted = windows.counted[switch(count_include_pad, "count_include_pad")]
    if dy.size:
        share = backend.empty(layout.shape, layout.dtype, layout.device)
        launcher = backend.kernels("pooling", layout.device).avg_pool_backward
        backend.run(launcher, fold(dy, layout), windows.window, counted, share, dx.folded)
    return dx.finish()


@in_kind
def global_avg_pool2d(x: np.ndarray, *, axis: int = 1, keepdims: bool = False) -> np.ndarray:
    """Mean of each channel of each image.

    Parameters
    ----------
    x : ndarray of float, shape (N, C, H, W), or (N, H, W, C) with `axis` -1
    axis : {1, -1}, default 1
        The channel axis.
    keepdims : bool, default False
        Keep rows and columns, of length 1.

    Returns
    -------
    y : ndarray, shape (N, C), or of rank 4 with `keepdims`; dtype of `x`
    """
    layout = image_layout(x, axis, "x")
    _no_empty(x.shape)
    A, H, W, B = layout.shape
    one = _with_size(x.shape, image_axis(axis), (1, 1))
    y, _ = _result(one, x.dtype, layout, axis, (A, B))
    if x.size:
        launcher = backend.kernels("pooling", layout.device).global_avg_pool
        backend.run(launcher, fold(x, layout).reshape(A, H * W, B), y.folded)
    return _flat(y.finish(), keepdims)


@in_kind
def global_avg_pool2d_backward(
    dy: np.ndarray, shape: tuple[int, ...], *, axis: int = 1
) -> np.ndarray:
    """Gradient of `global_avg_pool2d`: ``dy / (H * W)`` for each pixel.

    Otherwise as `max_pool2d_backward`, without the index; `dy` is with or without `keepdims`.
    """
    shape = _shape(shape)
    _no_empty(shape)
    dy = _with_pixel(dy, shape, axis, "dy")
    layout = image_layout(dy, axis, "dy")
    dx, after = _result(shape, dy.dtype, layout, axis)
    A, H, W, B = after.shape
    if dy.size:
        target = dx.folded.reshape(A, H * W, B)
        launcher = backend.kernels("pooling", layout.device).global_avg_pool_backward
        backend.run(launcher, fold(dy, layout).reshape(A, B), target)
    return dx.finish()


@in_kind
def global_max_pool2d(
    x: np.ndarray, *, axis: int = 1, keepdims: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Maximum of each channel of each image, and where it is: `max_pool2d` of one window.

    Otherwise as `global_avg_pool2d`.

    Returns
    -------
    y : ndarray, shape (N, C), or of rank 4 with `keepdims`; dtype of `x`
    index : ndarray of unsigned integers, shape of `y`
        Position of the maximum in the image, counted row by row.
    """
    y, index = max_pool2d(x, whole_image(x, axis), axis=axis)
    return _flat(y, keepdims), _flat(index, keepdims)


@in_kind
def global_max_pool2d_backward(
    dy: np.ndarray, index: np.ndarray, shape: tuple[int, ...], *, axis: int = 1
) -> np.ndarray:
    """Gradient of `global_max_pool2d`: `dy` at the maximum, else 0.

    Otherwise as `max_pool2d_backward`; `dy` and `index` are with or without `keepdims`.
    """
    shape = _shape(shape)
    _no_empty(shape)
    dy = _with_pixel(dy, shape, axis, "dy")
    index = _with_pixel(index, shape, axis, "index")
    return max_pool2d_backward(dy, index, shape, image_size(shape, image_axis(axis)), axis=axis)


# ----------------------------------------------------------------------------------- windows


class _Windows(NamedTuple):
    """The windows of an image, checked.

    `window` is what kernels get; `counted` the first row and column that count in a mean, and the
    last ones + 1, without padding and with it; `input` and `output` are shapes.
    """

    input: tuple[int, ...]
    output: tuple[int, ...]
    window: tuple[int, ...]
    counted: tuple[tuple[int, int, int, int], tuple[int, int, int, int]]

    @property
    def index_type(self) -> np.dtype[Any]:
        return np.min_scalar_type(self.window[0] * self.window[1] - 1)

    def layout_of(self, dy: Any, axis: int) -> Layout:
        """Check that a gradient has the shape of the output; return its layout."""
        layout = image_layout(dy, axis, "dy")
        checks.shape_of(dy, self.output, "dy", "the output")
        return layout


def _windows(
    shape: Any, size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any, axis: Any
) -> _Windows:
    size = pair(size, "size", least=1)
    return _checked_windows(
        _shape(shape),
        size,
        size if stride is None else pair(stride, "stride", least=1),
        sides(padding),
        pair(dilation, "dilation", least=1),
        switch(ceil_mode, "ceil_mode"),
        image_axis(axis),
    )


@functools.lru_cache(maxsize=512)
def _checked_windows(
    shape: tuple[int, ...], size: tuple[int, int], stride: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]], dilation: tuple[int, int], ceil_mode: bool,
    axis: int,
) -> _Windows:  # fmt: skip
    _no_empty(shape)
    half_windows(size, padding, dilation)
    image = image_size(shape, axis)
    output = tuple(
        _positions(what, image[d], size[d], stride[d], padding[d], dilation[d], ceil_mode)
        for d, what in enumerate(("rows", "columns"))
    )
    (top, bottom), (left, right) = padding
    H, W = image
    return _Windows(
        shape,
        _with_size(shape, axis, output),
        (*size, *stride, top, left, *dilation),
        ((0, 0, H, W), (-top, -left, H + bottom, W + right)),
    )


def _positions(
    what: str, length: int, size: int, stride: int, padding: tuple[int, int], dilation: int,
    ceil_mode: bool,
) -> int:  # fmt: skip
    """How many windows there are along rows or columns, each with a pixel of the image."""
    before, after = padding
    reach = dilation * (size - 1) + 1
    padded = before + length + after
    count = (padded - reach + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (count - 1) * stride >= length + before:
        count -= 1
    if count < 1:
        raise ShapeError(
            f"the window reaches over {reach} {what} (size {size}, dilation {dilation}), but the "
            f"padded image has {padded}: use a smaller window or more padding"
        )
    # A window that starts in the padding may jump over the image.
    starts = range(-before, 0, stride)[:count] if dilation > length else range(0)
    if any(start % dilation >= length for start in starts):
        raise ShapeError(
            f"with dilation {dilation} a window misses the image, which has {length} {what}: use "
            "less dilation or padding"
        )
    return count


def half_windows(size: tuple[int, int], padding: Any, dilation: tuple[int, int]) -> None:
    """Check that padding is at most half a window."""
    for d, what in enumerate(("rows", "columns")):
        reach = dilation[d] * (size[d] - 1) + 1
        if max(padding[d]) > reach // 2:
            raise ArgumentError(
                f"padding must be at most half a window, {reach // 2} of the {reach} {what} that "
                f"it reaches over, got {max(padding[d])}"
            )


# ------------------------------------------------------------------------- shapes and layouts


def whole_image(x: Any, axis: Any) -> tuple[int, int]:
    """Check images; return the size of a window that is all of one."""
    image_layout(x, axis, "x")
    _no_empty(x.shape)
    return image_size(x.shape, image_axis(axis))


def image_size(shape: tuple[int, ...], axis: int) -> tuple[int, int]:
    """Rows and columns of images."""
    _, a, b, c = shape
    return (b, c) if axis == 1 else (a, b)


def _with_size(shape: tuple[int, ...], axis: int, size: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:2], *size) if axis == 1 else (shape[0], *size, shape[3])


def _shape(shape: Any) -> tuple[int, ...]:
    """Check the shape of images."""
    if not isinstance(shape, tuple | list) or len(shape) != 4:
        raise ShapeError(f"shape must be that of images, four integers, got {shape!r:.60}")
    found = tuple(integer(n, "shape", least=0, most=MOST) for n in shape)
    if math.prod(found) > MOST:
        possible(found, np.dtype(np.float64), "a gradient")
    return found


def _no_empty(shape: tuple[int, ...]) -> None:
    if 0 in shape[1:]:
        raise ShapeError(f"images must have pixels and channels, got shape {shape}")


def _with_pixel(array: Any, shape: tuple[int, ...], axis: int, name: str) -> Any:
    """Give an array (N, C) rows and columns of length 1."""
    one = _with_size(shape, image_axis(axis), (1, 1))
    if not backend.is_array(array):
        raise DTypeError(f"{name} must be a numpy.ndarray, got {type(array).__name__}")
    if array.ndim == 2:
        checks.shape_of(array, (shape[0], math.prod(one[1:])), name, "the output")
        return array.reshape(one)
    checks.shape_of(array, one, name, "the output")
    return array


def _flat(y: np.ndarray, keepdims: Any) -> np.ndarray:
    return y if switch(keepdims, "keepdims") else y.reshape(y.shape[0], math.prod(y.shape[1:]))


def _result(
    shape: tuple[int, ...], dtype: Any, like: Layout, axis: Any, folded: Any = None
) -> tuple[Target, Layout]:
    """Allocate images of another size in the memory order of a layout; return their layout too."""
    H, W = image_size(shape, image_axis(axis))
    layout = like._replace(shape=(like.shape[0], H, W, like.shape[3]))
    out = empty_in(shape, dtype, layout)
    return Target(out, out, layout._replace(shape=folded or layout.shape)), layout


def _index(index: Any, windows: _Windows, layout: Layout) -> np.ndarray:
    """Check an index of maxima; return it in the memory order of a layout."""
    expected = windows.index_type
    if not backend.is_array(index) or index.dtype != expected:
        found = getattr(index, "dtype", type(index).__name__)
        raise DTypeError(f"index must be a {expected} array that max_pool2d returned, got {found}")
    checks.on_device(index, layout.device, "index")
    checks.shape_of(index, windows.output, "index", "the output")
    direct = index if layout.order is None else index.transpose(layout.order)
    return backend.contiguous(direct, expected).reshape(layout.shape)


def _in_memory(index: np.ndarray, layout: Layout) -> np.ndarray:
    """View an index as it is in memory, (A, OH, OW, B)."""
    direct = index if layout.order is None else index.transpose(layout.order)
    return direct.reshape(layout.shape)
