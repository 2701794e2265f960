"""Weights of Keras models, in and out."""

from __future__ import annotations

import numpy as np
import pytest

import nbbn
from nbbn import Convention, convert
from nbbn.errors import ArgumentError, DTypeError, ShapeError
from tests.export.test_conventions import net
from tests.helpers.layers import state_of


def keras_forward(weights, x, eps=1e-3) -> np.ndarray:
    """What a Keras net of Dense, BatchNormalization, relu, Dense computes, in float64."""
    kernel, bias, gamma, beta, mean, var, last, last_bias = (w.astype(np.float64) for w in weights)
    z = x @ kernel + bias
    z = gamma * (z - mean) / np.sqrt(var + eps) + beta
    return np.maximum(z, 0) @ last + last_bias


def keras_weights(rng) -> list[np.ndarray]:
    return [
        rng.normal(size=(4, 6)), rng.normal(size=6),
        rng.uniform(0.5, 1.5, 6), rng.normal(size=6),
        rng.normal(size=6), rng.uniform(0.5, 2, 6),
        rng.normal(size=(6, 3)), rng.normal(size=3),
    ]  # fmt: skip


@pytest.mark.parametrize("bias", [True, False])
def test_a_keras_model_computes_the_same_here(bias, rng):
    """Also where the Dense here has no bias, which then goes into the running mean."""
    weights = keras_weights(rng)
    model = net(bias=bias)
    convert.load_keras(model, weights)
    assert (model[1].eps, model[1].momentum) == (1e-3, pytest.approx(0.01))
    x = rng.normal(size=(5, 4))
    expected = keras_forward(weights, x)
    np.testing.assert_allclose(model.eval()(x).data, expected, rtol=1e-12, atol=1e-12)
    convert.load_keras(model, weights, eps=1e-2, momentum=0.9)
    assert (model[1].eps, model[1].momentum) == (1e-2, pytest.approx(0.1))
    expected = keras_forward(weights, x, eps=1e-2)
    np.testing.assert_allclose(model(x).data, expected, rtol=1e-12, atol=1e-12)


def test_keras_weights_come_back_bit_for_bit(rng):
    model = net()
    weights = keras_weights(rng)
    convert.load_keras(model, weights)
    for got, want in zip(convert.to_keras(model), weights, strict=True):
        assert got.flags.c_contiguous
        assert got.tobytes() == np.ascontiguousarray(want).tobytes()


def test_what_goes_out_is_a_copy():
    """Also of a kernel whose transpose is as contiguous as itself."""
    model = nbbn.Sequential(nbbn.Dense(5, 1, rng=0), nbbn.BatchNorm(1), nbbn.Dense(1, 5, rng=1))
    before = state_of(model)
    for array in (*convert.to_keras(model), *convert.to_torch(model).values()):
        array[...] = 7
    assert state_of(model) == before


def test_scale_and_center_may_be_off(rng):
    model = nbbn.Sequential(
        nbbn.BatchNorm(4, scale=False, shift=False, dtype=np.float64),
        nbbn.Dense(4, 2, dtype=np.float64),
    )
    weights = [rng.normal(size=4), rng.uniform(1, 2, 4), rng.normal(size=(4, 2)), np.zeros(2)]
    convert.load_keras(model, weights)
    x = rng.normal(size=(3, 4))
    expected = (x - weights[0]) / np.sqrt(weights[1] + 1e-3) @ weights[2]
    np.testing.assert_allclose(model.eval()(x).data, expected, rtol=1e-12)


def test_the_variance_follows_the_count(rng):
    model, weights = net(), keras_weights(rng)
    convert.load_keras(model, weights, count=32)
    np.testing.assert_allclose(model[1].running_var, weights[5] * 32 / 31, rtol=1e-14)
    np.testing.assert_allclose(convert.to_keras(model, count=32)[5], weights[5], rtol=1e-14)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda w: w[:-1], ArgumentError, "layers 2 hold 2 arrays, but the Keras weights"),
        (
            lambda w: w[:6],
            ArgumentError,
            "has 2 layers with a kernel, but the weights hold 1 kernels",
        ),
        (lambda w: [*w[:6], w[6].T, w[7]], ShapeError, r"weight of Keras' '2' must have shape"),
        (lambda w: [*w, np.ones((3, 4, 4))], ShapeError, r"weights\[8\] has shape"),
        (lambda w: [w[1], *w], ArgumentError, "the weights start with a vector"),
        (lambda w: np.ones(3), DTypeError, "weights must be a list of arrays"),
        (lambda w: ["x", *w], DTypeError, r"weights\[0\] must hold real numbers"),
    ],
)
def test_keras_weights_that_do_not_fit_change_nothing(change, error, message, rng):
    model = net()
    before = state_of(model)
    with pytest.raises(error, match=message):
        convert.load_keras(model, change(keras_weights(rng)))
    assert state_of(model) == before


def test_keras_always_tracks():
    with pytest.raises(ArgumentError, match="layer '1' keeps no running statistics"):
        convert.to_keras(net(track_running_stats=False))


def images(axis=-1) -> nbbn.Sequential:
    """Every convolution that Keras has, depthwise as such and in groups."""
    options = {"axis": axis, "dtype": np.float64}
    norm = nbbn.BatchNorm(8, convention=Convention.of("keras", axis=axis), dtype=np.float64)
    return nbbn.Sequential(
        nbbn.Conv2d(3, 8, 3, padding="same", rng=0, **options),
        norm,
        nbbn.Conv2d(8, 16, (2, 3), groups=8, bias=False, rng=1, **options),
        nbbn.Conv2d(16, 6, 3, stride=2, groups=2, rng=2, **options),
        nbbn.ConvTranspose2d(6, 4, 3, stride=2, rng=3, **options),
        nbbn.Flatten(),
        nbbn.Dense(196, 2, rng=4, dtype=np.float64),
    )


def test_kernels_of_convolutions_have_kerass_order():
    shapes = [w.shape for w in convert.to_keras(images())]
    assert shapes[0] == (3, 3, 3, 8)
    assert [s for s in shapes if len(s) == 4][1:] == [(2, 3, 1, 16), (3, 3, 8, 6), (3, 3, 4, 6)]
    model, other = images(), images()
    for parameter in other.parameters():
        parameter.data[...] = 0
    convert.load_keras(other, convert.to_keras(model))
    assert state_of(other) == state_of(model)


def test_a_depthwise_kernel_is_one_of_as_many_groups(rng):
    layer = nbbn.Conv2d(3, 6, 2, groups=3, bias=False, axis=-1, dtype=np.float64)
    kernel = rng.normal(size=(2, 2, 3, 2))
    convert.load_keras(layer, [kernel])
    x = rng.normal(size=(2, 4, 4, 3))
    expected = np.zeros((2, 3, 3, 3, 2))
    for i, j in np.ndindex(2, 2):
        expected += x[:, i : i + 3, j : j + 3, :, None] * kernel[i, j]
    np.testing.assert_allclose(layer(x).data, expected.reshape(2, 3, 3, 6), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' own
def test_keras_itself_convolves_the_same(rng, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    layers = keras.layers
    theirs = keras.Sequential([
        keras.Input((8, 9, 3)), layers.Conv2D(8, 3, padding="same"), layers.BatchNormalization(),
        layers.DepthwiseConv2D((2, 3), depth_multiplier=2, use_bias=False),
        layers.Conv2D(6, 3, strides=2, groups=2), layers.Conv2DTranspose(4, 3, strides=2),
        layers.Flatten(), layers.Dense(2),
    ])  # fmt: skip
    ours = images()
    convert.load_keras(ours, theirs.get_weights())
    x = rng.normal(size=(5, 8, 9, 3)).astype(np.float32)
    expected = theirs(x).detach().numpy()
    np.testing.assert_allclose(ours.eval()(x).data, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' own
def test_keras_itself_agrees(rng, monkeypatch):
    """Inference, three more training batches, inference again, and the weights on the way back."""
    pytest.importorskip("torch")
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    layers = keras.layers
    theirs = keras.Sequential([
        keras.Input((4,)), layers.Dense(6), layers.BatchNormalization(momentum=0.8),
        layers.ReLU(), layers.Dense(3),
    ])  # fmt: skip

    def batch():
        return rng.normal(1, 2, size=(16, 4)).astype(np.float32)

    for _ in range(5):
        theirs(batch(), training=True)
    ours = nbbn.Sequential(
        nbbn.Dense(4, 6, bias=False),
        nbbn.BatchNorm(6, activation="relu", **convert_options(theirs.layers[1])),
        nbbn.Dense(6, 3),
    )
    convert.load_keras(ours, theirs.get_weights())
    assert convert.options(ours[1], "keras")["momentum"] == 0.8
    for training in (False, True, True, True, False):
        x = batch()
        expected = theirs(x, training=training).detach().numpy()
        np.testing.assert_allclose(ours.train(training)(x).data, expected, rtol=1e-5, atol=1e-5)
    with_bias = net(convention="keras")
    weights = convert.to_keras(ours)
    convert.load_keras(with_bias, [weights[0], np.zeros(6), *weights[1:]])
    theirs.set_weights(convert.to_keras(with_bias))
    expected = theirs(x).detach().numpy()
    np.testing.assert_allclose(ours(x).data, expected, rtol=1e-5, atol=1e-5)


def convert_options(layer) -> dict:
    """Arguments of a BatchNorm like a Keras layer."""
    return {
        "convention": Convention.of("keras", eps=layer.epsilon, momentum=layer.momentum),
        "scale": layer.scale,
        "shift": layer.center,
    }
