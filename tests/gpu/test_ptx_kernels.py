"""The compiled kernels on what needs the interpreter: long walks, huge indices, every launch."""

from __future__ import annotations

import mmap
import struct

import numba
import numpy as np
import pytest
from numba import cuda

from nbbn.jit import cuda as jit_cuda
from nbbn.kernels import (
    _cuda,
    _cuda_reduction,
    batchnorm_cuda,
    dropout_cuda,
    elementwise_cuda,
    gather_cuda,
    softmax_cuda,
)
from tests.gpu import ptx, ptx_engine
from tests.gpu.every_launch import every_launch
from tests.gpu.ptx_floats import errors_of
from tests.gpu.storage import DTYPES, ROUNDING, error, poisoned, stored, values
from tests.gpu.test_cuda_batchnorm import Problem, check_against_the_reference
from tests.gpu.test_cuda_elementwise import unweighted
from tests.helpers import reference

pytestmark = pytest.mark.usefixtures("interpreter")


# ------------------------------------------------------------------------------ long walks
# Loops are unrolled: four rounds at a time, of two elements each where a walk goes backwards.


@pytest.mark.parametrize(("option", "blocks"), [
    ("plain", 1), ("relu", 1), ("residual", 1), ("relu and residual", 1),
    ("plain", 2), ("relu and residual", 2),
])  # fmt: skip
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("whole_lanes", [True, False], ids=["lanes", "scalars"])
@pytest.mark.parametrize("layout", ["rows", "planes"])
def test_walks_of_many_steps(layout, whole_lanes, dtype, option, blocks, monkeypatch):
    V = 16 // stored(np.zeros(1), dtype).itemsize
    if layout == "rows":
        C, threads = (V, 256) if whole_lanes else (7, 32)
        shape = blocks * threads * 9 + 13, C
    else:
        shape = 20, 2, 261 * (V if whole_lanes else 1)
    channel_blocks = 2 if layout == "planes" else 1
    monkeypatch.setattr(_cuda, "BLOCKS", blocks * channel_blocks)
    monkeypatch.setattr(_cuda, "_scratch", {})
    check_against_the_reference(Problem(shape, dtype, option))


@pytest.mark.parametrize("shape", [(256 * 270, 8), (4, 1, 64 * 270)], ids=str)
def test_walks_of_several_runs(shape, monkeypatch):
    """Also with a mean of ten thousand standard deviations, which the variance must not feel."""
    monkeypatch.setattr(_cuda, "BLOCKS", 1)
    monkeypatch.setattr(_cuda, "_scratch", {})
    for dtype in ("float32", "bfloat16"):
        check_against_the_reference(Problem(shape, dtype, "affine"))
    problem = Problem(shape, "float32", mean=0)
    problem.x = (values(problem.x) / 2 + 1e4).astype(np.float32)
    _, mean, var, _ = problem.train()
    stats = reference.statistics(problem.x)
    assert np.max(np.abs(var / stats.var - 1)) < 2e-6
    assert np.max(np.abs(mean - stats.mean)) <= np.spacing(np.float32(1e4))


@pytest.mark.parametrize("dtype", DTYPES)
def test_long_rows_and_columns(dtype):
    rng = np.random.default_rng(1)
    x, dy = (stored(rng.standard_normal((2, 2700)), dtype) for _ in range(2))
    for name in ("softmax", "log_softmax"):
        y, dx = poisoned(x.shape, dtype), poisoned(x.shape, dtype)
        getattr(softmax_cuda, name)(x, y)
        assert error(values(y), getattr(reference, name)(values(x))) < ROUNDING[dtype]
        getattr(softmax_cuda, f"{name}_backward")(dy, y, dx)
        expected = getattr(reference, f"{name}_backward")(values(dy), values(y))
        assert error(values(dx), expected) < 2 * ROUNDING[dtype]
    labels, loss, total = np.array([7, 2699]), poisoned(2, dtype), poisoned(1, dtype)
    softmax_cuda.cross_entropy(x, labels, *unweighted(dtype), loss)
    expected = reference.cross_entropy(values(x), labels, "none")
    assert error(values(loss), expected) < ROUNDING[dtype]
    dlogits, one = poisoned(x.shape, dtype), stored(np.ones(1), dtype)
    softmax_cuda.cross_entropy_backward(x, labels, *unweighted(dtype), one, 0.5, dlogits)
    expected = reference.cross_entropy_backward(values(x), labels, 0.5, "none")
    assert error(values(dlogits), expected) < ROUNDING[dtype]
    softmax_cuda.scaled_sum(x.reshape(-1), 0.25, total)
    expected = values(x).sum() / 4
    assert abs(values(total)[0] - expected) < ROUNDING[dtype] * np.abs(values(x)).sum()


@pytest.mark.parametrize("share", [1, -1])
def test_approximations_may_err_as_much_as_they_are_allowed_to(share):
    """A device's ex2 and rcp are not those of the interpreter, which rounds the exact ones."""
    x, y = np.linspace(-87, 87, 4099, dtype=np.float32), poisoned(4099, "float32")
    with errors_of(share):
        for name in ("sigmoid", "tanh"):
            getattr(elementwise_cuda, name)(x, y)
            np.testing.assert_allclose(y, getattr(reference, name)(x), rtol=2e-6)
        rows, out = x[:4000].reshape(40, 100), poisoned((40, 100), "float32")
        for name in ("softmax", "log_softmax"):
            getattr(softmax_cuda, name)(rows, out)
            np.testing.assert_allclose(out, getattr(reference, name)(rows), rtol=2e-6, atol=1e-6)


def test_long_vectors_of_one_block():
    rng = np.random.default_rng(2)
    labels, found = np.zeros(6000, int), np.zeros(1, int)
    softmax_cuda.first_bad_label(labels, 3, -9, found)
    assert found[0] == -1
    labels[[2345, 5999]] = -1, 3
    softmax_cuda.first_bad_label(labels, 3, -9, found)
    assert found[0] == 2345
    for types in (("f4", "f4"), ("f4", "f8"), ("f8", "f4"), ("f8", "f8")):
        mean, var = rng.standard_normal(3000).astype(types[0]), rng.random(3000).astype(types[0])
        running = [rng.standard_normal(3000).astype(types[1]) for _ in range(2)]
        stats = reference.Stats(mean, var, var, 12)
        expected, skipped = reference.running_stats(*running, stats, 0.1, True), np.zeros(1, int)
        before = [array.copy() for array in running]
        batchnorm_cuda.update_running_within(mean, var, 12, 0.1, True, 9.0, *running, skipped)
        for got, want in zip(running, expected, strict=True):
            assert error(got, want) < 1e-6
        mean[2999] = np.nan
        batchnorm_cuda.update_running_within(mean, var, 12, 0.1, True, 9.0, *before, skipped)
        assert skipped[0] == 1


# ---------------------------------------------------------------------------- huge indices
# Arrays of which only the pages that are touched exist; of each launch, only some blocks run.


def huge(shape, dtype) -> np.ndarray:
    """An array of zeros, however large."""
    kind = np.dtype("uint16" if dtype == "bfloat16" else dtype)
    count = int(np.prod(shape, dtype=object))
    # MAP_NORESERVE, by its number on Linux: the mmap module of Python 3.11 does not have it.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000
    memory = mmap.mmap(-1, count * kind.itemsize, flags=flags)
    return np.frombuffer(memory, kind, count).reshape(shape)


class Slice:
    """The channels of a huge problem that the last block treats, and what is in them."""

    def __init__(self, shape, channels, dtype):
        rng = np.random.default_rng(6)
        self.at = np.s_[:, shape[1] - channels :]
        self.shape, self.dtype = shape, dtype
        self.part = shape[0], channels, *shape[2:]
        self.x, self.dy, self.y, self.dx = (huge(shape, dtype) for _ in range(4))
        self.small = [stored(rng.standard_normal(self.part) * 2 + 3, dtype) for _ in range(2)]
        self.x[self.at], self.dy[self.at] = self.small
        self.gamma, self.beta, self.mean, self.var, self.inv_std, self.dgamma, self.dbeta = (
            huge(shape[1], "float32") for _ in range(7)
        )
        self.own = np.s_[shape[1] - channels :]
        self.gamma[self.own], self.beta[self.own] = rng.standard_normal((2, channels))


@pytest.mark.parametrize(("shape", "channels"), [
    ((5, 2**30 + 8), 8),  # rows: the last block has one vector of columns
    ((5, 2**30 + 7), 7),  # rows, one by one
    ((3, 2**25 + 1, 64), 1),  # planes
    ((3, 2**25 + 1, 63), 1),
])  # fmt: skip
def test_more_than_2_to_the_32_elements(shape, channels, machine_as_it_is):
    assert np.prod(shape, dtype=object) > 2**32
    data = Slice(shape, channels, "bfloat16")
    plan = batchnorm_cuda._Plan(data.x, data.y)
    tiles, *rest = plan.grid[0]
    assert rest == [1, 1]
    last = [(tiles - 1, 0, 0)]
    x, dy = map(values, data.small)
    gamma, beta = data.gamma[data.own], data.beta[data.own]
    none = np.empty((0,) * len(shape), data.x.dtype)
    with ptx_engine.only(last):
        stats = data.mean, data.var, data.inv_std
        batchnorm_cuda.train(data.x, none, data.gamma, data.beta, 1e-5, False, data.y, *stats)
        expected, want = reference.batch_norm_train(x, gamma, beta)
        assert error(data.mean[data.own], want.mean) < 2e-6
        assert error(data.var[data.own], want.var) < 2e-6
        assert error(values(data.y[data.at]), expected) < ROUNDING["bfloat16"]

        data.y[data.at] = 0
        operands = none, data.gamma, data.beta, data.mean, data.var
        batchnorm_cuda.infer(data.x, *operands, 1e-5, False, data.y)
        assert error(values(data.y[data.at]), expected) < ROUNDING["bfloat16"]

        sums = data.dgamma, data.dbeta
        operands = data.dy, data.x, data.y[:0], data.gamma, data.mean, data.inv_std
        expected = reference.batch_norm_backward(dy, x, gamma)
        batchnorm_cuda.backward(*operands, False, data.dx, *sums)
        assert error(data.dgamma[data.own], expected[1]) < 2e-5
        assert error(data.dbeta[data.own], expected[2]) < 2e-6
        assert error(values(data.dx[data.at]), expected[0]) < 2 * ROUNDING["bfloat16"]

        data.dx[data.at] = 0
        operands = *operands, *sums
        plan.run(batchnorm_cuda._input_gradient, *operands, *plan.shape, 0, data.dx)
        assert error(values(data.dx[data.at]), expected[0]) < 2 * ROUNDING["bfloat16"]


def test_parts_of_sums_beyond_2_to_the_32():
    """The last of many blocks leaves the sums of its own rows for the one that merges."""
    V, C = 4, 1024
    (_, _, _), (width, height) = batchnorm_cuda.rows_grid(10**6, C, V)
    parts = 2**32 // (C * height) + 5
    M = parts * height
    x = huge((M, C), "float32")
    rows = np.random.default_rng(7).standard_normal((height, C)).astype(np.float32)
    x[-height:] = rows
    tiles, columns = C // (width * V), width * V
    # Each block has one row of threads, whose last one is the last row of the array.
    partials = huge(tiles * parts * 3 * columns, "float32")
    tickets, total = np.zeros(tiles, np.uint32), np.zeros(C, np.float32)
    kernel = _cuda_reduction._column_sums[V, _cuda.accumulator(x.dtype)]
    with ptx_engine.only([(tiles - 1, parts - 1, 0)]):
        kernel((tiles, parts, 1), (width, height), x, M, C, partials, tickets, total)
    left = partials[-3 * columns :].reshape(3, columns)
    assert error(left[0], rows[:, -columns:].sum(axis=0, dtype=float)) < 2e-6
    assert (left[2] == height).all()
    assert tickets.tolist() == [0] * (tiles - 1) + [1]


def test_elements_beyond_2_to_the_32():
    """The end of flat arrays: whole lanes and the rest."""
    size = 2**32 + 1003
    numbers = np.random.default_rng(8).standard_normal(1003)
    for dtype in ("float16", "float32"):
        x, y = huge(size, dtype), huge(size, dtype)
        x[-1003:] = numbers
        blocks = -(-size // (_cuda.THREADS * 16 // x.itemsize))
        with ptx_engine.only([(blocks - 2, 0, 0), (blocks - 1, 0, 0)]):
            elementwise_cuda.relu(x, y)
        np.testing.assert_array_equal(y[-1003:], np.maximum(x[-1003:], 0))


def test_a_data_set_beyond_2_to_the_32():
    images, labels = huge((2**23 + 1, 784), "uint8"), huge(2**23 + 1, "int64")
    index = np.array([2**23, 0, 2**23 - 1])
    images[index] = np.random.default_rng(9).integers(0, 256, (3, 784))
    labels[index] = 7, 8, 9
    x, y = poisoned((3, 784), "float32"), np.zeros(3, int)
    gather_cuda.gather_scale(images, index, 1 / 255, 0.0, x)
    gather_cuda.gather_targets(labels, index, y)
    np.testing.assert_array_equal(x, (images[index] / 255).astype(np.float32))
    assert y.tolist() == [7, 8, 9]


def test_dropout_draws_from_counters_beyond_32_bits():
    size, key = 2**34 + 2000, 0x0123456789ABCDEF
    mask = huge(size, "float32")
    blocks = -(-size // (4 * _cuda.THREADS))
    with ptx_engine.only([(blocks - 2, 0, 0), (blocks - 1, 0, 0)]):
        dropout_cuda.dropout_mask(np.array([key], np.uint64), 0.25, mask)
    groups = range(2**32, 2**32 + 500)
    words = np.array([reference.philox(group, key) for group in groups]).reshape(-1)
    kept = np.where(words >= 2**30, np.float32(1 / 0.75), np.float32(0))
    treated = (blocks - 2) * 4 * _cuda.THREADS
    np.testing.assert_array_equal(mask[treated:], kept[treated - 2**34 :])


# ------------------------------------------------------------------- building blocks for users


@pytest.mark.parametrize(("dtype", "start"), [
    ("float32", numba.float32), ("float32", float), ("float64", float),
])  # fmt: skip
def test_statistics_of_rows_in_a_kernel_of_a_user(dtype, start):
    kind, threads = getattr(numba, dtype), 64

    def stats_of_rows(x, mean, var):
        means = cuda.shared.array(threads, kind)
        m2s = cuda.shared.array(threads, kind)
        counts = cuda.shared.array(threads, numba.int64)
        row = cuda.blockIdx.x
        # Twice: scratch is free again after a merge.
        all_n, all_m, all_m2 = 0, start(0), start(0)
        for half in range(2):
            n, m, m2 = 0, start(0), start(0)
            for i in range(cuda.threadIdx.x + half * 50, 50 + half * 51, cuda.blockDim.x):
                n, m, m2 = jit_cuda.push(n, m, m2, x[row, i])
            n, m, m2 = jit_cuda.merge_over_block(means, m2s, counts, n, m, m2)
            all_n, all_m, all_m2 = jit_cuda.merge(all_n, all_m, all_m2, n, m, m2)
        if cuda.threadIdx.x == 0:
            mean[row] = all_m
            var[row] = all_m2 / start(all_n)

    signature = kind[:, ::1], kind[::1], kind[::1]
    text, _ = cuda.compile_ptx(stats_of_rows, signature, cc=ptx_engine.ARCHITECTURE)
    # Nothing turns float32 into float64 behind the user's back.
    assert (".f64" in text) == (start is float)
    x = (1e4 + np.random.default_rng(3).standard_normal((3, 101))).astype(dtype)
    mean, var = np.zeros((2, 3), dtype)
    program, fields = ptx.Program(text), []
    for array in (x, mean, var):
        start = program.memory.add(array)
        fields += [0, 0, array.size, array.itemsize, start, *array.shape, *array.strides]
    program.launch(None, (3,), (threads,), [struct.pack("q", field) for field in fields])
    fine = 1e-12 if dtype == "float64" else 2e-7
    np.testing.assert_allclose(mean, x.mean(axis=1, dtype=float), rtol=fine)
    np.testing.assert_allclose(var, x.var(axis=1, dtype=float), rtol=2e4 * fine)


# ---------------------------------------------------------------------------- completeness


def test_every_launch_has_run(request):
    """After the whole case table: no variant has been compiled only."""
    files = {item.path.name for item in request.session.items}
    options = request.config.option
    tables = {f"test_cuda_{name}.py" for name in ("batchnorm", "elementwise", "groupnorm")}
    if not tables <= files or (
        options.keyword or options.markexpr or any("::" in arg for arg in request.config.args)
    ):
        pytest.skip("needs all tests of the kernels in one session")
    launches = every_launch(pytest.MonkeyPatch)
    missing = [name for name, (variant, kinds) in launches.items() if kinds not in variant._loaded]
    assert not missing
