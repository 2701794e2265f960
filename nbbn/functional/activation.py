"""Activations of NumPy arrays, forward and backward.

The backward of `relu`, `sigmoid` and `tanh` needs the output, that of the others the input.
"""

from __future__ import annotations

import numpy as np

from .. import backend
from .._validation import choice, real
from . import checks
from ._kind import in_kind
from ._out import Target
from .layout import flat_layout, fold

__all__ = [
    "gelu", "gelu_backward", "leaky_relu", "leaky_relu_backward", "relu", "relu_backward",
    "sigmoid", "sigmoid_backward", "silu", "silu_backward", "tanh", "tanh_backward",
]  # fmt: skip

_GELU = {"none": "gelu", "tanh": "gelu_tanh"}


@in_kind
def relu(x: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
    """Rectified linear unit, ``max(x, 0)``; NaN stays NaN.

    Parameters
    ----------
    x : ndarray of float, any shape and strides
    out : ndarray, shape and dtype of `x`, optional
        Receives the result; may be `x`.

    Returns
    -------
    ndarray, shape and dtype of `x`

    Raises
    ------
    DTypeError, ShapeError, ArgumentError
        `x` is not an array of real floating numbers, or `out` cannot take the result.
    """
    return _elementwise("relu", out, x)


@in_kind
def relu_backward(dy: np.ndarray, y: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
    """Gradient of `relu`: `dy` where the output `y` is positive, else 0. Otherwise as `relu`.

    Parameters
    ----------
    dy : ndarray of float, shape of `y`
        Gradient of the loss with respect to the output.
    y : ndarray of float
        Output of the forward.
    out : ndarray, shape and dtype of `y`, optional
        Receives the result; may be `dy` or `y`.

    Returns
    -------
    dx : ndarray, shape and dtype of `y`
    """
    return _elementwise("relu_backward", out, dy, y)


@in_kind
def sigmoid(x: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
    """Logistic function, ``1 / (1 + exp(-x))``. Otherwise as `relu`."""
    return _elementwise("sigmoid", out, x)


@in_kind
def sigmoid_backward(dy: np.ndarray, y: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
    """Gradient of `sigmoid`: ``dy * y * (1 - y)``. Otherwise as `relu_backward`."""
    return _elementwise("sigmoid_backward", out, dy, y)


@in_kind
def tanh(x: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
    """Hyperbolic tangent. Otherwise as `relu`."""
    return _elementwise("tanh", out, x)


@in_kind
def tanh_backward(dy: np.ndarray, y: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
    """Gradient of `tanh`: ``dy * (1 - y^2)``. Otherwise as `relu_backward`."""
    return _elementwise("tanh_backward", out, dy, y)


@in_kind
def silu(x: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
    """Sigmoid linear unit, ``x / (1 + exp(-x))``, also called swish. Otherwise as `relu`."""
    return _elementwise("silu", out, x)


@in_kind
def silu_backward(dy: np.ndarray, x: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
    """Gradient of `silu`: ``dy * s * (1 + x * (1 - s))``, s the sigmoid of x.

    Otherwise as `relu_backward`, with `x` in place of `y`.

    Parameters
    ----------
    x : ndarray of float
        Input of the forward.
    """
    return _elementwise("silu_backward", out, dy, x, name="x")


@in_kind
def gelu(x: np.ndarray, *, approximate: str = "none", out: np.ndarray | None = None) -> np.ndarray:
    """Gaussian error linear unit, ``x * Phi(x)``, Phi the normal distribution. Otherwise as `relu`.

    Parameters
    ----------
    approximate : {"none", "tanh"}, default "none"
        "tanh" is ``x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))``.

    References
    ----------
    Hendrycks and Gimpel, "Gaussian Error Linear Units" (2016), arXiv:1606.08415.
    """
    return _elementwise(_GELU[choice(approximate, tuple(_GELU), "approximate")], out, x)


@in_kind
def gelu_backward(
    dy: np.ndarray, x: np.ndarray, *, approximate: str = "none", out: np.ndarray | None = None
) -> np.ndarray:
    """Gradient of `gelu`: ``dy * (Phi(x) + x * Phi'(x))``. Otherwise as `silu_backward`.

    Parameters
    ----------
    approximate : {"none", "tanh"}, default "none"
        The forward's.
    """
    op = _GELU[choice(approximate, tuple(_GELU), "approximate")]
    return _elementwise(f"{op}_backward", out, dy, x, name="x")


@in_kind
def leaky_relu(x: np.ndarray, *, slope: float = 0.01, out: np.ndarray | None = None) -> np.ndarray:
    """`x` where it is positive, ``slope * x`` elsewhere. Otherwise as `relu`.

    Parameters
    ----------
    slope : float, default 0.01
        At least 0.
    """
    return _elementwise("leaky_relu", out, x, numbers=(leaky_slope(slope),))


@in_kind
def leaky_relu_backward(
    dy: np.ndarray, x: np.ndarray, *, slope: float = 0.01, out: np.ndarray | None = None
) -> np.ndarray:
    """Gradient of `leaky_relu`: `dy` where `x` is positive, ``slope * dy`` elsewhere.

    Otherwise as `silu_backward`.

    Parameters
    ----------
    slope : float, default 0.01
        The forward's.
    """
    numbers = (leaky_slope(slope),)
    return _elementwise("leaky_relu_backward", out, dy, x, name="x", numbers=numbers)


def leaky_slope(slope: float) -> float:
    """Check the slope of a leaky ReLU."""
    return real(slope, "slope", least=0)


def _elementwise(
    op: str, out: np.ndarray | None, *operands: np.ndarray, name: str = "y",
    numbers: tuple[float, ...] = (),
) -> np.ndarray:  # fmt: skip
    """Run a kernel of one array, or of dy and what is called `name`."""
    *gradients, x = operands
    flat = flat_layout(x, name if gradients else "x")
    for dy in gradients:
        checks.same_shape(dy, x, "dy", like=name)
    target = Target(out, x, flat, *operands)
    launcher = getattr(backend.kernels("elementwise", flat.device), op)
    backend.run(launcher, *[fold(array, flat) for array in operands], *numbers, target.folded)
    return target.finish()
