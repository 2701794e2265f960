"""Digits that batch normalization keeps, and identities that its gradients obey."""

from __future__ import annotations

import numpy as np
import pytest

from nbbn import functional as fn
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

# ---------------------------------------------------------------------------- numerical bar


BAR = [
    # shape, axis, mean/std, largest relative error of var, largest absolute error of y
    ((4096, 64), 1, 1e3, 7e-6, 2.6e-3),
    ((4096, 64), 1, 1e4, 5e-4, 2.3e-2),
    ((4096, 64), 1, 1e5, 1.4e-3, 4e-2),
    ((4096, 64), 1, 1e6, 1.0e3, 5.4),
    ((64, 8, 8, 32), -1, 1e6, 1.0e3, 5.3),
    ((64, 32, 8, 8), 1, 1e6, 7e-4, 4.7e-2),
]


@pytest.mark.parametrize("view", [np.array, np.asfortranarray, sliced])
@pytest.mark.parametrize(("shape", "axis", "ratio", "var_bar", "y_bar"), BAR)
def test_numerical_bar(rng, shape, axis, ratio, var_bar, y_bar, view):
    x = view((rng.normal(size=shape) + ratio).astype(np.float32))
    y, stats = fn.batch_norm_train(x, axis=axis)
    want, want_stats = reference.batch_norm_train(x, axis=axis)
    assert np.max(np.abs(stats.var - want_stats.var) / want_stats.var) < var_bar
    assert np.max(np.abs(y - want)) < y_bar


@pytest.mark.parametrize("ratio", [1e3, 1e4, 1e5, 1e6])
@pytest.mark.parametrize(
    ("shape", "axis"), [((4096, 64), 1), ((64, 8, 8, 32), -1), ((64, 32, 8, 8), 1)]
)
def test_the_mean_costs_no_digits(rng, shape, axis, ratio):
    """The bar above is PyTorch's; with the mean kept in float64, errors need not grow at all."""
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
def test_the_first_values_may_lie_far_from_the_others(rng, shape, far):
    """As a black margin does: sums begin with a shift that is of no use for the rest."""
    x = rng.normal(size=shape).astype(np.float32)
    x.reshape(*shape[:2], -1)[0, :, :16] = far
    y, stats = fn.batch_norm_train(x)
    want, want_stats = reference.batch_norm_train(x)
    # Where rows are the layout, a run of them holds the outliers.
    assert np.max(np.abs(stats.var / want_stats.var - 1)) < 5e-7
    assert np.max(np.abs(stats.mean - want_stats.mean) / np.sqrt(want_stats.var)) < 5e-7
    assert np.max(np.abs(y - want) / np.maximum(np.abs(want), 1)) < 1e-6


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


@pytest.mark.parametrize("value", [0.0, 0.1, -3.3, 1e6])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), [((1000, 5), 1), ((4, 5, 9, 9), 1)])
def test_constant_channel_gives_beta(shape, axis, dtype, value):
    beta = np.arange(5).astype(dtype)
    x = np.full(shape, value, dtype)
    y, stats = fn.batch_norm_train(x, np.full(5, 2, dtype), beta, axis=axis)
    assert_close(stats.var, np.zeros(5), 1e-6 * max(value**2, 1), np.float64)
    assert_close(y, np.broadcast_to(np.reshape(beta, (5,) + (1,) * (x.ndim - 2)), shape), 5, dtype)


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


def numerical_gradients(function, weights, *arrays):
    for position, array in enumerate(arrays):

        def loss(values, position=position):
            changed = [*arrays[:position], values, *arrays[position + 1 :]]
            return float(np.sum(function(*changed) * weights))

        yield reference.central_difference(loss, array)


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("shape", "axis"), [((6, 3), 1), ((2, 3, 2, 3), 1), ((3, 2, 4), -1), ((4, 5), 0)]
)
def test_gradients_by_central_differences(rng, shape, axis, training, activation):
    case = Case(rng, shape, axis)

    def forward(x, gamma, beta, residual):
        fused = {"axis": axis, "activation": activation, "residual": residual}
        if training:
            return fn.batch_norm_train(x, gamma, beta, **fused)[0]
        return fn.batch_norm_infer(x, case.mean, case.var, gamma, beta, **fused)

    inputs = (case.x, case.gamma, case.beta, case.residual)
    want = numerical_gradients(forward, case.dy, *inputs)
    y = forward(*inputs)
    # A central difference is no derivative across the kink.
    assert activation is None or np.min(np.abs(reference.narrow(y[y != 0]))) > 1e-4
    options = {"axis": axis, "y": y if activation else None}
    if training:
        stats = fn.batch_norm_train(case.x, axis=axis)[1]
        got = fn.batch_norm_backward(case.dy, case.x, stats, case.gamma, **options)
    else:
        given = (case.x, case.mean, case.var, case.gamma)
        got = fn.batch_norm_infer_backward(case.dy, *given, **options)
    d_residual = fn.relu_backward(case.dy, y) if activation else case.dy
    for array, truth in zip((*got, d_residual), want, strict=True):
        assert np.max(np.abs(array - truth)) < 1e-6 * max(peak(truth), 1)
