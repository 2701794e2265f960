"""Softmax, log-softmax and softmax-cross-entropy of NumPy arrays, forward and backward."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import backend
from .._validation import choice, fraction, integer, real
from ..errors import ArgumentError, ShapeError
from . import checks
from ._kind import in_kind
from ._out import Target
from .layout import fold, row_layout

__all__ = [
    "cross_entropy", "cross_entropy_backward", "log_softmax", "log_softmax_backward", "softmax",
    "softmax_backward",
]  # fmt: skip

_REDUCTIONS = ("mean", "sum", "none")


@in_kind
def softmax(x: np.ndarray, *, axis: int = -1, out: np.ndarray | None = None) -> np.ndarray:
    """Softmax, ``exp(x) / sum(exp(x))`` along `axis`, shifted by the maximum so as not to overflow.

    Otherwise as `nbbn.functional.relu`.

    Parameters
    ----------
    axis : int, default -1
        Axis that sums to 1; a ShapeError where `x` has none of that number.
    """
    return _rowwise("softmax", (x,), x, axis, out)


@in_kind
def softmax_backward(
    dy: np.ndarray, y: np.ndarray, *, axis: int = -1, out: np.ndarray | None = None
) -> np.ndarray:
    """Gradient of `softmax`: ``y * (dy - sum(dy * y))``.

    Otherwise as `nbbn.functional.relu_backward`.

    Parameters
    ----------
    axis : int, default -1
        The forward's axis.
    """
    return _rowwise("softmax_backward", (dy, y), y, axis, out)


@in_kind
def log_softmax(x: np.ndarray, *, axis: int = -1, out: np.ndarray | None = None) -> np.ndarray:
    """Logarithm of the softmax, ``x - log(sum(exp(x)))``. Otherwise as `softmax`."""
    return _rowwise("log_softmax", (x,), x, axis, out)


@in_kind
def log_softmax_backward(
    dy: np.ndarray, y: np.ndarray, *, axis: int = -1, out: np.ndarray | None = None
) -> np.ndarray:
    """Gradient of `log_softmax`: ``dy - exp(y) * sum(dy)``. Otherwise as `softmax_backward`."""
    return _rowwise("log_softmax_backward", (dy, y), y, axis, out)


@in_kind
def cross_entropy(
    logits: np.ndarray,
    labels: np.ndarray,
    *,
    weight: np.ndarray | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Cross-entropy of softmax(logits) against class labels, as PyTorch's.

    With ``nll = -log_softmax(logits)``, label y, class weights w and smoothing s,
    ``loss = (1 - s) * w[y] * nll[y] + s / K * sum(w * nll)``; for equal weights and no smoothing
    it is ``log(sum(exp(logits))) - logits[y]``.

    Parameters
    ----------
    logits : ndarray of float, shape (N, K), (N, K, d1, ...) or (K,)
        Unnormalized scores: not probabilities.
    labels : ndarray of int, shape (N,), (N, d1, ...) or ()
        Classes in [0, K).
    weight : ndarray of float, shape (K,), optional
        Weight of each class, 1 by default.
    ignore_index : int, optional
        A label whose rows count for nothing: their loss and gradient are 0. PyTorch has -100.
    label_smoothing : float, default 0
        Share of each target, in [0, 1], that is spread evenly over the classes.
    reduction : {"mean", "sum", "none"}, default "mean"
        How the losses combine. A mean is over the weights of the labels that count.
    out : ndarray, shape of the result, dtype of `logits`, optional
        Receives the result.

    Returns
    -------
    ndarray, dtype of `logits`
        0-dimensional, or of the labels' shape for "none". The mean of no losses is NaN.

    Raises
    ------
    DTypeError, ShapeError, ArgumentError
        Operands that do not fit together, a label out of range, an unknown reduction.
    """
    problem = _Problem(logits, labels, weight, ignore_index, label_smoothing, reduction)
    layout, count = problem.layout, problem.rows.shape[0]
    if out is not None:
        shape = labels.shape if reduction == "none" else ()
        checks.output(out, shape, logits.dtype, device=layout.device)
    loss = backend.empty(count, layout.dtype, layout.device)
    kernels = backend.kernels("softmax", layout.device)
    backend.run(kernels.cross_entropy, *problem.operands, loss)
    if reduction == "none":
        loss = loss.reshape(labels.shape)
    else:
        total = backend.empty(1, layout.dtype, layout.device)
        backend.run(kernels.scaled_sum, loss, problem.scale, total)
        loss = problem.over_weights(total).reshape(())
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
    weight: np.ndarray | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Gradient of `cross_entropy`: ``(softmax(logits) * sum(c) - c) * dloss``.

    ``c = (1 - s) * w[y] * onehot(y) + s / K * w`` is what each class counts; for a mean it is
    divided by the weights of all labels together. Otherwise as `cross_entropy`, with its operands.

    Parameters
    ----------
    dloss : float or ndarray, default 1.0
        Gradient with respect to the loss: one number, or the labels' shape for reduction "none".
    out : ndarray, shape and dtype of `logits`, optional

    Returns
    -------
    dlogits : ndarray, shape and dtype of `logits`
    """
    problem = _Problem(logits, labels, weight, ignore_index, label_smoothing, reduction)
    layout, count = problem.layout, problem.rows.shape[0]
    if backend.is_array(dloss):
        checks.unmasked(dloss, "dloss")
        if dloss.dtype.kind not in "iu":
            checks.floating(dloss, "dloss")
        checks.on_device(dloss, layout.device, "dloss")
        shares = backend.contiguous(dloss, layout.dtype).reshape(-1)
    else:
        shares = backend.empty(1, layout.dtype, layout.device, lasting=True)
        backend.run_ahead(backend.fill, shares, real(dloss, "dloss"))
    expected = (1, count) if reduction == "none" else (1,)
    if shares.size not in expected:
        raise ShapeError(
            f"dloss must hold {' or '.join(map(str, expected))} values for reduction "
            f"{reduction!r} of {count} rows, got shape {np.shape(dloss)}"
        )
    shares = problem.over_weights(shares)
    target = Target(out, logits, layout, logits)
    if count:
        backend.run(
            backend.kernels("softmax", layout.device).cross_entropy_backward,
            *problem.operands, shares, problem.scale, target.folded,
        )  # fmt: skip
    return target.finish()


class _Problem:
    """What a cross-entropy works on, checked: rows (M, K), labels (M,) and what each counts."""

    def __init__(
        self, logits: Any, labels: Any, weight: Any, ignore_index: Any, label_smoothing: Any,
        reduction: Any,
    ) -> None:  # fmt: skip
        checks.floating(logits, "logits")
        axis = min(1, logits.ndim - 1)
        if axis < 0 or logits.shape[axis] == 0:
            raise ShapeError(
                f"logits must have shape (N, K), or (N, K, ...), with K >= 1 classes, "
                f"got {logits.shape}"
            )
        choice(reduction, _REDUCTIONS, "reduction")
        smoothing = fraction(label_smoothing, "label_smoothing")
        ignored = checks.NO_LABEL
        if ignore_index is not None:
            ignored = integer(ignore_index, "ignore_index")
            if not -(2**63) < ignored < 2**63:
                raise ArgumentError(f"ignore_index must be a label in int64, got {ignored}")
        self.layout = layout = row_layout(logits, axis, "logits")
        classes = logits.shape[axis]
        given = checks.channel_vector(weight, classes, layout.dtype, "weight", layout.device)
        labels = checks.labels(labels, logits.shape, layout.device, ignored)
        self.rows = fold(logits, layout)
        self.operands = self.rows, labels, given, ignored, smoothing
        count = self.rows.shape[0]
        self._weighted = reduction == "mean" and (weight is not None or ignored != checks.NO_LABEL)
        self.scale = 1.0
        if reduction == "mean" and not self._weighted:
            self.scale = 1.0 / count if count else float("nan")

    def over_weights(self, values: np.ndarray) -> np.ndarray:
        """Divide by the weights of all labels that count, where a mean has any."""
        if not self._weighted:
            return values
        _, labels, weight, ignored, _ = self.operands
        place, dtype = self.layout.device, values.dtype
        every = backend.empty(labels.shape, dtype, place)
        backend.run(_label_weights, labels, weight, ignored, every)
        total, quotient = backend.empty(1, dtype, place), backend.empty(values.shape, dtype, place)
        backend.run(backend.kernels("softmax", place).scaled_sum, every, 1.0, total)
        backend.run(_divide, values, total, quotient)
        return quotient


def _label_weights(labels: Any, weight: Any, ignored: int, out: Any) -> None:
    counts = labels != ignored
    out[...] = weight[labels * counts] * counts if weight.size else counts


def _divide(values: Any, total: Any, quotient: Any) -> None:
    # Where no label counts, the mean is NaN, of which NumPy need not warn.
    with np.errstate(invalid="ignore", divide="ignore"):
        np.divide(values, total, quotient)


def _rowwise(
    op: str, operands: tuple[np.ndarray, ...], x: np.ndarray, axis: int, out: np.ndarray | None
) -> np.ndarray:
    rows = row_layout(x, axis, "x" if len(operands) == 1 else "y")
    for array in operands[:-1]:
        checks.same_shape(array, x, "dy", like="y")
    target = Target(out, x, rows, *operands)
    if x.size:
        launcher = getattr(backend.kernels("softmax", rows.device), op)
        backend.run(launcher, *[fold(array, rows) for array in operands], target.folded)
    return target.finish()
