"""Pooling: against PyTorch in every option, ties and NaN, memory order, what is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import nbbn
from nbbn import functional as F  # noqa: N812 - the usual name
from nbbn.errors import ArgumentError, DTypeError, ShapeError
from nbbn.functional.pooling import max_pool2d_at
from tests.helpers import reference
from tests.helpers.refusals import refusing

OPTIONS = [
    {"size": size, "stride": stride, "padding": padding, "dilation": dilation, "ceil_mode": up}
    for size, stride, padding, dilation, up in itertools.product(
        (2, 3, (1, 4)), (None, 1, (2, 3)), (0, (1, 0)), (1, (2, 1)), (False, True)
    )
    if padding == 0 or size != (1, 4)
]


def by_name(options):
    return "-".join(map(str, options.values()))


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("options", OPTIONS, ids=by_name)
def test_maxima_are_those_of_torch(options, axis, rng):
    torch = pytest.importorskip("torch")
    for H, W in ((7, 9), (6, 19)):
        # Many ties, and windows of nothing but -Inf.
        x = rng.integers(-3, 3, (2, 3, H, W)).astype(np.float64)
        x[x < -2] = -np.inf
        x[1, 1, 2:5, 2:5] = -np.inf
        leaf = torch.tensor(x, requires_grad=True)
        expected = torch.nn.functional.max_pool2d(
            leaf, options["size"], **{k: v for k, v in options.items() if k != "size"}
        )
        dy = rng.normal(size=expected.shape)
        (gradient,) = torch.autograd.grad(expected, leaf, torch.tensor(dy))
        ours = np.ascontiguousarray(np.moveaxis(x, 1, axis))
        y, index = F.max_pool2d(ours, axis=axis, **options)
        dx = F.max_pool2d_backward(
            np.moveaxis(dy, 1, axis), index, ours.shape, axis=axis, **options
        )
        np.testing.assert_array_equal(np.moveaxis(y, axis, 1), expected.detach().numpy())
        np.testing.assert_allclose(np.moveaxis(dx, axis, 1), gradient.numpy(), 1e-14, 1e-14)
        picked = max_pool2d_at(ours, index, axis=axis, **options)
        np.testing.assert_array_equal(picked, y)


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize("options", OPTIONS, ids=by_name)
def test_means_are_those_of_the_reference_and_of_torch(options, count_include_pad, axis, rng):
    torch = pytest.importorskip("torch")
    for H, W in ((7, 9), (6, 19)):
        x = rng.normal(size=(2, 3, H, W))
        given = {**options, "count_include_pad": count_include_pad}
        ours = np.ascontiguousarray(np.moveaxis(x, 1, axis))
        y = F.avg_pool2d(ours, axis=axis, **given)
        expected = reference.pooled(ours, mean=True, axis=axis, **given)
        np.testing.assert_allclose(y, expected, 1e-13, 1e-13)
        # The gradient of a linear function is its transpose.
        dy = rng.normal(size=y.shape)
        dx = F.avg_pool2d_backward(dy, ours.shape, axis=axis, **given)
        np.testing.assert_allclose((dx * ours).sum(), (dy * y).sum(), 1e-12)
        if given.pop("dilation") == 1:
            size = given.pop("size")
            leaf = torch.tensor(x, requires_grad=True)
            theirs = torch.nn.functional.avg_pool2d(leaf, size, **given)
            (gradient,) = torch.autograd.grad(
                theirs, leaf, torch.tensor(np.ascontiguousarray(np.moveaxis(dy, axis, 1)))
            )
            np.testing.assert_allclose(np.moveaxis(y, axis, 1), theirs.detach(), 1e-13, 1e-13)
            np.testing.assert_allclose(np.moveaxis(dx, axis, 1), gradient, 1e-13, 1e-13)


@pytest.mark.parametrize("options", [{"size": 2}, {"size": 3, "stride": 1, "padding": 1}], ids=str)
def test_nan_is_the_maximum_and_gets_the_gradient(options, rng):
    torch = pytest.importorskip("torch")
    x = rng.normal(size=(2, 2, 6, 6)).astype(np.float32)
    x[rng.random(x.shape) < 0.2] = np.nan
    leaf = torch.tensor(x, requires_grad=True)
    expected = torch.nn.functional.max_pool2d(
        leaf, options["size"], options.get("stride"), options.get("padding", 0)
    )
    (gradient,) = torch.autograd.grad(expected, leaf, torch.ones_like(expected))
    y, index = F.max_pool2d(x, **options)
    np.testing.assert_array_equal(y, expected.detach().numpy())
    dx = F.max_pool2d_backward(np.ones_like(y), index, x.shape, **options)
    np.testing.assert_array_equal(dx, gradient.numpy())


def test_an_index_is_a_position_in_its_window():
    x = np.zeros((1, 1, 4, 4), np.float32)
    x[0, 0, 1, 0] = x[0, 0, 2, 3] = 1
    y, index = F.max_pool2d(x, 2)
    assert index.dtype == np.uint8
    np.testing.assert_array_equal(index[0, 0], [[2, 0], [0, 1]])
    y, index = F.global_max_pool2d(np.arange(600.0).reshape(1, 1, 20, 30))
    assert (index.dtype, index.item(), y.item()) == (np.uint16, 599, 599)
    wide = np.zeros((1, 300, 300, 1))
    wide[0, 299, 298] = 3
    y, index = F.global_max_pool2d(wide, axis=-1, keepdims=True)
    assert (index.dtype, index.item(), y.shape) == (np.uint32, 299 * 300 + 298, (1, 1, 1, 1))
    dx = F.global_max_pool2d_backward(y, index, wide.shape, axis=-1)
    np.testing.assert_array_equal(dx, wide)


@pytest.mark.parametrize("padding", [((0, 1), (1, 0)), ((1, 1), (0, 1))])
def test_sides_may_be_padded_differently(padding, rng):
    x = rng.normal(size=(2, 3, 6, 5))
    y, _ = F.max_pool2d(x, 3, stride=2, padding=padding)
    np.testing.assert_array_equal(y, reference.pooled(x, 3, stride=2, padding=padding))
    for counted in (True, False):
        options = {"stride": 2, "padding": padding, "count_include_pad": counted}
        y = F.avg_pool2d(x, 3, **options)
        np.testing.assert_allclose(y, reference.pooled(x, 3, mean=True, **options), 1e-13)


@pytest.mark.parametrize("options", [{"size": 2}, {"size": 3, "stride": 1, "padding": 1}], ids=str)
def test_memory_in_the_other_order_is_used_as_it_is(options, rng):
    """Images with channels last in memory and axis 1, and the other way round."""
    x = rng.normal(size=(2, 3, 6, 8)).astype(np.float32)
    for axis, there, back in ((1, (0, 2, 3, 1), (0, 3, 1, 2)), (-1, (0, 3, 1, 2), (0, 2, 3, 1))):
        other = x.transpose(there).copy().transpose(back)
        y, index = F.max_pool2d(x, axis=axis, **options)
        other_y, other_index = F.max_pool2d(other, axis=axis, **options)
        assert other_y.transpose(there).flags.c_contiguous
        np.testing.assert_array_equal(y, other_y)
        np.testing.assert_array_equal(index, other_index)
        dx = F.max_pool2d_backward(y, index, x.shape, axis=axis, **options)
        other_dx = F.max_pool2d_backward(other_y, index, x.shape, axis=axis, **options)
        np.testing.assert_allclose(dx, other_dx, 1e-6)
        means = F.avg_pool2d(x, axis=axis, **options), F.avg_pool2d(other, axis=axis, **options)
        np.testing.assert_allclose(*means, 1e-6)
        for function in (F.global_avg_pool2d, lambda a, axis: F.global_max_pool2d(a, axis=axis)[0]):
            np.testing.assert_allclose(function(x, axis=axis), function(other, axis=axis), 1e-6)


def test_means_of_whole_images_add_up_in_float64():
    x = np.full((2, 2, 500, 400), 0.1, np.float32)
    for axis in (1, -1, 3, -3):
        np.testing.assert_array_equal(F.global_avg_pool2d(x, axis=axis), np.float32(0.1))


def test_an_index_of_ones_own_stays_inside(rng):
    """Whatever it says, nothing outside the gradient is written."""
    for axis in (1, -1):
        dy = rng.normal(size=(2, 3, 3, 3))
        for tap in (0, 8, 9, 255):
            index = np.full(dy.shape, tap, np.uint8)
            options = {"size": 3, "stride": 2, "padding": 1, "axis": axis}
            shape = (2, 3, 5, 5) if axis == 1 else (2, 5, 5, 3)
            dx = F.max_pool2d_backward(dy, index, shape, **options)
            assert dx.shape == shape
            max_pool2d_at(dx, index, **options)


X = np.zeros((2, 3, 6, 5), np.float32)
Y, INDEX = F.max_pool2d(X, 2)
test_what_is_refused = refusing(
    [
        ("F.max_pool2d(X[0], 2)", ShapeError, r"4 dimensions.*\(3, 6, 5\)"),
        ("F.max_pool2d(X, 0)", ArgumentError, "size must be at least 1, got 0"),
        ("F.max_pool2d(X, 2.5)", DTypeError, "size must be an integer, got float"),
        ("F.max_pool2d(X, (2, 2, 2))", ArgumentError, "size must be a number or two.*2, 2, 2"),
        ("F.max_pool2d(X, 2, stride=0)", ArgumentError, "stride must be at least 1, got 0"),
        ("F.max_pool2d(X, 2, stride=-1)", ArgumentError, "stride must be at least 1, got -1"),
        ("F.max_pool2d(X, 2, dilation=0)", ArgumentError, "dilation must be at least 1, got 0"),
        ("F.max_pool2d(X, 2, padding=-1)", ArgumentError, "padding must be at least 0, got -1"),
        ("F.max_pool2d(X, 3, padding=2)", ArgumentError, "half a window, 1 of the 3 rows.*got 2"),
        ("F.avg_pool2d(X, 3, padding=((0, 0), (0, 2)))", ArgumentError, "1 of the 3 columns.*2"),
        ("F.max_pool2d(X, 2, padding=((0, 0),) * 3)", ArgumentError, "where it has pairs"),
        ("nbbn.MaxPool2d(3, padding=2)", ArgumentError, "half a window, 1 of the 3 rows.*got 2"),
        ("F.max_pool2d(X, (7, 2))", ShapeError, "over 7 rows.*image has 6"),
        ("F.avg_pool2d(X, 6)", ShapeError, "over 6 columns.*image has 5"),
        ("F.max_pool2d(X, 3, dilation=3)", ShapeError, "over 7 rows.*dilation 3.*image has 6"),
        ("F.max_pool2d(X[:, :, :1], 2, padding=(1, 0), dilation=(2, 1))", ShapeError, "miss"),
        ("F.max_pool2d(X, 2, axis=2)", ArgumentError, "axis must be 1.*or -1.*got 2"),
        ("F.max_pool2d(X, 2, ceil_mode='up')", DTypeError, "ceil_mode must be True or False"),
        ("F.avg_pool2d(X, 2, count_include_pad=2)", DTypeError, "count_include_pad"),
        ("F.max_pool2d(X[:, :0], 2)", ShapeError, r"pixels and channels.*\(2, 0, 6, 5\)"),
        ("F.global_avg_pool2d(X[:, :, :0])", ShapeError, r"pixels.*\(2, 3, 0, 5\)"),
        ("F.global_max_pool2d(X[..., :0])", ShapeError, r"pixels.*\(2, 3, 6, 0\)"),
        ("F.max_pool2d_backward(Y, INDEX[:1], X.shape, 2)", ShapeError, r"index.*\(2, 3, 3, 2\)"),
        ("F.max_pool2d_backward(Y, INDEX.astype(int), X.shape, 2)", DTypeError, "uint8.*int64"),
        ("F.max_pool2d_backward(Y, None, X.shape, 2)", DTypeError, "uint8.*NoneType"),
        ("F.max_pool2d_backward(Y, INDEX, (2, 3, 6), 2)", ShapeError, "four integers"),
        ("F.avg_pool2d_backward(Y, (2, 3, 8, 5), 2)", ShapeError, r"\(2, 3, 4, 2\).*\(2, 3, 3, 2"),
        ("F.global_avg_pool2d_backward([[1.0]], X.shape)", DTypeError, "dy.*ndarray, got list"),
        ("F.global_avg_pool2d_backward(Y, X.shape)", ShapeError, r"\(2, 3, 1, 1\).*\(2, 3, 3, 2"),
        ("F.global_avg_pool2d(X, keepdims='yes')", DTypeError, "keepdims"),
    ],
    {"nbbn": nbbn, "F": F, "X": X, "Y": Y, "INDEX": INDEX},
)  # fmt: skip
