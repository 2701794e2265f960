"""Losses: of classes, from logits and from probabilities; of numbers; of yes and no.

Each returns a Tensor in the dtype of the model's output: 0-dimensional for the reductions "mean"
and "sum", which are over all elements unless it says otherwise, and of the targets' shape for
"none". It raises a ShapeError where shapes do not fit together or there are no elements to take the
mean of, a DTypeError for operands of other types, and an ArgumentError for an unknown reduction and
for labels, targets and settings out of their range.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from .. import backend
from .._validation import choice, fraction, real
from ..autograd import functions as ops
from ..autograd.tensor import Tensor, apply, tensor_of
from ..errors import ArgumentError, ShapeError
from ..functional import checks

__all__ = [
    "DoubleSigmoidWarning", "DoubleSoftmaxWarning", "binary_cross_entropy", "cross_entropy",
    "huber", "mse", "nll",
]  # fmt: skip

_REDUCTIONS = ("mean", "sum", "none")


class DoubleSoftmaxWarning(UserWarning):
    """A loss that expects logits was given the output of a softmax."""


class DoubleSigmoidWarning(UserWarning):
    """A loss that expects logits was given the output of a sigmoid."""


def cross_entropy(
    logits: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    *,
    weight: np.ndarray | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy of softmax(logits) against class labels or probabilities, as PyTorch's.

    With ``nll = -log_softmax(logits)``, class weights w and smoothing s, the loss of label y is
    ``(1 - s) * w[y] * nll[y] + s / K * sum(w * nll)``, and that of probabilities p is
    ``sum(w * ((1 - s) * p + s / K) * nll)``. Otherwise as `nbbn.functional.cross_entropy`; for the
    output of a Softmax use `nll`.

    Parameters
    ----------
    labels : ndarray of int, shape (N,), (N, d1, ...) or (); or of float, shape of `logits`
        Classes in [0, K), or a probability of each class, with which there is no `ignore_index`.
    reduction : {"mean", "sum", "none"}, default "mean"
        A mean over labels divides by the sum of their weights, one over probabilities by N.

    Warns
    -----
    DoubleSoftmaxWarning
        `logits` are probabilities made by a softmax: a second softmax would flatten them.
    """
    if isinstance(logits, Tensor) and logits._logits is not None:
        warnings.warn(
            "cross_entropy expects logits but got the output of a Softmax, which makes a double "
            "softmax: use losses.nll, or drop the Softmax layer",
            DoubleSoftmaxWarning,
            stacklevel=2,
        )
    given: Any = labels.data if isinstance(labels, Tensor) else labels
    rank = getattr(logits, "ndim", None)
    if not backend.is_array(given) or given.dtype.kind != "f" or given.ndim != rank:
        return ops.cross_entropy(
            logits, given, weight=weight, ignore_index=ignore_index,
            label_smoothing=label_smoothing, reduction=reduction,
        )  # fmt: skip
    if ignore_index is not None:
        raise ArgumentError(
            "ignore_index names a class label, and these are probabilities: give their rows "
            "probabilities of 0 instead"
        )
    logits, p = _pair("cross_entropy", logits, labels, reduction)
    axis = min(1, logits.ndim - 1)
    classes = logits.shape[axis] if logits.ndim else 0
    if not classes:
        raise ShapeError(f"logits must have shape (N, K, ...) with K >= 1, got {logits.shape}")
    smoothing = fraction(label_smoothing, "label_smoothing")
    if smoothing:
        p = p * (1 - smoothing) + smoothing / classes
    if weight is not None:
        checks.channel_array(weight, classes, "weight", logits.device)
        of_classes = backend.contiguous(weight, logits.dtype)
        p = p * of_classes.reshape(classes, *(1,) * (logits.ndim - axis - 1))
    loss = -(ops.log_softmax(logits, axis=axis) * p).sum(axis=axis)
    return _reduced(loss, reduction)


def nll(
    probabilities: Tensor | np.ndarray, labels: np.ndarray, *, reduction: str = "mean"
) -> Tensor:
    """Negative log-likelihood of class labels under given probabilities.

    Where a Softmax made the probabilities, the loss is computed through its logits: a model that
    ends in Softmax then trains exactly like one that ends in logits. Otherwise as `cross_entropy`.

    Parameters
    ----------
    probabilities : Tensor, shape (N, K)
        Rows that sum to 1.
    labels : ndarray of int, shape (N,)
    """
    probabilities = tensor_of(probabilities, "probabilities")
    if probabilities._logits is not None:
        return ops.cross_entropy(probabilities._logits, labels, reduction=reduction)
    if probabilities.ndim != 2:
        raise ShapeError(f"probabilities must have shape (N, K), got {probabilities.shape}")
    choice(reduction, _REDUCTIONS, "reduction")
    labels = checks.labels(labels, probabilities.shape, probabilities.device)
    every = backend.constant(backend.to(np.arange(len(labels)), probabilities.device))
    return _reduced(-apply(ops.Index, probabilities, index=(every, labels)).log(), reduction)


def mse(
    output: Tensor | np.ndarray, targets: Tensor | np.ndarray, *, reduction: str = "mean"
) -> Tensor:
    """Squared error, ``(output - targets)**2``.

    Parameters
    ----------
    output : Tensor, any shape
    targets : Tensor or ndarray of float, shape of `output`
    reduction : {"mean", "sum", "none"}, default "mean"

    Returns
    -------
    Tensor
    """
    output, targets = _pair("mse", output, targets, reduction)
    difference = output - targets
    return _reduced(difference * difference, reduction)


def huber(
    output: Tensor | np.ndarray,
    targets: Tensor | np.ndarray,
    *,
    delta: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """Huber loss, which outliers pull less: quadratic up to an error of `delta`, then linear.

    ``d**2 / 2`` where ``|d| <= delta``, else ``delta * (|d| - delta / 2)``, for
    ``d = output - targets``. Otherwise as `mse`.

    Parameters
    ----------
    delta : float, default 1
        Above 0.
    """
    output, targets = _pair("huber", output, targets, reduction)
    return _reduced(ops.huber(output - targets, delta), reduction)


def binary_cross_entropy(
    logits: Tensor | np.ndarray,
    targets: Tensor | np.ndarray,
    *,
    weight: float | np.ndarray | None = None,
    pos_weight: float | np.ndarray | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy of sigmoid(logits) against 0 and 1, or probabilities.

    ``weight * (pos_weight * t * softplus(-x) + (1 - t) * softplus(x))`` for logits x and targets t,
    which neither overflows nor cancels. PyTorch calls it ``binary_cross_entropy_with_logits``.
    Otherwise as `mse`.

    Parameters
    ----------
    logits : Tensor, any shape
        Scores before the sigmoid. For one output per example, (N, 1).
    targets : Tensor or ndarray of float, shape of `logits`
        In [0, 1]; several ones in a row are several labels of an example.
    weight : float, or ndarray of float, broadcastable to `logits`, optional
        Factor of each element's loss. A mean is still over all elements.
    pos_weight : float, or ndarray of float, broadcastable to `logits`, optional
        Factor of the loss of ones: the number of zeros by that of ones balances them.

    Warns
    -----
    DoubleSigmoidWarning
        `logits` are probabilities made by a sigmoid: a second sigmoid would flatten them.
    """
    if isinstance(logits, Tensor) and logits._of_sigmoid:
        warnings.warn(
            "binary_cross_entropy expects logits but got the output of a Sigmoid, which makes a "
            "double sigmoid: drop the Sigmoid layer",
            DoubleSigmoidWarning,
            stacklevel=2,
        )
    # As they came: a copy in the logits' type may be gone by the time that a replay is verified.
    given = targets.data if isinstance(targets, Tensor) else targets
    logits, targets = _pair("binary_cross_entropy", logits, targets, reduction)
    found = backend.empty(1, np.int64, logits.device, lasting=True)
    backend.run(_first_outside, given, found)
    backend.verify(found, _bad_target, given)
    ones = targets if pos_weight is None else targets * _factor(pos_weight, "pos_weight", logits)
    loss = ones * ops.softplus(-logits) + (1 - targets) * ops.softplus(logits)
    if weight is not None:
        loss = loss * _factor(weight, "weight", logits)
    return _reduced(loss, reduction)


def _pair(name: str, output: Any, targets: Any, reduction: Any) -> tuple[Tensor, Tensor]:
    """Check what a loss compares: two of one shape, the targets brought to the output's dtype."""
    choice(reduction, _REDUCTIONS, "reduction")
    output = tensor_of(output, "the output")
    given = targets.data if isinstance(targets, Tensor) else targets
    checks.floating(given, "targets")
    checks.on_device(given, output.device, "targets")
    if given.shape != output.shape:
        raise ShapeError(
            f"{name} needs targets of the output's shape {output.shape}, got {given.shape}"
            + (
                checks.reshape_advice("targets", given.shape, output.shape)
                or ": give the model as many outputs as an example has targets"
            )
        )
    if not isinstance(targets, Tensor):
        targets = Tensor(backend.contiguous(given, output.dtype))
    return output, targets


def _factor(values: Any, name: str, like: Tensor) -> float | np.ndarray:
    """Check a factor of the loss, or those of each element; return them in its dtype."""
    if isinstance(values, float | int | np.number):
        return real(values, name)
    checks.floating(values, name)
    checks.on_device(values, like.device, name)
    try:
        fits = np.broadcast_shapes(values.shape, like.shape) == like.shape
    except ValueError:
        fits = False
    if not fits:
        raise ShapeError(f"{name} of shape {values.shape} does not broadcast to {like.shape}")
    return backend.contiguous(values, like.dtype)


def _first_outside(targets: Any, found: Any) -> None:
    bad = ~((targets >= 0) & (targets <= 1))
    found[...] = np.where(np.any(bad), np.argmax(bad), -1) if targets.size else -1


def _bad_target(position: int, targets: Any) -> None:
    raise ArgumentError(
        f"targets must lie between 0 and 1, got {float(targets.reshape(-1)[position])} at position "
        f"{position}: classes -1 and 1 are (targets + 1) / 2"
    )


def _reduced(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()
