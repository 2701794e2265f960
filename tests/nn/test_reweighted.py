"""Weight standardization and spectral norm, around any layer with a weight."""

from __future__ import annotations

import numpy as np
import pytest

import nbbn
from nbbn import Parameter, Tape, convert, ops
from nbbn.errors import ArgumentError, DTypeError, ShapeError
from tests.helpers import reference
from tests.helpers.layers import assert_close, run, state_of
from tests.helpers.refusals import refusing

W = {"dtype": np.float64}


class Four(nbbn.Module):
    """A layer with the weight of a convolution, which it applies to one position."""

    def __init__(self, rng):
        self.weight = Parameter(rng.normal(1, 2, size=(5, 3, 2, 2)))

    def forward(self, x):
        return x @ self.weight.reshape(5, 12).T


def dense(rng):
    layer = nbbn.Dense(6, 4, rng=0, **W)
    layer.bias.data[...] = rng.normal(size=4)
    return layer


@pytest.mark.parametrize("make", [dense, Four])
def test_weights_are_standardized(make, rng):
    """Value and gradients, of which the standardization passes none along the weights."""
    layer = make(rng)
    weight = layer.weight.data
    wrapped = nbbn.WeightStandardization(layer)
    x = rng.normal(size=(7, weight[0].size))
    rows = weight.reshape(len(weight), -1)
    want = x @ reference.layer_norm(rows).T
    bias = getattr(layer, "bias", None)
    want = want if bias is None else want + bias.data
    dy = rng.normal(size=want.shape)
    y, dx, _ = run(wrapped, x, dy)
    assert_close(y, want)
    assert_close(dx, dy @ reference.layer_norm(rows))
    dw = layer.weight.grad.reshape(rows.shape)
    assert_close(dw.sum(axis=1), np.zeros(len(rows)), 1e-10)
    spread = rows - rows.mean(axis=1, keepdims=True)
    # eps alone keeps the length of the weights from mattering not at all.
    assert np.abs((dw * spread).sum(axis=1)).max() < 1e-4 * np.abs(dw).max()
    assert layer.weight.data is weight


def test_standardizing_differentiates_twice(rng):
    def loss(x, weight):
        layer = nbbn.Dense(4, 3, bias=False, **W)
        wrapped = nbbn.WeightStandardization(layer)
        layer.weight = weight
        return ops.tanh(wrapped(x))

    arrays = rng.normal(size=(5, 4)), rng.normal(size=(3, 4))
    assert nbbn.gradcheck(loss, *arrays, tolerance=1e-6) <= 1e-6
    nbbn.gradgradcheck(loss, *arrays)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("iterations", [1, 3])
def test_spectral_norm_is_torchs(axis, iterations, rng):
    torch = pytest.importorskip("torch")
    layer = Four(rng)
    wrapped = nbbn.SpectralNorm(layer, iterations=iterations, axis=axis, rng=1)
    other = torch.nn.Module()
    other.weight = torch.nn.Parameter(torch.tensor(layer.weight.data))
    torch.nn.utils.parametrizations.spectral_norm(other, n_power_iterations=iterations, dim=axis)
    inner = other.parametrizations.weight[0]
    inner._u.copy_(torch.tensor(wrapped.u))
    inner._v.copy_(torch.tensor(wrapped.v))
    x = rng.normal(size=(7, 12))
    for training in (True, True, False):
        wrapped.train(training)
        other.train(training)
        dy = rng.normal(size=(7, 5))
        y, dx, (dw,) = run(wrapped, x, dy)
        leaf = torch.tensor(x, requires_grad=True)
        expected = leaf @ other.weight.reshape(5, 12).T
        original = other.parametrizations.weight.original
        original.grad = None
        expected.backward(torch.tensor(dy))
        assert_close(y, expected.detach().numpy())
        assert_close(dx, leaf.grad.numpy())
        assert_close(dw, original.grad.numpy())
        assert_close(wrapped.u, inner._u.numpy())
        assert_close(wrapped.v, inner._v.numpy())


def test_spectral_norm_comes_to_one(rng):
    wrapped = nbbn.SpectralNorm(dense(rng), rng=0)
    for _ in range(60):
        wrapped(np.ones((1, 6)))
    assert np.linalg.norm(wrapped.plain().weight.data, 2) == pytest.approx(1, rel=1e-10)


def test_backward_is_of_its_own_call(rng):
    """A second call before backward improves u and v, which the first one's gradient ignores."""
    gradients = []
    for again in (False, True):
        wrapped = nbbn.SpectralNorm(nbbn.Dense(6, 4, rng=0, **W), rng=1)
        with Tape() as tape:
            y = wrapped(np.ones((2, 6)))
        if again:
            wrapped(np.ones((2, 6)))
        tape.backward(y, np.ones((2, 4)))
        gradients.append(wrapped.layer.weight.grad)
    np.testing.assert_array_equal(*gradients)


@pytest.mark.parametrize("kind", [nbbn.WeightStandardization, nbbn.SpectralNorm])
def test_the_plain_layer_computes_the_same(kind, rng):
    wrapped = kind(dense(rng)).eval()
    x = rng.normal(size=(5, 6))
    plain = wrapped.plain()
    np.testing.assert_array_equal(plain(x).data, wrapped(x).data)
    assert isinstance(plain, nbbn.Dense)
    before = state_of(wrapped)
    plain.weight.data[...] = plain.bias.data[...] = 0
    assert state_of(wrapped) == before


def test_onnx_takes_the_weight_that_is_used(rng):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    model = nbbn.Sequential(nbbn.WeightStandardization(nbbn.Dense(6, 4, rng=0)), nbbn.ReLU())
    loaded = nbbn.onnx.load(nbbn.onnx.export(model))
    x = rng.normal(size=(5, 6)).astype(np.float32)
    np.testing.assert_allclose(loaded(x).data, model.eval()(x).data, rtol=1e-6, atol=1e-6)


def test_its_state_is_that_of_the_layer_and_the_vectors():
    wrapped = nbbn.SpectralNorm(nbbn.Dense(6, 4, rng=0), rng=0)
    assert list(wrapped.state_dict()) == ["u", "v", "layer.weight", "layer.bias"]
    other = nbbn.SpectralNorm(nbbn.Dense(6, 4, rng=1), rng=1)
    other.load_state_dict(wrapped.state_dict())
    assert state_of(other) == state_of(wrapped)
    assert repr(wrapped) == "SpectralNorm(Dense(6, 4))"


class Gain(nbbn.Module):
    def __init__(self):
        self.weight = nbbn.Parameter(np.ones(4))


test_refusals = refusing(
    [
        ("nbbn.WeightStandardization(nbbn.ReLU())", ArgumentError, r"weight.*ReLU\(\)"),
        ("nbbn.SpectralNorm(nbbn.LayerNorm(4))", ArgumentError, r"weight.*LayerNorm"),
        ("nbbn.SpectralNorm(Gain())", ShapeError, r"2 dimensions.*shape \(4,\)"),
        ("nbbn.SpectralNorm(np.ones((3, 4)))", DTypeError, "layer.*ndarray"),
        ("nbbn.WeightStandardization(nbbn.Dense(1, 4))", ShapeError, r"variance.*\(4, 1\)"),
        ("nbbn.WeightStandardization(nbbn.Dense(3, 4), eps=0)", ArgumentError, "eps.*0"),
        ("nbbn.SpectralNorm(nbbn.Dense(3, 4), iterations=0)", ArgumentError, "iterations.*1.*0"),
        ("nbbn.SpectralNorm(nbbn.Dense(3, 4), axis=2)", ShapeError, r"axis 2.*\(4, 3\)"),
        ("to_torch(nbbn.Sequential(nbbn.SpectralNorm(nbbn.Dense(3, 4))))", ArgumentError,
         r"plain\(\)"),
    ],
    {"nbbn": nbbn, "np": np, "Gain": Gain, **vars(convert)},
)  # fmt: skip
