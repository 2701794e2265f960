"""Batches: their values, order, layouts, state, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

from nbbn.data import Batches
from nbbn.errors import ArgumentError, CheckpointError, DTypeError, ShapeError
from tests.helpers.advice import typed
from tests.helpers.idx_files import random_bytes
from tests.helpers.refusals import refusing


def naive(images, order, mean=0.0, std=1.0) -> np.ndarray:
    values = images.reshape(len(images), -1)[order].astype(np.float64)
    if images.dtype == np.uint8:
        values = values / 255
    return (values - mean) / std


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize(("rows", "batch_size"), [(10, 4), (8, 4), (3, 5), (7, 1)])
def test_batches(dtype, rows, batch_size):
    images = random_bytes(6, rows, 5, 3).astype(dtype)
    labels = np.arange(rows, dtype=np.uint8)
    batches = Batches(images, labels, batch_size, rng=3)
    found = list(batches)
    assert len(found) == len(batches) == -(-rows // batch_size)
    assert [len(x) for x, _ in found[:-1]] == [batch_size] * (len(found) - 1)
    order = np.concatenate([y for _, y in found])
    assert sorted(order.tolist()) == list(range(rows))
    for x, y in found:
        assert (x.dtype, y.dtype) == (np.float32, np.int64)
        assert x.flags.c_contiguous
    x = np.concatenate([x for x, _ in found])
    np.testing.assert_array_equal(x, naive(images, order).astype(np.float32))


def test_every_byte_is_exact():
    images = np.arange(256, dtype=np.uint8).reshape(256, 1)
    ((x, _),) = Batches(images, np.zeros(256, np.int64), 256, shuffle=False)
    np.testing.assert_array_equal(x, (np.arange(256) / 255)[:, None].astype(np.float32))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_standardization(dtype):
    images = random_bytes(7, 300, 400).astype(dtype)
    ((x, y),) = Batches(images, np.arange(300), 300, rng=0, mean=0.1307, std=0.3081)
    np.testing.assert_array_max_ulp(x, naive(images, y, 0.1307, 0.3081).astype(np.float32), 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a[::2],
        lambda a: a[::-1],
        lambda a: a.transpose(0, 2, 1),
        np.asfortranarray,
        lambda a: np.broadcast_to(a[:1], a.shape),
        lambda a: a.astype(np.float64),
    ],
)
def test_layouts(change):
    images = change(random_bytes(8, 12, 4, 6))
    images.flags.writeable = False
    labels = np.arange(len(images))
    for x, y in Batches(images, labels, 5, rng=1):
        np.testing.assert_array_equal(x, naive(images, y).astype(np.float32))


@pytest.mark.parametrize("label_type", [np.int8, np.uint8, np.int32, np.int64, np.uint64, ">i4"])
def test_label_types(label_type):
    labels = np.array([3, 1, 2], label_type)
    ((_, y),) = Batches(np.zeros((3, 2), np.uint8), labels, 3, shuffle=False, num_classes=4)
    assert y.dtype == np.int64
    assert y.tolist() == [3, 1, 2]


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 2)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f8"])
def test_targets_of_numbers_stay_as_they_are(rng, dtype, shape):
    """For regression, and several ones in a row: in the order of the images, for any options."""
    images = rng.normal(size=(23, 4)).astype(np.float32)
    targets = rng.normal(size=(23, *shape)).astype(dtype)
    kept = np.float64 if targets.dtype.itemsize == 8 else np.float32
    rows = rng.permutation(23)[:17]
    for options in ({}, {"reuse": True}, {"rows": rows}, {"mean": np.zeros(4)}):
        batches = Batches(images, targets[::-1].copy()[::-1], 5, rng=2, **options)
        order = np.random.default_rng(2).permutation(batches.count)
        expected = targets if "rows" not in options else targets[rows]
        found = [y.copy() for _, y in batches]
        assert all((y.dtype, y.shape[1:]) == (kept, shape) for y in found)
        np.testing.assert_array_equal(np.concatenate(found), expected[order])
        np.testing.assert_array_equal(batches.first(4)[1], expected[:4])


def test_the_fingerprint_tells_targets_apart(rng):
    images, targets = rng.normal(size=(9, 3)), rng.normal(size=(9, 2))
    first = Batches(images, targets, 3).fingerprint
    assert Batches(images, targets.copy(), 3).fingerprint == first
    assert Batches(images, targets + 1, 3).fingerprint != first


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (np.array([True, False, True, True]), [1, 0, 1, 1]),
        ([True, False, True, True], [1, 0, 1, 1]),
        (np.array(["cat", "dog", "ant", "cat"]), [1, 2, 0, 1]),
        (["cat", "dog", "ant", "cat"], [1, 2, 0, 1]),
        (np.array(["cat", "dog", "ant", "cat"], object), [1, 2, 0, 1]),
        (np.array([5, 3, 3, 5], object), [5, 3, 3, 5]),
        (np.array([b"no", b"yes", b"no", b"no"]), [0, 1, 0, 0]),
        (np.array([[2], [0], [1], [1]]), [2, 0, 1, 1]),
        (np.array([[1, 0], [1, 1], [0, 0], [0, 1]]), [[1, 0], [1, 1], [0, 0], [0, 1]]),
    ],
)
def test_advice_on_labels_works_when_typed(labels, expected):
    images = np.zeros((4, 2), np.uint8)
    with pytest.raises((DTypeError, ShapeError)) as caught:
        Batches(images, labels, 4)
    ((_, y),) = Batches(images, typed(caught.value, labels=labels), 4, shuffle=False)
    assert y.tolist() == expected


def labels_of(batches) -> list[list[int]]:
    return [y.tolist() for _, y in batches]


def make(rows=20, batch_size=6, **options) -> Batches:
    return Batches(random_bytes(9, rows, 4), np.arange(rows), batch_size, **options)


def test_same_seed_same_order():
    one, two = make(rng=5), make(rng=np.random.default_rng(5))
    first = labels_of(one)
    assert first == labels_of(two)
    second = labels_of(one)
    assert second == labels_of(two)
    assert first != second
    assert labels_of(make(rng=6)) != first
    assert labels_of(make()) != labels_of(make())


def test_iter_draws_even_if_the_epoch_was_left_early():
    rng = np.random.default_rng(5)
    orders = [rng.permutation(20).tolist() for _ in range(2)]
    batches = make(rng=5)
    for _, y in batches:
        assert y.tolist() == orders[0][:6]
        break
    assert [label for batch in labels_of(batches) for label in batch] == orders[1]


def test_without_shuffle_and_drop_last():
    expected = [list(range(6)), list(range(6, 12)), list(range(12, 18)), [18, 19]]
    assert labels_of(make(shuffle=False)) == expected
    batches = make(shuffle=False, drop_last=True)
    assert len(batches) == 3
    assert labels_of(batches) == expected[:3]


def test_arrays_of_their_own():
    found = list(make(shuffle=False))
    assert not any(
        np.shares_memory(a[0], b[0]) for i, a in enumerate(found) for b in found[i + 1 :]
    )


def test_reuse():
    batches = make(rng=2, reuse=True)
    expected = [(x.copy(), y.copy()) for x, y in make(rng=2)]
    seen = []
    for (x, y), (x_fresh, y_fresh) in zip(batches, expected, strict=True):
        np.testing.assert_array_equal(x, x_fresh)
        np.testing.assert_array_equal(y, y_fresh)
        assert x.flags.c_contiguous
        seen.append((x, y))
    first_x, first_y = seen[0]
    assert all(x.ctypes.data == first_x.ctypes.data for x, _ in seen)
    assert all(y.ctypes.data == first_y.ctypes.data for _, y in seen)
    next(iter(batches))
    assert next(iter(batches))[0].ctypes.data == first_x.ctypes.data
    # Not of the batch size, which may be beyond any memory.
    assert len(next(iter(make(batch_size=2**50, reuse=True)))[0]) == 20


@pytest.mark.parametrize("kind", [np.ascontiguousarray, np.asfortranarray, np.ndarray.tolist])
@pytest.mark.parametrize(
    "options", [{}, {"reuse": True}, {"mean": np.arange(6.0)}, {"rows": np.array([4, 1, 5, 2, 0])}]
)
def test_examples_keep_their_shape(kind, options, rng):
    images = kind(rng.normal(size=(7, 3, 2)))
    flat, whole = (
        Batches(images, np.arange(7), 3, rng=1, flatten=flatten, **options)
        for flatten in (True, False)
    )
    for (x, y), (rows, labels) in zip(whole, flat, strict=True):
        np.testing.assert_array_equal(y, labels)
        np.testing.assert_array_equal(x, rows.reshape(-1, 3, 2))
        assert x.flags.c_contiguous
    np.testing.assert_array_equal(whole.first(4)[0], flat.first(4)[0].reshape(4, 3, 2))
    assert (whole.features, whole.fingerprint) == (flat.features, flat.fingerprint)


@pytest.mark.parametrize("done", range(5))
@pytest.mark.parametrize("drop_last", [False, True])
def test_resume(done, drop_last):
    """A second object goes on after any batch, and after it draws what the first one would."""
    batches = make(rng=4, drop_last=drop_last)
    epoch = iter(batches)
    for _ in range(min(done, len(batches))):
        next(epoch)
    state = batches.state_dict()
    batches.state_dict()["order"][:] = 0  # a copy
    generator = batches.rng.bit_generator.state
    rest, following = labels_of(epoch), labels_of(batches)

    other = make(rng=99, drop_last=drop_last)
    other.load_state_dict(state)
    other.rng.bit_generator.state = generator
    assert labels_of(other) == rest
    assert labels_of(other) == following


def test_resume_between_epochs():
    batches = make(rng=4)
    labels_of(batches)
    state = batches.state_dict()
    assert (state["order"].size, state["position"]) == (0, 0)
    other = make(rng=batches.rng)
    next(iter(other))
    other.load_state_dict(other.state_dict())  # to go on in an epoch, and then not
    other.load_state_dict(state)
    assert len(labels_of(other)) == 4


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"order": np.arange(20)},
        {"order": np.arange(19), "position": 0},
        {"order": np.zeros(20, np.int64), "position": 0},
        {"order": np.arange(1, 21), "position": 0},
        {"order": np.arange(20).reshape(4, 5), "position": 0},
        {"order": np.int64(3), "position": 0},
        {"order": np.arange(20), "position": 21},
        {"order": np.arange(20), "position": -6},
        {"order": np.arange(20), "position": 1.5},
        {"order": "no order", "position": 0},
        {"order": np.arange(0), "position": 6},
    ],
)
def test_bad_state(state):
    batches = make()
    rest = {"mean": batches.mean, "std": batches.std}
    with pytest.raises(CheckpointError, match="the state of Batches"):
        batches.load_state_dict({**rest, **state})


def test_one_epoch_at_a_time():
    batches = make()
    first = iter(batches)
    next(first)
    assert len(labels_of(batches)) == 4
    with pytest.raises(ArgumentError, match="this epoch has ended"):
        next(first)


def of_images(images, **options):
    return Batches(images, np.zeros(4, np.int64), 2, **options)


def of_labels(labels, **options):
    return Batches(np.zeros((4, 2), np.uint8), labels, 2, **options)


def of_rows(rows):
    return Batches(np.zeros((6, 4)), np.zeros(6, int), 2, rows=rows)


ZEROS, INTEGERS = np.zeros((4, 2)), np.zeros(4, int)

REFUSED = [
    ("of_images('abcd')",
     DTypeError, r"numpy.ndarray, got str: convert them with numpy.asarray\(images"),
    ("of_images([[1, 2], [3]])", DTypeError, "rows of one length"),
    ("of_images([['a', 'b']])", DTypeError, "uint8, float32 or float64, got <U1"),
    ("of_images([[2**53 + 1]])", DTypeError, r"beyond 2\*\*53"),
    ("of_images(ZEROS.astype(np.int64))", DTypeError, "uint8, float32 or float64, got int64"),
    ("of_images(ZEROS.astype(np.float16))", DTypeError, "got float16"),
    ("of_images(ZEROS.astype('>f4'))", DTypeError, "got >f4"),
    ("of_images(ZEROS.astype(complex))", DTypeError, "got complex128"),
    ("of_images(ZEROS[:, 0])", ShapeError, r"shape \(N, ...\).*got \(4,\)"),
    ("of_images(ZEROS[:0])", ShapeError, r"got \(0, 2\)"),
    ("of_images(ZEROS[:, :0])", ShapeError, r"got \(4, 0\)"),
    ("of_labels(range(4))",
     DTypeError, "numpy.ndarray of integers, or of floats.*, got range"),
    ("of_labels([True] * 4)", DTypeError, r"list: convert them with numpy.asarray\(labels"),
    ("of_labels(np.zeros(4), num_classes=3)",
     DTypeError, "got float64.* or leave num_classes out"),
    ("of_labels(np.zeros(4, bool))",
     DTypeError, r"got bool: convert them with numpy.asarray\(labels"),
    ("of_labels(np.zeros(4, complex))", DTypeError, "got complex128"),
    ("of_labels(np.zeros(3, int))", ShapeError, r"shape \(4,\), one per image, got \(3,\)"),
    ("of_labels(np.zeros(3))", ShapeError, r"shape \(4, ...\), one row per image, got \(3,\)"),
    ("of_labels(np.zeros((4, 0)))", ShapeError, r"got \(4, 0\)"),
    ("of_labels(np.zeros(()))", ShapeError, r"got \(\)"),
    ("of_labels(np.zeros((4, 1), int))", ShapeError, r"got \(4, 1\)"),
    ("of_labels(np.array([0, 1, 3, 1]), num_classes=3)", ArgumentError, "got 3 at position 2"),
    ("of_labels(np.array([0, -1, 2, 1]), num_classes=3)", ArgumentError, "got -1 at position 1"),
    ("of_labels(INTEGERS, num_classes=0)", ArgumentError, "num_classes must be at least 1"),
    ("of_labels(INTEGERS, num_classes=1.5)", DTypeError, "num_classes must be an integer"),
    ("make(batch_size=0)", ArgumentError, "batch_size must be at least 1, got 0"),
    ("make(batch_size=-1)", ArgumentError, "got -1"),
    ("make(batch_size=2.0)", DTypeError, "batch_size must be an integer, got float"),
    ("make(batch_size=True)", DTypeError, "got bool"),
    ("make(batch_size=21, drop_last=True)", ArgumentError, "leaves no batch of 20 images"),
    ("make(rng=-1)", ArgumentError, "seed of at least 0"),
    ("make(rng='seed')", DTypeError, "rng must be a numpy.random.Generator, an integer"),
    ("make(rng=np.random.RandomState(0))", DTypeError, "got RandomState"),
    ("make(std=0.0)", ArgumentError, "std must be positive"),
    ("make(std=np.nan)", ArgumentError, "std must be finite"),
    ("make(std=np.array([1, 1, 0, 1]))", ArgumentError, "std must be positive, got 0"),
    ("make(std=np.array([1, 1, np.inf, 1]))", ArgumentError, "std must be finite"),
    ("make(mean=np.inf)", ArgumentError, "mean must be finite"),
    ("make(mean='a')", DTypeError, "mean must be a number, got str"),
    ("make(mean=np.zeros(3))", ShapeError, r"mean must be a number or have shape \(4,\)"),
    ("of_rows([0, 1])", DTypeError, "rows must be an integer numpy.ndarray, got list"),
    ("of_rows(np.array([0.0]))", DTypeError, "got float64"),
    ("of_rows(np.zeros(0, int))", ShapeError, r"shape \(K,\)"),
    ("of_rows(np.array([6]))", ArgumentError, r"rows must lie in \[0, 6\), got 6 to 6"),
    ("of_rows(np.array([-1]))", ArgumentError, "got -1 to -1"),
    ("of_images(np.ma.array(ZEROS))", DTypeError, "images must have no mask"),
    ("of_labels(np.ma.array(INTEGERS))", DTypeError, "labels must have no mask"),
    ("of_rows(np.ma.arange(4))", DTypeError, "rows must have no mask"),
    ("make().load_state_dict(None)",
     DTypeError, "state must map names to what state_dict returned"),
]  # fmt: skip


test_what_does_not_fit_is_refused = refusing(REFUSED, globals())


def test_the_fingerprint_is_that_of_the_rows_in_use(rng):
    images, labels = rng.normal(size=(12, 3)).astype(np.float32), rng.integers(0, 9, 12)
    first, second = (Batches(images, labels, 2, rows=rows) for rows in np.split(np.arange(12), 2))
    assert first.fingerprint == Batches(images[:6], labels[:6], 2).fingerprint
    assert second.fingerprint == Batches(images[6:], labels[6:], 2).fingerprint
    assert first.fingerprint != second.fingerprint
