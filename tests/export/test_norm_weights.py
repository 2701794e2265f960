"""Weights of layer, RMS, group and instance normalization from and to PyTorch and Keras."""

from __future__ import annotations

import numpy as np
import pytest

import nbbn
from nbbn import convert
from nbbn.errors import ArgumentError, ShapeError
from tests.helpers.layers import settled, state_of
from tests.helpers.refusals import refusing

W = {"dtype": np.float64}


def net(tracked=True):
    """Every kind of normalization; two of them look the same in a state dict."""
    return nbbn.Sequential(
        nbbn.GroupNorm(2, 4, **W),
        nbbn.InstanceNorm(4, scale=True, shift=True, track_running_stats=tracked, **W),
        nbbn.LayerNorm((4, 3), **W),
        nbbn.Flatten(),
        nbbn.Dense(12, 8, rng=0, **W),
        nbbn.LayerNorm(8, **W),
        nbbn.RMSNorm(8, **W),
        nbbn.Dense(8, 2, rng=1, **W),
    )


def torch_net(torch):
    nn, wide = torch.nn, {"dtype": torch.float64}
    return nn.Sequential(
        nn.GroupNorm(2, 4, **wide),
        nn.InstanceNorm1d(4, affine=True, track_running_stats=True, **wide),
        nn.LayerNorm((4, 3), **wide),
        nn.Flatten(),
        nn.Linear(12, 8, **wide),
        nn.LayerNorm(8, **wide),
        nn.RMSNorm(8, **wide),
        nn.Linear(8, 2, **wide),
    )


def test_a_torch_model_computes_the_same_there_and_back(rng):
    torch = pytest.importorskip("torch")
    model, other = settled(net(), rng).eval(), torch_net(torch).eval()
    other.load_state_dict({k: torch.from_numpy(v) for k, v in convert.to_torch(model).items()})
    x = rng.normal(size=(5, 4, 3))
    want = other(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(model(x).data, want, rtol=1e-12, atol=1e-12)
    fresh = net().eval()
    convert.load_torch(fresh, other.state_dict())
    np.testing.assert_allclose(fresh(x).data, want, rtol=1e-12, atol=1e-12)
    assert state_of(fresh) == state_of(model)


def test_modules_of_other_names_meet_by_kind_and_number(rng):
    model = settled(net(), rng)
    names = ["g", "i", "a", "fc1", "n1", "n2", "fc2"]
    state = convert.to_torch(model, names=names)
    fresh = net()
    convert.load_torch(fresh, state)
    for name, array in fresh.state_dict().items():
        # n1 has a bias and n2 has none: both are a normalization of shape (8,).
        np.testing.assert_array_equal(array, model.state_dict()[name])


def test_what_torch_cannot_leave_out_is_filled_in(rng):
    torch = pytest.importorskip("torch")
    model = nbbn.Sequential(nbbn.LayerNorm(4, scale=False, **W), nbbn.Dense(4, 2, rng=0, **W))
    settled(model, rng)
    state = convert.to_torch(model)
    np.testing.assert_array_equal(state["0.weight"], np.ones(4))
    other = torch.nn.LayerNorm(4, dtype=torch.float64)
    other.load_state_dict({k[2:]: torch.from_numpy(v) for k, v in state.items() if k[0] == "0"})
    fresh = nbbn.Sequential(nbbn.LayerNorm(4, scale=False, **W), nbbn.Dense(4, 2, rng=1, **W))
    convert.load_torch(fresh, state)
    assert state_of(fresh) == state_of(model)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' own
def test_a_keras_model_computes_the_same_there_and_back(rng, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    layers = keras.layers
    other = keras.Sequential([
        keras.Input((5, 4)),
        layers.GroupNormalization(2, epsilon=1e-3),
        layers.GroupNormalization(-1, epsilon=1e-3),
        layers.Flatten(),
        layers.Dense(8),
        layers.LayerNormalization(epsilon=1e-3),
        layers.RMSNormalization(epsilon=1e-6),
        layers.Dense(2),
    ])  # fmt: skip
    for weight in other.weights:
        weight.assign(rng.normal(size=weight.shape))

    def make():
        return nbbn.Sequential(
            nbbn.GroupNorm(2, 4, axis=-1, eps=1e-3),
            nbbn.InstanceNorm(4, axis=-1, eps=1e-3, scale=True, shift=True),
            nbbn.Flatten(),
            nbbn.Dense(20, 8, rng=0),
            nbbn.LayerNorm(8, eps=1e-3),
            nbbn.RMSNorm(8, eps=1e-6),
            nbbn.Dense(8, 2, rng=1),
        ).eval()

    model, x = make(), rng.normal(size=(3, 5, 4)).astype(np.float32)
    weights = [np.array(keras.ops.convert_to_numpy(weight)) for weight in other.weights]
    convert.load_keras(model, weights)
    want = keras.ops.convert_to_numpy(other(x).detach())
    np.testing.assert_allclose(model(x).data, want, rtol=1e-4, atol=1e-4)
    for got, weight in zip(convert.to_keras(model), weights, strict=True):
        np.testing.assert_array_equal(got, weight)


def one(layer):
    return nbbn.Sequential(layer, nbbn.Dense(4, 2, rng=0))


STATE = convert.to_torch(one(nbbn.LayerNorm(4)))
test_refusals = refusing(
    [
        ("load_torch(one(nbbn.LayerNorm(5)), S)", ShapeError, r"weight.*\(5,\).*\(4,\)"),
        ("load_torch(one(nbbn.RMSNorm(4)), {**S, '0.bias': V})", ArgumentError, "no place.*bias"),
        ("load_torch(one(nbbn.InstanceNorm(4, scale=True, shift=True, track_running_stats=True)),"
         " {**S, '0.running_mean': V, '0.running_var': -V})", ArgumentError, "running_var.*-1"),
        ("to_keras(one(nbbn.InstanceNorm(4, track_running_stats=True)))", ArgumentError,
         "running statistics"),
        ("to_keras(one(nbbn.LayerNorm((3, 4))))", ArgumentError, "2 axes"),
    ],
    {**vars(convert), "one": one, "nbbn": nbbn, "S": STATE, "V": np.ones(4, np.float32)},
)  # fmt: skip
