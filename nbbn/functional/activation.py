"""Activations of NumPy arrays, forward and backward. Each backward needs only the output."""

from __future__ import annotations

import numpy as np

from .. import backend
from . import checks
from ._kind import in_kind
from ._out import Target
from .layout import flat_layout, fold

__all__ = ["relu", "relu_backward", "sigmoid", "sigmoid_backward", "tanh", "tanh_backward"]


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
    """Gradient of `relu`: `dy` where the output `y` is positive, else 0.

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

    Raises
    ------
    DTypeError, ShapeError, ArgumentError
        Operands that do not fit together.
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


def _elementwise(op: str, out: np.ndarray | None, *operands: np.ndarray) -> np.ndarray:
    """Run a kernel of one array, or of dy and y."""
    *gradients, x = operands
    flat = flat_layout(x, "y" if gradients else "x")
    for dy in gradients:
        checks.same_shape(dy, x, "dy", like="y")
    target = Target(out, x, flat, *operands)
    launcher = getattr(backend.kernels("elementwise", flat.device), op)
    backend.run(launcher, *(fold(array, flat) for array in operands), target.folded)
    return target.finish()
