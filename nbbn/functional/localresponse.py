"""Local response normalization of arrays, forward and backward.

With the sum s of the squares in a window around each element, d = k + a * s:
y = x * d^-beta, and dx = dy * d^-beta - 2 * a * beta * x * w, where w is the sum of
dy * x * d^(-beta - 1) over all elements whose window has this one in it. What lies outside the
array counts as 0.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from .. import backend
from .._validation import choice, integer, real
from ..errors import ShapeError
from . import checks
from ._kind import in_kind
from ._out import Target
from .layout import all_but, axis_index, fold, plain_layout

__all__ = ["local_response_norm", "local_response_norm_backward"]

OVER, ALPHA_OF = ("channels", "positions"), ("mean", "sum")


@in_kind
def local_response_norm(
    x: np.ndarray,
    *,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    alpha_of: str = "mean",
    over: str = "channels",
    axis: int = 1,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Divide each element by a power of the squares around it.

    Parameters
    ----------
    x : ndarray of float, 3 dimensions or more
        Channels and positions; float16 and bfloat16 compute in float32.
    size : int
        Length of the window, along each axis. As in PyTorch, one of an even length reaches one
        further to the front; in ONNX it reaches one further to the back.
    alpha : float, default 1e-4
        At least 0.
    beta : float, default 0.75
        The exponent.
    k : float, default 1.0
        At least 0. AlexNet has 2.
    alpha_of : {"mean", "sum"}, default "mean"
        What alpha multiplies: the sum of the squares divided by the elements of a whole window, as
        in PyTorch, ONNX and Caffe, or the sum, as in AlexNet's paper and TensorFlow.
    over : {"channels", "positions"}, default "channels"
        Whether windows lie across the channels, or within a channel along all other axes but the
        first, as Caffe's WITHIN_CHANNEL.
    axis : int, default 1
        The channel axis.
    out : ndarray, shape and dtype of `x`, optional
        Receives the result; may be `x`.

    Returns
    -------
    ndarray, shape and dtype of `x`

    Raises
    ------
    DTypeError, ShapeError, ArgumentError
        `x` is not an array of real floating numbers, has too few dimensions or no channels; an
        option out of its range; an `out` that does not fit.

    References
    ----------
    Krizhevsky, Sutskever and Hinton, "ImageNet Classification with Deep Convolutional Neural
    Networks" (2012), section 3.3.
    """
    plan = Plan(x, size=size, alpha=alpha, beta=beta, k=k, alpha_of=alpha_of, over=over, axis=axis)
    layout = plan.layout
    target = Target(out, x, layout, x)
    if x.size:
        kernels, source = backend.kernels("localresponse", layout.device), fold(x, layout)
        _, powers = plan.sums_and_powers(source)
        backend.run(kernels.multiply, source, powers, target.folded)
    return target.finish()


@in_kind
def local_response_norm_backward(
    dy: np.ndarray,
    x: np.ndarray,
    *,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    alpha_of: str = "mean",
    over: str = "channels",
    axis: int = 1,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Gradient of `local_response_norm`. Otherwise as `local_response_norm`, with its options.

    Parameters
    ----------
    dy : ndarray of float, shape of `x`
        Gradient of the loss with respect to the output.
    x : ndarray of float
        The forward's input.
    out : ndarray, shape and dtype of `x`, optional
        Receives the result; may be `dy` or `x`.

    Returns
    -------
    dx : ndarray, shape and dtype of `x`
    """
    plan = Plan(x, size=size, alpha=alpha, beta=beta, k=k, alpha_of=alpha_of, over=over, axis=axis)
    layout, numbers = plan.layout, (plan.k, plan.a)
    checks.same_shape(dy, x, "dy")
    target = Target(out, x, layout, dy, x)
    if x.size:
        kernels = backend.kernels("localresponse", layout.device)
        gradient, source = fold(dy, layout), fold(x, layout)
        sums, powers = plan.sums_and_powers(source)
        ratio = backend.empty(sums.shape, sums.dtype, layout.device)
        backend.run(kernels.ratio, gradient, source, sums, powers, *numbers, ratio)
        windows = plan.windows.sums(ratio, mirrored=True)
        factor = 2 * plan.a * plan.beta
        backend.run(kernels.combine, gradient, powers, source, windows, factor, target.folded)
    return target.finish()


class Windows(NamedTuple):
    """Windows of `size` along some axes of arrays of a shape."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    size: int

    def sums(self, x: Any, *, squared: bool = False, mirrored: bool = False) -> np.ndarray:
        """Sum x, or its squares, over each window; `mirrored` ones reach as far the other way.

        `x` has as many elements as the shape, in C order; the result, in the type to compute in, is
        flat.
        """
        device = backend.device_of(x)
        kernels, dtype = backend.kernels("localresponse", device), _statistics(x)
        before, after = self.size // 2, (self.size - 1) // 2
        reach = (after, before) if mirrored else (before, after)
        for axis in self.axes:
            inner = math.prod(self.shape[axis + 1 :])
            length = self.shape[axis]
            found = backend.empty(x.size, dtype, device)
            view = x.size // (length * inner), length, inner
            backend.run(kernels.window_sums, x.reshape(view), squared, *reach, found.reshape(view))
            x, squared = found, False
        return x  # type: ignore[no-any-return]


def _statistics(x: Any) -> np.dtype[Any]:
    """Type of the sums of what kernels get."""
    return np.dtype(np.float64 if x.dtype == np.float64 else np.float32)


class Plan:
    """The options of both directions, checked, and how x folds: flat."""

    def __init__(
        self, x: Any, *, size: Any, alpha: Any = 1e-4, beta: Any = 0.75, k: Any = 1.0,
        alpha_of: Any = "mean", over: Any = "channels", axis: Any = 1,
    ) -> None:  # fmt: skip
        self.layout = plain_layout(x, "x")
        if x.ndim < 3:
            raise ShapeError(
                f"x must have 3 dimensions or more, (N, C, L, ...), got shape {x.shape}"
            )
        channel = axis_index(axis, x)
        if x.shape[channel] == 0:
            raise ShapeError(f"x has no channels: axis {axis} of shape {x.shape} has length 0")
        # Beyond any axis, and before its powers overflow.
        size = integer(size, "size", least=1, most=2**31)
        within = choice(over, OVER, "over") == "positions"
        axes = all_but(channel, x)[1:] if within else (channel,)
        self.windows = Windows(x.shape, axes, size)
        self.beta = real(beta, "beta")
        self.k, alpha = real(k, "k", least=0), real(alpha, "alpha", least=0)
        mean = choice(alpha_of, ALPHA_OF, "alpha_of") == "mean"
        self.a = alpha / float(size) ** len(self.windows.axes) if mean else alpha

    def sums_and_powers(self, x: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the sums of squares and (k + a * sums)^-beta of a folded x."""
        kernels = backend.kernels("localresponse", self.layout.device)
        sums = self.windows.sums(x, squared=True)
        powers = backend.empty(sums.shape, sums.dtype, self.layout.device)
        backend.run(kernels.powers, sums, self.k, self.a, self.beta, powers)
        return sums, powers
