"""Losses: from logits, and from the probabilities of a Softmax."""

from __future__ import annotations

import warnings

import numpy as np

from . import backend, checks, ops
from .autograd import Tensor, apply
from .errors import ShapeError

__all__ = ["DoubleSoftmaxWarning", "cross_entropy", "nll"]


class DoubleSoftmaxWarning(UserWarning):
    """A loss that expects logits was given the output of a softmax."""


def cross_entropy(
    logits: Tensor | np.ndarray, labels: np.ndarray, *, reduction: str = "mean"
) -> Tensor:
    """Cross-entropy of softmax(logits) against class labels.

    Parameters
    ----------
    logits : Tensor, shape (N, K)
        Unnormalized scores. For the output of a Softmax use `nll`.
    labels : ndarray of int, shape (N,)
        Classes in [0, K).
    reduction : {"mean", "sum", "none"}, default "mean"

    Returns
    -------
    Tensor
        0-dimensional, or (N,) for "none".

    Warns
    -----
    DoubleSoftmaxWarning
        `logits` are probabilities made by a softmax: a second softmax would flatten them.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Operands that do not fit together, a label out of range, an unknown reduction.
    """
    if isinstance(logits, Tensor) and logits._logits is not None:
        warnings.warn(
            "cross_entropy expects logits but got the output of a Softmax, which makes a double "
            "softmax: use losses.nll, or drop the Softmax layer",
            DoubleSoftmaxWarning,
            stacklevel=2,
        )
    return ops.cross_entropy(logits, labels, reduction=reduction)


def nll(
    probabilities: Tensor | np.ndarray, labels: np.ndarray, *, reduction: str = "mean"
) -> Tensor:
    """Negative log-likelihood of class labels under given probabilities.

    Where a Softmax made the probabilities, the loss is computed through its logits: a model that
    ends in Softmax then trains exactly like one that ends in logits.

    Parameters
    ----------
    probabilities : Tensor, shape (N, K)
        Rows that sum to 1.
    labels : ndarray of int, shape (N,)
        Classes in [0, K).
    reduction : {"mean", "sum", "none"}, default "mean"

    Returns
    -------
    Tensor
        0-dimensional, or (N,) for "none".

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Operands that do not fit together, a label out of range, an unknown reduction.
    """
    if not isinstance(probabilities, Tensor):
        checks.floating(probabilities, "probabilities")
        probabilities = Tensor(probabilities)
    if probabilities._logits is not None:
        return ops.cross_entropy(probabilities._logits, labels, reduction=reduction)
    checks.choice(reduction, ("mean", "sum", "none"), "reduction")
    if probabilities.ndim != 2:
        raise ShapeError(f"probabilities must have shape (N, K), got {probabilities.shape}")
    rows, classes = probabilities.shape
    labels = checks.labels(labels, rows, classes, probabilities.device)
    every = backend.constant(backend.to(np.arange(rows), probabilities.device))
    loss = -apply(ops.Index, probabilities, index=(every, labels)).log()
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()
