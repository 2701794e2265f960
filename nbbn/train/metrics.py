"""Numbers of a classification: the confusion matrix, and precision, recall and F1 of each class."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import backend
from .._validation import positive, possible
from ..errors import ArgumentError, DTypeError, ShapeError
from ..functional import checks

__all__ = ["ClassScores", "class_scores", "confusion_matrix"]


class ClassScores(NamedTuple):
    """What `class_scores` measured, an element for each class.

    Attributes
    ----------
    precision : ndarray of float64, shape (K,)
        Of the examples that were taken for the class, the fraction that belong to it; 0 where none
        were.
    recall : ndarray of float64, shape (K,)
        Of the examples of the class, the fraction that were taken for it; 0 where there are none.
    f1 : ndarray of float64, shape (K,)
        Harmonic mean of precision and recall; 0 where both are.
    support : ndarray of int64, shape (K,)
        Number of examples of the class.
    """

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray


def confusion_matrix(labels: Any, predicted: Any, *, classes: int | None = None) -> np.ndarray:
    """Count how often each class was taken for which.

    Parameters
    ----------
    labels, predicted : array_like of int, shape (N,)
        Classes from 0: the right ones and those that were predicted.
    classes : int, optional
        Number of classes, K; by default one more than the highest that occurs.

    Returns
    -------
    ndarray of int64, shape (K, K)
        A row for each label, a column for each prediction.

    Raises
    ------
    ShapeError
        The two are not of one length, or empty.
    DTypeError
        Something else than integers or booleans.
    ArgumentError
        A class below 0, or not below `classes`.
    """
    pair = [_class_numbers(labels, "labels"), _class_numbers(predicted, "predicted")]
    if pair[0].shape != pair[1].shape:
        raise ShapeError(
            f"labels and predicted must have the same length, got {len(pair[0])} and {len(pair[1])}"
        )
    count = int(max(array.max() for array in pair)) + 1
    if classes is not None:
        classes = positive(classes, "classes")
        if count > classes:
            raise ArgumentError(f"classes must lie in [0, {classes}), got {count - 1}")
        count = classes
    possible((count, count), np.dtype(np.int64), "a confusion matrix")
    matrix = np.zeros((count, count), np.int64)
    np.add.at(matrix, tuple(pair), 1)
    return matrix


def class_scores(labels: Any, predicted: Any, *, classes: int | None = None) -> ClassScores:
    """Measure precision, recall and F1 of each class.

    From the confusion matrix M, with M[k, k] right answers: precision is M[k, k] / sum(M[:, k]),
    recall M[k, k] / sum(M[k]), F1 2 M[k, k] / (sum(M[:, k]) + sum(M[k])); 0 where the divisor is.
    Otherwise as `confusion_matrix`.

    Returns
    -------
    ClassScores
    """
    matrix = confusion_matrix(labels, predicted, classes=classes)
    right, taken, support = matrix.diagonal(), matrix.sum(axis=0), matrix.sum(axis=1)
    return ClassScores(
        # A divisor of 0 has a dividend of 0.
        precision=right / np.maximum(taken, 1),
        recall=right / np.maximum(support, 1),
        f1=2 * right / np.maximum(taken + support, 1),
        support=support,
    )


def _class_numbers(value: Any, name: str) -> np.ndarray:
    checks.unmasked(value, name)
    array = backend.host(value)
    if array.dtype.kind not in "iub" and array.size:
        raise DTypeError(
            f"{name} must be integers, the numbers of classes, got {array.dtype}: "
            "numpy.unique(values, return_inverse=True)[1] numbers any classes"
        )
    if array.ndim != 1 or not array.size:
        advice = "; argmax(axis=1) makes classes of outputs" if array.ndim == 2 else ""
        raise ShapeError(f"{name} must have shape (N,), N at least 1, got {array.shape}{advice}")
    if array.min() < 0:
        raise ArgumentError(f"{name} must be numbers of classes from 0, got {array.min()}")
    return array.astype(np.int64)
