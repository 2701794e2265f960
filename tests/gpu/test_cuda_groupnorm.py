"""Normalization of groups in either engine, against the reference."""

from __future__ import annotations

import numpy as np
import pytest

from nbbn.kernels import _cuda, groupnorm_cuda
from nbbn.kernels._cuda_lanes import SIMULATED
from tests.gpu.storage import (
    DTYPES,
    ROUNDING,
    error,
    poisoned,
    shifted,
    statistics_type,
    stored,
    values,
)
from tests.helpers import reference

# (N, G, D, S): rows and planes, whole lanes and odd lengths, one value, more than a block has
# threads; several blocks to a channel.
SHAPES = [
    (3, 1, 8, 1), (5, 1, 13, 1), (2, 1, 1, 1), (3, 2, 4, 1), (40, 1, 24, 1), (3, 1, 300, 1),
    (2, 3, 2, 8), (2, 3, 2, 5), (3, 4, 1, 16), (70, 2, 1, 4), (2, 1, 3, 50),
]  # fmt: skip
if not SIMULATED:
    SHAPES += [(300, 1, 12, 1), (6, 1, 2, 264)]


pytestmark = pytest.mark.usefixtures("scratch")


class Problem:
    """Inputs, and the results of all launchers for them."""

    def __init__(self, shape, dtype, *, affine=True, centered=True, mean=3.0, arrange=np.copy):
        rng = np.random.default_rng(5)
        self.shape, self.dtype, self.centered = shape, dtype, centered
        self.wide = statistics_type(dtype)
        N, G, D, _ = shape
        self.x = arrange(stored(rng.standard_normal(shape) * 2 + mean, dtype))
        self.dy = stored(rng.standard_normal(shape), dtype)
        self.gamma = self.beta = np.empty(0, self.wide)
        if affine:
            self.gamma, self.beta = map(arrange, rng.standard_normal((2, G * D)).astype(self.wide))
        self.runs = N * G

    def forward(self):
        out = poisoned(self.shape, self.dtype), *(poisoned(self.runs, self.wide) for _ in range(3))
        groupnorm_cuda.normalize(self.x, self.gamma, self.beta, 1e-5, self.centered, *out)
        return out

    def backward(self, mean, inv_std, dx=None):
        dx = poisoned(self.shape, self.dtype) if dx is None else dx
        sums = [poisoned(self.shape[1] * self.shape[2], self.wide) for _ in range(2)]
        groupnorm_cuda.normalize_backward(
            self.dy, self.x, self.gamma, mean, inv_std, self.centered, dx, *sums
        )
        return dx, *sums


def check(problem):
    """Compare all results with the reference."""
    x, dy, tolerance = values(problem.x), values(problem.dy), ROUNDING[problem.dtype]
    N, G, D, S = problem.shape
    scale, shift = (
        v.reshape(1, G, D, 1).astype(float) if v.size else None
        for v in (problem.gamma, problem.beta)
    )
    options = {"eps": 1e-5, "centered": problem.centered}
    y, mean, var, inv_std = problem.forward()
    want = reference.over_axes(x, (2, 3), scale, shift, **options)
    assert error(values(y), want) < tolerance
    rows = x.reshape(N * G, D * S)
    center = rows.mean(1) if problem.centered else np.zeros(N * G)
    np.testing.assert_allclose(mean, center, rtol=1e-6, atol=1e-6)
    spread = ((rows - center[:, None]) ** 2).mean(1)
    np.testing.assert_allclose(var, spread, rtol=2e-6, atol=1e-12)
    np.testing.assert_allclose(inv_std, 1 / np.sqrt(spread + 1e-5), rtol=2e-6)

    dx, dgamma, dbeta = problem.backward(mean, inv_std)
    x_hat = reference.over_axes(x, (2, 3), **options)
    h = dy if scale is None else dy * scale
    want = reference.group_gradient(*(a.reshape(rows.shape) for a in (x, h, x_hat)), **options)
    # A single value has a gradient of rounding errors.
    if D * S > 1:
        assert error(values(dx).reshape(rows.shape), want) < 2 * tolerance
    # Sums cancel: their error is that of their terms.
    for found, terms in ((dgamma, dy * x_hat), (dbeta, dy)):
        size = np.abs(terms).sum((0, 3)).max()
        bound = 2 * ROUNDING["float64" if problem.wide == np.float64 else "float32"] * size
        np.testing.assert_allclose(found, terms.sum((0, 3)).ravel(), rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_the_reference(shape, dtype):
    check(Problem(shape, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 1, 13, 1), (2, 3, 2, 5), (40, 1, 24, 1), (2, 3, 2, 8)])
def test_about_zero(shape, dtype):
    check(Problem(shape, dtype, centered=False))


@pytest.mark.parametrize("shape", [(40, 1, 24, 1), (2, 3, 2, 8)], ids=str)
def test_in_any_order_of_threads(shape, schedule):
    check(Problem(shape, "float32"))


@pytest.mark.parametrize("shape", [(2, 1, 5003, 1), (1, 2, 2, 1300)], ids=str)
def test_long_runs(shape):
    """Of more steps than a loop is unrolled to."""
    check(Problem(shape, "float32"))


@pytest.mark.parametrize("options", [{"affine": False}, {"arrange": shifted}], ids=str)
@pytest.mark.parametrize("shape", [(5, 1, 16, 1), (2, 3, 2, 8)], ids=str)
def test_without_gamma_and_misaligned(shape, options):
    check(Problem(shape, "float32", **options))


@pytest.mark.parametrize("shape", [(40, 1, 24, 1), (70, 2, 1, 4)], ids=str)
def test_several_blocks_to_a_channel(shape, monkeypatch):
    monkeypatch.setattr(_cuda, "THREADS", 16)
    check(Problem(shape, "float32"))


@pytest.mark.parametrize("shape", [(3, 1, 300, 1), (2, 3, 2, 8)], ids=str)
def test_the_mean_costs_the_variance_no_digits(shape):
    problem = Problem(shape, "float32", affine=False, mean=1e6)
    y, _, var, _ = problem.forward()
    x = values(problem.x)
    np.testing.assert_allclose(var, x.var((2, 3)).ravel(), rtol=1e-6)
    assert error(y, reference.over_axes(x, (2, 3), eps=1e-5)) < 2e-6
    problem.x[...] = 1e6
    y, *_ = problem.forward()
    assert not y.any()


@pytest.mark.parametrize("shape", [(5, 1, 16, 1), (2, 3, 2, 8)], ids=str)
def test_in_place(shape):
    problem = Problem(shape, "float32")
    _, mean, _, inv_std = problem.forward()
    expected = problem.backward(mean, inv_std)
    for got, want in zip(problem.backward(mean, inv_std, problem.dy), expected, strict=True):
        np.testing.assert_array_equal(got, want)


def test_nan_and_inf_stay_in_their_run():
    problem = Problem((3, 1, 24, 1), "float32")
    clean, *_ = problem.forward()
    problem.x[0, 0, 3], problem.x[2, 0, 0] = np.nan, np.inf
    y, *_ = problem.forward()
    np.testing.assert_array_equal(np.isnan(y).all((1, 2, 3)), [True, False, True])
    np.testing.assert_array_equal(y[1], clean[1])
