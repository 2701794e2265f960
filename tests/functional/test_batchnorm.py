"""Batch normalization of `nbbn.functional` against the naive truth in `reference`."""

from __future__ import annotations

import numpy as np
import pytest

from nbbn import functional as fn
from tests.helpers import reference
from tests.helpers.batchnorm_cases import (
    DTYPES,
    SHAPES,
    TRAIN_SHAPES,
    Case,
    assert_close,
    assert_forward,
    assert_stats,
    check_infer,
    check_train,
)
from tests.helpers.views import flipped, sliced

# ---------------------------------------------------------------- the shapes and the variants


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), TRAIN_SHAPES)
def test_train_matches_reference(rng, shape, axis, dtype):
    case = Case(rng, shape, axis, dtype)
    check_train(case, dtype, case.gamma, case.beta)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), [*SHAPES, ((1, 5), 1), ((5, 1), 0), ((1, 3, 1, 1), 1)])
def test_infer_matches_reference(rng, shape, axis, dtype):
    case = Case(rng, shape, axis, dtype)
    check_infer(case, dtype, case.gamma, case.beta)


@pytest.mark.parametrize("check", [check_train, check_infer])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("affine", ["neither", "gamma", "beta", "both"])
@pytest.mark.parametrize(
    ("shape", "axis"), [((70, 37), 1), ((3, 5, 4, 6), 1), ((9, 4, 3), -1), ((40, 1), 1)]
)
def test_affine_and_fused_variants(
    rng, shape, axis, affine, activation, with_residual, dtype, check
):
    case = Case(rng, shape, axis, dtype)
    check(
        case,
        dtype,
        case.gamma if affine in ("gamma", "both") else None,
        case.beta if affine in ("beta", "both") else None,
        activation=activation,
        residual=case.residual if with_residual else None,
    )


@pytest.mark.parametrize("check", [check_train, check_infer])
@pytest.mark.parametrize(("shape", "axis"), [((2048, 100), 1), ((16, 64, 10, 11), 1)])
def test_fused_on_large_arrays(rng, shape, axis, check):
    case = Case(rng, shape, axis, np.float32)
    fused = {"activation": "relu", "residual": case.residual}
    check(case, np.float32, case.gamma, case.beta, **fused)


@pytest.mark.parametrize("parameters", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_parameters_of_any_floating_type(rng, dtype, parameters):
    case = Case(rng, (12, 5, 3), 1, dtype)
    gamma, beta = case.gamma.astype(parameters), case.beta.astype(parameters)
    case.mean, case.var = case.mean.astype(parameters), case.var.astype(parameters)
    check_train(case, dtype, gamma, beta)
    check_infer(case, dtype, gamma, beta)


@pytest.mark.parametrize(("shape", "axis"), [((300, 12), 1), ((6, 4, 10), 1)])
def test_float16_is_computed_in_float32(rng, shape, axis):
    case = Case(rng, shape, axis, np.float16)
    y, stats = fn.batch_norm_train(case.x, case.gamma, case.beta, axis=axis)
    want, want_stats = reference.batch_norm_train(case.x, case.gamma, case.beta, axis=axis)
    assert_stats(stats, want_stats, np.float32)
    assert y.dtype == np.float16
    # Half a unit in the last place, plus the float32 error before it.
    assert np.max(np.abs(y - want) / np.maximum(np.abs(want), 0.01)) < 2.0**-11 + 1e-4


@pytest.mark.parametrize("eps", [1e-12, 1e-3, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_eps(rng, eps, dtype):
    case = Case(rng, (40, 6), 1, dtype)
    y, stats = fn.batch_norm_train(case.x, eps=eps)
    want, want_stats = reference.batch_norm_train(case.x, eps=eps)
    assert_stats(stats, want_stats, dtype)
    assert_forward(y, want, dtype)
    np.testing.assert_allclose(stats.inv_std, (stats.var + eps) ** -0.5, rtol=1e-14)


# ------------------------------------------------------------------------ running statistics


@pytest.mark.parametrize("buffers", [*DTYPES, np.float16])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("momentum", [0, 0.1, 1 / 3, 1])
def test_running_stats(rng, momentum, unbiased, dtype, buffers):
    case = Case(rng, (9, 6, 2), 1, dtype)
    _, stats = fn.batch_norm_train(case.x)
    mean, var = case.mean.astype(buffers), case.var.astype(buffers)
    want = reference.running_stats(mean, var, reference.statistics(case.x), momentum, unbiased)
    returned = fn.update_running_stats(mean, var, stats, momentum=momentum, unbiased=unbiased)
    assert returned is None
    worse = buffers if buffers in (dtype, np.float16) else np.float32
    assert mean.dtype == var.dtype == buffers
    assert_close(mean, want[0], 4, worse)
    assert_close(var, want[1], 4, worse)


def test_running_stats_defaults_are_those_of_pytorch(rng):
    case = Case(rng, (9, 6), 1)
    _, stats = fn.batch_norm_train(case.x)
    mean, var = case.mean.copy(), case.var.copy()
    fn.update_running_stats(mean, var, stats)
    np.testing.assert_allclose(mean, 0.9 * case.mean + 0.1 * stats.mean, rtol=1e-13)
    np.testing.assert_allclose(var, 0.9 * case.var + 0.1 * stats.var * 9 / 8, rtol=1e-13)


@pytest.mark.parametrize("view", [sliced, flipped])
def test_running_stats_write_through_a_view(rng, view):
    case = Case(rng, (9, 6), 1)
    mean, var = view(case.mean), view(case.var)
    _, stats = fn.batch_norm_train(case.x)
    fn.update_running_stats(mean, var, stats)
    want = reference.running_stats(case.mean, case.var, reference.statistics(case.x))
    assert_close(mean, want[0], 4, np.float64)
    assert_close(var, want[1], 4, np.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), [((20, 6), 1), ((4, 3, 5), 1), ((4, 5, 3), -1)])
def test_all_in_one(rng, shape, axis, dtype):
    case = Case(rng, shape, axis, dtype)
    mean, var = case.mean.copy(), case.var.copy()
    affine = (case.gamma, case.beta)

    y = fn.batch_norm(case.x, mean, var, *affine, axis=axis)
    assert_forward(y, reference.batch_norm_infer(case.x, mean, var, *affine, axis=axis), dtype)
    np.testing.assert_array_equal(mean, case.mean)
    np.testing.assert_array_equal(var, case.var)

    y = fn.batch_norm(case.x, mean, var, *affine, training=True, momentum=0.3, axis=axis)
    want, stats = reference.batch_norm_train(case.x, *affine, axis=axis)
    assert_forward(y, want, dtype)
    want_mean, want_var = reference.running_stats(case.mean, case.var, stats, 0.3)
    assert_close(mean, want_mean, 4, dtype)
    assert_close(var, want_var, 4, dtype)


@pytest.mark.parametrize("training", [True, False])
def test_all_in_one_without_buffers_uses_the_batch(rng, training):
    case = Case(rng, (20, 6), 1)
    y = fn.batch_norm(case.x, gamma=case.gamma, beta=case.beta, training=training)
    assert_forward(y, reference.batch_norm_train(case.x, case.gamma, case.beta)[0], np.float64)


# --------------------------------------------------------------------------- NaN, Inf, empty


def poisoned(case, value, position):
    """A copy of x with `value` in the second channel, and that channel's index."""
    x = case.x.copy()
    np.moveaxis(x, case.axis, 0)[1].flat[position] = value
    return x


def split(array, axis):
    """Return (second channel, the others)."""
    by_channel = np.moveaxis(array, axis, 0)
    return by_channel[1], np.delete(by_channel, 1, axis=0)


CONFINED = [((40, 5), 1), ((3, 5, 4, 4), 1), ((3000, 40), 1), ((8, 20, 30, 30), 1)]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 17, -1])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), CONFINED)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_nan_and_inf_poison_their_channel_only(
    rng, shape, axis, dtype, position, value, activation
):
    case = Case(rng, shape, axis, dtype)
    x = poisoned(case, value, position)
    options = {"axis": axis, "activation": activation}
    y, stats = fn.batch_norm_train(x, case.gamma, case.beta, **options)
    clean, clean_stats = fn.batch_norm_train(case.x, case.gamma, case.beta, **options)
    hit, others = split(y, axis)
    assert np.all(np.isnan(hit))
    np.testing.assert_array_equal(others, split(clean, axis)[1])
    np.testing.assert_array_equal(stats.mean[1], value)
    assert np.isnan(stats.var[1])
    np.testing.assert_array_equal(np.delete(stats.mean, 1), np.delete(clean_stats.mean, 1))
    np.testing.assert_array_equal(np.delete(stats.var, 1), np.delete(clean_stats.var, 1))

    dx, dgamma, dbeta = fn.batch_norm_backward(case.dy, x, stats, case.gamma, axis=axis)
    want = fn.batch_norm_backward(case.dy, case.x, clean_stats, case.gamma, axis=axis)
    hit, others = split(dx, axis)
    assert np.all(np.isnan(hit))
    assert np.isnan(dgamma[1])
    np.testing.assert_array_equal(others, split(want[0], axis)[1])
    np.testing.assert_array_equal(np.delete(dgamma, 1), np.delete(want[1], 1))
    np.testing.assert_array_equal(dbeta, want[2])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), CONFINED)
def test_inference_confines_nan_and_inf_to_their_element(rng, shape, axis, dtype):
    case = Case(rng, shape, axis, dtype)
    given = (case.mean, case.var, case.gamma, case.beta)
    for value in (np.nan, np.inf, -np.inf):
        x = poisoned(case, value, 5)
        y = fn.batch_norm_infer(x, *given, axis=axis)
        odd = ~np.isfinite(y)
        np.testing.assert_array_equal(odd, ~np.isfinite(x))
        want = value if np.isnan(value) else value * np.sign(case.gamma[1])
        np.testing.assert_array_equal(y[odd], [want])
        clean = fn.batch_norm_infer(case.x, *given, axis=axis)
        np.testing.assert_array_equal(y[~odd], clean[~odd])


@pytest.mark.parametrize(("shape", "axis"), CONFINED)
def test_nan_gradient_poisons_its_channel_only(rng, shape, axis):
    case = Case(rng, shape, axis, np.float32)
    _, stats = fn.batch_norm_train(case.x, axis=axis)
    want = fn.batch_norm_backward(case.dy, case.x, stats, axis=axis)
    np.moveaxis(case.dy, axis, 0)[1].flat[3] = np.nan
    dx, dgamma, dbeta = fn.batch_norm_backward(case.dy, case.x, stats, axis=axis)
    hit, others = split(dx, axis)
    assert np.all(np.isnan(hit))
    np.testing.assert_array_equal(others, split(want[0], axis)[1])
    for got, clean in ((dgamma, want[1]), (dbeta, want[2])):
        assert np.isnan(got[1])
        np.testing.assert_array_equal(np.delete(got, 1), np.delete(clean, 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), CONFINED)
def test_an_infinite_gradient_has_infinite_sums(rng, shape, axis, dtype):
    case = Case(rng, shape, axis, dtype)
    _, stats = fn.batch_norm_train(case.x, axis=axis)
    x, dy = (np.moveaxis(array, axis, 0)[1] for array in (case.x, case.dy))
    dy.flat[3] = np.inf
    _, dgamma, dbeta = fn.batch_norm_backward(case.dy, case.x, stats, axis=axis)
    assert dgamma[1] == np.copysign(np.inf, x.flat[3] - stats.mean[1])
    assert dbeta[1] == np.inf


@pytest.mark.parametrize("training", [True, False])
def test_masked_gradient_is_dropped_whatever_it_is(rng, training):
    """Where the ReLU was off, an infinite dy must not become NaN."""
    case = Case(rng, (30, 4), 1, np.float32)
    y = fn.batch_norm_train(case.x, activation="relu")[0]
    dy = np.where(y > 0, case.dy, np.float32(np.inf))
    zeroed = np.where(y > 0, case.dy, np.float32(0))
    if training:
        stats = fn.batch_norm_train(case.x)[1]
        got = fn.batch_norm_backward(dy, case.x, stats, y=y)
        want = fn.batch_norm_backward(zeroed, case.x, stats)
    else:
        got = fn.batch_norm_infer_backward(dy, case.x, case.mean, case.var, y=y)
        want = fn.batch_norm_infer_backward(zeroed, case.x, case.mean, case.var)
    for array, truth in zip(got, want, strict=True):
        assert np.all(np.isfinite(array))
        assert_close(array, truth, 30, np.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((0, 5), 1), ((5, 0), 0), ((0, 3, 4, 4), 1), ((2, 3, 0), 1), ((2, 0, 3), -1)],
)
def test_an_empty_batch_moves_no_running_statistics(shape, axis, dtype):
    x = np.empty(shape, dtype)
    channels = shape[axis]
    mean, var = np.full(channels, 0.5, dtype), np.full(channels, 2, dtype)
    _, stats = fn.batch_norm_train(x, axis=axis)
    assert stats.count == 0
    assert stats.mean.shape == stats.var.shape == stats.inv_std.shape == (channels,)
    fn.update_running_stats(mean, var, stats)
    assert fn.batch_norm(x, mean, var, training=True, axis=axis).shape == shape
    assert np.all(mean == 0.5)
    assert np.all(var == 2)


# ---------------------------------------------------------------------------- thread identity
