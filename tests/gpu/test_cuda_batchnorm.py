"""Batch normalization kernels in either engine, against the reference and the CPU twins."""

from __future__ import annotations

import numpy as np
import pytest

from nbbn.kernels import batchnorm_cuda
from nbbn.kernels._cuda_lanes import SIMULATED
from tests.gpu.order import schedule
from tests.gpu.storage import (
    DTYPES,
    ROUNDING,
    error,
    poison_scratch,
    poisoned,
    shifted,
    statistics_type,
    stored,
    values,
)
from tests.helpers import reference

# Rows and planes: one block and several, whole lanes and odd lengths, fewer rows than threads.
SHAPES = [
    (2, 8), (3, 5), (7, 16), (33, 24), (50, 40), (65, 3), (300, 8),
    (4, 3, 1), (3, 2, 8), (1, 1, 200), (9, 2, 16), (70, 1, 8), (5, 3, 7), (2, 30, 9),
]  # fmt: skip
if not SIMULATED:
    # Several blocks to a channel also where a block has 256 threads.
    SHAPES += [(600, 72), (530, 37), (40, 3, 128), (6, 2, 1032), (6, 2, 517)]
NOTHING = np.empty(0, np.float32)
pytestmark = pytest.mark.usefixtures("scratch")
ORDERS = ("forward", "reversed", 7, 8, 9)
OPTIONS = (
    [("float32", option) for option in ("plain", "affine", "misaligned")]
    + [(dtype, "relu and residual") for dtype in DTYPES]
    + [("bfloat16", "misaligned"), ("float64", "plain")]
)


class Problem:
    """Inputs, and the results of all launchers for them."""

    def __init__(self, shape, dtype, option="affine", mean=3.0):
        rng = np.random.default_rng(5)
        C = shape[1]
        wide = statistics_type(dtype)
        levels = (mean * rng.standard_normal(C)).reshape(C, *[1] * (len(shape) - 2))
        self.x = stored(rng.standard_normal(shape) * 2 + levels, dtype)
        self.dy = stored(rng.standard_normal(shape), dtype)
        self.relu = "relu" in option
        self.residual = np.empty((0,) * len(shape), self.x.dtype)
        if "residual" in option:
            self.residual = stored(rng.standard_normal(shape), dtype)
        self.gamma = self.beta = np.empty(0, wide)
        if option != "plain":
            self.gamma, self.beta = rng.standard_normal((2, C)).astype(wide)
        if option == "misaligned":
            self.x, self.gamma = shifted(self.x), shifted(self.gamma)
        self.shape, self.dtype, self.wide, self.count = shape, dtype, wide, self.x.size // C

    def outputs(self):
        C = self.shape[1]
        return poisoned(self.shape, self.dtype), *(poisoned(C, self.wide) for _ in range(3))

    def train(self):
        out = self.outputs()
        batchnorm_cuda.train(self.x, self.residual, self.gamma, self.beta, 1e-5, self.relu, *out)
        return out

    def infer(self, mean, var):
        y, *_ = self.outputs()
        batchnorm_cuda.infer(
            self.x, self.residual, self.gamma, self.beta, mean, var, 1e-5, self.relu, y
        )
        return y

    def backward(self, y, mean, inv_std, fixed):
        dx, dgamma, dbeta, _ = self.outputs()
        mask = y if self.relu else NOTHING
        batchnorm_cuda.backward(
            self.dy, self.x, mask, self.gamma, mean, inv_std, fixed, dx, dgamma, dbeta
        )
        return dx, dgamma, dbeta


def affine(problem):
    return (problem.gamma, problem.beta) if problem.gamma.size else (None, None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("option", ["relu", "residual"])
@pytest.mark.parametrize("shape", [(33, 24), (65, 3), (9, 2, 16), (5, 3, 7)], ids=str)
def test_either_of_relu_and_residual(shape, dtype, option):
    check_against_the_reference(Problem(shape, dtype, option))


@pytest.mark.parametrize(("dtype", "option"), OPTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_the_reference(shape, dtype, option):
    check_against_the_reference(Problem(shape, dtype, option))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("special", [np.inf, np.nan])
@pytest.mark.parametrize("shape", [(33, 24), (65, 3), (9, 2, 16), (5, 3, 7)], ids=str)
def test_no_gradient_passes_a_closed_mask(shape, dtype, special):
    """Whatever comes in where the ReLU's output is 0, and whatever x is under fixed statistics."""
    problem = Problem(shape, dtype, "relu")
    y, mean, _, inv_std = problem.train()
    closed = values(y) == 0
    dy, found = values(problem.dy), {}
    for blocked in (0.0, special):
        problem.dy = stored(np.where(closed, blocked, dy), dtype)
        found[blocked] = [
            values(array)
            for fixed in (False, True)
            for array in problem.backward(y, mean, inv_std, fixed)
        ]
    for got, expected in zip(found[special], found[0.0], strict=True):
        np.testing.assert_array_equal(got, expected)
    problem.x = stored(np.where(closed, special, values(problem.x)), dtype)
    dx, _, _ = problem.backward(y, mean, inv_std, True)
    np.testing.assert_array_equal(values(dx), found[0.0][3])


def check_against_the_reference(problem):
    """All launchers, with statistics of the batch and with given ones."""
    dtype = problem.dtype
    gamma, beta = affine(problem)
    x, dy = values(problem.x), values(problem.dy)
    form = {"activation": "relu"} if problem.relu else {}
    if problem.residual.size:
        form["residual"] = values(problem.residual)
    tolerance, fine = ROUNDING[dtype], ROUNDING["float64" if dtype == "float64" else "float32"]

    y, mean, var, inv_std = problem.train()
    expected, stats = reference.batch_norm_train(x, gamma, beta, **form)
    assert error(mean, stats.mean) < fine
    assert error(var, stats.var) < fine
    assert error(inv_std, stats.inv_std) < fine
    assert error(values(y), expected) < tolerance

    expected = reference.batch_norm_infer(x, mean, var, gamma, beta, **form)
    assert error(values(problem.infer(mean, var)), expected) < tolerance

    mask = values(y) if problem.relu else None
    dx, dgamma, dbeta = problem.backward(y, mean, inv_std, fixed=False)
    expected = reference.batch_norm_backward(dy, x, gamma, y=mask)
    if problem.count > 4:
        assert error(values(dx), expected[0]) < 2 * tolerance
        assert error(dgamma, expected[1]) < 10 * fine
    assert error(dbeta, expected[2]) < fine

    dx, dgamma, dbeta = problem.backward(y, mean, inv_std, fixed=True)
    expected = reference.batch_norm_infer_backward(dy, x, mean, var, gamma, y=mask)
    assert error(values(dx), expected[0]) < tolerance
    assert error(dbeta, expected[2]) < fine


# In the interpreter, where warps that run one by one take their time, two with several blocks.
@pytest.mark.parametrize("shape", SHAPES if SIMULATED else [(65, 3), (6, 2, 1032)], ids=str)
def test_same_bits_in_any_order(shape):
    """Threads and blocks may run in any order between barriers; results must not depend on it."""
    found = []
    for order in ORDERS:
        with schedule(order):
            problem = Problem(shape, "float32", "relu and residual")
            poison_scratch()
            y, mean, var, inv_std = problem.train()
            poison_scratch()
            results = [y, mean, var, *problem.backward(y, mean, inv_std, fixed=False)]
            found.append([array.tobytes() for array in results])
    assert all(results == found[0] for results in found)


def test_the_last_block_has_waited_for_all_parts():
    """Seeds enough that, among them, the slowest thread of all is one that leaves a part."""
    problem = Problem((33, 16), "float32")
    results = set()
    for order in range(40):
        with schedule(order):
            poison_scratch()
            results.add(b"".join(array.tobytes() for array in problem.train()))
    assert len(results) == 1


@pytest.mark.parametrize("shape", [(40, 8), (6, 2, 16)], ids=str)
def test_in_place(shape):
    problem = Problem(shape, "float32", "relu and residual")
    y, mean, _, inv_std = problem.train()
    dx, *_ = problem.backward(y, mean, inv_std, fixed=False)
    again = Problem(shape, "float32", "relu and residual")
    rest = again.outputs()[1:]
    operands = again.residual, again.gamma, again.beta, 1e-5, True
    batchnorm_cuda.train(again.x, *operands, again.x, *rest)
    np.testing.assert_array_equal(again.x, y)
    sums = poisoned(shape[1], "float32"), poisoned(shape[1], "float32")
    batchnorm_cuda.backward(
        again.dy, problem.x, y, again.gamma, mean, inv_std, False, again.dy, *sums
    )
    np.testing.assert_array_equal(again.dy, dx)


@pytest.mark.parametrize("shape", [(300, 8), (9, 2, 160), (40, 3)], ids=str)
@pytest.mark.parametrize("ratio", [1e3, 1e6])
def test_large_means_cost_the_variance_nothing(shape, ratio):
    problem = Problem(shape, "float32", mean=0)
    problem.x = (values(problem.x) / 2 + ratio).astype(np.float32)
    y, mean, var, _ = problem.train()
    expected, stats = reference.batch_norm_train(problem.x, *affine(problem))
    assert np.max(np.abs(var / stats.var - 1)) < 2e-6
    # The mean is rounded to float32, and y is off by as much.
    lost = np.max(np.abs(mean - stats.mean) * stats.inv_std)
    assert lost <= np.spacing(np.float32(ratio)) * np.max(stats.inv_std)
    assert np.max(np.abs(y - expected)) <= 2 * (lost + 1e-6) * np.max(np.abs(problem.gamma)) + 1e-5


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shape", [(60, 3), (6, 3, 20), (60, 16), (6, 3, 24)], ids=str)
def test_nan_and_inf_stay_in_their_channel(shape, dtype):
    clean = Problem(shape, dtype)
    y, mean, var, _ = clean.train()
    for bad in (np.nan, np.inf, -np.inf):
        problem = Problem(shape, dtype)
        problem.x[(2, 1, 0)[: len(shape)]] = bad
        problem.x[(-1, 1, -1)[: len(shape)]] = bad
        found_y, found_mean, found_var, _ = problem.train()
        np.testing.assert_array_equal(found_mean[1], bad)
        assert np.isnan(found_var[1])
        assert np.isnan(found_y[:, 1]).all()
        others = np.delete(np.arange(shape[1]), 1)
        np.testing.assert_array_equal(found_y[:, others], y[:, others])
        np.testing.assert_array_equal(found_mean[others], mean[others])
        np.testing.assert_array_equal(found_var[others], var[others])


@pytest.mark.parametrize("shape", [(30, 4), (300, 3), (4, 3, 12), (2, 1, 200)], ids=str)
@pytest.mark.parametrize("value", [1.7, np.finfo(np.float32).max, 1e-45])
def test_constant_channels(shape, value):
    problem = Problem(shape, "float32")
    problem.x[...] = value
    y, mean, var, _ = problem.train()
    np.testing.assert_array_equal(mean, np.float32(value))
    np.testing.assert_array_equal(var, 0)
    beta = problem.beta.reshape(-1, *[1] * (len(shape) - 2))
    np.testing.assert_array_equal(y, np.broadcast_to(beta, shape))


@pytest.mark.parametrize("shape", [(600, 8), (40, 300), (3, 2, 2000)], ids=str)
def test_blocks_as_on_a_device(machine_as_it_is, shape):
    check_against_the_reference(Problem(shape, "float32", "relu and residual"))


@pytest.mark.parametrize("types", [("f4", "f4"), ("f4", "f8"), ("f8", "f4"), ("f8", "f8")])
@pytest.mark.parametrize("unbiased", [True, False])
def test_running_statistics(rng, types, unbiased):
    mean, var = rng.standard_normal(21).astype(types[0]), rng.random(21).astype(types[0])
    before = [rng.standard_normal(21).astype(types[1]) for _ in range(2)]
    skipped = np.zeros(1, np.int64)
    expected = reference.running_stats(*before, reference.Stats(mean, var, var, 12), 0.1, unbiased)
    close = {"rtol": 1e-6 if "f4" in types else 1e-14, "atol": 1e-7 if "f4" in types else 1e-15}

    after = [array.copy() for array in before]
    batchnorm_cuda.update_running(mean, var, 12, np.array(0.1), unbiased, *after)
    np.testing.assert_allclose(after, expected, **close)

    after = [array.copy() for array in before]
    batchnorm_cuda.update_running_within(mean, var, 12, 0.1, unbiased, 5.0, *after, skipped)
    np.testing.assert_allclose(after, expected, **close)
    assert skipped[0] == 0
    for bad in (np.nan, np.inf, -6.0):
        mean[17] = bad
        after = [array.copy() for array in before]
        batchnorm_cuda.update_running_within(mean, var, 12, 0.1, unbiased, 5.0, *after, skipped)
        np.testing.assert_array_equal(after, before)
    assert skipped[0] == 3


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_inverse_standard_deviation(rng, dtype):
    var = rng.random(21).astype(dtype)
    var[3] = 0
    found = np.empty_like(var)
    batchnorm_cuda.inverse_std(var, 1e-3, found)
    np.testing.assert_allclose(found, 1 / np.sqrt(var.astype("f8") + 1e-3), rtol=3e-7)
