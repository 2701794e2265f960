"""A user's own data, validation splits and standardization."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nbbn import data
from nbbn.data import Batches
from nbbn.errors import ArgumentError, DataError
from tests.helpers.advice import typed
from tests.helpers.idx_files import idx

ROWS = 9


@pytest.fixture
def arrays(rng):
    return {
        "x_train": rng.integers(0, 256, (ROWS, 2, 3)).astype(np.uint8),
        "y_train": rng.integers(0, 4, ROWS),
        "x_test": rng.integers(0, 256, (4, 2, 3)).astype(np.uint8),
        "y_test": rng.integers(0, 4, 4),
    }


def assert_same(found, arrays):
    for got, expected in zip(found, arrays.values(), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_npz(arrays, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    assert_same(data.load(tmp_path / "a.npz"), arrays)
    np.savez_compressed(tmp_path / "b.npz", x=arrays["x_train"], y=arrays["y_train"])
    found = data.load(str(tmp_path / "b.npz"))
    np.testing.assert_array_equal(found.train_images, arrays["x_train"])
    assert found.test_images is None


def test_npy_files_are_mapped_and_never_copied(arrays, tmp_path):
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    found = data.load(tmp_path)
    assert_same(found, arrays)
    assert isinstance(found.train_images, np.memmap)
    batches = Batches(found.train_images, found.train_labels, 4, shuffle=False)
    assert np.shares_memory(batches._images, found.train_images)
    x = np.concatenate([x for x, _ in batches])
    np.testing.assert_array_equal(x, (arrays["x_train"].reshape(ROWS, 6) / 255).astype(np.float32))


def test_data_far_larger_than_what_is_read(tmp_path):
    """Eight gigabytes in a file with holes: batches take what they need and no more."""
    rows, features = 1_000_000, 8192
    images = np.lib.format.open_memmap(
        tmp_path / "x_train.npy", "w+", dtype=np.uint8, shape=(rows, features)
    )
    images[-1] = 255
    del images
    np.save(tmp_path / "y_train.npy", np.zeros(rows, np.int8))
    script = """
import resource, sys
import numpy as np
from nbbn import data
found = data.load(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
batches = iter(data.Batches(found.train_images, found.train_labels, 64, rng=0))
total = sum(float(next(batches)[0].sum()) for _ in range(5))
last = data.Batches(found.train_images, found.train_labels, 64, rows=np.array([rows - 1]))
print(total, float(next(iter(last))[0].min()))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
""".replace("rows - 1", str(rows - 1))
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    values, grown = done.stdout.splitlines()
    assert values == "0.0 1.0"
    assert int(grown) < 500_000, "kilobytes"


@pytest.mark.parametrize("dot", ["-", "."])
@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_under_mnists_names(arrays, tmp_path, packed, dot):
    names = ["train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"]
    for name, array in zip(names, arrays.values(), strict=True):
        content = idx(array.astype(np.uint8))
        path = tmp_path / f"{name.replace('-idx', f'{dot}idx')}-ubyte{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(content) if packed else content)
    assert_same(data.load(tmp_path), arrays)


def test_two_files(arrays, tmp_path):
    np.save(tmp_path / "digits.npy", arrays["x_train"])
    (tmp_path / "names").write_bytes(idx(arrays["y_train"].astype(np.uint8)))
    found = data.load(tmp_path / "digits.npy", tmp_path / "names")
    np.testing.assert_array_equal(found.train_images, arrays["x_train"])
    np.testing.assert_array_equal(found.train_labels, arrays["y_train"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"x_train": None}, "holds no train_images, but y_train, x_test, y_test: call it x_train"),
        ({"y_train": None}, "holds no train_labels"),
        ({"y_test": None}, "a test set without labels"),
        ({"x_test": None}, "a test set without images"),
        ({"y_train": np.zeros(8, int)}, r"shape \(9, 2, 3\) and labels \(8,\)"),
        ({"y_train": np.zeros(9)}, "train labels must be integers from 0, got float64"),
        ({"y_train": np.full(9, -1)}, "got int64 from -1: numpy.unique"),
        ({"y_train": np.full(9, "a")}, "from 0, got <U1: numpy.unique"),
        ({"y_train": np.full(9, "a", "S1")}, r"from 0, got \|S1: numpy.unique"),
        ({"x_train": np.zeros((9, 6), np.int32)}, "train images are int32"),
        ({"x_test": np.zeros((4, 7), np.uint8)}, r"test images have shape \(7,\), training"),
        ({"x_train": np.zeros((0, 6)), "y_train": np.zeros(0, int)}, r"\(0, 6\)"),
    ],
)
def test_data_that_does_not_fit(change, reason, arrays, tmp_path):
    whole = {name: array for name, array in {**arrays, **change}.items() if array is not None}
    np.savez(tmp_path / "a.npz", **whole)
    with pytest.raises(DataError, match=reason):
        data.load(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "labels",
    [np.array([True, False, True]), np.array(["b", "a", "b"]), np.array([4.0, -1.0, 4.0])],
    ids=lambda labels: labels.dtype.name,
)
def test_advice_on_labels_works_when_typed(tmp_path, labels):
    x = np.zeros((3, 2), np.uint8)
    np.savez(tmp_path / "my.npz", x=x, y=labels)
    with pytest.raises(DataError) as caught:
        data.load(tmp_path / "my.npz")
    np.savez(tmp_path / "my.npz", x=x, y=typed(caught.value, labels=labels))
    assert data.load(tmp_path / "my.npz").train_labels.tolist() == [1, 0, 1]


@pytest.fixture
def files(arrays, tmp_path, monkeypatch):
    """Go to a folder of files that are not what their names say."""
    monkeypatch.chdir(tmp_path)
    for name, array in {
        "x": arrays["x_train"],
        "y": arrays["y_train"],
        "array": arrays["x_train"],
        "object": np.array([{}], object),
    }.items():
        np.save(f"{name}.npy", array)
    os.replace("array.npy", "array.npz")
    np.savez("archive.npz", **arrays)
    os.replace("archive.npz", "archive.npy")
    sound = Path("x.npy").read_bytes()
    Path("cut.npy").write_bytes(sound[:-5])
    Path("header.npy").write_bytes(sound.replace(b"False", b"Fals("))
    Path("a.npz").write_bytes(b"PK nothing")
    Path("x.csv").write_text("1,2,3")
    Path("other").mkdir()
    Path("other/X.npy").touch()


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (("imagenet",), "no data set imagenet: expected mnist, fashion-mnist, an"),
        (("a.npz",), "a.npz cannot be read as .npz"),
        (("array.npz",), "array.npz cannot be read as .npz"),
        (("x.npy",), "name the file of the labels after it"),
        (("cut.npy", "y.npy"), "cut.npy cannot be read as .npy"),
        (("header.npy", "y.npy"), "header.npy cannot be read as .npy"),
        (("object.npy", "y.npy"), "object.npy cannot be read as .npy"),
        (("archive.npy", "y.npy"), "archive.npy cannot be read as .npy"),
        (("other",), "other holds no train_images, but X.npy: call it"),
        (("x.csv",), "x.csv is neither.*; numpy.save turns text into .npy"),
    ],
)
@pytest.mark.usefixtures("files")
def test_files_that_cannot_be_read(names, reason):
    with pytest.raises(DataError, match=reason):
        data.load(*names)


@pytest.mark.parametrize("label", [10**12, 2**63])
def test_labels_that_are_no_classes(label, arrays, tmp_path):
    arrays["y_train"] = np.array([0] * (ROWS - 1) + [label], np.uint64)
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=f"train labels go up to {label}, .*number the classes"):
        data.load(tmp_path / "a.npz")


# ------------------------------------------------------------------------- split, standardize


@pytest.mark.parametrize(("count", "fraction", "held"), [(100, 0.1, 10), (7, 0.5, 4), (2, 0.01, 1)])
def test_a_split_takes_every_example_once(count, fraction, held):
    train, kept = data.split(count, fraction, 3)
    assert len(kept) == held
    np.testing.assert_array_equal(np.sort(np.concatenate([train, kept])), np.arange(count))
    again = data.split(count, fraction, 3)
    np.testing.assert_array_equal(again[1], kept)


@pytest.mark.parametrize(("count", "fraction"), [(1, 0.5), (9, 0), (9, 1), (9, -0.1)])
def test_bad_splits(count, fraction):
    with pytest.raises(ArgumentError):
        data.split(count, fraction)


@pytest.mark.parametrize("per_feature", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_standardization_measures_what_numpy_does(dtype, per_feature, rng, monkeypatch):
    monkeypatch.setattr(data.preparation, "_CHUNK", 7)
    images = (rng.normal(size=(40, 2, 3)) * 20 + 100).astype(dtype)
    images[:, 1, 2] = 7
    rows = np.sort(rng.permutation(40)[:25])
    flat = images.reshape(40, 6)[rows] / (255 if dtype == np.uint8 else 1)
    axis = 0 if per_feature else None
    mean, std = data.standardization(images, rows, per_feature=per_feature)
    np.testing.assert_allclose(mean, flat.mean(axis=axis, dtype=np.float64), rtol=1e-12)
    expected = flat.std(axis=axis, dtype=np.float64)
    expected = np.where(np.isclose(expected, 0), 1.0, expected)
    np.testing.assert_allclose(std, expected, rtol=1e-11)


def test_standardization_survives_a_large_offset(rng):
    images = 1e7 + rng.normal(size=(5000, 2))
    _, std = data.standardization(images)
    assert std == pytest.approx(images.std(), rel=1e-9)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_standardization_names_the_images_that_are_not_finite(value, rng):
    images = rng.normal(size=(3000, 2, 2))
    images[[5, 1700, 2999], 0, 1] = value, -np.inf, value
    reason = r"3 of 3000 images hold NaN or Inf \(number 5, 1700, 2999,"
    with pytest.raises(DataError, match=reason):
        data.standardization(images)
    rows = np.arange(1000, 2000)
    with pytest.raises(DataError, match=r"1 of 1000 images hold NaN or Inf \(number 1700,"):
        data.standardization(images, rows, per_feature=True)
    mean, _ = data.standardization(images, rows[:700])
    assert np.isfinite(mean)


def test_labels_that_do_not_begin_at_0(arrays, tmp_path, caplog):
    np.savez(tmp_path / "good.npz", **arrays)
    data.load(tmp_path / "good.npz")
    assert not caplog.messages
    arrays["y_train"] = arrays["y_train"] + 1
    np.savez(tmp_path / "a.npz", **arrays)
    data.load(tmp_path / "a.npz")
    assert "labels begin at 1: the model gets outputs for the classes below too" in caplog.text


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_batches_of_some_rows_standardized_by_feature(dtype, rng):
    images = rng.integers(0, 256, (20, 6)).astype(dtype)
    labels = rng.integers(0, 5, 20)
    rows = np.array([3, 19, 4, 0, 11])
    mean, std = data.standardization(images, rows, per_feature=True)
    batches = Batches(images, labels, 2, shuffle=False, rows=rows, mean=mean, std=std)
    assert (batches.count, len(batches)) == (5, 3)
    x = np.concatenate([x for x, _ in batches])
    y = np.concatenate([y for _, y in batches])
    scaled = images[rows] / (255 if dtype == np.uint8 else 1)
    np.testing.assert_allclose(x, (scaled - mean) / std, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_array_equal(y, labels[rows])


def test_the_state_restores_the_standardization(rng):
    images, labels = rng.normal(size=(6, 4)), np.zeros(6, int)
    mean, std = data.standardization(images, per_feature=True)
    first = Batches(images, labels, 3, shuffle=False, mean=mean, std=std)
    second = Batches(images, labels, 3, shuffle=False)
    second.load_state_dict(first.state_dict())
    for (x, _), (other, _) in zip(first, second, strict=True):
        np.testing.assert_array_equal(x, other)
