"""Lists and tables become the arrays that they stand for, or are refused with what to do."""

from __future__ import annotations

import numpy as np
import pytest

from nbbn.data import Batches, standardization
from nbbn.errors import DTypeError, ShapeError

pandas = pytest.importorskip("pandas")

X = np.array([[1.5, 2.0], [3.0, -4.0], [0.25, 6.0]])
Y = np.array([2, 0, 1])
FRAME = pandas.DataFrame(X, columns=["a", "b"])


def all_of(images, labels):
    ((x, y),) = Batches(images, labels, 9, shuffle=False)
    return x, y


@pytest.mark.parametrize(
    "images",
    [
        X.tolist(),
        list(X),
        tuple(map(tuple, X.tolist())),
        FRAME,
        FRAME.astype(np.float32),
        FRAME.astype({"a": np.float32}),
        FRAME[::-1][::-1],
        FRAME.rename(columns={"b": "a"}),
        pandas.concat([FRAME[["a"]], FRAME[["b"]].astype("Int64")], axis=1),
    ],
    ids=range(9),
)
def test_features(images):
    x, _ = all_of(images, Y)
    np.testing.assert_array_equal(x, X.astype(np.float32))


def test_integers_and_truth_values_are_numbers_and_bytes_stay_bytes():
    frame = pandas.DataFrame({"a": [1, 2, 300], "b": [True, False, True]})
    np.testing.assert_array_equal(all_of(frame, Y)[0], [[1, 1], [2, 0], [300, 1]])
    np.testing.assert_array_equal(all_of([[1, 255]] * 3, Y)[0], [[1, 255]] * 3)
    pixels = pandas.DataFrame({"a": [0, 51, 255]}, dtype=np.uint8)
    np.testing.assert_allclose(all_of(pixels, Y)[0].ravel(), [0, 0.2, 1])


@pytest.mark.parametrize(
    "labels",
    [
        Y.tolist(),
        pandas.Series(Y),
        pandas.Series(Y, dtype=np.int8),
        pandas.Series(Y, dtype="Int64"),
        pandas.DataFrame({"label": Y}),
    ],
)
def test_classes(labels):
    y = all_of(X, labels)[1]
    assert y.dtype == np.int64
    np.testing.assert_array_equal(y, Y)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ([0.5, 1.5, 2.5], [0.5, 1.5, 2.5]),
        (pandas.Series([0.5, 1.5, 2.5]), [0.5, 1.5, 2.5]),
        (FRAME, X),
        (FRAME[["a"]], X[:, :1]),
    ],
)
def test_numbers_as_targets(targets, expected):
    np.testing.assert_array_equal(all_of(X, targets)[1], expected)


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (["x", "y", "z"], r"column 'c' of images holds .*get_dummies\(images\)"),
        (pandas.Categorical(["u", "v", "u"]), "column 'c' of images holds category"),
        (pandas.to_datetime(["2020-01-01"] * 3), "column 'c' of images holds datetime"),
        ([2**53 + 1, 0, 1], r"beyond 2\*\*53"),
    ],
)
def test_columns_that_are_no_numbers_are_refused(column, words):
    with pytest.raises(DTypeError, match=words):
        Batches(FRAME.assign(c=column), Y, 2)


def test_what_the_refusals_advise_works():
    frame = FRAME.assign(c=pandas.Categorical(["u", "v", "u"]))
    assert all_of(pandas.get_dummies(frame), Y)[0].shape == (3, 4)
    names = pandas.Series(["dog", "ant", "cat"])
    with pytest.raises(DTypeError, match=r"numpy.unique\(labels, return_inverse=True\)\[1\]"):
        Batches(FRAME, names, 2)
    np.testing.assert_array_equal(all_of(X, np.unique(names, return_inverse=True)[1])[1], Y)
    filled = FRAME.assign(c=pandas.array([1, None, 3], dtype="Int64")).fillna(0)
    np.testing.assert_array_equal(all_of(filled, Y)[0][:, 2], [1, 0, 3])


def test_shapes_are_those_of_arrays():
    with pytest.raises(ShapeError, match=r"\(3, 0\)"):
        Batches(FRAME[[]], Y, 2)
    with pytest.raises(ShapeError, match=r"shape \(N, ...\)"):
        Batches([1.0, 2.0, 3.0], Y, 2)
    with pytest.raises(ShapeError, match=r"shape \(3,\), one per image, got \(2,\)"):
        Batches(FRAME, [0, 1], 2)


def test_other_functions_take_tables_too():
    assert standardization(FRAME) == standardization(X)
