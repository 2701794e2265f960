"""Softmax, log-softmax and softmax-cross-entropy of NumPy arrays, forward and backward."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import backend, checks
from .._validation import choice, real
from ..checks import Layout
from ..errors import ShapeError
from ._kind import in_kind
from ._out import Target

__all__ = [
    "cross_entropy",
    "cross_entropy_backward",
    "log_softmax",
    "log_softmax_backward",
    "softmax",
    "softmax_backward",
]

_REDUCTIONS = ("mean", "sum", "none")


@in_kind
def softmax(x: np.ndarray, *, axis: int = -1, out: np.ndarray | None = None) -> np.ndarray:
    """Softmax, ``exp(x) / sum(exp(x))`` along `axis`, shifted by the maximum so as not to overflow.

    Parameters
    ----------
    x : ndarray of float, 1 or more dimensions
    axis : int, default -1
        Axis that sums to 1.
    out : ndarray, shape and dtype of `x`, optional
        Receives the result; may be `x`.

    Returns
    -------
    ndarray, shape and dtype of `x`

    Raises
    ------
    DTypeError, ShapeError, ArgumentError
        `x` is not an array of real floating numbers, or `axis` or `out` does not fit.
    """
    return _rowwise("softmax", (x,), x, axis, out)


@in_kind
def softmax_backward(
    dy: np.ndarray, y: np.ndarray, *, axis: int = -1, out: np.ndarray | None = None
) -> np.ndarray:
    """Gradient of `softmax`: ``y * (dy - sum(dy * y))``.

    Parameters
    ----------
    dy : ndarray of float, shape of `y`
        Gradient of the loss with respect to the output.
    y : ndarray of float
        Output of the forward.
    axis : int, default -1
        The forward's axis.
    out : ndarray, shape and dtype of `y`, optional
        Receives the result.

    Returns
    -------
    dx : ndarray, shape and dtype of `y`

    Raises
    ------
    DTypeError, ShapeError, ArgumentError
        Operands that do not fit together.
    """
    return _rowwise("softmax_backward", (dy, y), y, axis, out)


@in_kind
def log_softmax(x: np.ndarray, *, axis: int = -1, out: np.ndarray | None = None) -> np.ndarray:
    """Logarithm of the softmax, ``x - log(sum(exp(x)))`` along `axis`.

    Parameters
    ----------
    x : ndarray of float, 1 or more dimensions
    axis : int, default -1
        Axis whose exponentials sum to 1.
    out : ndarray, shape and dtype of `x`, optional
        Receives the result; may be `x`.

    Returns
    -------
    ndarray, shape and dtype of `x`

    Raises
    ------
    DTypeError, ShapeError, ArgumentError
        `x` is not an array of real floating numbers, or `axis` or `out` does not fit.
    """
    return _rowwise("log_softmax", (x,), x, axis, out)


@in_kind
def log_softmax_backward(
    dy: np.ndarray, y: np.ndarray, *, axis: int = -1, out: np.ndarray | None = None
) -> np.ndarray:
    """Gradient of `log_softmax`: ``dy - exp(y) * sum(dy)``.

    Parameters
    ----------
    dy : ndarray of float, shape of `y`
        Gradient of the loss with respect to the output.
    y : ndarray of float
        Output of the forward.
    axis : int, default -1
        The forward's axis.
    out : ndarray, shape and dtype of `y`, optional
        Receives the result.

    Returns
    -------
    dx : ndarray, shape and dtype of `y`

    Raises
    ------
    DTypeError, ShapeError, ArgumentError
        Operands that do not fit together.
    """
    return _rowwise("log_softmax_backward", (dy, y), y, axis, out)


@in_kind
def cross_entropy(
    logits: np.ndarray,
    labels: np.ndarray,
    *,
    reduction: str = "mean",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Cross-entropy of softmax(logits) against class labels.

    ``loss[i] = log(sum(exp(logits[i]))) - logits[i, labels[i]]``.

    Parameters
    ----------
    logits : ndarray of float, shape (N, K)
        Unnormalized scores: not probabilities.
    labels : ndarray of int, shape (N,)
        Classes in [0, K).
    reduction : {"mean", "sum", "none"}, default "mean"
        How the N losses combine.
    out : ndarray, shape of the result, dtype of `logits`, optional
        Receives the result.

    Returns
    -------
    ndarray, dtype of `logits`
        0-dimensional, or (N,) for "none". The mean of no losses is NaN.

    Raises
    ------
    DTypeError, ShapeError, ArgumentError
        Operands that do not fit together, a label out of range, an unknown reduction.
    """
    layout, rows, labels = _operands(logits, labels, reduction)
    if out is not None:
        shape = (rows.shape[0],) if reduction == "none" else ()
        checks.output(out, shape, logits.dtype, device=layout.device)
    loss = backend.empty(rows.shape[0], layout.dtype, layout.device)
    kernels = backend.kernels("softmax", layout.device)
    backend.run(kernels.cross_entropy, rows, labels, loss)
    if reduction != "none":
        total = backend.empty(1, layout.dtype, layout.device)
        backend.run(kernels.scaled_sum, loss, _scale(reduction, rows.shape[0]), total)
        loss = total.reshape(())
    if out is None and loss.dtype == logits.dtype:
        return loss
    if out is None:
        out = backend.empty(loss.shape, logits.dtype, layout.device)
    backend.run(np.copyto, out, loss, "unsafe")
    return out


@in_kind
def cross_entropy_backward(
    logits: np.ndarray,
    labels: np.ndarray,
    dloss: Any = 1.0,
    *,
    reduction: str = "mean",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Gradient of `cross_entropy`: ``(softmax(logits) - onehot) * dloss``, over N for a mean.

    Parameters
    ----------
    logits : ndarray of float, shape (N, K)
        The forward's logits.
    labels : ndarray of int, shape (N,)
        The forward's labels.
    dloss : float or ndarray, default 1.0
        Gradient with respect to the loss: one number, or (N,) for reduction "none".
    reduction : {"mean", "sum", "none"}, default "mean"
        The forward's reduction.
    out : ndarray, shape and dtype of `logits`, optional
        Receives the result.

    Returns
    -------
    dlogits : ndarray, shape and dtype of `logits`

    Raises
    ------
    DTypeError, ShapeError, ArgumentError
        Operands that do not fit together, a label out of range, an unknown reduction.
    """
    layout, rows, labels = _operands(logits, labels, reduction)
    count = rows.shape[0]
    if backend.is_array(dloss):
        checks.unmasked(dloss, "dloss")
        if dloss.dtype.kind not in "iu":
            checks.floating(dloss, "dloss")
        checks.on_device(dloss, layout.device, "dloss")
        weights = backend.contiguous(dloss, layout.dtype).reshape(-1)
    else:
        weights = backend.empty(1, layout.dtype, layout.device, lasting=True)
        backend.run_ahead(backend.fill, weights, real(dloss, "dloss"))
    expected = (1, count) if reduction == "none" else (1,)
    if weights.size not in expected:
        raise ShapeError(
            f"dloss must hold {' or '.join(map(str, expected))} values for reduction "
            f"{reduction!r} of {count} rows, got shape {np.shape(dloss)}"
        )
    target = Target(out, logits, layout, logits)
    if count:
        backend.run(
            backend.kernels("softmax", layout.device).cross_entropy_backward,
            rows, labels, weights, _scale(reduction, count), target.folded,
        )  # fmt: skip
    return target.finish()


def _scale(reduction: str, count: int) -> float:
    if reduction != "mean":
        return 1.0
    return 1.0 / count if count else float("nan")


def _operands(
    logits: np.ndarray, labels: np.ndarray, reduction: str
) -> tuple[Layout, np.ndarray, np.ndarray]:
    checks.floating(logits, "logits")
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ShapeError(f"logits must have shape (N, K) with K >= 1 classes, got {logits.shape}")
    choice(reduction, _REDUCTIONS, "reduction")
    layout = checks.row_layout(logits, 1, "logits")
    checked = checks.labels(labels, logits.shape[0], logits.shape[1], layout.device)
    return layout, checks.fold(logits, layout), checked


def _rowwise(
    op: str, operands: tuple[np.ndarray, ...], x: np.ndarray, axis: int, out: np.ndarray | None
) -> np.ndarray:
    rows = checks.row_layout(x, axis, "x" if len(operands) == 1 else "y")
    for array in operands[:-1]:
        checks.same_shape(array, x, "dy", like="y")
    target = Target(out, x, rows, *operands)
    if x.size:
        launcher = getattr(backend.kernels("softmax", rows.device), op)
        backend.run(launcher, *(checks.fold(array, rows) for array in operands), target.folded)
    return target.finish()
