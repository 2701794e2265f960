"""Activations, softmax and dropout."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import backend, checks
from .. import functional as F  # noqa: N812 - the usual name
from .._validation import real
from ..autograd import Tensor, apply
from ..errors import ArgumentError, DTypeError
from ._common import RecordableOp, masked

__all__ = ["dropout", "log_softmax", "relu", "sigmoid", "softmax", "tanh"]


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
    """Differentiable `nbbn.functional.sigmoid`.

    Parameters
    ----------
    x : Tensor or ndarray

    Returns
    -------
    Tensor
    """
    return apply(Sigmoid, x)


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
    if isinstance(x, Tensor) and axis in (-1, x.ndim - 1):
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
        In [0, 1).
    rng : Generator
        Source of the mask.

    Returns
    -------
    Tensor
    """
    if not 0 <= real(p, "p") < 1:
        raise ArgumentError(f"the dropout probability must lie in [0, 1), got {p}")
    if not isinstance(rng, np.random.Generator):
        raise DTypeError(f"rng must be a numpy.random.Generator, got {type(rng).__name__}")
    return apply(Dropout, x, p=p, rng=rng)
