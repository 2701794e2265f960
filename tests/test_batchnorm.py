"""Batch normalization of `nbbn.functional` against the naive truth in `reference`."""

from __future__ import annotations

import numpy as np
import pytest
import reference

from nbbn import functional as fn
from nbbn.errors import ArgumentError, DTypeError, NbbnError, ShapeError

DTYPES = [np.float32, np.float64]

SHAPES = [
    # rank 2
    ((2, 1), 1),
    ((2, 100), 1),
    ((7, 5), 1),
    ((64, 100), 1),
    ((50, 1), -1),
    ((257, 3), -1),
    ((33, 17), 0),
    ((1, 40), 0),
    ((5, 2048), 0),
    ((4096, 5), 1),
    # rank 3
    ((1, 3, 2), 1),
    ((4, 5, 7), 1),
    ((3, 17, 50), -2),
    ((2, 9, 64), -1),
    ((5, 3, 11), 0),
    ((1, 64, 33), 1),
    # rank 4
    ((2, 3, 5, 7), 1),
    ((4, 1, 6, 6), 1),
    ((8, 64, 4, 4), 1),
    ((3, 100, 1, 1), 1),
    ((2, 8, 8, 17), -1),
    ((3, 4, 5, 2), 2),
    ((16, 17, 20, 10), 1),
    # rank 5
    ((2, 3, 4, 3, 2), 1),
    ((2, 2, 3, 4, 5), -1),
    ((5, 2, 3, 2, 2), 0),
    ((2, 3, 2, 5, 3), 2),
    # more than one block and more than one thread: rows, planes, one long plane per channel
    ((1024, 100), 1),
    ((16, 64, 10, 11), 1),
    ((3, 40_001), 0),
    ((16_400, 64), 1),
    ((16, 64, 32, 33), 1),
    # channels too long, or too scattered, to stay in cache between the two passes
    ((130, 2, 60, 61), 1),
    ((2, 2, 200_001), 1),
    ((900, 40, 5, 5), 1),
]

TRAIN_SHAPES = [(shape, axis) for shape, axis in SHAPES if np.prod(shape) > shape[axis]]


# -------------------------------------------------------------------------- data and checks


class Case:
    """Inputs whose channels have different means (up to 3) and spreads (0.5 to 2).

    The values of a channel are a shuffled grid with noise, so that its spread cannot be tiny by
    accident: rounding then explains an error of a few units in the last place and no more.
    """

    def __init__(self, rng, shape, axis, dtype=np.float64):
        channels = shape[axis]
        count = int(np.prod(shape)) // channels
        grid = np.tile(np.linspace(-1.7, 1.7, count), (channels, 1))
        values = rng.permuted(grid, axis=1) + 0.1 * rng.normal(size=grid.shape)
        values = values * rng.uniform(0.5, 2, (channels, 1)) + rng.uniform(-3, 3, (channels, 1))
        others = [n for d, n in enumerate(shape) if d != axis % len(shape)]
        self.axis = axis
        self.shape = shape
        self.channels = channels
        self.x = _from_channels(values, others, axis, dtype)
        self.dy = _from_channels(rng.normal(size=values.shape) + 0.3, others, axis, dtype)
        self.residual = _from_channels(rng.normal(size=values.shape), others, axis, dtype)
        self.gamma = (rng.uniform(0.5, 1.5, channels) * rng.choice([-1, 1], channels)).astype(dtype)
        self.beta = rng.normal(size=channels).astype(dtype)
        self.mean = rng.normal(size=channels).astype(dtype)
        self.var = rng.uniform(0.5, 2, channels).astype(dtype)


def _from_channels(values, others, axis, dtype):
    array = np.moveaxis(values.reshape(len(values), *others), 0, axis)
    return np.ascontiguousarray(array, dtype)


def tolerance(dtype) -> float:
    return 2e-6 if np.dtype(dtype).itemsize == 4 else 1e-12


def assert_close(got, want, scale, dtype):
    """Check `|got - want| <= tolerance * scale`, give or take the rounding of `want` itself."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape
    assert np.array_equal(np.isnan(got), np.isnan(want))
    error = np.nan_to_num(np.abs(got.astype(np.float64) - want))
    bound = tolerance(dtype) * np.broadcast_to(scale, want.shape)
    bound = bound + 0.5 * np.spacing(np.abs(np.nan_to_num(want)).astype(got.dtype))
    worst = np.argmax(error - bound) if error.size else 0
    assert np.all(error <= bound), (
        f"off by {error.flat[worst]:.3g}, allowed {bound.flat[worst]:.3g}, worst of {error.size}"
    )


def peak(array) -> float:
    return max(float(np.max(np.abs(array), initial=0)), 1e-30)


def assert_stats(stats, want, dtype):
    channels = want.mean.shape
    for array in (stats.mean, stats.var, stats.inv_std):
        assert array.dtype == np.float64
        assert array.shape == channels
    assert isinstance(stats.count, int)
    assert stats.count == want.count
    assert_close(stats.mean, want.mean, np.sqrt(want.var) + 0.01 * np.abs(want.mean), dtype)
    assert_close(stats.var, want.var, want.var, dtype)
    assert_close(stats.inv_std, want.inv_std, want.inv_std, dtype)


def assert_forward(y, want, dtype):
    assert y.dtype == dtype
    assert_close(y, want, max(peak(want), 1), dtype)


def assert_gradients(got, want, terms, axis, dtype):
    """Check (dx, dgamma, dbeta).

    `terms` are the summands (dy, dy * x_hat, gamma * inv_std * dy): a sum may be off by rounding
    in proportion to the norm of its summands, dx in proportion to its own largest summand.
    """
    assert got[0].dtype == dtype
    assert got[1].dtype == got[2].dtype == np.dtype(dtype).newbyteorder("=")
    g, g_x_hat, scaled = terms
    others = tuple(d for d in range(g.ndim) if d != axis % g.ndim)
    assert_close(got[0], want[0], 2 * np.max(np.abs(scaled), axis=others, keepdims=True), dtype)
    assert_close(got[1], want[1], 2 * np.sqrt((g_x_hat**2).sum(axis=others)), dtype)
    assert_close(got[2], want[2], 2 * np.sqrt((g**2).sum(axis=others)), dtype)


def terms(dy, x, mean, var, gamma, axis, y=None, eps=1e-5):
    g = np.asarray(reference.masked(dy, y), np.float64)
    x_hat = np.asarray(reference.normalized(x, mean, var, eps, axis), np.float64)
    scaled = reference.batch_norm_infer_backward(dy, x, mean, var, gamma, eps=eps, axis=axis, y=y)
    return g, g * x_hat, scaled[0]


def check_train(case, dtype, gamma=None, beta=None, **fused):
    """Forward and backward with batch statistics, against the reference."""
    options = {"axis": case.axis}
    y, stats = fn.batch_norm_train(case.x, gamma, beta, **options, **fused)
    want, want_stats = reference.batch_norm_train(case.x, gamma, beta, **options, **fused)
    assert_stats(stats, want_stats, dtype)
    assert_forward(y, want, dtype)

    if fused.get("activation"):
        options["y"] = y
    got = fn.batch_norm_backward(case.dy, case.x, stats, gamma, **options)
    truth = reference.batch_norm_backward(case.dy, case.x, gamma, **options)
    scales = terms(case.dy, case.x, want_stats.mean, want_stats.var, gamma, **options)
    assert_gradients(got, truth, scales, case.axis, dtype)


def check_infer(case, dtype, gamma=None, beta=None, **fused):
    """Forward and backward with given statistics, against the reference."""
    options = {"axis": case.axis}
    given = (case.mean, case.var)
    y = fn.batch_norm_infer(case.x, *given, gamma, beta, **options, **fused)
    want = reference.batch_norm_infer(case.x, *given, gamma, beta, **options, **fused)
    assert_forward(y, want, dtype)

    if fused.get("activation"):
        options["y"] = y
    got = fn.batch_norm_infer_backward(case.dy, case.x, *given, gamma, **options)
    truth = reference.batch_norm_infer_backward(case.dy, case.x, *given, gamma, **options)
    scales = terms(case.dy, case.x, *given, gamma, **options)
    assert_gradients(got, truth, scales, case.axis, dtype)


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


# ----------------------------------------------------------------------- strides and memory


def sliced(array):
    """Every second entry of a larger array, along each axis."""
    big = np.full([2 * n + 1 for n in array.shape], np.nan, array.dtype)
    view = big[tuple(slice(1, None, 2) for _ in array.shape)]
    view[...] = array
    return view


def flipped(array):
    """Negative strides along each axis."""
    every = (slice(None, None, -1),) * array.ndim
    return np.ascontiguousarray(array[every])[every]


def padded(array):
    """Contiguous rows of a wider array, as a slice of columns is."""
    big = np.full((*array.shape[:-1], array.shape[-1] + 3), np.nan, array.dtype)
    big[..., 1:-2] = array
    return big[..., 1:-2]


def rotated(array):
    """The memory order of channels last for an array whose channels come second."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)


def swapped_tail(array):
    """Memory order in which the last two axes changed places."""
    return np.ascontiguousarray(array.swapaxes(-1, -2)).swapaxes(-1, -2)


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def misaligned(array):
    memory = np.empty(array.nbytes + 1, np.uint8)
    view = np.frombuffer(memory.data, array.dtype, offset=1, count=array.size).reshape(array.shape)
    view[...] = array
    return view


def big_endian(array):
    return array.astype(array.dtype.newbyteorder(">"))


VIEWS = [sliced, flipped, padded, rotated, swapped_tail, np.asfortranarray, misaligned, np.array]
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


# ------------------------------------------------------------------------ running statistics


@pytest.mark.parametrize("buffers", DTYPES)
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
    worse = np.result_type(buffers, dtype) if buffers == dtype else np.float32
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
def test_empty_batch(shape, axis, dtype):
    x = np.empty(shape, dtype)
    channels = shape[axis]
    mean, var = np.full(channels, 0.5, dtype), np.full(channels, 2, dtype)
    gamma = np.ones(channels, dtype)

    y, stats = fn.batch_norm_train(x, gamma, axis=axis)
    assert y.shape == shape
    assert y.dtype == dtype
    assert stats.count == 0
    assert stats.mean.shape == stats.var.shape == stats.inv_std.shape == (channels,)
    fn.update_running_stats(mean, var, stats)
    assert fn.batch_norm(x, mean, var, training=True, axis=axis).shape == shape
    assert np.all(mean == 0.5)
    assert np.all(var == 2)

    assert fn.batch_norm_infer(x, mean, var, gamma, axis=axis).shape == shape
    for dx, dgamma, dbeta in (
        fn.batch_norm_backward(x, x, stats, gamma, axis=axis),
        fn.batch_norm_infer_backward(x, x, mean, var, gamma, axis=axis),
    ):
        assert dx.shape == shape
        for vector in (dgamma, dbeta):
            assert vector.dtype == dtype
            np.testing.assert_array_equal(vector, np.zeros(channels))


# ---------------------------------------------------------------------------- thread identity


def batch_norm_results():
    import numpy as np

    from nbbn import functional as fn

    rng = np.random.default_rng(0)
    shapes = [((2, 3), 1), ((65, 7), 1), ((3, 5, 4, 4), 1), ((5000, 33), 1), ((300_000, 1), 1)]
    shapes += [((9, 16, 30, 31), 1), ((3, 70_001), 0), ((100, 2000), 1), ((40, 100, 7, 7), 1)]
    shapes += [((130, 2, 60, 61), 1), ((2, 2, 200_001), 1), ((900, 40, 5, 5), 1)]
    for dtype in (np.float32, np.float64):
        for shape, axis in shapes:
            x, dy, residual = (rng.normal(size=shape).astype(dtype) + 1 for _ in range(3))
            vectors = [rng.uniform(0.5, 2, shape[axis]).astype(dtype) for _ in range(4)]
            mean, var, gamma, beta = vectors
            fused = {"activation": "relu", "residual": residual, "axis": axis}
            y, stats = fn.batch_norm_train(x, gamma, beta, axis=axis)
            fused_y, _ = fn.batch_norm_train(x, gamma, beta, **fused)
            results = [y, *stats[:3], fused_y]
            results += fn.batch_norm_backward(dy, x, stats, gamma, axis=axis)
            results += fn.batch_norm_backward(dy, x, stats, gamma, axis=axis, y=fused_y)
            results += [fn.batch_norm_infer(x, mean, var, gamma, beta, axis=axis)]
            results += [fn.batch_norm_infer(x, mean, var, gamma, beta, **fused)]
            results += fn.batch_norm_infer_backward(dy, x, mean, var, gamma, axis=axis)
            results += fn.batch_norm_infer_backward(dy, x, mean, var, gamma, axis=axis, y=fused_y)
            for position, array in enumerate(results):
                yield f"{np.dtype(dtype)} {shape} result {position}", array


def test_same_bits_for_any_number_of_threads(check_thread_identity):
    check_thread_identity(batch_norm_results)


@pytest.mark.parametrize(("shape", "axis"), [((2000, 60), 1), ((8, 16, 30, 31), 1)])
def test_same_bits_for_any_strides(rng, shape, axis):
    """A copy into the canonical layout, where one is needed, changes nothing."""
    case = Case(rng, shape, axis, np.float32)
    want, _ = fn.batch_norm_train(case.x, case.gamma, case.beta, axis=axis)
    for view in (sliced, flipped, padded, read_only):
        got, _ = fn.batch_norm_train(view(case.x), case.gamma, case.beta, axis=axis)
        np.testing.assert_array_equal(got, want)


# ------------------------------------------------------------------------------------- errors

X = np.arange(12.0).reshape(4, 3)
ROW = np.ones(3)
STATS = fn.BatchNormStats(np.zeros(3), np.ones(3), np.ones(3), 4)


def everything(x):
    """Every function that takes x, called with `x` and otherwise valid arguments for (4, 3)."""
    return [
        lambda: fn.batch_norm_train(x),
        lambda: fn.batch_norm_infer(x, ROW, ROW),
        lambda: fn.batch_norm_backward(X, x, STATS),
        lambda: fn.batch_norm_infer_backward(X, x, ROW, ROW),
        lambda: fn.batch_norm(x, ROW.copy(), ROW.copy()),
        lambda: fn.batch_norm(x, ROW.copy(), ROW.copy(), training=True),
    ]


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_, np.complex64, object])
@pytest.mark.parametrize("which", range(6))
def test_type_of_x(which, dtype):
    with pytest.raises(DTypeError, match=str(np.dtype(dtype))):
        everything(np.ones((4, 3), dtype))[which]()


@pytest.mark.parametrize("shape", [(), (3,), (1, 1, 1, 1, 3, 1)])
@pytest.mark.parametrize("which", range(6))
def test_rank_of_x(which, shape):
    with pytest.raises(ShapeError):
        everything(np.ones(shape))[which]()


@pytest.mark.parametrize("shape", [(4, 0), (4, 0, 5), (0, 0)])
def test_no_channels(shape):
    x, empty = np.ones(shape), np.ones(0)
    with pytest.raises(ShapeError, match="channel"):
        fn.batch_norm_train(x)
    with pytest.raises(ShapeError, match="channel"):
        fn.batch_norm_infer(x, empty, empty)
    with pytest.raises(ShapeError, match="channel"):
        fn.batch_norm(x, empty, empty, training=True)


@pytest.mark.parametrize("axis", [2, -3, 17])
def test_axis_out_of_range(axis):
    for call in (
        lambda: fn.batch_norm_train(X, axis=axis),
        lambda: fn.batch_norm_infer(X, ROW, ROW, axis=axis),
        lambda: fn.batch_norm_backward(X, X, STATS, axis=axis),
        lambda: fn.batch_norm_infer_backward(X, X, ROW, ROW, axis=axis),
        lambda: fn.batch_norm(X, ROW.copy(), ROW.copy(), axis=axis),
    ):
        with pytest.raises((ShapeError, ArgumentError), match=f"axis.*{axis}"):
            call()


@pytest.mark.parametrize(
    ("shape", "axis"), [((1, 5), 1), ((5, 1), 0), ((1, 5, 1, 1), 1), ((1, 1, 7), -1), ((1, 1), 1)]
)
def test_one_value_per_channel(shape, axis):
    x = np.ones(shape, np.float32)
    buffers = [np.full(shape[axis], 0.5) for _ in range(2)]
    with pytest.raises((ShapeError, ArgumentError), match="Expected more than 1 value per channel"):
        fn.batch_norm_train(x, axis=axis)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        fn.batch_norm(x, *buffers, training=True, axis=axis)
    assert np.all(np.equal(buffers, 0.5))


@pytest.mark.parametrize("eps", [0, 0.0, -1e-5, np.nan, 10**400])
def test_eps_in_training(eps):
    for call in (
        lambda: fn.batch_norm_train(X, eps=eps),
        lambda: fn.batch_norm(X, ROW.copy(), ROW.copy(), training=True, eps=eps),
    ):
        with pytest.raises(ArgumentError, match="eps"):
            call()


@pytest.mark.parametrize("eps", [-1e-5, np.nan])
def test_eps_in_inference(eps):
    for call in (
        lambda: fn.batch_norm_infer(X, ROW, ROW, eps=eps),
        lambda: fn.batch_norm_infer_backward(X, X, ROW, ROW, eps=eps),
        lambda: fn.batch_norm(X, ROW, ROW, eps=eps),
    ):
        with pytest.raises(ArgumentError, match="eps"):
            call()


def test_eps_zero_is_allowed_in_inference(rng):
    case = Case(rng, (6, 4), 1)
    given = (case.x, case.mean, case.var, case.gamma)
    assert_forward(
        fn.batch_norm_infer(*given, case.beta, eps=0),
        reference.batch_norm_infer(*given, case.beta, eps=0),
        np.float64,
    )
    assert_forward(
        fn.batch_norm(*given, case.beta, eps=0),
        reference.batch_norm_infer(*given, case.beta, eps=0),
        np.float64,
    )
    got = fn.batch_norm_infer_backward(case.dy, *given, eps=0)
    want = reference.batch_norm_infer_backward(case.dy, *given, eps=0)
    for array, truth in zip(got, want, strict=True):
        assert_close(array, truth, 10, np.float64)


FOUR = np.ones(4)
WRONG_VECTORS = {
    "train gamma": lambda v: fn.batch_norm_train(X, v),
    "train beta": lambda v: fn.batch_norm_train(X, None, v),
    "infer mean": lambda v: fn.batch_norm_infer(X, v, ROW),
    "infer var": lambda v: fn.batch_norm_infer(X, ROW, v),
    "infer gamma": lambda v: fn.batch_norm_infer(X, ROW, ROW, v),
    "infer beta": lambda v: fn.batch_norm_infer(X, ROW, ROW, None, v),
    "backward gamma": lambda v: fn.batch_norm_backward(X, X, STATS, v),
    "infer backward mean": lambda v: fn.batch_norm_infer_backward(X, X, v, ROW),
    "infer backward var": lambda v: fn.batch_norm_infer_backward(X, X, ROW, v),
    "infer backward gamma": lambda v: fn.batch_norm_infer_backward(X, X, ROW, ROW, v),
    "update running_mean": lambda v: fn.update_running_stats(v, ROW.copy(), STATS),
    "update running_var": lambda v: fn.update_running_stats(ROW.copy(), v, STATS),
    "batch_norm running_mean": lambda v: fn.batch_norm(X, v, ROW.copy()),
    "batch_norm running_var": lambda v: fn.batch_norm(X, ROW.copy(), v, training=True),
    "batch_norm gamma": lambda v: fn.batch_norm(X, ROW, ROW, v),
    "batch_norm beta": lambda v: fn.batch_norm(X, ROW.copy(), ROW.copy(), None, v, training=True),
}


@pytest.mark.parametrize("shape", [(4,), (1,), (0,), (), (1, 3), (3, 1)])
@pytest.mark.parametrize("name", WRONG_VECTORS)
def test_shape_of_a_vector(name, shape):
    with pytest.raises(ShapeError, match=name.split()[-1]):
        WRONG_VECTORS[name](np.ones(shape))


@pytest.mark.parametrize("dtype", [np.int32, np.complex128, object])
@pytest.mark.parametrize("name", WRONG_VECTORS)
def test_type_of_a_vector(name, dtype):
    with pytest.raises(DTypeError, match=name.split()[-1]):
        WRONG_VECTORS[name](np.ones(3, dtype))


WRONG_ARRAYS = {
    "train residual": lambda a: fn.batch_norm_train(X, residual=a),
    "train out": lambda a: fn.batch_norm_train(X, out=a),
    "infer residual": lambda a: fn.batch_norm_infer(X, ROW, ROW, residual=a),
    "infer out": lambda a: fn.batch_norm_infer(X, ROW, ROW, out=a),
    "backward dy": lambda a: fn.batch_norm_backward(a, X, STATS),
    "backward y": lambda a: fn.batch_norm_backward(X, X, STATS, y=a),
    "backward out": lambda a: fn.batch_norm_backward(X, X, STATS, out=a),
    "infer backward dy": lambda a: fn.batch_norm_infer_backward(a, X, ROW, ROW),
    "infer backward y": lambda a: fn.batch_norm_infer_backward(X, X, ROW, ROW, y=a),
    "infer backward out": lambda a: fn.batch_norm_infer_backward(X, X, ROW, ROW, out=a),
    "batch_norm out": lambda a: fn.batch_norm(X, ROW.copy(), ROW.copy(), training=True, out=a),
}


@pytest.mark.parametrize("shape", [(3, 4), (1, 3), (4, 3, 1), (12,), (5, 3)])
@pytest.mark.parametrize("name", WRONG_ARRAYS)
def test_shape_of_an_array(name, shape):
    with pytest.raises(ShapeError, match=name.split()[-1]):
        WRONG_ARRAYS[name](np.ones(shape))


@pytest.mark.parametrize("dtype", [np.int64, np.complex64, object])
@pytest.mark.parametrize("name", WRONG_ARRAYS)
def test_type_of_an_array(name, dtype):
    with pytest.raises(DTypeError, match=name.split()[-1]):
        WRONG_ARRAYS[name](np.ones((4, 3), dtype))


@pytest.mark.parametrize("name", [name for name in WRONG_ARRAYS if name.endswith("out")])
def test_out_must_fit(name):
    with pytest.raises(DTypeError, match="float32"):
        WRONG_ARRAYS[name](np.ones((4, 3), np.float32))
    with pytest.raises(ArgumentError, match="read-only"):
        WRONG_ARRAYS[name](read_only(np.ones((4, 3))))
    with pytest.raises(DTypeError, match="list"):
        WRONG_ARRAYS[name]([[0.0] * 3] * 4)


def test_stats_of_another_array():
    narrow = fn.BatchNormStats(np.zeros(2), np.ones(2), np.ones(2), 4)
    with pytest.raises(ShapeError):
        fn.batch_norm_backward(X, X, narrow)
    with pytest.raises(ShapeError):
        fn.update_running_stats(ROW.copy(), ROW.copy(), narrow)


def test_activation_unknown():
    for call in (
        lambda: fn.batch_norm_train(X, activation="gelu"),
        lambda: fn.batch_norm_infer(X, ROW, ROW, activation="gelu"),
    ):
        with pytest.raises(ArgumentError, match="gelu"):
            call()


def test_momentum_must_be_a_number():
    for momentum in (np.nan, np.inf):
        with pytest.raises(ArgumentError, match="momentum"):
            fn.update_running_stats(ROW.copy(), ROW.copy(), STATS, momentum=momentum)
        with pytest.raises(ArgumentError, match="momentum"):
            fn.batch_norm(X, ROW.copy(), ROW.copy(), training=True, momentum=momentum)
    for momentum in (np.array(np.nan), np.array(7.0)):
        with pytest.raises(ArgumentError, match="momentum"):
            fn.update_running_stats(ROW.copy(), ROW.copy(), STATS, momentum=momentum)
    for momentum in (np.array([0.1]), np.array("a"), np.array(0.1j)):
        with pytest.raises(DTypeError, match="momentum must be a number"):
            fn.update_running_stats(ROW.copy(), ROW.copy(), STATS, momentum=momentum)


def test_options_that_are_arrays():
    for axis in (np.array([0, 1]), np.array(1.0)):
        with pytest.raises(DTypeError, match="axis must be an integer, got ndarray"):
            fn.batch_norm_train(X, axis=axis)
    with pytest.raises(ArgumentError, match="activation must be one of"):
        fn.batch_norm_train(X, activation=np.array(["relu", "relu"]))


def test_one_buffer_without_the_other():
    for buffers in ((ROW, None), (None, ROW)):
        with pytest.raises(NbbnError, match="running_"):
            fn.batch_norm(X, *buffers)


def test_a_failed_call_leaves_the_buffers_alone():
    """Half an update would be worse than none."""
    mean, wrong = np.zeros(3), np.zeros(4)
    fixed = read_only(np.ones(3))
    for call in (
        lambda: fn.update_running_stats(mean, wrong, STATS),
        lambda: fn.update_running_stats(mean, fixed, STATS),
        lambda: fn.update_running_stats(fixed, mean, STATS),
        lambda: fn.update_running_stats(mean, ROW.copy(), STATS, momentum=np.nan),
        lambda: fn.batch_norm(X, mean, wrong, training=True),
        lambda: fn.batch_norm(X, mean, ROW.copy(), np.ones(2), training=True),
        lambda: fn.batch_norm(X, mean, ROW.copy(), training=True, eps=-1),
        lambda: fn.batch_norm(X, mean, ROW.copy(), training=True, momentum=np.nan),
        lambda: fn.batch_norm(X, mean, ROW.copy(), training=True, out=np.ones((3, 4))),
    ):
        with pytest.raises(NbbnError):
            call()
        np.testing.assert_array_equal(mean, np.zeros(3))
