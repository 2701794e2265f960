"""Layer, RMS, group and instance normalization: digits kept, order of sums, memory, refusals."""

from __future__ import annotations

import numpy as np
import pytest

import nbbn.functional as F  # noqa: N812 - the usual name
from nbbn.errors import ArgumentError, DTypeError, ShapeError
from nbbn.kernels import groupnorm_cpu
from tests.helpers import reference
from tests.helpers.refusals import refusing

# Each function with its options, and a shape: short runs, long ones, several pieces, and planes.
FORMS = [
    ("layer_norm", {}, (300, 64)),
    ("layer_norm", {}, (40, 768)),
    ("layer_norm", {"axis": 1}, (3, 7, 1000)),
    ("rms_norm", {"eps": 1e-6}, (40, 768)),
    ("group_norm", {"groups": 4}, (5, 8, 9, 11)),
    ("group_norm", {"groups": 2}, (30, 600)),
    ("group_norm", {"groups": 2, "axis": -1}, (5, 9, 11, 8)),
    ("instance_norm", {}, (4, 3, 40, 50)),
    ("instance_norm", {"axis": 2}, (4, 5, 3)),
]
every_form = pytest.mark.parametrize(("name", "options", "shape"), FORMS)
HAVE_BETA = ("layer_norm", "group_norm", "instance_norm")


def affine_shape(name, options, shape):
    if name in ("layer_norm", "rms_norm"):
        return shape[options.get("axis", -1) :]
    return (shape[options.get("axis", 1)],)


def vectors(rng, name, options, shape, dtype=np.float64):
    """Draw gamma, and beta where there is one."""
    found = rng.normal(size=(2, *affine_shape(name, options, shape))).astype(dtype)
    return tuple(found[: 1 + (name in HAVE_BETA)])


def backward(name, dy, x, stats, gamma, options, **outs):
    options = {key: value for key, value in options.items() if key != "eps"}
    return getattr(F, f"{name}_backward")(dy, x, stats, gamma, **options, **outs)


# ---------------------------------------------------------------------------------- accuracy


@pytest.mark.parametrize("ratio", [0, 1e2, 1e4, 1e6])
@every_form
def test_the_mean_costs_no_digits(rng, name, options, shape, ratio):
    """Errors in float32 do not grow with the mean: it is subtracted before anything is squared."""
    if name == "rms_norm":
        ratio = 0
    x = (rng.normal(size=shape) + ratio).astype(np.float32)
    y, stats = getattr(F, name)(x, **options)
    np.testing.assert_allclose(y, getattr(reference, name)(x, **options), rtol=0, atol=2e-6)
    wide = x.astype(np.float64)
    if name in ("layer_norm", "instance_norm"):
        first = options.get("axis", -1)
        axes = tuple(range(first % x.ndim, x.ndim))
        if name == "instance_norm":
            axes = tuple(d for d in range(1, x.ndim) if d != options.get("axis", 1))
        np.testing.assert_allclose(stats.var, wide.var(axes), rtol=2e-7)
        np.testing.assert_allclose(stats.mean, wide.mean(axes), rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6, 3e38, -1e-30])
@every_form
def test_a_constant_group_gives_exactly_beta(rng, name, options, shape, value):
    if name not in HAVE_BETA:
        return
    gamma, beta = vectors(rng, name, options, shape, np.float32)
    x = np.full(shape, value, np.float32)
    y, stats = getattr(F, name)(x, gamma, beta, **options)
    axis = 1 if name == "layer_norm" else options.get("axis", 1)
    along = beta if name == "layer_norm" else reference.along(beta, x, axis, 0)
    np.testing.assert_array_equal(y, np.broadcast_to(along, shape).astype(np.float32))
    assert not stats.var.any()
    assert not getattr(F, name)(x, **options)[0].any()


def outliers(x):
    x.reshape(len(x), -1)[:, 0] = 1e6
    return x


def margins(x):
    """Half of each example, where the sample that finds the shift looks, is another constant."""
    flat = x.reshape(len(x), -1)
    flat[:, : flat.shape[1] // 2] = -3e4
    return x


def huge(x):
    return x * np.float32(1e30)


@pytest.mark.parametrize("spoil", [outliers, margins, huge])
@every_form
def test_hard_values(rng, name, options, shape, spoil):
    x = spoil((rng.normal(size=shape) + 3).astype(np.float32))
    y, _ = getattr(F, name)(x, **options)
    want = getattr(reference, name)(x, **options)
    np.testing.assert_allclose(y, want, rtol=2e-6, atol=2e-6)


def in_groups(array, name, options):
    """Reshape so that each row is a group."""
    if name in ("layer_norm", "rms_norm"):
        return array.reshape(-1, int(np.prod(affine_shape(name, options, array.shape))))
    array = np.moveaxis(array, options.get("axis", 1), 1)
    return array.reshape(len(array) * options.get("groups", array.shape[1]), -1)


@pytest.mark.parametrize("ratio", [0, 1e2, 1e6])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@every_form
def test_gradients(rng, name, options, shape, dtype, ratio):
    """Against the formulas, spelled out in extended precision."""
    x, dy = rng.normal(0, 3, size=(2, *shape)).astype(dtype)
    x += dtype(ratio)
    gamma, *beta = vectors(rng, name, options, shape, dtype)
    _, stats = getattr(F, name)(x, gamma, *beta, **options)
    dx, *others = backward(name, dy, x, stats, gamma, options)
    trailing = name in ("layer_norm", "rms_norm")
    axis = options.get("axis", -1 if trailing else 1)
    x_hat = reference.wide(getattr(reference, name)(x, **options))
    g = reference.wide(dy)
    h = g * (gamma if trailing else reference.along(gamma, x, axis, 1))
    rows = tuple(in_groups(a, name, options) for a in (x, h, x_hat))
    want = reference.group_gradient(*rows, eps=options.get("eps", 1e-5), centered=bool(beta))
    bound = 1e-6 if dtype == np.float32 else 1e-13 + 1e-16 * ratio
    got = in_groups(dx, name, options)
    np.testing.assert_allclose(got, want, rtol=0, atol=bound * np.abs(want).max())
    for got, terms in zip(others, (g * x_hat, g), strict=False):
        if trailing:
            want = terms.sum(tuple(range(axis % x.ndim)))
        else:
            want = reference.channel_sum(terms, axis)
        size = np.abs(want).max()
        np.testing.assert_allclose(got, reference.narrow(want), rtol=0, atol=3 * bound * size)


@every_form
def test_nan_and_inf_stay_in_their_group(rng, name, options, shape):
    x = rng.normal(size=shape).astype(np.float32)
    clean, _ = getattr(F, name)(x, **options)
    for bad in (np.nan, np.inf):
        spoilt = x.copy()
        spoilt.reshape(-1)[7] = bad
        y, _ = getattr(F, name)(spoilt, **options)
        want = getattr(reference, name)(spoilt, **options)
        np.testing.assert_array_equal(np.isnan(y), np.isnan(want))
        assert np.isnan(y).any()
        kept = ~np.isnan(want) & (want != 0)
        np.testing.assert_array_equal(y[kept], clean[kept])


def test_squares_of_float64_overflow_only_where_they_must(rng):
    x = rng.normal(size=(3, 50)) * 1e150 + 1e160
    np.testing.assert_allclose(F.layer_norm(x)[0], reference.layer_norm(x), rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------- order


def test_kernels_write_inside_their_scratch(rng, monkeypatch):
    taken = []

    def guarded(wide, narrow, dtype):
        taken.extend((np.full(wide + 64, 7.25), np.full(narrow + 64, 7.25, dtype)))
        return taken[-2][:wide], taken[-1][:narrow]

    monkeypatch.setattr(groupnorm_cpu, "scratch", guarded)
    for _, options, shape in FORMS:
        if "groups" in options:
            x = rng.normal(size=shape).astype(np.float32)
            stats = F.group_norm(x, **options)[1]
            F.group_norm_backward(x, x, stats, **options)
    assert taken
    assert all((array[-64:] == 7.25).all() for array in taken)


# ------------------------------------------------------------------------------------ memory


def test_a_batch_of_single_values_gives_beta():
    """PyTorch refuses a single value a group only where the batch is one example."""
    x, beta = np.arange(8.0).reshape(2, 4), np.arange(4.0)
    np.testing.assert_array_equal(F.group_norm(x, None, beta, groups=4)[0], [beta, beta])
    np.testing.assert_array_equal(F.layer_norm(x[:, :1])[0], np.zeros((2, 1)))


# ---------------------------------------------------------------------------------- refusals

X = np.ones((2, 6, 3), np.float32)
STATS = {
    name: getattr(F, name)(X, **options)[1]
    for name, options in (
        ("layer_norm", {}), ("rms_norm", {}), ("group_norm", {"groups": 2}), ("instance_norm", {})
    )
}  # fmt: skip

test_refusals = refusing(
    [
        ("F.group_norm(X, groups=4)", ShapeError, r"6 channels.*\(2, 6, 3\).*4 groups"),
        ("F.group_norm(X[:1, :, :1], groups=6)", ShapeError, r"1 value.*\(1, 6, 1\).*6 groups"),
        ("F.group_norm(X[0, 0], groups=1)", ShapeError, r"2 dimensions.*\(3,\)"),
        ("F.group_norm(X[:, :0], groups=1)", ShapeError, r"no channels.*\(2, 0, 3\)"),
        ("F.group_norm(X, groups=2, axis=3)", ShapeError, "axis 3"),
        ("F.instance_norm(X[..., 0])", ShapeError, r"3 dimensions.*\(2, 6\)"),
        ("F.instance_norm(X[..., :1])", ShapeError, r"1 position.*\(2, 6, 1\)"),
        ("F.layer_norm(X[..., :0])", ShapeError, r"nothing to normalize.*-1.*\(0,\)"),
        ("F.rms_norm(X, eps=0)", ArgumentError, "eps.*> 0.*0"),
        ("F.layer_norm_backward(X, X, None)", DTypeError, "GroupStats.*NoneType"),
        ("F.layer_norm_backward(X, X, S['group_norm'])", ShapeError, "9 values.*has 3"),
        ("F.rms_norm_backward(X[:1], X[:1], S['rms_norm'])", ShapeError, r"\(1, 6\).*\(2, 6\)"),
        ("F.group_norm_backward(X, X, S['group_norm'], groups=3)", ShapeError, "9 values.*has 6"),
        ("F.instance_norm_backward(X, X, S['instance_norm']._replace(mean=None))", DTypeError,
         "stats.mean"),
        ("F.layer_norm_backward(X, X, S['layer_norm'], out_dgamma=(g := np.empty(3, 'f4')), "
         "out_dbeta=g)", ArgumentError, "share memory"),
    ],
    {"F": F, "X": X, "S": STATS, "np": np},
)  # fmt: skip
