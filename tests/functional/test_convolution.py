"""Convolutions of arrays: against PyTorch and the reference, every layout, threads, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from nbbn import functional as F  # noqa: N812
from nbbn.errors import ArgumentError, DTypeError, ShapeError
from tests.helpers import reference
from tests.helpers.layers import assert_near
from tests.helpers.refusals import refusing

# kernel, stride, padding, dilation, groups, channels, filters.
TABLE = [
    ((3, 3), (1, 1), (0, 0), (1, 1), 1, 4, 6),
    ((3, 3), (1, 1), (1, 1), (1, 1), 1, 1, 8),
    ((3, 3), (2, 2), (1, 1), (1, 1), 1, 4, 6),
    ((5, 2), (1, 3), (2, 1), (1, 1), 1, 3, 2),
    ((3, 2), (2, 1), (4, 3), (2, 3), 1, 2, 3),
    ((1, 1), (1, 1), (0, 0), (1, 1), 1, 5, 7),
    ((1, 1), (2, 3), (1, 0), (1, 1), 1, 4, 2),
    ((2, 2), (3, 3), (0, 0), (1, 1), 1, 3, 3),
    ((3, 3), (1, 2), (1, 2), (2, 1), 2, 4, 6),
    ((3, 3), (1, 1), (1, 1), (1, 1), 4, 4, 4),
    ((3, 1), (2, 1), (1, 0), (1, 1), 3, 3, 9),
    ((9, 11), (1, 1), (0, 0), (1, 1), 1, 2, 3),
]
every_window = pytest.mark.parametrize("row", TABLE, ids=str)
every_axis = pytest.mark.parametrize("axis", [1, -1])


def laid_out(array, axis):
    return np.ascontiguousarray(np.moveaxis(array, 1, -1)) if axis == -1 else array


def first(array, axis):
    return np.moveaxis(array, -1, 1) if axis == -1 else array


@every_axis
@every_window
@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_forward_and_gradients_are_pytorchs(name, row, axis, rng):
    torch = pytest.importorskip("torch")
    kernel, stride, padding, dilation, groups, channels, filters = row
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    weight = rng.normal(size=(filters, channels // groups, *kernel))
    x, bias = rng.normal(size=(3, channels, 9, 11)), rng.normal(size=filters)
    if name == "conv_transpose2d":
        # The other way round: from filters to channels.
        options["output_padding"] = tuple(s - 1 for s in stride)
        x, bias = rng.normal(size=(3, filters, 5, 4)), rng.normal(size=channels)
    leaves = [torch.tensor(array, requires_grad=True) for array in (x, weight, bias)]
    y = getattr(F, name)(laid_out(x, axis), weight, bias, axis=axis, **options)
    expected = getattr(torch.nn.functional, name)(*leaves, **options)
    assert_near(first(y, axis), expected.detach().numpy())
    dy = rng.normal(size=expected.shape)
    expected.backward(torch.tensor(dy))
    dx, *rest = getattr(F, f"{name}_backward")(
        laid_out(dy, axis), laid_out(x, axis), weight, axis=axis, **options
    )
    for got, leaf in zip((first(dx, axis), *rest), leaves, strict=True):
        assert_near(got, leaf.grad.numpy())


@every_axis
@every_window
def test_float32_is_near_the_reference(row, axis, rng):
    kernel, stride, padding, dilation, groups, channels, filters = row
    x = rng.normal(size=(2, channels, 12, 13)).astype(np.float32)
    weight = rng.normal(size=(filters, channels // groups, *kernel)).astype(np.float32)
    y = F.conv2d(
        laid_out(x, axis), weight, stride=stride, padding=padding, dilation=dilation,
        groups=groups, axis=axis,
    )  # fmt: skip
    assert y.dtype == np.float32
    want = reference.convolution(
        x, weight, stride=stride, pads=[(p, p) for p in padding], dilation=dilation, groups=groups
    )
    # One rounding a summand, of numbers of size 1.
    assert_near(first(y, axis), want, np.finfo(np.float32).eps * weight[0].size ** 0.5)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [5, 6, 7, 8])
def test_same_divides_the_size_by_the_stride_and_pads_more_behind(size, kernel, stride, rng):
    x, weight = rng.normal(size=(1, 2, size, size)), rng.normal(size=(3, 2, kernel, kernel))
    y = F.conv2d(x, weight, padding="same", stride=stride)
    out = -(-size // stride)
    total = max((out - 1) * stride + kernel - size, 0)
    pads = ((total // 2, total - total // 2),) * 2
    assert y.shape == (1, 3, out, out)
    assert_near(y, reference.convolution(x, weight, stride=(stride, stride), pads=pads))
    np.testing.assert_array_equal(y, F.conv2d(x, weight, padding=pads, stride=stride))


def test_numbers_of_padding_mean_what_they_say(rng):
    x, weight = rng.normal(size=(2, 3, 6, 7)), rng.normal(size=(4, 3, 3, 3))
    by_hand = np.pad(x, ((0, 0), (0, 0), (1, 0), (2, 3)))
    expected = F.conv2d(by_hand, weight)
    np.testing.assert_array_equal(F.conv2d(x, weight, padding=((1, 0), (2, 3))), expected)
    np.testing.assert_array_equal(F.conv2d(x, weight, padding="valid"), F.conv2d(x, weight))
    np.testing.assert_array_equal(
        F.conv2d(x, weight, padding=2), F.conv2d(x, weight, padding=[[2, 2], (2, 2)])
    )


@every_axis
def test_identities(axis, rng):
    """A kernel of one 1 shifts; a 1x1 kernel is a matrix product; both sides are adjoint."""
    x = rng.normal(size=(2, 5, 6, 3))
    channels = x.shape[axis]
    one = np.zeros((channels, 1, 3, 3))
    one[:, :, 1, 1] = 1
    np.testing.assert_array_equal(F.conv2d(x, one, padding=1, groups=channels, axis=axis), x)
    weight = rng.normal(size=(4, channels, 1, 1))
    product = np.einsum("oc,nchw->nohw", weight[:, :, 0, 0], first(x, axis))
    assert_near(first(F.conv2d(x, weight, axis=axis), axis), product)
    weight = rng.normal(size=(4, channels, 3, 2))
    y = F.conv2d(x, weight, stride=(1, 2), axis=axis, padding=1)
    dy = rng.normal(size=y.shape)
    back = F.conv_transpose2d(
        dy, weight, stride=(1, 2), axis=axis, padding=1,
        output_padding=(0, (x.shape[3 if axis == 1 else 2]) % 2),
    )  # fmt: skip
    assert back.shape == x.shape
    assert np.vdot(y, dy) == pytest.approx(np.vdot(x, back), rel=1e-12)


def test_only_what_is_needed_is_computed(rng):
    x, weight = rng.normal(size=(2, 3, 5, 5)), rng.normal(size=(4, 3, 3, 3))
    dy = rng.normal(size=(2, 4, 3, 3))
    every = F.conv2d_backward(dy, x, weight)
    for position in range(3):
        needs = tuple(i == position for i in range(3))
        found = F.conv2d_backward(dy, x, weight, needs=needs)
        assert [gradient is not None for gradient in found] == list(needs)
        np.testing.assert_array_equal(found[position], every[position])


@every_axis
def test_nan_and_infinity_reach_what_they_touch_alone(axis, rng):
    x = rng.normal(size=(2, 6, 6, 2) if axis == -1 else (2, 2, 6, 6))
    x[(0, 0, 0, 1) if axis == -1 else (0, 1, 0, 0)] = np.nan
    y = first(F.conv2d(x, rng.normal(size=(3, 2, 2, 2)), axis=axis), axis)
    assert np.isnan(y[0, :, 0, 0]).all()
    assert np.isnan(y).sum() == 3


X, W = np.ones((2, 4, 5, 6)), np.ones((6, 4, 3, 3))
NAMES = {"F": F, "np": np, "X": X, "W": W, "DY": np.ones((2, 6, 3, 4))}
test_refusals = refusing(
    [
        ("F.conv2d(X, np.ones((6, 4, 6, 3)))", ShapeError, r"\(6, 3\).*\(5, 6\)"),
        ("F.conv2d(X, W, dilation=3)", ShapeError, r"covers \(7, 7\).*\(5, 6\)"),
        ("F.conv2d(X, W, padding=1, dilation=4)", ShapeError, r"covers \(9, 9\).*\(7, 8\) with"),
        ("F.conv2d(X, W, groups=2)", ShapeError, "takes 8 channels.*with 4"),
        ("F.conv2d(X, np.ones((5, 2, 3, 3)), groups=2)", ShapeError, "multiple of 2.*got 5 filt"),
        ("F.conv2d(X[0], W)", ShapeError, r"\(N, C, H, W\), got \(4, 5, 6\)"),
        ("F.conv2d(X[0], W, axis=-1)", ShapeError, r"\(N, H, W, C\), got \(4, 5, 6\)"),
        ("F.conv2d(X, W[0])", ShapeError, r"weight.*got \(4, 3, 3\)"),
        ("F.conv2d(X, W[:0])", ShapeError, r"at least 1 each, got \(0, 4, 3, 3\)"),
        ("F.conv2d(X[:, :, :0], W, padding=9)", ShapeError, r"\(2, 4, 0, 6\)"),
        ("F.conv2d(X, W, axis=-1)", ShapeError, "takes 4 channels.*with 6"),
        ("F.conv2d(X, W, stride=0)", ArgumentError, "stride must be at least 1, got 0"),
        ("F.conv2d(X, W, stride=(1, -2))", ArgumentError, "stride must be at least 1, got -2"),
        ("F.conv2d(X, W, dilation=0)", ArgumentError, "dilation must be at least 1, got 0"),
        ("F.conv2d(X, W, groups=0)", ArgumentError, "groups must be at least 1, got 0"),
        ("F.conv2d(X, W, padding=-1)", ArgumentError, "padding must be at least 0, got -1"),
        ("F.conv2d(X, W, padding=(1, 2, 3))", ArgumentError, r"two.*\(1, 2, 3\)"),
        ("F.conv2d(X, W, padding=(1, (2, 3)))", ArgumentError, r"pairs, got \(1, \(2, 3\)\)"),
        ("F.conv2d(X, W, padding='full')", ArgumentError, '"same" or "valid", got \'full\''),
        ("F.conv2d(X, W, stride=1.5)", DTypeError, "stride must be an integer, got float"),
        ("F.conv2d(X, W, axis=2)", ArgumentError, "axis must be 1.*or -1.*got 2"),
        ("F.conv2d_backward(DY, X, W, needs=True)", DTypeError, "three.*True"),
        ("F.conv_transpose2d(X, W)", ShapeError, "takes 6 channels.*with 4"),
        ("F.conv_transpose2d(X, W[:4], padding=5)", ShapeError, r"\(-3, -2\) pixels.*pad less"),
        ("F.conv_transpose2d(X, W[:4], output_padding=1)", ArgumentError, r"stride \(1, 1\), got"),
        ("F.conv_transpose2d(X, W[:4], padding='same')", ArgumentError, '"same": give the numbers'),
        ("F.conv_transpose2d(X, W[:4], groups=3)", ShapeError, "multiple of groups=3"),
        ("F.conv_transpose2d_backward(DY, X, W[:4])", ShapeError, r"\(2, 4, 7, 8\), got"),
    ],
    NAMES,
)
