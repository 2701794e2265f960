"""A layer run forward and backward, and the bits of what models and optimizers hold."""

from __future__ import annotations

import numpy as np

from nbbn import Parameter, Tape


def settled(model, rng):
    """Give statistics, scales, shifts and biases values that matter."""
    for layer in model.modules():
        if getattr(layer, "running_mean", None) is not None:
            layer.running_mean[...] = rng.normal(size=layer.running_mean.shape)
            layer.running_var[...] = rng.uniform(0.3, 3, layer.running_var.shape)
        for name in ("gamma", "beta", "bias"):
            parameter = getattr(layer, name, None)
            if parameter is not None:
                parameter.data[...] = rng.normal(size=parameter.shape)
    return model


def run(layer, x, dy=None, **operands):
    """Return the output and the gradients of x and of the parameters."""
    x = Parameter(x)
    layer.zero_grad()
    with Tape() as tape:
        y = layer(x, **operands)
    tape.backward(y, np.cos(x.data) if dy is None else dy)
    return y.data, x.grad, [p.grad for p in layer.parameters()]


def assert_close(got, want, tolerance=1e-12):
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


def assert_all_close(found, expected, tolerance=1e-12):
    for got, want in zip(found, expected, strict=True):
        assert_close(got, want, tolerance)


def assert_near(got, want, tolerance=1e-12):
    """Compare relative to the largest value, where that is not below 1."""
    assert got.shape == tuple(want.shape)
    scale = max(1.0, float(np.max(np.abs(want), initial=0)))
    assert float(np.max(np.abs(got - want), initial=0)) <= tolerance * scale


def assert_states_close(found, expected, tolerance=1e-12):
    """Compare the state of a layer with that of another one."""
    found, expected = found.state_dict(), expected.state_dict()
    assert found.keys() == expected.keys()
    assert_all_close(found.values(), expected.values(), tolerance)


def state_of(*things) -> dict[str, tuple[np.dtype, bytes]]:
    """The names, types and bits of all arrays in the states of models and optimizers."""
    arrays = {name: array for thing in things for name, array in thing.state_dict().items()}
    return {name: (array.dtype, array.tobytes()) for name, array in arrays.items()}
