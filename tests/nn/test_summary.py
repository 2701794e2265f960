"""The table of a model: its counts, its shapes, and that it leaves the model alone."""

from __future__ import annotations

import numpy as np
import pytest

import nbbn
from nbbn.errors import ArgumentError, DTypeError, NbbnError


def test_counts_and_shapes():
    model = nbbn.mlp((20, 8, 3), dropout=0.1, rng=0)
    found = nbbn.summary(model, (5, 20))
    assert [(own.name, own.output, own.parameters, own.statistics) for own in found.layers] == [
        ("0", (5, 8), 160, 0),
        ("1", (5, 8), 16, 17),
        ("2", (5, 8), 0, 0),
        ("3", (5, 3), 27, 0),
    ]
    assert (found.parameters, found.frozen, found.statistics) == (203, 0, 17)
    assert found.nbytes == 4 * (203 + 16) + 8
    assert found.parameters == sum(p.size for p in model.parameters())
    without = nbbn.summary(model)
    assert [own.output for own in without.layers] == [None] * 4
    assert without[1:] == found[1:]


def test_the_table():
    lines = str(nbbn.summary(nbbn.mlp((784, 256, 10), rng=0), (128, 784))).splitlines()
    assert lines[0].split() == ["layer", "output", "parameters", "statistics"]
    assert lines[1].split() == ["0", "Dense(784,", "256,", "bias=False)", *["128", "x", "256"],
                                "200,704", "0"]  # fmt: skip
    assert lines[-1] == "203,786 parameters, 513 statistics, 0.82 MB"
    assert len({len(line) for line in lines[:-1]}) == 1


def test_frozen_and_shared_parameters():
    layer = nbbn.Dense(4, 4, rng=0)
    layer.weight.requires_grad = False
    found = nbbn.summary(nbbn.Sequential(layer, nbbn.ReLU(), layer), np.zeros((2, 4), np.float32))
    assert (found.parameters, found.frozen) == (4, 16)
    assert [own.frozen for own in found.layers] == [16, 0, 16]
    assert "20 parameters (16 of them frozen)" in str(found)


def test_modules_in_modules_and_layers_that_do_not_run():
    class Net(nbbn.Module):
        def __init__(self):
            self.body = nbbn.Sequential(nbbn.Dense(4, 3, rng=0), nbbn.ReLU())
            self.unused = nbbn.Dense(3, 2, rng=0)
            self.scale = nbbn.Parameter(np.ones(3, np.float32))

        def forward(self, x):
            return self.body(x) * self.scale

    found = nbbn.summary(Net(), (7, 4))
    assert [(own.name, own.output) for own in found.layers] == [
        ("", (7, 3)), ("body.0", (7, 3)), ("body.1", (7, 3)), ("unused", None),
    ]  # fmt: skip
    assert found.parameters == 3 + 15 + 8


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_model_stays_as_it_is(dtype):
    model = nbbn.mlp((4, 6, 2), dropout=0.5, rng=0, dtype=dtype)
    before = {name: a.tobytes() for name, a in model.state_dict().items()}
    state = str(model[2].rng.bit_generator.state)
    nbbn.summary(model, (1, 4))
    nbbn.summary(model, np.full((3, 4), np.nan, dtype))
    assert model.training
    assert {name: a.tobytes() for name, a in model.state_dict().items()} == before
    assert str(model[2].rng.bit_generator.state) == state


def test_refusals():
    with pytest.raises(DTypeError, match="model must be a Module"):
        nbbn.summary("mlp")
    with pytest.raises(ArgumentError, match="a size of x"):
        nbbn.summary(nbbn.ReLU(), (0, 3))
    with pytest.raises(ArgumentError, match=r"Tensor or a numpy\.ndarray"):
        nbbn.summary(nbbn.ReLU(), [1, 2])
    with pytest.raises(NbbnError):
        nbbn.summary(nbbn.Dense(4, 3, rng=0), (2, 5))
