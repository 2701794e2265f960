"""Digits that batch normalization keeps, and identities that its gradients obey."""

from __future__ import annotations

import numpy as np
import pytest

from nbbn import functional as fn
from nbbn import jit
from tests.helpers import reference
from tests.helpers.batchnorm_cases import (
    DTYPES,
    Case,
    assert_close,
    assert_forward,
    assert_gradients,
    assert_stats,
    peak,
    terms,
)
from tests.helpers.views import sliced

# ------------------------------------------------------------------------------ accuracy


@pytest.mark.parametrize("ratio", [1e3, 1e4, 1e5, 1e6])
@pytest.mark.parametrize(
    ("shape", "axis"), [((4096, 64), 1), ((64, 8, 8, 32), -1), ((64, 32, 8, 8), 1)]
)
def test_the_mean_costs_no_digits(rng, shape, axis, ratio):
    """With the mean kept in float64, errors need not grow at all."""
    x = (rng.normal(size=shape) + ratio).astype(np.float32)
    dy = rng.normal(size=shape).astype(np.float32)
    y, stats = fn.batch_norm_train(x, axis=axis)
    want, want_stats = reference.batch_norm_train(x, axis=axis)
    assert_close(stats.mean, want_stats.mean, np.sqrt(want_stats.var), np.float32)
    assert_close(stats.var, want_stats.var, want_stats.var, np.float32)
    assert_forward(y, want, np.float32)
    assert_forward(fn.batch_norm_infer(x, stats.mean, stats.var, axis=axis), want, np.float32)
    got = fn.batch_norm_backward(dy, x, stats, axis=axis)
    truth = reference.batch_norm_backward(dy, x, axis=axis)
    scales = terms(dy, x, want_stats.mean, want_stats.var, None, axis)
    assert_gradients(got, truth, scales, axis, np.float32)


@pytest.mark.parametrize("ratio", [0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize(("shape", "axis"), [((5000, 8), 1), ((8, 8, 25, 25), 1)])
def test_float64_accuracy(rng, shape, axis, ratio):
    x = rng.normal(size=shape) + ratio
    y, stats = fn.batch_norm_train(x, axis=axis)
    want, want_stats = reference.batch_norm_train(x, axis=axis)
    # The mean itself is rounded to float64, which moves y by up to half a unit of it.
    assert np.max(np.abs(stats.var / want_stats.var - 1)) < 1e-13 + ratio * 4e-16
    assert np.max(np.abs(y - want)) < 2e-14 + ratio * 4e-16


def outlier_first(x):
    x[0] = 1e6
    return x


def drift(x):
    x += np.linspace(0, 1e4, len(x))[:, None]
    return x


def steps(x):
    """Each run of 64 rows lies elsewhere: the blocks' means differ by much more than the spread."""
    x += 1e4 * (np.arange(len(x)) // 64 % 3)[:, None]
    return x


def sorted_values(x):
    return np.sort(x, axis=0) * 100


@pytest.mark.parametrize("as_planes", [False, True])
@pytest.mark.parametrize("arrange", [outlier_first, drift, steps, sorted_values])
def test_adversarial_orders(rng, arrange, as_planes):
    x = arrange(rng.normal(size=(4096, 20))).astype(np.float32)
    if as_planes:
        x = np.ascontiguousarray(x.T)
    y, stats = fn.batch_norm_train(x, axis=0 if as_planes else 1)
    want, want_stats = reference.batch_norm_train(x, axis=0 if as_planes else 1)
    assert_stats(stats, want_stats, np.float32)
    assert_forward(y, want, np.float32)


@pytest.mark.parametrize("shape", [(4096, 20), (64, 32, 8, 8), (8, 2, 128, 128), (1, 2, 400_000)])
@pytest.mark.parametrize("far", [1e4, 1e8])
@pytest.mark.parametrize(("dtype", "bound"), [(np.float32, 5e-7), (np.float64, 5e-15)])
def test_the_first_values_may_lie_far_from_the_others(rng, shape, far, dtype, bound):
    """As a black margin does: sums begin with a shift that is of no use for the rest."""
    x = rng.normal(size=shape).astype(dtype)
    x.reshape(*shape[:2], -1)[: 8 if len(shape) == 2 else 1, :, :16] = far
    y, stats = fn.batch_norm_train(x)
    want, want_stats = reference.batch_norm_train(x)
    # Where rows are the layout, a run of them holds the outliers.
    assert np.max(np.abs(stats.var / want_stats.var - 1)) < bound
    assert np.max(np.abs(stats.mean - want_stats.mean) / np.sqrt(want_stats.var)) < bound
    assert np.max(np.abs(y - want) / np.maximum(np.abs(want), 1)) < 2 * bound


@pytest.mark.parametrize("scale", [1e-20, 1e-12, 1e12, 1e18, 1e25])
@pytest.mark.parametrize(("shape", "axis"), [((500, 8), 1), ((4, 8, 10, 10), 1)])
def test_scale_of_the_data_does_not_matter(rng, shape, axis, scale):
    """Squares of float32 values may leave float32; the variance in float64 must not."""
    case = Case(rng, shape, axis)
    x = (case.x * scale).astype(np.float32)
    eps = 1e-5 * scale**2
    y, stats = fn.batch_norm_train(x, axis=axis, eps=eps)
    want, want_stats = reference.batch_norm_train(x, axis=axis, eps=eps)
    assert_stats(stats, want_stats, np.float32)
    assert_forward(y, want, np.float32)
    dy = case.dy.astype(np.float32)
    got = fn.batch_norm_backward(dy, x, stats, axis=axis)
    truth = reference.batch_norm_backward(dy, x, axis=axis, eps=eps)
    scales = terms(dy, x, want_stats.mean, want_stats.var, None, axis, eps=eps)
    assert_gradients(got, truth, scales, axis, np.float32)


CHANNELS = 20_000
# Views of (M, C) as the layouts that are summed in different ways, with the channel axis.
LAYOUTS = {
    "rows": lambda x: (x, 1),
    "strided rows": lambda x: (sliced(x), 1),
    "channels first": lambda x: (np.ascontiguousarray(x.T), 0),
    "channels last": lambda x: (x.reshape(-1, 2, 1, x.shape[1]), -1),
    "(N, C, 4, 4)": lambda x: (planes(x, 16), 1),
    "(N, C, 8, 8)": lambda x: (planes(x, 64), 1),
}


def planes(x, S):
    return np.ascontiguousarray(x.reshape(-1, S, x.shape[1]).swapaxes(1, 2))


@pytest.mark.parametrize("ratio", [0, 1, 1e3, 1e6])
@pytest.mark.parametrize("width", [100, 2000])
@pytest.mark.parametrize(
    ("M", "layouts"),
    [(M, ["rows", "channels first"]) for M in (2, 3, 5, 31, 130)]
    + [(16, ["rows", "channels last", "(N, C, 4, 4)"])]
    + [(64, ["rows", "strided rows", "(N, C, 4, 4)", "(N, C, 8, 8)"])]
    + [(M, ["rows", "channels first", "(N, C, 8, 8)"]) for M in (256, 1024, 4096)],
    ids=str,
)
def test_the_worst_of_many_channels(rng, M, layouts, width, ratio):
    """`width` channels at a time: how many there are decides how rows are cut into blocks."""
    for _ in range(max(1, min(CHANNELS, 2_000_000 // M) // width)):
        x = rng.standard_normal((M, width), np.float32) + np.float32(ratio)
        wide = x.astype(np.float64)
        deviations = wide - wide[0]
        mean = deviations.mean(0)
        var = ((deviations - mean) ** 2).mean(0)
        differ = var > 0
        std = np.sqrt(var[differ])
        for name in layouts:
            folded, axis = LAYOUTS[name](x)
            _, stats = fn.batch_norm_train(folded, axis=axis)
            assert (stats.var[~differ] == 0).all()
            assert np.max(np.abs(stats.var[differ] / var[differ] - 1)) < 2e-7, name
            assert np.max(np.abs(stats.mean - wide[0] - mean)[differ] / std) < 2e-7, name


@pytest.mark.parametrize("M", [5, 16, 64, 256])
@pytest.mark.parametrize("layout", ["rows", "channels first"])
def test_the_worst_gradient_of_many_channels(rng, M, layout):
    """dgamma and dbeta, relative to the root of their squared summands."""
    for _ in range(50):
        x, dy = rng.standard_normal((2, M, 200), np.float32)
        _, stats = fn.batch_norm_train(x)
        folded, axis = LAYOUTS[layout](x)
        _, dgamma, dbeta = fn.batch_norm_backward(LAYOUTS[layout](dy)[0], folded, stats, axis=axis)
        terms_of_gamma = dy * ((x - stats.mean) * stats.inv_std)
        for got, summands in ((dgamma, terms_of_gamma), (dbeta, dy.astype(np.float64))):
            scale = np.sqrt((summands**2).sum(0))
            assert np.max(np.abs(got - summands.sum(0)) / scale) < 5e-7


CONSTANT_SHAPES = [
    ((2, 3), 1), ((40, 3), 1), ((1000, 3), 1), ((65_537, 1), 1), ((65_537, 3), 1),
    ((3, 65_537), 0), ((4, 3, 9, 9), 1), ((4, 9, 9, 3), -1), ((1, 2, 200_000), 1),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float16, *DTYPES])
@pytest.mark.parametrize("value", [0.0, 0.1, -3.3, 1e4, "tiny", "max"])
def test_constant_channels_have_no_variance(dtype, value):
    limits = np.finfo(dtype)
    value = dtype({"tiny": limits.smallest_subnormal, "max": limits.max}.get(value, value))
    for shape, axis in CONSTANT_SHAPES:
        x = np.full(shape, value)
        assert x.dtype == dtype
        channels = shape[axis]
        gamma, beta = np.full(channels, 2, dtype), np.arange(channels).astype(dtype)
        want = np.moveaxis(np.broadcast_to(beta, np.moveaxis(x, axis, -1).shape), -1, axis)
        y, stats = fn.batch_norm_train(x, gamma, beta, axis=axis)
        np.testing.assert_array_equal(y, want)
        np.testing.assert_array_equal(stats.mean, np.float64(value))
        np.testing.assert_array_equal(stats.var, 0)
        weights = np.ones(tuple(np.delete(shape, axis)))
        weights.flat[0] = 0.3
        y, stats = fn.weighted_batch_norm_train(x, weights, gamma, beta, axis=axis)
        np.testing.assert_array_equal(y, want)
        np.testing.assert_array_equal(stats.var, 0)
        if dtype != np.float16 and axis == 1 and x.ndim < 4:
            y, (mean, var, inv_std) = np.empty_like(x), np.empty((3, channels))
            jit.batch_norm_train(x, gamma, beta, 1e-5, y, mean, var, inv_std)
            np.testing.assert_array_equal(y, want)
            np.testing.assert_array_equal(var, 0)


@pytest.mark.parametrize("as_planes", [False, True])
@pytest.mark.parametrize(
    ("value", "want"),
    [
        (np.float32(3e38), 9e76),
        # The sum of squares overflows, their mean does not.
        (1e154, 1e308),
        (1.7e308, np.inf),
    ],
)
def test_the_variance_overflows_only_where_it_must(value, want, as_planes):
    x = np.array([[value], [-value]] * 500).repeat(2, 1)
    x = np.ascontiguousarray(x.T) if as_planes else x
    axis = 0 if as_planes else 1
    for stats in (
        fn.batch_norm_train(x, axis=axis)[1],
        fn.weighted_batch_norm_train(x, np.full(1000, 1.0), axis=axis)[1],
    )[: 2 if want != 1e308 else 1]:
        assert np.max(np.abs(stats.mean)) < 1e-13 * value
        np.testing.assert_allclose(stats.var, want, rtol=2e-7)


# ------------------------------------------------------------------- properties and gradients


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-12)])
@pytest.mark.parametrize(("shape", "axis"), [((128, 10), 1), ((6, 5, 7, 3), 1), ((40, 2000), -1)])
def test_gradient_norm_identity(rng, shape, axis, dtype, tolerance):
    """Santurkar et al. 2018, Theorem 4.1: an equality for constant gamma and eps -> 0."""
    case = Case(rng, shape, axis, dtype)
    gamma = np.full(case.channels, 1.7, dtype)
    _, stats = fn.batch_norm_train(case.x, gamma, axis=axis, eps=1e-30)
    dx, _, _ = fn.batch_norm_backward(case.dy, case.x, stats, gamma, axis=axis)

    def total(array):
        return np.asarray(reference.channel_sum(array, axis), np.float64)

    g = case.dy.astype(np.float64)
    mean, var, _, m = reference.statistics(case.x, axis=axis)
    x_hat = np.asarray(reference.normalized(case.x, mean, var, 0, axis), np.float64)
    scale = gamma.astype(np.float64) ** 2 / var
    want = scale * (total(g**2) - total(g) ** 2 / m - total(g * x_hat) ** 2 / m)
    got = total(dx.astype(np.float64) ** 2)
    assert np.max(np.abs(got - want) / (scale * total(g**2))) < tolerance


@pytest.mark.parametrize("dtype", DTYPES)
def test_dx_is_orthogonal_to_shift_and_scale(rng, dtype):
    case = Case(rng, (200, 7), 1, dtype)
    _, stats = fn.batch_norm_train(case.x, case.gamma, eps=1e-30)
    dx, _, _ = fn.batch_norm_backward(case.dy, case.x, stats, case.gamma)
    x_hat = reference.normalized(case.x, *reference.statistics(case.x)[:2], 0, 1)
    scale = peak(dx) * 200**0.5
    assert_close(dx.sum(0, dtype=np.float64), np.zeros(7), 2 * scale, dtype)
    assert_close(np.float64((dx * x_hat).sum(0)), np.zeros(7), 2 * scale, dtype)
