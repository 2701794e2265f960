"""Activations, softmax and cross-entropy of `nbbn.functional` against the naive `reference`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nbbn import functional as fn
from nbbn.errors import ArgumentError, DTypeError, NbbnError, ShapeError
from tests.helpers import reference
from tests.helpers.refusals import refusing
from tests.helpers.views import flipped, read_only, sliced

DTYPES = [np.float32, np.float64]
ACTIVATIONS = ["relu", "sigmoid", "tanh"]
SOFTMAXES = ["softmax", "log_softmax"]
FORWARD = [*ACTIVATIONS, *SOFTMAXES]


def exact(dtype) -> float:
    """Relative error of a well made exp-based result: four units in the last place."""
    return 4 * float(np.finfo(dtype).eps)


def summed(dtype) -> float:
    """The same for results that rest on a sum, which float64 cannot take in a wider type."""
    return exact(dtype) if np.dtype(dtype).itemsize == 4 else 1e-13


def smallest(dtype) -> float:
    """Results below the smallest normal number may lose their digits."""
    return float(np.finfo(dtype).tiny)


def assert_relative(got, want, dtype, relative=None):
    """Check each entry against its own size, including NaN, Inf and denormals."""
    assert got.dtype == dtype
    np.testing.assert_allclose(
        got.astype(np.float64), want, rtol=relative or exact(dtype), atol=smallest(dtype)
    )


def assert_absolute(got, want, dtype, scale=1.0):
    """Check against the size of the terms that were added, which may cancel."""
    assert got.dtype == dtype
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    error = np.nan_to_num(np.abs(got.astype(np.float64) - want))
    bound = summed(dtype) * np.nan_to_num(np.broadcast_to(scale, error.shape)) + smallest(dtype)
    assert np.all(error <= bound), f"{np.max(error / bound):.3g} times the allowed error"


def check_backward(name, dy, y, got, axis=None):
    """Compare a backward with the reference on a scale of its terms."""
    options = {} if axis is None else {"axis": axis}
    want = getattr(reference, name)(dy, y, **options)
    if name == "relu_backward":
        np.testing.assert_array_equal(got, want)
        return
    scale = np.abs(dy.astype(np.float64))
    if name == "softmax_backward":
        products = np.abs(reference.narrow(dy) * y)
        scale = np.abs(y) * (scale + products.sum(axis, keepdims=True))
    elif name == "log_softmax_backward":
        scale = scale + np.exp(reference.narrow(y)) * scale.sum(axis, keepdims=True)
    assert_absolute(got, want, y.dtype, scale)


def on_a_grid(rng, shape, dtype, limit=8):
    """Multiples of 1/64: differences are exact, so that only exp, sum and division round."""
    return (rng.integers(-64 * limit, 64 * limit, shape) / 64).astype(dtype)


# ------------------------------------------------------------------------ accuracy and sizes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_accuracy(rng, name, dtype):
    """Each value to four units in the last place: near zero, in the middle, in both tails."""
    sizes = np.concatenate([np.geomspace(1e-37, 1e3, 20_001), np.linspace(0, 120, 50_003)])
    x = np.concatenate([sizes, -sizes, rng.normal(size=20_001)]).astype(dtype)
    assert_relative(getattr(fn, name)(x), getattr(reference, name)(x), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
def test_softmax_accuracy(rng, classes, dtype):
    x = on_a_grid(rng, (2000 // classes + 5, classes), dtype)
    assert_relative(fn.softmax(x), reference.softmax(x), dtype, summed(dtype))
    y = fn.log_softmax(x)
    assert_absolute(y, reference.log_softmax(x), dtype, np.maximum(np.abs(y), 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_activation_is_monotonic(name, dtype):
    """Seams between the pieces of an approximation must not show beyond one rounding."""
    x = np.linspace(-20, 20, 200_001).astype(dtype)
    y = getattr(fn, name)(x)
    assert np.all(np.diff(y) >= -np.finfo(dtype).eps * np.abs(y[1:]))
    assert np.all(np.abs(y) <= 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_tail_length(rng, name, dtype):
    """Lengths around the vector width, in the middle of a guarded array."""
    for size in range(41):
        x = rng.normal(size=size).astype(dtype)
        dy = rng.normal(size=size).astype(dtype)
        guarded = np.full(size + 2, 77, dtype)
        y = getattr(fn, name)(x, out=guarded[1:-1])
        assert_relative(y, getattr(reference, name)(x), dtype)
        assert guarded[0] == guarded[-1] == 77
        got = getattr(fn, f"{name}_backward")(dy, y, out=guarded[1:-1])
        assert guarded[0] == guarded[-1] == 77
        assert got.shape == (size,)
        y = getattr(fn, name)(x)
        check_backward(f"{name}_backward", dy, y, getattr(fn, f"{name}_backward")(dy, y))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SOFTMAXES)
def test_every_number_of_classes(rng, name, dtype):
    for classes in range(1, 41):
        x = on_a_grid(rng, (3, classes), dtype)
        guarded = np.full((5, classes), 77, dtype)
        y = getattr(fn, name)(x, out=guarded[1:-1])
        assert_absolute(y, getattr(reference, name)(x), dtype, np.maximum(np.abs(y), 1))
        assert np.all(guarded[[0, -1]] == 77)
        dy = rng.normal(size=x.shape).astype(dtype)
        check_backward(f"{name}_backward", dy, y, getattr(fn, f"{name}_backward")(dy, y), axis=-1)


LARGE = [((300_001,), -1), ((3001, 101), -1), ((101, 3001), 0), ((7, 300, 64), 1)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), LARGE)
@pytest.mark.parametrize("name", FORWARD)
def test_large_arrays(rng, name, shape, axis, dtype):
    x = on_a_grid(rng, shape, dtype, limit=4)
    dy = rng.normal(size=shape).astype(dtype)
    options = {} if name in ACTIVATIONS else {"axis": axis}
    y = getattr(fn, name)(x, **options)
    want = getattr(reference, name)(x, **options)
    assert y.shape == shape
    assert_absolute(y, want, dtype, np.maximum(np.abs(want), 1e-6))
    got = getattr(fn, f"{name}_backward")(dy, y, **options)
    check_backward(f"{name}_backward", dy, y, got, **options)


# ------------------------------------------------------------------------------ empty arrays


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (2, 0, 3)])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_empty_and_scalar_arrays(name, shape):
    x = np.zeros(shape, np.float32)
    y = getattr(fn, name)(x)
    assert y.shape == shape
    np.testing.assert_array_equal(y, getattr(reference, name)(x))
    assert getattr(fn, f"{name}_backward")(x, y).shape == shape


# ----------------------------------------------------------------------------- extreme values


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_extreme_activations(name, dtype):
    """No warning, no garbage: NaN, infinities, overflow, the edge of exp, denormals."""
    tiny, huge = np.finfo(dtype).smallest_subnormal, np.finfo(dtype).max
    edges = [80, 87.3, 88, 88.72, 88.73, 89, 103.9, 104, 105, 708.3, 709.7, 710, 745, 746, 1e4]
    sizes = np.array([0, tiny, 1000 * tiny, np.finfo(dtype).tiny, *edges, huge, np.inf], dtype)
    # Repeated, so that each value passes the vector path and the tail.
    x = np.concatenate([np.concatenate([sizes, -sizes, [np.nan]])] * 5).astype(dtype)
    y = getattr(fn, name)(x)
    assert_relative(y, getattr(reference, name)(x), dtype)
    dy = np.ones_like(y)
    with np.errstate(invalid="ignore"):
        check_backward(f"{name}_backward", dy, y, getattr(fn, f"{name}_backward")(dy, y))


@pytest.mark.parametrize("dtype", DTYPES)
def test_denormals_survive(dtype):
    tiny = np.finfo(dtype).smallest_subnormal
    x = np.array([tiny, 12345 * tiny] * 20, dtype)
    np.testing.assert_array_equal(fn.relu(x), x)
    np.testing.assert_array_equal(fn.tanh(x), x)
    np.testing.assert_array_equal(fn.sigmoid(x), np.full_like(x, 0.5))


def test_relu_backward_drops_whatever_is_masked():
    y = np.array([0, -0.0, -1, 2, np.nan] * 9, np.float32)
    dy = np.array([np.inf, np.nan, -np.inf, 3, 4] * 9, np.float32)
    np.testing.assert_array_equal(fn.relu_backward(dy, y), np.array([0, 0, 0, 3, 0] * 9))


EXTREME_ROWS = {
    "large": [1e4, -1e4, 9999, 0, 1e4],
    "one -inf": [1, -np.inf, 2, 3, -np.inf],
    "only one finite": [-np.inf, -np.inf, 5, -np.inf, -np.inf],
    "all -inf": [-np.inf] * 5,
    "+inf": [1, np.inf, 2, 3, 4],
    "NaN": [1, np.nan, 2, 3, 4],
    "NaN first": [np.nan, 1, 2, 3, 4],
    "denormal": [1e-44, -1e-44, 0, 2e-44, 1e-44],
    "equal": [-7.25] * 5,
    "underflow": [0, -87, -88, -103, -110],
    "wide": [1e30, -1e30, 0, 1, 1e30],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", EXTREME_ROWS)
@pytest.mark.parametrize("name", SOFTMAXES)
def test_extreme_softmax(rng, name, row, dtype):
    """An odd row gives what the formula says, and does not reach its neighbours."""
    for repeats in (1, 7):
        x = on_a_grid(rng, (5, 5 * repeats), dtype)
        x[2] = np.array(EXTREME_ROWS[row] * repeats).astype(dtype)
        y = getattr(fn, name)(x)
        want = getattr(reference, name)(x)
        odd = np.isinf(want)
        np.testing.assert_array_equal(y[odd], want[odd])
        calm = np.where(odd, 0, want)
        scale = np.maximum(np.abs(calm), 1)
        assert_absolute(np.where(odd, 0, y).astype(dtype), calm, dtype, scale)


def test_softmax_of_the_whole_range_of_float32():
    x = np.array([[3e38, -3e38, 3e38, 0]], np.float32)
    np.testing.assert_array_equal(fn.softmax(x), [[0.5, 0, 0.5, 0]])


# ---------------------------------------------------------------------------------- gradients


# ------------------------------------------------------------------------------ cross-entropy


def check_cross_entropy(logits, labels, reduction, dloss=1.0):
    options = {"reduction": reduction}
    dtype = logits.dtype
    rows = np.abs(reference.cross_entropy(logits, labels, "none"))
    scale = np.where(np.isfinite(rows), np.maximum(rows, 1), 1)
    loss = np.asarray(fn.cross_entropy(logits, labels, **options))
    want = reference.cross_entropy(logits, labels, **options)
    assert loss.shape == want.shape
    if np.all(np.isfinite(want)):
        total = {"mean": np.mean, "sum": np.sum, "none": np.asarray}[reduction](scale)
        assert_absolute(loss.astype(dtype), want, dtype, total)
    else:
        np.testing.assert_array_equal(np.isfinite(loss), np.isfinite(want))
        odd = ~np.isfinite(want)
        np.testing.assert_array_equal(loss[odd], want[odd])

    got = fn.cross_entropy_backward(logits, labels, dloss, **options)
    want = reference.cross_entropy_backward(logits, labels, dloss, **options)
    share = np.abs(dloss) / (len(labels) if reduction == "mean" else 1)
    assert got.shape == logits.shape
    assert_absolute(got, want, dtype, np.broadcast_to(share, len(labels))[:, None])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 10), (5, 1), (64, 10), (37, 33), (3000, 101)])
def test_cross_entropy(rng, shape, reduction, dtype):
    logits = on_a_grid(rng, shape, dtype)
    labels = rng.integers(0, shape[1], shape[0])
    check_cross_entropy(logits, labels, reduction)
    check_cross_entropy(logits, labels, reduction, dloss=-2.5)


def test_cross_entropy_with_a_gradient_per_row(rng):
    logits, labels = on_a_grid(rng, (40, 10), np.float64), rng.integers(0, 10, 40)
    check_cross_entropy(logits, labels, "none", dloss=rng.normal(size=40))


@pytest.mark.parametrize("labels_type", [np.int8, np.uint8, np.int32, np.int64, np.uint64])
@pytest.mark.parametrize("view", [sliced, flipped, np.asfortranarray, read_only])
def test_cross_entropy_of_any_strides_and_labels(rng, view, labels_type):
    logits = view(on_a_grid(rng, (20, 10), np.float32))
    labels = view(rng.integers(0, 10, 20).astype(labels_type))
    check_cross_entropy(logits, labels, "mean")


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_of_large_logits(rng, dtype, reduction):
    logits = np.array([[1e4, 0, -1e4], [0, 1e4, 0], [-1e4, -1e4, -9999]], dtype)
    check_cross_entropy(logits, np.array([2, 1, 0]), reduction)


@pytest.mark.parametrize("row", EXTREME_ROWS)
@pytest.mark.parametrize("label", [0, 1])
def test_cross_entropy_of_extreme_rows(rng, row, label):
    logits = on_a_grid(rng, (4, 5), np.float64)
    logits[1] = EXTREME_ROWS[row]
    check_cross_entropy(logits, np.array([3, label, 2, 4]), "none")


def test_cross_entropy_of_no_rows():
    logits, labels = np.empty((0, 5), np.float32), np.empty(0, np.int64)
    assert fn.cross_entropy(logits, labels, reduction="none").shape == (0,)
    assert fn.cross_entropy(logits, labels, reduction="sum") == 0
    assert np.isnan(fn.cross_entropy(logits, labels))
    for reduction in ("mean", "sum", "none"):
        assert fn.cross_entropy_backward(logits, labels, reduction=reduction).shape == (0, 5)


# ---------------------------------------------------------------------------- thread identity


# ------------------------------------------------------------------------------------- errors

Y = np.ones((4, 3))
LABELS = np.array([0, 1, 2, 0])


@pytest.mark.parametrize("axis", [2, -3, 9])
@pytest.mark.parametrize("name", SOFTMAXES)
def test_axis_out_of_range(name, axis):
    for call in (
        lambda: getattr(fn, name)(Y, axis=axis),
        lambda: getattr(fn, f"{name}_backward")(Y, Y, axis=axis),
    ):
        with pytest.raises((ShapeError, ArgumentError), match=f"axis.*{axis}"):
            call()


@pytest.mark.parametrize("function", [fn.cross_entropy, fn.cross_entropy_backward])
@pytest.mark.parametrize(
    ("logits", "labels", "error", "match"),
    [
        (Y.astype(np.int32), LABELS, DTypeError, "int32"),
        (Y.astype(complex), LABELS, DTypeError, "complex128"),
        (Y[0], LABELS, ShapeError, r"\(3,\)"),
        (Y[None], LABELS, ShapeError, r"\(1, 4, 3\)"),
        (np.ones((4, 0)), LABELS, ShapeError, r"\(4, 0\)"),
        (Y, LABELS.astype(float), DTypeError, "float64"),
        (Y, LABELS[:3], ShapeError, r"\(3,\)"),
        (Y, LABELS[:, None], ShapeError, r"\(4, 1\)"),
        (Y, np.eye(3)[LABELS].astype(int), ShapeError, r"\(4, 3\)"),
        (Y, np.array([0, 1, 3, 0]), ArgumentError, "3"),
        (Y, np.array([0, 1, -1, 0]), ArgumentError, "-1"),
        (Y, np.array([0, 1, 2, 2**40]), ArgumentError, str(2**40)),
        (Y, np.array([0, 1, 2, 2**64 - 1], np.uint64), ArgumentError, "label"),
        # What NaN becomes in int64.
        (Y, np.array([0, 1, -(2**63), 2]), ArgumentError, "got -9223372036854775808 at position 2"),
    ],
)
def test_operands_of_cross_entropy(function, logits, labels, error, match):
    with pytest.raises(error, match=match):
        function(logits, labels)


REFUSED = [
    ("fn.cross_entropy(Y, LABELS, reduction='batchmean')", ArgumentError, "batchmean"),
    ("fn.cross_entropy_backward(Y, LABELS, reduction='batchmean')", ArgumentError, "batchmean"),
    ("fn.cross_entropy_backward(Y, LABELS, np.ones(3), reduction='none')", NbbnError, "dloss"),
    ("fn.cross_entropy_backward(Y, LABELS, np.ones(4), reduction='mean')", NbbnError, "dloss"),
    ("fn.cross_entropy_backward(Y, LABELS, 'one', reduction='mean')", NbbnError, "dloss"),
    *((f"fn.cross_entropy_backward(Y, LABELS, np.full(4, {value}), reduction='none')",
       NbbnError, "dloss") for value in ("1j", "None", "'1'", "True")),
]  # fmt: skip


test_options_of_cross_entropy = refusing(REFUSED, globals())


UNCOMPILED = """
import numpy as np
from tests.helpers import reference
import nbbn.functional as F

for dtype, tolerance in (np.float32, 1e-6), (np.float64, 1e-13):
    x = np.random.default_rng(0).normal(0.0, 5.0, (6, 5)).astype(dtype)
    for name in ("sigmoid", "tanh", "softmax", "log_softmax"):
        y = getattr(F, name)(x)
        np.testing.assert_allclose(y, getattr(reference, name)(x), rtol=tolerance)
        assert y.dtype == dtype
    loss = F.cross_entropy(x, np.arange(6) % 5)
    np.testing.assert_allclose(loss, reference.cross_entropy(x, np.arange(6) % 5), rtol=tolerance)
"""


def test_without_compilation():
    """Under NUMBA_DISABLE_JIT, as somebody sets who debugs kernels of their own."""
    root = Path(__file__).resolve().parents[2]
    path = str(root)
    subprocess.run(
        [sys.executable, "-W", "error", "-c", UNCOMPILED],
        env={**os.environ, "PYTHONPATH": path, "NUMBA_DISABLE_JIT": "1"},
        check=True,
        timeout=600,
    )
