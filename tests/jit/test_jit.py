"""Compiled functions inside users' jitted code: the numbers, the callers, the errors."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from numba import TypingError, get_num_threads, get_thread_id, njit, prange

import nbbn.functional as F  # noqa: N812
from nbbn import jit
from tests.test_rules import documented, sections

ROOT = Path(__file__).resolve().parents[2]
# Few rows, rows in blocks, planes by channels in cache, planes in parts. Every type and layout is
# seconds of compilation: each axis of variation has its own case, and they are not multiplied.
CASES = [
    ((7, 5), np.float32),
    pytest.param((7, 5), np.float64, marks=pytest.mark.slow),
    ((6000, 16), np.float32),
    ((4, 3, 50), np.float32),
    ((2, 1, 40_000), np.float32),
    # In cache forward, and in parts backward.
    ((1, 2, 200_000), np.float32),
]


def arrays(rng, shape, dtype):
    x, dy = (3 + 2 * rng.normal(size=(2, *shape))).astype(dtype)
    gamma, beta = rng.normal(size=(2, shape[1])).astype(dtype)
    return x, dy, gamma, beta


def vectors(count, channels):
    return [np.empty(channels) for _ in range(count)]


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


# ------------------------------------------------------- the same bits as nbbn.functional


@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_statistics_and_forward(rng, shape, dtype):
    x, _, gamma, beta = arrays(rng, shape, dtype)
    y, stats = F.batch_norm_train(x, gamma, beta, eps=1e-3)
    found, (mean, var, inv_std) = np.empty_like(x), vectors(3, shape[1])
    jit.batch_norm_train(x, gamma, beta, 1e-3, found, mean, var, inv_std)
    assert_same((found, mean, var, inv_std), (y, *stats[:3]))
    mean, var = vectors(2, shape[1])
    assert jit.channel_stats(x, mean, var) == stats.count
    assert_same((mean, var), stats[:2])
    expected = F.batch_norm_infer(x, mean, var, gamma, beta, eps=1e-3)
    jit.batch_norm_infer(x, mean, var, gamma, beta, 1e-3, found)
    np.testing.assert_array_equal(found, expected)
    prepared = np.empty(3 * shape[1], dtype)
    jit.affine(mean, var, gamma, beta, 1e-3, prepared)
    jit.normalize(x, prepared, x)
    np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_backward(rng, shape, dtype):
    x, dy, gamma, _ = arrays(rng, shape, dtype)
    stats = F.batch_norm_train(x)[1]
    expected = F.batch_norm_backward(dy, x, stats, gamma)
    found = [np.empty_like(a) for a in expected]
    jit.batch_norm_backward(dy, x, stats.mean, stats.inv_std, gamma, *found)
    assert_same(found, expected)
    expected = F.batch_norm_infer_backward(dy, x, stats.mean, stats.var, gamma)
    jit.batch_norm_infer_backward(dy, x, stats.mean, stats.var, gamma, 1e-5, dy, *found[1:])
    assert_same((dy, *found[1:]), expected)


@pytest.mark.parametrize("shape", [(40, 6), pytest.param((4, 6, 20), marks=pytest.mark.slow)])
@pytest.mark.parametrize("view", [lambda a: a[::2], lambda a: a[..., ::-1], lambda a: a[:, 1:3]])
def test_any_strides_without_gamma_and_beta(rng, shape, view):
    x = view(arrays(rng, shape, np.float32)[0])
    y, stats = F.batch_norm_train(np.ascontiguousarray(x))
    found = view(np.empty(shape, np.float32))
    mean, var, inv_std = vectors(3, x.shape[1])
    jit.batch_norm_train(x, None, None, 1e-5, found, mean, var, inv_std)
    assert_same((found, mean), (y, stats.mean))
    jit.batch_norm_infer(x, mean, var, None, None, 1e-5, found)
    np.testing.assert_array_equal(found, F.batch_norm_infer(x, mean, var))


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (2, 3, 0)])
def test_no_values(shape):
    x, gamma = np.empty(shape, np.float32), np.ones(3, np.float32)
    mean, var, inv_std = vectors(3, 3)
    assert jit.channel_stats(x, mean, var) == 0
    assert_same((mean, var), np.zeros((2, 3)))
    jit.batch_norm_train(x, gamma, gamma, 0.25, x, mean, var, inv_std)
    assert_same((mean, var, inv_std), (np.zeros(3), np.zeros(3), np.full(3, 2.0)))
    dgamma, dbeta = np.ones((2, 3), np.float32)
    jit.batch_norm_backward(x, x, mean, inv_std, gamma, x, dgamma, dbeta)
    assert_same((dgamma, dbeta), np.zeros((2, 3)))


# ------------------------------------------------------------------ merging, and single axes


def test_merging_chunks_equals_one_pass(rng):
    """Chunks of every size, with an offset a million times the spread, against float128 sums."""
    x = 1e6 + rng.normal(size=(1000, 4))
    count, (mean, var, other_mean, other_var) = 0, vectors(4, 4)
    start = 0
    for size in (0, 1, 2, 997, 0):
        n = jit.channel_stats(x[start : start + size], other_mean, other_var)
        count = jit.merge_stats(count, mean, var, n, other_mean, other_var)
        start += size
    wide = x.astype(np.longdouble)
    assert count == 1000
    np.testing.assert_allclose(mean, wide.mean(0), rtol=1e-15)
    np.testing.assert_allclose(var, wide.var(0), rtol=1e-9)


AXIS_CASES = [
    ((4, 5), "f4", lambda a: a),
    ((3, 4, 5), "i8", lambda a: a),
    pytest.param((6,), "f4", lambda a: a, marks=pytest.mark.slow),
    pytest.param((4, 5), "f8", lambda a: a[::-1], marks=pytest.mark.slow),
    pytest.param((2, 3, 4, 5), "u1", np.asfortranarray, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("shape", "dtype", "view"), AXIS_CASES)
def test_mean_and_var_along_an_axis(rng, shape, dtype, view):
    x = view((100 * rng.uniform(size=shape)).astype(dtype))
    tolerance = 1e-6 if dtype == "f4" else 1e-13
    for axis in range(-x.ndim, x.ndim):
        n = x.shape[axis]
        for found, expected in [
            (jit.mean(x, axis), x.mean(axis)),
            (jit.var(x, axis, 0), x.var(axis)),
            (jit.var(x, axis, n - 1), x.var(axis, ddof=n - 1)),
        ]:
            assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
            np.testing.assert_allclose(found, expected, rtol=tolerance)


def test_merging_a_sample_with_itself_moves_nothing():
    mean, var = np.array([3.0]), np.array([2.0])
    assert jit.merge_stats(10, mean, var, 10, mean, var) == 20
    assert (mean, var) == (3.0, 2.0)
    # Nor does one of nothing, not even a last bit.
    var[:], nothing = 0.1, np.full(1, np.nan)
    assert jit.merge_stats(49, mean, var, 0, nothing, nothing) == 49
    assert (mean, var) == (3.0, 0.1)


def test_mean_and_var_of_nothing():
    nothing = np.empty((0, 3), np.float32)
    assert np.isnan(jit.mean(nothing, 0)).all()
    assert np.isnan(jit.var(nothing, 0, 1)).all()
    assert jit.mean(nothing, 1).shape == (0,)
    with pytest.raises(ValueError, match="axis"):
        jit.mean(nothing, 2)


def test_variance_keeps_its_digits():
    x = (1e4 + np.arange(100) % 2).astype(np.float32).reshape(2, 50)
    np.testing.assert_array_equal(jit.var(x, 1, 0), [0.25, 0.25])


# -------------------------------------------------------------------------------- callers


@njit
def forward_and_back(x, dy, gamma, beta):
    channels = x.shape[1]
    y, dx = np.empty_like(x), np.empty_like(x)
    mean, var, inv_std = np.empty(channels), np.empty(channels), np.empty(channels)
    dgamma, dbeta = np.empty_like(gamma), np.empty_like(beta)
    jit.batch_norm_train(x, gamma, beta, 1e-5, y, mean, var, inv_std)
    jit.batch_norm_backward(dy, x, mean, inv_std, gamma, dx, dgamma, dbeta)
    return y, dx, dgamma, dbeta


@pytest.mark.parametrize("shape", [(30, 4), (3, 4, 10)])
def test_inside_njit(rng, shape):
    x, dy, gamma, beta = arrays(rng, shape, np.float32)
    y, stats = F.batch_norm_train(x, gamma, beta)
    expected = y, *F.batch_norm_backward(dy, x, stats, gamma)
    assert_same(forward_and_back(x, dy, gamma, beta), expected)


@njit(parallel=True)
def stats_of_groups(groups, mean, var, threads):
    for g in prange(groups.shape[0]):
        jit.channel_stats(groups[g], mean[g], var[g])
        threads[g] = get_thread_id()


def test_inside_a_parallel_loop(rng):
    groups = rng.normal(size=(8, 500, 3)).astype(np.float32)
    mean, var = np.empty((2, 8, 3))
    threads = np.full(8, -1)
    stats_of_groups(groups, mean, var, threads)
    expected = [F.batch_norm_train(group)[1] for group in groups]
    assert_same(mean, [stats.mean for stats in expected])
    assert_same(var, [stats.var for stats in expected])
    # The checks inside do not turn the loop into a serial one; TBB may give all to one thread, and
    # does so where the work is done before another one wakes.
    seen, long = set(threads), np.tile(groups, (1, 50, 1))
    for _ in range(1000):
        if len(seen) < min(get_num_threads(), 8):
            stats_of_groups(long, mean, var, threads)
            seen |= set(threads)
    assert len(seen) == min(get_num_threads(), 8)


def test_gamma_chosen_at_run_time(rng):
    @njit
    def infer(x, gamma, scaled, mean, var, y):
        jit.batch_norm_infer(x, mean, var, gamma if scaled else None, None, 1e-5, y)

    x, _, gamma, _ = arrays(rng, (7, 5), np.float32)
    mean, var, found = np.zeros(5), np.ones(5), np.empty_like(x)
    for scale in (gamma.astype(float), None):
        infer(x, gamma.astype(float), scale is not None, mean, var, found)
        np.testing.assert_array_equal(found, F.batch_norm_infer(x, mean, var, scale))


def test_normalizing_costs_its_arithmetic_alone():
    """It becomes part of the caller's code, and allocates nothing."""

    @njit
    def caller(x, prepared, y):
        jit.normalize(x, prepared, y)

    for x in (np.ones((1, 64), np.float32), np.ones((1, 64, 2), np.float32)):
        caller(x, np.ones(192, np.float32), x)
    for code in caller.inspect_asm().values():
        # The caller itself stands before its wrapper for calls from Python.
        body = code[: code.index("_ZN7cpython")]
        assert "normalize" not in body
        assert "NRT_Allocate" not in body
        assert "NRT_MemInfo_alloc" not in body


PROGRAM = """
import numpy as np
from numba import njit
from nbbn import jit

@njit(cache=True)
def center(x, y):
    mean, var = np.empty(x.shape[1]), np.empty(x.shape[1])
    jit.channel_stats(x, mean, var)
    jit.batch_norm_infer(x, mean, var, None, None, 0.0, y)
    return jit.mean(y, 0), jit.var(y, 0)

if __name__ == "__main__":
    x = np.arange(12.0).reshape(4, 3) ** 2
    for found, expected in zip(center(x, x), (np.zeros(3), np.ones(3))):
        np.testing.assert_allclose(found, expected, atol=1e-15)
    planes = np.random.default_rng(0).normal(size=(2, 3, 40))
    y, dx, dgamma, dbeta = np.empty_like(planes), np.empty_like(planes), np.empty(3), np.empty(3)
    mean, var, inv_std = np.empty((3, 3))
    jit.batch_norm_train(planes, None, None, 1e-5, y, mean, var, inv_std)
    jit.batch_norm_backward(y, planes, mean, inv_std, None, dx, dgamma, dbeta)
    np.testing.assert_allclose(mean, planes.mean((0, 2)))
    np.testing.assert_allclose(var, planes.var((0, 2)))
    np.testing.assert_allclose(dgamma, 80 * var / (var + 1e-5))
    print(sum(getattr(center, "stats", ((), {}))[1].values()) if hasattr(center, "stats") else "")
"""


def run_program(tmp_path: Path, **environment: str) -> str:
    program = tmp_path / "program.py"
    if not program.exists():
        program.write_text(textwrap.dedent(PROGRAM))
    result = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_cached_with_the_caller(tmp_path):
    """The second process takes the user's function, ours included, from the user's cache."""
    assert [run_program(tmp_path) for _ in range(2)] == ["0", "1"]


def test_without_compilation(tmp_path):
    assert run_program(tmp_path, NUMBA_DISABLE_JIT="1") == ""


# --------------------------------------------------------------------------------- errors

X, ROW, ROW2, LONG = (np.ones(shape, np.float32) for shape in ((4, 3), 3, 3, 4))
ROWS, LONG_WIDE = np.ones(9, np.float32), np.ones(4)
M, V, S = np.ones((3, 3))


def train(x=X, gamma=ROW, beta=ROW, eps=1e-5, y=X, mean=M, var=V, inv_std=S):
    jit.batch_norm_train(x, gamma, beta, eps, y, mean, var, inv_std)


def backward(dy=X, x=X, mean=M, inv_std=S, gamma=ROW, dx=X, dgamma=ROW, dbeta=ROW2):
    jit.batch_norm_backward(dy, x, mean, inv_std, gamma, dx, dgamma, dbeta)


def infer(mean=M, var=V, gamma=ROW, beta=ROW, eps=1e-5, y=X):
    jit.batch_norm_infer(X, mean, var, gamma, beta, eps, y)


def infer_backward(eps=1e-5, var=V):
    jit.batch_norm_infer_backward(X, X, M, var, ROW, eps, X, ROW, ROW2)


PER_CHANNEL, LIKE = "one element per channel", "the shape of x"
WRONG = {
    "mean": (lambda: jit.channel_stats(X, LONG_WIDE, V), PER_CHANNEL),
    "var": (lambda: jit.channel_stats(X, M, LONG_WIDE), PER_CHANNEL),
    "no channels": (lambda: jit.channel_stats(X[:, :0].copy(), M, V), "no channels"),
    "merge": (lambda: jit.merge_stats(1, M, LONG_WIDE, 1, M, V), "one length"),
    "y": (lambda: jit.normalize(X, ROWS, X[:2]), LIKE),
    "prepared": (lambda: jit.normalize(X, ROWS[:8], X), "three elements per channel"),
    "affine var": (lambda: jit.affine(M, LONG_WIDE, ROW, ROW, 1e-5, ROWS), "length of mean"),
    "affine out": (lambda: jit.affine(M, V, ROW, ROW, 1e-5, ROWS[:8]), "three times"),
    "gamma": (lambda: infer(gamma=LONG), PER_CHANNEL),
    "beta": (lambda: infer(beta=LONG), PER_CHANNEL),
    "infer mean": (lambda: infer(mean=LONG_WIDE), PER_CHANNEL),
    "inv_std": (lambda: train(inv_std=LONG_WIDE), PER_CHANNEL),
    "one row": (lambda: train(x=X[:1], y=X[:1]), "more than 1 value"),
    "dy": (lambda: backward(dy=X[:3]), LIKE),
    "dx": (lambda: backward(dx=X[:3]), LIKE),
    "dgamma": (lambda: backward(dgamma=LONG), PER_CHANNEL),
    "mean in var": (lambda: jit.channel_stats(X, M, M), "share memory"),
    "merged mean in var": (lambda: jit.merge_stats(1, M, M, 1, V, S), "share memory"),
    "var in inv_std": (lambda: train(inv_std=V), "share memory"),
    "mean in inv_std": (lambda: train(inv_std=M), "share memory"),
    "dgamma in dbeta": (lambda: backward(dbeta=ROW), "share memory"),
    **{f"eps {eps}": (lambda eps=eps: train(eps=eps), "eps must be") for eps in (-1, 0, -1.0, 0.0)},
    **{f"eps {eps}": (lambda eps=eps: train(eps=eps), "eps must be") for eps in (np.nan, np.inf)},
    "infer eps": (lambda: infer(eps=-1.0), "eps must be finite and not negative"),
    "affine eps": (lambda: jit.affine(M, V, ROW, ROW, np.nan, ROWS), "eps must be finite"),
    "infer_backward eps": (lambda: infer_backward(eps=-1.0), "eps must be finite"),
}


@pytest.mark.parametrize(("call", "words"), WRONG.values(), ids=WRONG)
def test_values_that_do_not_fit(call, words):
    with pytest.raises(ValueError, match=words):
        call()


WHOLE, NARROW = np.ones(3, np.int64), np.ones(3, np.float32)
LOCKED = X.copy()
LOCKED.flags.writeable = False
X_NAMES, LIKE_NAMES = "x must be an array of float32", "must be a writeable array of the shape"
WRONG_TYPES = {
    "list": (lambda: train(x=X.tolist()), X_NAMES),
    "half": (lambda: train(x=X.astype(np.float16)), X_NAMES),
    "integers": (lambda: jit.channel_stats(X.astype(int), M, V), X_NAMES),
    "four axes": (lambda: jit.channel_stats(X[..., None, None], M, V), "join or add axes"),
    "one axis": (lambda: jit.normalize(ROW, ROWS, ROW), "rows .* or planes .* got array"),
    "stats of a list": (lambda: jit.channel_stats(X.tolist(), M, V), X_NAMES),
    "mean of integers": (lambda: jit.channel_stats(X, WHOLE, V), "mean must be .* float64"),
    "mean of float32": (lambda: train(mean=NARROW), r"mean must be .* pass numpy.empty.C."),
    "var as a column": (lambda: jit.channel_stats(X, M, V[:, None]), r"var must be .*shape .C,."),
    "y of integers": (lambda: jit.normalize(X, ROWS, X.astype(int)), "y must be .* type of x"),
    "y of float64": (lambda: train(y=X.astype(float)), "y " + LIKE_NAMES),
    "y read-only": (lambda: train(y=LOCKED), "y " + LIKE_NAMES),
    "dy of float64": (lambda: backward(dy=X.astype(float)), r"dy must be .* dy.astype.x.dtype."),
    "gamma of integers": (lambda: train(gamma=WHOLE), "gamma must be None or an array"),
    "gamma as a list": (lambda: train(gamma=[1.0, 1.0, 1.0]), "gamma must be None or an array"),
    "beta as a row": (lambda: infer(beta=ROW[None]), "beta must be None or an array .*ravel"),
    "eps None": (lambda: train(eps=None), r"eps must be a number, got none.* float.eps."),
    "inv_std of integers": (lambda: train(inv_std=WHOLE), "inv_std must be"),
    "inv_std of float32": (lambda: backward(inv_std=NARROW), "inv_std must be an array of float64"),
    "dx of integers": (lambda: backward(dx=X.astype(int)), "dx must be .* numpy.empty_like.x."),
    "dgamma of integers": (lambda: backward(dgamma=WHOLE), "dgamma must be a writeable array"),
    "var None": (lambda: infer(var=None), "var must be an array of float32 or float64"),
    "affine mean 2-d": (lambda: jit.affine(M[None], V, None, None, 0.1, ROWS), "mean must be"),
    "affine into integers": (lambda: jit.affine(M, V, None, None, 0.1, WHOLE), "out must be"),
    "prepared of float64": (lambda: jit.normalize(X, np.ones(9), X), "prepared must be .* affine"),
    "infer_backward var": (lambda: infer_backward(var=[1.0]), "var must be"),
    "merge a list": (lambda: jit.merge_stats(1, M, V, 1, [1.0], V), "other_mean must be an array"),
    "merge half a count": (lambda: jit.merge_stats(0.5, M, V, 1, M, V), "count must be an integer"),
    "mean of a list": (lambda: jit.mean([1.0], 0), "x must be .* truth values"),
    "mean of a number": (lambda: jit.mean(np.array(1.0), 0), "x must be .*atleast_1d"),
    "mean of complex": (lambda: jit.mean(X.astype(complex), 0), "x must be .* truth values"),
    "mean over all": (lambda: jit.mean(X, None), "axis must be an integer, got none"),
    "ddof None": (lambda: jit.var(X, 0, None), "ddof must be a number, got none"),
}


@pytest.mark.parametrize(("call", "words"), WRONG_TYPES.values(), ids=WRONG_TYPES)
def test_types_that_do_not_fit(call, words):
    with pytest.raises(TypingError, match=words):
        call()


WITHOUT_COMPILATION = """
from tests.jit import test_jit

for name, (call, words) in {**test_jit.WRONG, **test_jit.WRONG_TYPES}.items():
    error = test_jit.TypingError if name in test_jit.WRONG_TYPES else ValueError
    with test_jit.pytest.raises(error, match=words):
        call()
"""


def test_types_without_compilation():
    """The same errors of the same classes, before NumPy would cut or convert anything."""
    program = [sys.executable, "-c", WITHOUT_COMPILATION]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_DISABLE_JIT": "1"}
    result = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr


def test_an_array_that_numba_has_no_type_for_is_named():
    with pytest.raises(TypingError, match=r"argument 0: .*Unsupported array dtype: >f4"):
        jit.channel_stats(X.astype(">f4"), M, V)


def test_gamma_of_the_other_type_and_a_strided_result(rng):
    """Gamma and beta are used in the type of x, as by nbbn.functional."""
    x, _, _, _ = arrays(rng, (7, 5), np.float32)
    gamma, beta = rng.normal(size=(2, 5))
    y, stats = F.batch_norm_train(x, gamma, beta)
    found, (mean, var, inv_std) = np.empty_like(x), vectors(3, 5)
    jit.batch_norm_train(x, gamma, beta, 1e-5, found, mean, var, inv_std)
    assert_same((found, mean, var, inv_std), (y, *stats[:3]))
    prepared = np.empty(30, np.float32)[::2]
    jit.affine(mean, var, gamma, beta, 1e-5, prepared)
    jit.normalize(x, prepared, found)
    np.testing.assert_array_equal(found, F.batch_norm_infer(x, mean, var, gamma, beta))


@pytest.mark.parametrize("name", jit.__all__)
def test_docstrings_name_the_parameters(name):
    function = getattr(jit, name).py_func
    found = sections(inspect.cleandoc(function.__doc__))
    assert documented(found["Parameters"]) == list(inspect.signature(function).parameters)
