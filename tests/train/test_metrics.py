"""The confusion matrix and the numbers of each class, against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from nbbn import plots
from nbbn.errors import ArgumentError, DTypeError, ShapeError
from nbbn.train.metrics import class_scores, confusion_matrix


def test_by_hand():
    labels, predicted = [0, 0, 0, 1, 1, 3], [0, 0, 1, 1, 0, 1]
    assert confusion_matrix(labels, predicted).tolist() == [
        [2, 1, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 0, 0],
        [0, 1, 0, 0],
    ]
    found = class_scores(labels, predicted)
    np.testing.assert_allclose(found.precision, [2 / 3, 1 / 3, 0, 0])
    np.testing.assert_allclose(found.recall, [2 / 3, 1 / 2, 0, 0])
    np.testing.assert_allclose(found.f1, [2 / 3, 2 / 5, 0, 0])
    assert found.support.tolist() == [3, 2, 0, 1]


@pytest.mark.parametrize("classes", [None, 7])
def test_against_scikit_learn(rng, classes):
    metrics = pytest.importorskip("sklearn.metrics")
    labels, predicted = rng.integers(0, 5, 200), rng.choice([0, 1, 3, 5], 200)
    each = range(classes or 6)
    np.testing.assert_array_equal(
        confusion_matrix(labels, predicted, classes=classes),
        metrics.confusion_matrix(labels, predicted, labels=each),
    )
    expected = metrics.precision_recall_fscore_support(
        labels, predicted, labels=each, zero_division=0
    )
    for one, other in zip(class_scores(labels, predicted, classes=classes), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


@pytest.mark.parametrize("kind", [list, tuple, np.uint8, np.array, "bool"])
def test_any_array_like(kind):
    labels, predicted = [0, 1, 1], [1, 1, 0]
    convert = (lambda a: np.array(a, bool)) if kind == "bool" else kind
    expected = confusion_matrix(np.array(labels), np.array(predicted))
    np.testing.assert_array_equal(confusion_matrix(convert(labels), convert(predicted)), expected)


@pytest.mark.parametrize(
    ("labels", "predicted", "options", "kind", "reason"),
    [
        ([0, 1], [0], {}, ShapeError, "the same length, got 2 and 1"),
        ([], [], {}, ShapeError, r"shape \(N,\), N at least 1, got \(0,\)"),
        ([0, 1], [[0.5, 0.5]] * 2, {}, DTypeError, "predicted must be integers.*got float64"),
        ([0, 1], [[1, 0]] * 2, {}, ShapeError, r"got \(2, 2\); argmax\(axis=1\) makes classes"),
        (["a"], ["b"], {}, DTypeError, "numpy.unique"),
        ([0.0], [0], {}, DTypeError, "labels must be integers, .*got float64"),
        ([0, -1], [0, 1], {}, ArgumentError, "labels must be numbers of classes from 0, got -1"),
        ([0, 3], [0, 1], {"classes": 3}, ArgumentError, r"classes must lie in \[0, 3\), got 3"),
        ([0], [0], {"classes": 0}, ArgumentError, "classes must be at least 1"),
        ([2**40], [0], {}, ArgumentError, "a confusion matrix of shape"),
        (np.ma.array([0]), [0], {}, DTypeError, "masked"),
        (None, [0], {}, DTypeError, "labels must be integers"),
    ],
)
def test_what_has_no_confusion_matrix(labels, predicted, options, kind, reason):
    for function in (confusion_matrix, class_scores):
        with pytest.raises(kind, match=reason):
            function(labels, predicted, **options)


def test_pictures_take_lists():
    pytest.importorskip("matplotlib")
    figure = plots.confusion([0, 1], [1, 1])
    assert figure.axes[0].get_title() == "50.00% of 2 right"
    assert [text.get_text() for text in figure.axes[0].texts] == ["1", "1"]
    with pytest.raises(ShapeError, match="the same length"):
        plots.confusion([0, 1], [1])
    figure = plots.mistakes([[[0, 1]], [[1, 0]]], [0, 1], [[0.9, 0.1], [0.6, 0.4]])
    assert figure.axes[0].get_title() == "1 taken for 0\n60% sure"
    with pytest.raises(ShapeError, match="one for each of 2 images"):
        plots.mistakes([[[0]], [[1]]], [0], [[0.5, 0.5]])
