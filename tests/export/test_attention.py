"""Attention and encoder layers as ONNX, beside onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest

import nbbn
from nbbn import MultiheadAttention, PositionalEmbedding, TransformerEncoderLayer
from nbbn.errors import ShapeError

pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
T, E = 5, 8
MODELS = {
    "attention": lambda: MultiheadAttention(E, 2, rng=1),
    "causal attention": lambda: MultiheadAttention(E, 2, causal=True, bias=False, rng=1),
    "encoder layer": lambda: TransformerEncoderLayer(E, 4, dim_feedforward=12, rng=1),
    "reader": lambda: nbbn.Sequential(
        nbbn.Dense(E, E, rng=1),
        PositionalEmbedding(T + 2, E, rng=2),
        TransformerEncoderLayer(E, 2, dim_feedforward=12, norm_first=True, causal=True, rng=3),
        TransformerEncoderLayer(E, 2, dim_feedforward=12, activation=nbbn.Tanh(), rng=4),
        PositionalEmbedding(T, E, learned=False),
        nbbn.LSTM(E, 3, last=True, rng=5),
        nbbn.Dense(3, 2, rng=6),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_onnxruntime_computes_the_same(name, rng):
    """What `verify` compares, and again on another number of examples."""
    model = MODELS[name]()
    for parameter in model.parameters():
        parameter.data += 0.1 * rng.normal(size=parameter.shape).astype(np.float32)
    model.eval()
    exported = nbbn.onnx.export(model, input_shape=(T, E))
    session = runtime.InferenceSession(
        exported.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x = rng.normal(size=(3, T, E)).astype(np.float32)
    np.testing.assert_allclose(session.run(["y"], {"x": x})[0], model(x).data, rtol=0, atol=2e-6)


@pytest.mark.parametrize("shape", [(E,), (T, E + 1), (2, T, E)])
@pytest.mark.parametrize("name", ["attention", "encoder layer"])
def test_other_examples_are_refused(name, shape):
    with pytest.raises(ShapeError, match=r"takes \(T, 8\)"):
        nbbn.onnx.export(MODELS[name](), input_shape=shape)


def test_more_steps_than_positions_are_refused():
    with pytest.raises(ShapeError, match="cannot take 6 steps"):
        nbbn.onnx.export(PositionalEmbedding(T, E), input_shape=(T + 1, E))
