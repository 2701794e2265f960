"""Any array that NumPy can make: right numbers or a clear error, and no hidden copy.

Examples are drawn by hypothesis, from the same seed in every run.
"""

from __future__ import annotations

import tracemalloc
import types

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import nbbn.functional as F  # noqa: N812
from nbbn.errors import ArgumentError, DTypeError, NbbnError, ShapeError
from tests.helpers import reference

# What the rounding of each type, of its inputs' reference and of its result, explains.
TOLERANCE = {
    "float16": 2e-3,
    "bfloat16": 1.6e-2,
    "float32": 4e-6,
    ">f4": 4e-6,
    "float64": 1e-12,
    ">f8": 1e-12,
}
EPS = 0.1


def dtype_of(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


@st.composite
def views(draw, shape, dtype, values):
    """`values` in memory of any order of axes, steps, gaps, direction, alignment and rights."""
    order = draw(st.permutations(range(len(shape))))
    steps = [draw(st.sampled_from([1, 1, 1, 2, -1, -3])) for _ in shape]
    extents = [
        max(n, 1) * abs(step) + draw(st.integers(0, 1))
        for n, step in zip(shape, steps, strict=True)
    ]
    size = int(np.prod(extents)) * dtype.itemsize
    shifted = draw(st.booleans())
    memory = np.zeros(size + 1, np.uint8)[shifted : size + shifted]
    whole = memory.view(dtype).reshape([extents[d] for d in order])
    whole = whole.transpose(np.argsort(order))
    array = whole[tuple(slice(None, None, step) for step in steps)]
    array = array[tuple(slice(0, n) for n in shape)]
    array[...] = values
    repeated = [d for d, n in enumerate(shape) if n > 1]
    if repeated and draw(st.integers(0, 5)) == 0:
        # A stride of zero: one entry repeated along an axis.
        axis = draw(st.sampled_from(repeated))
        array = np.broadcast_to(np.take(array, [0], axis), shape)
    elif draw(st.booleans()):
        array.flags.writeable = False
    return array


@st.composite
def batches(draw, smallest=0):
    rank = draw(st.integers(2, 5))
    shape = tuple(draw(st.integers(smallest, 6)) for _ in range(rank))
    axis = draw(st.integers(-rank, rank - 1))
    name = draw(st.sampled_from(sorted(TOLERANCE)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x, dy = (draw(views(shape, dtype_of(name), rng.normal(size=shape))) for _ in range(2))
    vectors = rng.uniform(0.5, 1.5, (4, shape[axis]))
    return (
        name,
        x,
        dy,
        axis,
        [v.astype(draw(st.sampled_from(["d", "f", ">f4", ">f8"]))) for v in vectors],
    )


def assert_near(found, expected, name):
    scale = max(1.0, float(np.max(np.abs(expected), initial=0)))
    np.testing.assert_allclose(
        np.asarray(found, np.float64), expected, rtol=0, atol=TOLERANCE[name] * scale
    )


@settings(max_examples=60)
@given(batches())
def test_any_array_gives_the_reference_or_a_clear_error(batch):
    name, x, dy, axis, (mean, var, gamma, beta) = batch
    options = {"axis": axis, "eps": EPS}
    channels = x.shape[axis]
    if channels == 0:
        with pytest.raises(ShapeError, match="no channels"):
            F.batch_norm_infer(x, mean, var, **options)
        return
    y = F.batch_norm_infer(x, mean, var, gamma, beta, **options)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert_near(y, reference.batch_norm_infer(x, mean, var, gamma, beta, **options), name)
    if x.size == channels:
        with pytest.raises(ShapeError, match="more than 1 value per channel"):
            F.batch_norm_train(x, **options)
        return
    y, stats = F.batch_norm_train(x, gamma, beta, **options)
    assert (y.shape, y.dtype, stats.count) == (x.shape, x.dtype, x.size // channels)
    if x.size == 0:
        return
    expected, truth = reference.batch_norm_train(x, gamma, beta, **options)
    assert_near(y, expected, name)
    np.testing.assert_allclose(stats.mean, truth.mean, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(stats.var, truth.var, rtol=2e-6, atol=1e-12)
    found = F.batch_norm_backward(dy, x, stats, gamma, axis=axis)
    assert found[0].dtype == x.dtype
    for a, b in zip(found, reference.batch_norm_backward(dy, x, gamma, **options), strict=True):
        # Sums over the batch and products of two roundings: a few of them add up.
        assert_near(a, b, name) if a.ndim > 1 else np.testing.assert_allclose(a, b, atol=2e-5)


# ---------------------------------------------------------------- views of one memory


@st.composite
def places(draw, size, shape, distinct):
    """Where a view of `shape` lies in a flat array, anywhere; no element twice where `distinct`."""
    order = draw(st.permutations(range(len(shape))))
    wide = draw(st.sampled_from([None, *order]))
    strides, extent = [0] * len(shape), 1
    for d in order:
        strides[d] = extent * (2 if d == wide else 1)
        extent = strides[d] * shape[d]
        if not distinct and draw(st.integers(0, 4)) == 0:
            strides[d] = draw(st.integers(0, 1))
    reach = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    assume(reach < size)
    start = draw(st.integers(0, size - 1 - reach))
    flip = tuple(slice(None, None, draw(st.sampled_from([1, -1]))) for _ in shape)

    def view(memory):
        steps = [s * memory.itemsize for s in strides]
        return np.lib.stride_tricks.as_strided(memory[start:], shape, steps)[flip]

    return view


NORMAL = np.random.default_rng(3).normal(size=200_000)
RELU = {"eps": EPS, "activation": "relu"}
# Every function with a result of the shape of its inputs; batch normalization with axis too.
CALLS = {
    "train": lambda a, **o: F.batch_norm_train(a.x, a.gamma, a.beta, eps=EPS, **o)[0],
    "train, fused": lambda a, **o: F.batch_norm_train(
        a.x, a.gamma, a.beta, residual=a.residual, **RELU, **o)[0],
    "infer": lambda a, **o: F.batch_norm_infer(a.x, a.mean, a.var, a.gamma, a.beta, **o),
    "infer, fused": lambda a, **o: F.batch_norm_infer(
        a.x, a.mean, a.var, a.gamma, a.beta, residual=a.residual, **RELU, **o),
    "all in one": lambda a, **o: F.batch_norm(a.x, a.mean, a.var, a.gamma, a.beta, **o),
    "all in one, training": lambda a, **o: F.batch_norm(
        a.x, None, None, a.gamma, a.beta, training=True, eps=EPS, **o),
    "backward": lambda a, **o: F.batch_norm_backward(a.dy, a.x, a.stats, a.gamma, **o)[0],
    "backward, fused": lambda a, **o: F.batch_norm_backward(
        a.dy, a.x, a.stats, a.gamma, y=a.residual, **o)[0],
    "infer backward": lambda a, **o: F.batch_norm_infer_backward(
        a.dy, a.x, a.mean, a.var, a.gamma, **o)[0],
    "infer backward, fused": lambda a, **o: F.batch_norm_infer_backward(
        a.dy, a.x, a.mean, a.var, a.gamma, y=a.residual, **o)[0],
    "cross_entropy_backward": lambda a, axis, **o: F.cross_entropy_backward(a.x, a.labels, **o),
}  # fmt: skip
for op in ("relu", "sigmoid", "tanh", "gelu", "silu", "leaky_relu"):
    CALLS[op] = lambda a, axis, op=op, **o: getattr(F, op)(a.x, **o)
    CALLS[f"{op}_backward"] = lambda a, axis, op=op, **o: getattr(F, f"{op}_backward")(
        a.dy, a.x, **o
    )
for op in ("softmax", "log_softmax"):
    CALLS[op] = lambda a, op=op, **o: getattr(F, op)(a.x, **o)
    CALLS[f"{op}_backward"] = lambda a, op=op, **o: getattr(F, f"{op}_backward")(a.dy, a.x, **o)


@settings(max_examples=30)
@given(st.data())
@pytest.mark.parametrize("name", CALLS)
def test_overlapping_views_give_what_separate_arrays_give(name, data):
    """Any strides, directions, byte orders, rights; out apart from the inputs, one, or across."""
    shape = data.draw(st.sampled_from([(6, 4), (3, 4, 5), (2, 3, 2, 4)] * 3 + [(1100, 90)]))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    dtype = np.dtype(data.draw(st.sampled_from(["<f4", "<f4", "<f8", ">f4"])))
    size, shifted = 2 * int(np.prod(shape)) + 30, data.draw(st.booleans())
    whole = np.zeros(size * dtype.itemsize + 1, np.uint8)
    memory = whole[shifted : size * dtype.itemsize + shifted].view(dtype)
    memory[...] = NORMAL[:size]
    target = data.draw(st.sampled_from(["none", "apart", "across", "x", "dy", "residual"]))
    a = types.SimpleNamespace(labels=np.ones((shape[0], *shape[2:]), np.int64))
    where = {}
    for part in ("x", "dy", "residual", "gamma", "beta", "mean"):
        own = shape if part in ("x", "dy", "residual") else (shape[axis],)
        where[part] = data.draw(places(size, own, part == target))
        setattr(a, part, where[part](memory))
        getattr(a, part).flags.writeable = part == target or data.draw(st.booleans())
    a.var = np.abs(a.mean) + 1
    plain = types.SimpleNamespace(
        **{k: np.array(v, v.dtype.newbyteorder("="), order="C") for k, v in vars(a).items()}
    )
    a.stats = plain.stats = F.batch_norm_train(plain.x, eps=EPS, axis=axis)[1]
    expected = CALLS[name](plain, axis=axis)
    before, kept = whole.copy(), memory.copy()
    if target == "none":
        out = None
    else:
        place = where.get(target) or data.draw(places(size, shape, True))
        out = getattr(a, target, None)
        if out is None:
            out = place(memory if target == "across" else memory.copy())
    found = CALLS[name](a, axis=axis, out=out)
    assert out is None or found is out
    # A copy may have another memory order, and then its sums another order of summands.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-5)
    if out is not None and target != "apart":
        out[...] = place(kept)
    np.testing.assert_array_equal(whole, before)


@settings(max_examples=60)
@given(st.data())
def test_gradients_of_parameters_written_over_inputs(data):
    shape = data.draw(st.sampled_from([(6, 4), (3, 4, 5)]))
    memory = np.random.default_rng(4).normal(size=160).astype(np.float32)
    x, dy = (data.draw(places(160, shape, False))(memory) for _ in range(2))
    gamma = data.draw(places(160, (4,), False))(memory)
    results = [data.draw(places(160, (4,), True))(memory) for _ in range(2)]
    copies = dy.copy(), x.copy()
    stats = F.batch_norm_train(copies[1])[1]
    expected = F.batch_norm_backward(*copies, stats, gamma.copy())
    call = {"out_dgamma": results[0], "out_dbeta": results[1]}
    if np.shares_memory(*results):
        with pytest.raises(ArgumentError, match="out_dgamma and out_dbeta share memory"):
            F.batch_norm_backward(dy, x, stats, gamma, **call)
        return
    found = F.batch_norm_backward(dy, x, stats, gamma, **call)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


def test_per_channel_operands_inside_out(rng):
    """Planes are finished by groups of channels; a later group's gamma must still be there."""
    x, dy, out = rng.normal(size=(3, 2, 8, 9000)).astype(np.float32)
    stats = F.batch_norm_train(x)[1]
    for call in (
        lambda gamma, **to: F.batch_norm_train(x, gamma, gamma, **to)[0],
        lambda gamma, **to: F.batch_norm_backward(dy, x, stats, gamma, **to)[0],
        lambda gamma, **to: F.batch_norm_infer(x, gamma, np.ones(8), gamma, gamma, **to),
    ):
        expected = call(out.ravel()[:8].copy())
        np.testing.assert_array_equal(call(out.ravel()[:8], out=out), expected)


def test_results_that_share_memory_are_refused():
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    stats = F.batch_norm_train(x)[1]
    out = np.empty_like(x)
    for name in ("out_dgamma", "out_dbeta"):
        with pytest.raises(ArgumentError, match=f"out and {name} share memory"):
            F.batch_norm_backward(x, x, stats, out=out, **{name: out[1]})


# All rows one; each row the next but for its ends; columns that share bytes.
@pytest.mark.parametrize("strides", [(0, 8), (8, 8), (8, 16), (24, 4)])
@pytest.mark.parametrize("function", [F.relu, F.batch_norm_train, F.softmax])
def test_an_out_that_repeats_its_memory_is_refused(function, strides):
    out = np.lib.stride_tricks.as_strided(np.zeros(20), (4, 3), strides)
    with pytest.raises(ArgumentError, match="out repeats its memory"):
        function(np.ones((4, 3)), out=out)


def test_results_per_channel_that_repeat_their_memory_are_refused():
    x = np.arange(12.0).reshape(4, 3)
    stats = F.batch_norm_train(x)[1]
    one = np.lib.stride_tricks.as_strided(np.ones(1), (3,), (0,))
    for name, call in {
        "running_mean": lambda: F.update_running_stats(one, np.ones(3), stats),
        "running_var": lambda: F.batch_norm(x, np.zeros(3), one, training=True),
        "out_dgamma": lambda: F.batch_norm_backward(x, x, stats, out_dgamma=one),
    }.items():
        with pytest.raises(ArgumentError, match=f"{name} repeats its memory"):
            call()
    assert one[0] == 1


@pytest.mark.parametrize("shape", [(8, 3), (4, 3, 5)])
@pytest.mark.parametrize("name", ["mean", "inv_std"])
@pytest.mark.parametrize("out", ["out_dgamma", "out_dbeta"])
def test_gradients_of_parameters_written_over_the_statistics(rng, shape, name, out):
    dy, x = rng.normal(size=(2, *shape))
    gamma = rng.normal(size=3)
    stats = F.batch_norm_train(x)[1]
    expected = F.batch_norm_backward(dy, x, stats, gamma)
    kept = np.zeros(4)
    kept[:3] = getattr(stats, name)
    for view in (kept[:3], kept[1:], kept[2::-1]):
        kept[:3] = getattr(stats, name)
        over = stats._replace(**{name: kept[:3]})
        found = F.batch_norm_backward(dy, x, over, gamma, **{out: view})
        for own, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(own, other)


# ------------------------------------------------------------------------- values


VALUES = {
    "huge": lambda dtype: 0.9 * np.finfo(dtype).max,
    "1e38": lambda dtype: 1e38,
    "denormal": lambda dtype: np.finfo(dtype).smallest_subnormal,
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(40, 3), (2, 3, 20), (300, 3), (2, 3, 3000)])
@pytest.mark.parametrize("kind", VALUES)
def test_extreme_values_stay_in_their_channel(rng, kind, shape, dtype):
    """The channel of extremes follows IEEE arithmetic; its neighbours do not notice."""
    x = rng.normal(size=shape).astype(dtype)
    value = dtype(VALUES[kind](dtype))
    x[:, 1] = np.where(x[:, 1] > 0, value, -value)
    with np.errstate(all="raise"):
        y, stats = F.batch_norm_train(x)
        dx, dgamma, _ = F.batch_norm_backward(np.ones_like(x), x, stats)
    expected, truth = reference.batch_norm_train(x)
    others = [0, 2]
    np.testing.assert_allclose(y[:, others], expected[:, others], rtol=1e-5, atol=1e-6)
    assert np.isfinite(dx[:, others]).all()
    assert np.isfinite(dgamma[others]).all()
    np.testing.assert_allclose(stats.mean[1], truth.mean[1], rtol=1e-6, atol=1e-7 * value)
    # Beyond the range of float64 the variance is Inf, and the result 0.
    # Squares below the smallest number of the type vanish.
    tiny = float(np.finfo(dtype).smallest_subnormal)
    np.testing.assert_allclose(stats.var[1], truth.var[1], rtol=1e-6, atol=tiny)
    wanted = expected[:, 1] if np.isfinite(truth.var[1]) else 0 * expected[:, 1]
    np.testing.assert_allclose(y[:, 1], wanted, rtol=1e-5, atol=1e-5)


def test_beyond_the_range_of_the_type():
    """What overflows on the way, as docs/reliability.md says: at each limit, and behind it."""
    column = np.array([[1.0], [-1.0], [1.0]])
    true = [[0.5**0.5], [-(2.0**0.5)], [0.5**0.5]]
    for largest, expected in ((1.7e38, true), (3e38, [true[0], [-np.inf], true[2]])):
        y, stats = F.batch_norm_train((largest * column).astype(np.float32))
        np.testing.assert_allclose(y, expected, rtol=3e-7)
        np.testing.assert_allclose((stats.mean, stats.var), [[largest / 3], [largest**2 * 8 / 9]])
        dx, _, _ = F.batch_norm_backward(column, (largest * column).astype(np.float32), stats)
        np.testing.assert_array_equal(np.isfinite(dx), np.isfinite(expected))
    for largest, lowest in ((8.9e307, 0.0), (1.7e308, np.nan)):
        y, _ = F.batch_norm_train(largest * column)
        np.testing.assert_array_equal(y, [[0.0], [lowest], [0.0]])
    for shape in ((4, 3), (2, 3, 40)):
        beta = np.full(3, 5.0, np.float32)
        for eps, expected in ((1e-77, 5.0), (1e-78, np.nan)):
            y, _ = F.batch_norm_train(np.full(shape, 7.0, np.float32), None, beta, eps=eps)
            np.testing.assert_array_equal(y, np.full(shape, expected))
        y, _ = F.batch_norm_train(np.full(shape, 7.0), None, beta, eps=5e-324)
        np.testing.assert_array_equal(y, np.full(shape, 5.0))


@pytest.mark.parametrize("shape", [(40, 3), (4, 3, 20), (2, 3, 3000)])
@pytest.mark.parametrize("name", ["train, fused", "infer, fused"])
def test_a_nan_passes_a_fused_relu(rng, name, shape):
    x, residual = rng.normal(size=(2, *shape)).astype(np.float32)
    residual[1, 2] = np.nan
    ones = np.ones(3, np.float32)
    a = types.SimpleNamespace(x=x, residual=residual, gamma=ones, beta=ones, mean=ones, var=ones)
    np.testing.assert_array_equal(np.isnan(CALLS[name](a, axis=1)), np.isnan(residual))


# ------------------------------------------------------------------------- refusals


X = np.arange(12, dtype=np.float32).reshape(4, 3)
LABELS = np.zeros(4, np.int64)
REFUSED = {
    "masked": (np.ma.masked_less(X, 3), "masked.*weighted_batch_norm_train"),
    "matrix": (X.view(np.matrix), "numpy.ndarray.*matrix"),
    "integers": (X.astype(np.int64), "int64.*astype"),
    "bytes": (X.astype(np.uint8), "uint8.*astype"),
    "booleans": (X > 3, "bool.*astype"),
    "complex": (X.astype(np.complex64), "complex64"),
    "wide": (X.astype(np.longdouble), "float128|longdouble"),
    "objects": (X.astype(object), "object"),
    "text": (X.astype(str), "<U"),
    "list": (X.tolist(), "list.*asarray"),
    "none": (None, "NoneType.*asarray"),
}


@pytest.mark.parametrize(("array", "match"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_array_of_floats_is_refused(array, match):
    stats = F.batch_norm_train(X)[1]
    for call in (
        lambda: F.batch_norm(array, training=True),
        lambda: F.batch_norm_backward(X, array, stats),
        lambda: F.batch_norm_infer_backward(X, array, stats.mean, stats.var),
    ):
        with pytest.raises(DTypeError, match=match):
            call()


def test_a_masked_operand_or_result_is_refused():
    ones = np.ma.array(np.ones(3))
    for call in (
        lambda: F.update_running_stats(ones, np.ones(3), F.batch_norm_train(X)[1]),
        lambda: F.weighted_batch_norm_train(X, np.ma.array(np.ones(4), mask=[1, 0, 0, 0])),
        lambda: F.cross_entropy(X, np.ma.zeros(4, np.int64)),
        lambda: F.cross_entropy_backward(X, LABELS, np.ma.ones(4), reduction="none"),
        lambda: F.batch_norm(
            X, np.zeros(3), np.ones(3), training=True, skipped=np.ma.zeros(1, np.int64)
        ),
    ):
        with pytest.raises(DTypeError, match="masked"):
            call()


def test_memory_maps_are_arrays(tmp_path):
    expected = F.batch_norm_train(X)[0]
    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=X.shape)
    x[...] = X
    assert F.batch_norm_train(x, out=x)[0] is x
    np.testing.assert_array_equal(x, expected)


# ------------------------------------------------------------------------- no hidden copies


def channels_last(array):
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def peak_of(call) -> int:
    call()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("order", [np.ascontiguousarray, channels_last])
def test_a_call_with_out_allocates_nothing_of_the_arrays_size(rng, order, dtype):
    x, dy, out = (order(a.astype(dtype)) for a in rng.normal(size=(3, 16, 8, 40, 40)))
    ones, zeros = np.ones(8, dtype), np.zeros(8, dtype)
    stats = F.batch_norm_train(x)[1]
    calls = {
        "train": lambda: F.batch_norm_train(x, ones, zeros, out=out),
        "train, fused": lambda: F.batch_norm_train(x, residual=dy, activation="relu", out=out),
        "infer": lambda: F.batch_norm_infer(x, zeros, ones, ones, zeros, out=out),
        "in place": lambda: F.batch_norm_infer(out, zeros, ones, out=out),
        "all in one": lambda: F.batch_norm(x, zeros, ones, training=True, out=out),
        "backward": lambda: F.batch_norm_backward(dy, x, stats, ones, out=out),
        "infer backward": lambda: F.batch_norm_infer_backward(dy, x, zeros, ones, out=out),
        "relu": lambda: F.relu(x, out=out),
        "relu backward": lambda: F.relu_backward(dy, x, out=out),
    }
    for name, call in calls.items():
        assert peak_of(call) < x.nbytes / 50, name


@pytest.mark.parametrize("shape", [(2000, 100), (1, 64)])
def test_repeated_calls_keep_no_memory(rng, shape):
    x = rng.normal(size=shape).astype(np.float32)
    ones, zeros, out = np.ones(shape[1], "f4"), np.zeros(shape[1], "f4"), np.empty_like(x)

    def call() -> None:
        for _ in range(200):
            F.batch_norm_infer(x, zeros, ones, out=out)

    call()
    tracemalloc.start()
    try:
        call()
        assert tracemalloc.get_traced_memory()[0] < 4096
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["x", "gamma", "mean", "out"])
def test_errors_come_before_anything_is_written(name):
    out = np.full((4, 3), 7, np.float32)
    given = {"x": X, "mean": np.zeros(3), "var": np.ones(3), "gamma": np.ones(3), "out": out}
    given[name] = np.ones(5)
    with pytest.raises(NbbnError):
        F.batch_norm_infer(given.pop("x"), **given)
    np.testing.assert_array_equal(out, 7)
