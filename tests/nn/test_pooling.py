"""Layers that pool images, beside PyTorch's and Keras'; in a model that learns."""

from __future__ import annotations

import numpy as np
import pytest

import nbbn
from nbbn import AvgPool2d, GlobalAvgPool2d, GlobalMaxPool2d, MaxPool2d
from tests.helpers.layers import assert_close, run

TORCH = [
    (MaxPool2d(2), lambda nn: nn.MaxPool2d(2)),
    (
        MaxPool2d((3, 2), stride=(2, 1), padding=1, dilation=(1, 2), ceil_mode=True),
        lambda nn: nn.MaxPool2d((3, 2), (2, 1), 1, (1, 2), ceil_mode=True),
    ),
    (AvgPool2d(3, stride=2, padding=1), lambda nn: nn.AvgPool2d(3, 2, 1)),
    (
        AvgPool2d(3, stride=2, padding=1, ceil_mode=True, count_include_pad=False),
        lambda nn: nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    ),
    (GlobalAvgPool2d(keepdims=True), lambda nn: nn.AdaptiveAvgPool2d(1)),
    (GlobalMaxPool2d(keepdims=True), lambda nn: nn.AdaptiveMaxPool2d(1)),
]


@pytest.mark.parametrize(
    ("layer", "make"),
    TORCH,
    ids=lambda value: repr(value)[:60] if isinstance(value, nbbn.Module) else "",
)
def test_layers_are_those_of_torch(layer, make, rng):
    torch = pytest.importorskip("torch")
    x = rng.normal(size=(2, 3, 9, 10))
    leaf = torch.tensor(x, requires_grad=True)
    expected = make(torch.nn)(leaf)
    dy = rng.normal(size=expected.shape)
    expected.backward(torch.tensor(dy))
    y, dx, _ = run(layer, x, dy)
    assert_close(y, expected.detach().numpy())
    assert_close(dx, leaf.grad.numpy())


KERAS = [
    (MaxPool2d(2, axis=-1), lambda layers: layers.MaxPooling2D(2)),
    (
        MaxPool2d(3, stride=2, padding=((0, 1), (0, 1)), axis=-1),
        lambda layers: layers.MaxPooling2D(3, 2, padding="same"),
    ),
    (
        AvgPool2d(2, stride=1, padding=((0, 1), (0, 1)), count_include_pad=False, axis=-1),
        lambda layers: layers.AveragePooling2D(2, 1, padding="same"),
    ),
    (GlobalAvgPool2d(axis=-1), lambda layers: layers.GlobalAveragePooling2D()),
    (
        GlobalMaxPool2d(axis=-1, keepdims=True),
        lambda layers: layers.GlobalMaxPooling2D(keepdims=True),
    ),
]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' own
@pytest.mark.parametrize(
    ("layer", "make"),
    KERAS,
    ids=lambda value: repr(value)[:60] if isinstance(value, nbbn.Module) else "",
)
def test_layers_are_those_of_keras(layer, make, rng, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    x = rng.normal(size=(2, 8, 10, 3)).astype(np.float32)
    expected = keras.ops.convert_to_numpy(make(keras.layers)(x))
    assert_close(layer(x).data, expected, 1e-6)


@pytest.mark.parametrize(("layer", "text"), [
    (MaxPool2d(2), "MaxPool2d((2, 2))"),
    (AvgPool2d(3, stride=2, padding=1, axis=3),
     "AvgPool2d((3, 3), stride=(2, 2), padding=((1, 1), (1, 1)), axis=-1)"),
    (AvgPool2d(2, count_include_pad=False), "AvgPool2d((2, 2), count_include_pad=False)"),
    (GlobalMaxPool2d(), "GlobalMaxPool2d(axis=1, keepdims=False)"),
], ids=str)  # fmt: skip
def test_layers_say_what_they_are(layer, text):
    assert repr(layer) == text
    assert not layer.parameters()
    assert not layer.state_dict()


def test_weights_pass_models_with_pooling_by(rng):
    """To PyTorch and Keras and back: layers without weights are not in the way."""
    model = nbbn.Sequential(GlobalAvgPool2d(), nbbn.Dense(3, 4, rng=0), nbbn.GELU())
    twin = nbbn.Sequential(GlobalAvgPool2d(), nbbn.Dense(3, 4, rng=1), nbbn.GELU())
    x = rng.normal(size=(2, 3, 4, 4)).astype(np.float32)
    nbbn.convert.load_torch(twin, nbbn.convert.to_torch(model))
    np.testing.assert_array_equal(twin(x).data, model(x).data)
    twin = nbbn.Sequential(GlobalAvgPool2d(), nbbn.Dense(3, 4, rng=1), nbbn.GELU())
    nbbn.convert.load_keras(twin, nbbn.convert.to_keras(model))
    np.testing.assert_array_equal(twin(x).data, model(x).data)


def test_a_maximum_is_found_by_training(rng):
    """Images whose class is where their brightest pixel is: a Dense behind the maxima learns it."""
    images = rng.random((256, 1, 8, 8)).astype(np.float32)
    quarter = rng.integers(0, 4, 256)
    for image, q in zip(images, quarter, strict=True):
        row, column = rng.integers(0, 4, 2) + 4 * np.array(divmod(q, 2))
        image[0, row, column] = 3
    model = nbbn.Sequential(
        nbbn.Unflatten((1, 8, 8)), MaxPool2d(4), nbbn.Flatten(), nbbn.Dense(4, 4, rng=0)
    )
    batches = nbbn.data.Batches(images, quarter, 32, rng=0)
    history = nbbn.train.fit(
        model, batches, nbbn.optim.Adam(model.parameters(), lr=0.1), epochs=5, validation=batches
    )
    assert history[-1].validation.accuracy > 0.99
