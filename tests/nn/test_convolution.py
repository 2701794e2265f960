"""Layers of convolutions: what they learn, how they start, training, refusals."""

from __future__ import annotations

import numpy as np
import pytest

import nbbn
from nbbn import Conv2d, ConvTranspose2d, initializers
from nbbn import functional as F  # noqa: N812
from nbbn.errors import ArgumentError, DTypeError, ShapeError
from tests.helpers.layers import state_of
from tests.helpers.refusals import refusing

WIDE = {"dtype": np.float64}


def test_layers_compute_what_their_functions_do(rng):
    x = rng.normal(size=(2, 4, 6, 5))
    options = {"stride": (2, 1), "padding": ((1, 0), (0, 2)), "dilation": (1, 2), "groups": 2}
    layer = Conv2d(4, 6, (3, 2), rng=0, **options, **WIDE)
    layer.bias.data[...] = rng.normal(size=6)
    expected = F.conv2d(x, layer.weight.data, layer.bias.data, **options)
    np.testing.assert_array_equal(layer(x).data, expected)
    layer = ConvTranspose2d(4, 6, (3, 2), rng=0, output_padding=(1, 0), **options, **WIDE)
    layer.bias.data[...] = rng.normal(size=6)
    options["output_padding"] = 1, 0
    expected = F.conv_transpose2d(x, layer.weight.data, layer.bias.data, **options)
    np.testing.assert_array_equal(layer(x).data, expected)
    last = Conv2d(5, 3, 3, axis=-1, padding="same", rng=0, **WIDE)
    assert last(x).shape == (2, 4, 6, 3)


@pytest.mark.parametrize("kind", [Conv2d, ConvTranspose2d])
def test_a_layer_says_how_it_is_made(kind):
    for text in (
        "3, 6, 3",
        "3, 6, (3, 2), stride=2, padding=1, groups=3, axis=-1, bias=False",
        "4, 2, 1, stride=(2, 1), padding=((1, 0), (1, 0)), dilation=3",
    ):
        assert repr(eval(f"kind({text})")) == f"{kind.__name__}({text})"


@pytest.mark.parametrize(("kind", "options", "fans"), [
    (Conv2d, {}, (64 * 9, 128 * 9)),
    (Conv2d, {"groups": 4}, (16 * 9, 32 * 9)),
    (ConvTranspose2d, {}, (64 * 9, 128 * 9)),
    # Of nine pixels of the kernel, at most four meet in one of the result.
    (ConvTranspose2d, {"stride": 2, "groups": 4}, (16 * 4, 32 * 9)),
])  # fmt: skip
def test_weights_start_with_the_deviation_of_their_fans(kind, options, fans):
    for init, deviation in (
        ("he", (2 / fans[0]) ** 0.5),
        ("he_uniform", (2 / fans[0]) ** 0.5),
        ("glorot", (2 / sum(fans)) ** 0.5),
        ("glorot_uniform", (2 / sum(fans)) ** 0.5),
        (0.3, 0.3),
    ):
        layer = kind(64, 128, 3, init=init, rng=0, **options)
        assert float(layer.weight.data.std()) == pytest.approx(deviation, rel=0.02)
        assert not layer.bias.data.any()
    assert initializers.initialize("he", (8, 4, 3, 3), 0, "f4").shape == (8, 4, 3, 3)


def test_he_keeps_the_size_of_signals_through_relus(rng):
    x = rng.normal(size=(8, 16, 12, 12))
    for position in range(4):
        x = np.maximum(Conv2d(16, 16, 3, padding=1, rng=position, **WIDE)(x).data, 0)
    # The zeros around the images take a little away at each layer.
    assert 0.5 < float((x[:, :, 4:-4, 4:-4] ** 2).mean()) < 2


def net(seed=0, **options):
    return nbbn.Sequential(
        Conv2d(1, 4, 3, padding=1, bias=False, rng=seed, **options),
        nbbn.BatchNorm(4, activation="relu", **options),
        Conv2d(4, 6, 3, stride=2, rng=seed + 1, **options),
        nbbn.ReLU(),
        ConvTranspose2d(6, 2, 2, stride=2, rng=seed + 2, **options),
        nbbn.Flatten(),
        nbbn.Dense(72, 2, rng=seed + 3, **options),
    )


def test_it_learns_where_a_bar_stands(rng):
    x = 0.1 * rng.normal(size=(64, 1, 8, 8)).astype(np.float32)
    y = np.arange(64) % 2
    x[y == 1, 0, :, 3] += 1
    x[y == 0, 0, 3, :] += 1
    model = net()
    optimizer = nbbn.optim.Adam(model.parameters(), lr=1e-2)
    step = nbbn.train.record_step(model, nbbn.losses.cross_entropy, optimizer)
    losses = [step(x, y) for _ in range(30)]
    assert losses[-1] < 0.1 * losses[0]


def test_state_goes_out_and_in_and_only_images_of_its_channels():
    model = net()
    other = net(seed=9)
    other.load_state_dict(model.state_dict())
    assert state_of(other) == state_of(model)
    with pytest.raises(ShapeError, match=r"takes 1 channels.*\(2, 3, 8, 8\), with 3 channels"):
        model(np.ones((2, 3, 8, 8), np.float32))


def test_a_bias_in_front_of_a_batch_norm_is_named(caplog):
    with caplog.at_level("INFO", logger="nbbn"):
        nbbn.Sequential(Conv2d(1, 2, 3), nbbn.BatchNorm(2))
    assert "Conv2d(1, 2, 3) has a bias that" in caplog.text
    report = nbbn.inspect(
        nbbn.Sequential(Conv2d(1, 2, 3, rng=0), nbbn.BatchNorm(2)),
        np.random.default_rng(0).normal(size=(4, 1, 5, 5)).astype(np.float32), warn=False,
    )  # fmt: skip
    assert "has a bias that" in str(report.warnings)


test_refusals = refusing(
    [
        ("Conv2d(3, 4, 0)", ArgumentError, "kernel_size must be at least 1, got 0"),
        ("Conv2d(3, 4, (3, 3, 3))", ArgumentError, r"kernel_size must be a number or two.*3, 3, 3"),
        ("Conv2d(3, 4, 3, stride=0)", ArgumentError, "stride must be at least 1, got 0"),
        ("Conv2d(3, 4, 3, padding=-1)", ArgumentError, "padding must be at least 0, got -1"),
        ("Conv2d(3, 4, 3, padding='full')", ArgumentError, "got 'full'"),
        ("Conv2d(3, 4, 3, groups=2)", ArgumentError, "groups=2 must divide both.*=3 and.*=4"),
        ("Conv2d(4, 3, 3, groups=2)", ArgumentError, "groups=2 must divide both.*=4 and.*=3"),
        ("Conv2d(3, 4, 3, axis=2)", ArgumentError, "axis must be 1.*got 2"),
        ("Conv2d(3, 4, 3, init='one')", ArgumentError, "init must be one of"),
        ("Conv2d(3, 4, 3.0)", DTypeError, "kernel_size must be an integer, got float"),
        ("Conv2d(3, 10**9, 999)", ArgumentError, "a convolution with a weight of shape"),
        ("ConvTranspose2d(3, 4, 3, padding='same')", ArgumentError, 'no padding "same"'),
        ("ConvTranspose2d(3, 4, 3, output_padding=-1)", ArgumentError, "at least 0, got -1"),
        ("initializers.initialize('he', (2, 3, 4), 0, 'f4')", DTypeError, r"got \(2, 3, 4\)"),
    ],
    globals(),
)


def test_third_derivatives_go_through_convolutions(rng):
    """Of a cube of a convolution: the directional derivatives are polynomials, known by hand."""
    x, w = rng.normal(size=(2, 2, 5, 5)), rng.normal(size=(3, 2, 3, 3))
    u, v = rng.normal(size=x.shape), rng.normal(size=w.shape)
    inputs = nbbn.Parameter(x), nbbn.Parameter(w)
    options = {"stride": 2, "padding": 1}
    with nbbn.Tape() as tape:
        y = (nbbn.ops.conv2d(*inputs, **options) ** 3).sum()
        (dw,) = nbbn.grad(y, [inputs[1]], create_graph=True)
        (dx,) = nbbn.grad((dw * v).sum(), [inputs[0]], create_graph=True)
        third = (dx * u).sum()
    tape.backward(third)
    found = float((inputs[0].grad * u).sum())

    def conv(a, b):
        return F.conv2d(a, b, **options)

    xw, xv, uw, uv = conv(x, w), conv(x, v), conv(u, w), conv(u, v)
    # d/dw along v, then d/dx along u twice, of xw^3.
    expected = float((6 * uw**2 * xv + 12 * xw * uw * uv).sum())
    assert found == pytest.approx(expected, rel=1e-10)
