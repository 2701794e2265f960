"""Activations, softmax and dropout."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import backend
from ... import functional as F  # noqa: N812 - the usual name
from ..._validation import fraction
from ...errors import DTypeError
from ...functional import checks
from ..tensor import Tensor, apply
from ._common import RecordableOp, compute, masked

__all__ = ["dropout", "log_softmax", "relu", "sigmoid", "softmax", "softplus", "tanh"]


class ReLU(RecordableOp):
    """max(x, 0)."""

    fresh = True

    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        ctx.y = F.relu(x)
        return ctx.y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return F.relu_backward(dy, ctx.y)


class Sigmoid(RecordableOp):
    """1 / (1 + exp(-x))."""

    fresh = True

    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        ctx.y = F.sigmoid(x)
        return ctx.y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return F.sigmoid_backward(dy, ctx.y)


class Tanh(RecordableOp):
    """Hyperbolic tangent."""

    fresh = True

    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        ctx.y = F.tanh(x)
        return ctx.y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return F.tanh_backward(dy, ctx.y)


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


class Softmax(RecordableOp):
    """Softmax along an axis."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, axis: int) -> np.ndarray:
        ctx.axis = axis
        ctx.y = F.softmax(x, axis=axis)
        return ctx.y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return F.softmax_backward(dy, ctx.y, axis=ctx.axis)


class LogSoftmax(RecordableOp):
    """Log-softmax along an axis."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, axis: int) -> np.ndarray:
        ctx.axis = axis
        ctx.y = F.log_softmax(x, axis=axis)
        return ctx.y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return F.log_softmax_backward(dy, ctx.y, axis=ctx.axis)


class Dropout(RecordableOp):
    """Zero each element with probability p and scale the rest by 1 / (1 - p)."""

    fresh = True

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, p: float, rng: np.random.Generator) -> np.ndarray:
        dtype = checks.floating(x, "x")
        device = backend.device_of(x)
        ctx.mask = backend.empty(x.shape, dtype, device)
        key = backend.empty(1, np.uint64, device, lasting=True)
        backend.run_ahead(_draw_key, rng, key)
        backend.run(backend.kernels("dropout", device).dropout_mask, key, p, ctx.mask.reshape(-1))
        return masked(x, ctx.mask)

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return masked(dy, ctx.mask)


def _draw_key(rng: np.random.Generator, key: np.ndarray) -> None:
    backend.fill(key, rng.integers(2**64, dtype=np.uint64))


def relu(x: Any) -> Tensor:
    """Differentiable `nbbn.functional.relu`.

    Parameters
    ----------
    x : Tensor or ndarray

    Returns
    -------
    Tensor
    """
    return apply(ReLU, x)


def sigmoid(x: Any) -> Tensor:
    """Differentiable `nbbn.functional.sigmoid`; the result remembers what it is.

    Parameters
    ----------
    x : Tensor or ndarray

    Returns
    -------
    Tensor
    """
    y = apply(Sigmoid, x)
    y._of_sigmoid = True
    return y


def tanh(x: Any) -> Tensor:
    """Differentiable `nbbn.functional.tanh`.

    Parameters
    ----------
    x : Tensor or ndarray

    Returns
    -------
    Tensor
    """
    return apply(Tanh, x)


def softplus(x: Any) -> Tensor:
    """``log(1 + exp(x))``, smooth and without overflow.

    Parameters
    ----------
    x : Tensor or ndarray

    Returns
    -------
    Tensor
    """
    return apply(Softplus, x)


def softmax(x: Any, *, axis: int = -1) -> Tensor:
    """Differentiable `nbbn.functional.softmax`; the result remembers its logits.

    Parameters
    ----------
    x : Tensor or ndarray
    axis : int, default -1

    Returns
    -------
    Tensor
    """
    y = apply(Softmax, x, axis=axis)
    # Of the axis that cross_entropy takes for the classes.
    if isinstance(x, Tensor) and x.ndim and axis % x.ndim == min(1, x.ndim - 1):
        y._logits = x
    return y


def log_softmax(x: Any, *, axis: int = -1) -> Tensor:
    """Differentiable `nbbn.functional.log_softmax`.

    Parameters
    ----------
    x : Tensor or ndarray
    axis : int, default -1

    Returns
    -------
    Tensor
    """
    return apply(LogSoftmax, x, axis=axis)


def dropout(x: Any, p: float, rng: np.random.Generator) -> Tensor:
    """Zero elements with probability `p` and scale the rest by ``1 / (1 - p)``.

    Parameters
    ----------
    x : Tensor or ndarray
    p : float
        In [0, 1]; 1 leaves zeros.
    rng : Generator
        Source of the mask.

    Returns
    -------
    Tensor
    """
    p = fraction(p, "the dropout probability p")
    if not isinstance(rng, np.random.Generator):
        raise DTypeError(f"rng must be a numpy.random.Generator, got {type(rng).__name__}")
    return apply(Dropout, x, p=p, rng=rng)
