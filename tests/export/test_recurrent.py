"""Recurrent layers between Keras, PyTorch, ONNX and here."""

from __future__ import annotations

import numpy as np
import pytest

import nbbn
from nbbn import GRU, LSTM, RNN, convert
from nbbn.errors import ArgumentError, ShapeError

KINDS = {
    "LSTM": (LSTM, "LSTM", {}, {}),
    "GRU": (GRU, "GRU", {}, {}),
    "RNN": (RNN, "SimpleRNN", {}, {}),
    "ReLU": (RNN, "SimpleRNN", {"nonlinearity": "relu"}, {"activation": "relu"}),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:keras")
def test_layers_compute_what_keras_does(kind, bidirectional, bias, rng, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    own, name, options, given = KINDS[kind]
    layer = own(3, 4, num_layers=2, bidirectional=bidirectional, bias=bias, rng=1, **options)
    stack = [keras.Input((6, 3))]
    for _ in range(2):
        part = getattr(keras.layers, name)(4, return_sequences=True, use_bias=bias, **given)
        stack.append(keras.layers.Bidirectional(part) if bidirectional else part)
    model = keras.Sequential(stack)
    theirs = [(rng.normal(size=w.shape) / 2).astype(np.float32) for w in model.get_weights()]
    model.set_weights(theirs)
    x = rng.normal(size=(5, 6, 3)).astype(np.float32)
    convert.load_keras(layer, theirs)
    np.testing.assert_allclose(layer(x).data, model.predict(x, verbose=0), rtol=0, atol=2e-6)
    again = convert.to_keras(layer)
    for array, expected in zip(again, theirs, strict=True):
        np.testing.assert_array_equal(array, expected)
    # Biases that we have two of add up.
    layer = own(3, 4, num_layers=2, bidirectional=bidirectional, bias=bias, rng=2, **options)
    model.set_weights(convert.to_keras(layer))
    np.testing.assert_allclose(layer(x).data, model.predict(x, verbose=0), rtol=0, atol=2e-6)


def test_what_does_not_fit_is_refused():
    layer, weights = GRU(3, 4, rng=1), convert.to_keras(GRU(3, 4, rng=2))
    before = layer.state_dict()
    with pytest.raises(ArgumentError, match=r"takes 3 arrays.*got 2"):
        convert.load_keras(layer, weights[:2])
    with pytest.raises(ShapeError, match=r"\(12, 3\).*\(12, 5\)"):
        convert.load_keras(layer, [np.ones((5, 12)), *weights[1:]])
    with pytest.raises(ShapeError, match=r"\(2, 12\).*\(12,\).*reset_after"):
        convert.load_keras(layer, [*weights[:2], np.ones(12)])
    with pytest.raises(ArgumentError, match="inside of the recurrence"):
        convert.to_keras(LSTM(3, 4, normalization="batch"))
    for name, array in before.items():
        np.testing.assert_array_equal(layer.state_dict()[name], array)


@pytest.mark.parametrize("kind", KINDS)
def test_models_take_torchs_state_dict_as_it_is(kind, rng):
    torch = pytest.importorskip("torch")
    own, name, options, _ = KINDS[kind]
    name = "RNN" if name == "SimpleRNN" else name
    model = nbbn.Sequential(own(3, 4, bidirectional=True, **options), nbbn.Dense(8, 2))
    other = torch.nn.Sequential(
        getattr(torch.nn, name)(3, 4, bidirectional=True, batch_first=True, **options),
        torch.nn.Linear(8, 2),
    )
    model.load_state_dict(other.state_dict())
    x = rng.normal(size=(5, 6, 3)).astype(np.float32)
    with torch.no_grad():
        expected = other[1](other[0](torch.from_numpy(x))[0])
    np.testing.assert_allclose(model(x).data, expected.numpy(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(("num_layers", "bias"), [(1, True), (2, False)])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_onnxruntime_computes_the_same(kind, bidirectional, num_layers, bias, last, rng):
    """What `verify` compares, and again by hand on another number of examples."""
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    own, _, options, _ = KINDS[kind]
    layer = own(3, 4, bidirectional=bidirectional, num_layers=num_layers, bias=bias, last=last,
                rng=1, **options)  # fmt: skip
    model = nbbn.Sequential(layer, nbbn.Flatten(), nbbn.Tanh())
    exported = nbbn.onnx.export(model, input_shape=(6, 3))
    session = runtime.InferenceSession(
        exported.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x = rng.normal(size=(2, 6, 3)).astype(np.float32)
    np.testing.assert_allclose(session.run(["y"], {"x": x})[0], model(x).data, rtol=0, atol=1e-6)


def test_what_onnx_cannot_express_is_refused():
    pytest.importorskip("onnx")
    with pytest.raises(ArgumentError, match="inside of the recurrence"):
        nbbn.onnx.export(LSTM(3, 4, normalization="layer"), input_shape=(6, 3))
    with pytest.raises(ShapeError, match=r"\(T, 3\)"):
        nbbn.onnx.export(LSTM(3, 4), input_shape=(6, 2))
