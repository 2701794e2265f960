"""Batch normalization of arrays in any layout, and into `out`: strides, byte orders, overlaps."""

from __future__ import annotations

import numpy as np
import pytest

from nbbn import functional as fn
from tests.helpers import reference
from tests.helpers.batchnorm_cases import DTYPES, Case, assert_close, check_infer, check_train
from tests.helpers.views import VIEWS, big_endian, flipped, read_only, sliced

LAYOUT_SHAPES = [((6, 5), 1), ((6, 5), 0), ((4, 6, 5), 1), ((2, 3, 4, 5), 1), ((2, 3, 4, 5), -1)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), LAYOUT_SHAPES)
@pytest.mark.parametrize("view", [*VIEWS, read_only])
def test_any_strides_of_every_input(rng, view, shape, axis, dtype):
    case = Case(rng, shape, axis, dtype)
    case.x, case.dy, case.residual = view(case.x), view(case.dy), view(case.residual)
    fused = {"activation": "relu", "residual": case.residual}
    check_train(case, dtype, case.gamma, case.beta, **fused)
    check_infer(case, dtype, case.gamma, case.beta, **fused)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("other", VIEWS)
def test_mixed_strides(rng, view, other):
    case = Case(rng, (3, 4, 5, 2), 1)
    case.x, case.residual, case.dy = view(case.x), other(case.residual), other(case.dy)
    check_train(case, np.float64, case.gamma, case.beta, activation="relu", residual=case.residual)


@pytest.mark.parametrize("view", [sliced, flipped, read_only, big_endian])
def test_any_strides_of_the_vectors(rng, view):
    case = Case(rng, (8, 5, 3), 1)
    for name in ("gamma", "beta", "mean", "var"):
        setattr(case, name, view(getattr(case, name)))
    check_train(case, np.float64, case.gamma, case.beta)
    check_infer(case, np.float64, case.gamma, case.beta)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("repeated", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_broadcast_inputs(rng, repeated, axis):
    shape = (4, 3, 5)
    case = Case(rng, shape, axis)
    first = tuple(slice(0, 1) if d in repeated else slice(None) for d in range(3))
    x = np.broadcast_to(case.x[first], shape)
    dy = np.broadcast_to(case.dy[first], shape)
    # A channel may be constant here: a large eps keeps the truth well conditioned.
    options = {"eps": 0.1, "axis": axis}
    y, stats = fn.batch_norm_train(x, case.gamma, case.beta, **options)
    assert_close(y, reference.batch_norm_train(x, case.gamma, case.beta, **options)[0], 10, x.dtype)
    got = fn.batch_norm_backward(dy, x, stats, case.gamma, axis=axis)
    want = reference.batch_norm_backward(dy, x, case.gamma, **options)
    for array, truth in zip(got, want, strict=True):
        assert_close(array, truth, 100, x.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_big_endian_arrays(rng, dtype):
    case = Case(rng, (6, 4, 3), 1, dtype)
    case.x, case.dy = big_endian(case.x), big_endian(case.dy)
    check_train(case, case.x.dtype, case.gamma, case.beta)


def call(name, case, out=None):
    """Call one of the functions that have `out=` on the arrays of `case`; return the big result."""
    c = case
    axis = {"axis": c.axis, "out": out}
    fused = {"activation": "relu", "residual": c.residual}
    affine = (c.gamma, c.beta)
    given = (c.mean, c.var)
    if name == "train":
        return fn.batch_norm_train(c.x, *affine, **axis)[0]
    if name == "train fused":
        return fn.batch_norm_train(c.x, *affine, **axis, **fused)[0]
    if name == "infer":
        return fn.batch_norm_infer(c.x, *given, *affine, **axis)
    if name == "infer fused":
        return fn.batch_norm_infer(c.x, *given, *affine, **axis, **fused)
    if name == "all in one":
        return fn.batch_norm(c.x, *given, *affine, **axis)
    if name == "all in one, training":
        return fn.batch_norm(c.x, None, None, *affine, training=True, **axis)
    mask = {"y": c.residual} if name.endswith("fused") else {}
    if name.startswith("infer backward"):
        return fn.batch_norm_infer_backward(c.dy, c.x, *given, c.gamma, **axis, **mask)[0]
    stats = fn.BatchNormStats(*reference.statistics(c.x, axis=c.axis))
    return fn.batch_norm_backward(c.dy, c.x, stats, c.gamma, **axis, **mask)[0]


CALLS = [
    "train",
    "train fused",
    "infer",
    "infer fused",
    "all in one",
    "all in one, training",
    "backward",
    "backward fused",
    "infer backward",
    "infer backward fused",
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("view", VIEWS)
def test_out(rng, view, name, dtype):
    for shape, axis in [((7, 5), 1), ((3, 4, 2, 5), 1)]:
        case = Case(rng, shape, axis, dtype)
        out = view(np.full(shape, np.nan, dtype))
        assert call(name, case, out) is out
        np.testing.assert_array_equal(out, call(name, case))


@pytest.mark.parametrize("name", CALLS)
def test_out_writes_nothing_else(rng, name):
    case = Case(rng, (5, 7), 1, np.float32)
    for select in (np.s_[1:6, 2:9], np.s_[::2, ::2]):
        memory = np.full((10, 14), 77, np.float32)
        out = memory[select][:5, :7]
        call(name, case, out)
        out[...] = 77
        assert np.all(memory == 77)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), [((6, 5), 1), ((3, 4, 5), 1), ((2000, 60), 1)])
@pytest.mark.parametrize("name", CALLS)
def test_inputs_are_not_modified(rng, name, shape, axis, dtype):
    case = Case(rng, shape, axis, dtype)
    before = {key: np.copy(value) for key, value in vars(case).items()}
    call(name, case)
    for key, value in before.items():
        np.testing.assert_array_equal(getattr(case, key), value, err_msg=key)


@pytest.mark.parametrize("view", [np.array, sliced, np.asfortranarray])
@pytest.mark.parametrize("target", ["x", "dy", "residual"])
@pytest.mark.parametrize("name", CALLS)
def test_out_may_be_an_input(rng, name, target, view):
    for shape, axis in [((7, 5), 1), ((3, 4, 5), 1), ((1100, 90), 1)]:
        case = Case(rng, shape, axis, np.float32)
        setattr(case, target, view(getattr(case, target)))
        want = call(name, case).copy()
        out = getattr(case, target)
        assert call(name, case, out) is out
        np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize(
    ("source", "destination"),
    [(np.s_[:-1], np.s_[1:]), (np.s_[1:], np.s_[:-1]), (np.s_[:-1], np.s_[-2::-1])],
    ids=["shifted up", "shifted down", "reversed"],
)
@pytest.mark.parametrize("target", ["x", "dy", "residual"])
@pytest.mark.parametrize("name", CALLS)
def test_out_may_overlap_an_input(rng, name, target, source, destination):
    for shape, axis in [((8, 5), 1), ((1200, 90), 1), ((4, 3, 5), 1)]:
        case = Case(rng, shape, axis, np.float32)
        memory = rng.normal(size=(shape[0] + 1, *shape[1:])).astype(np.float32)
        memory[source] = getattr(case, target)
        setattr(case, target, memory[source])
        want = call(name, case).copy()
        np.testing.assert_array_equal(call(name, case, memory[destination]), want)
