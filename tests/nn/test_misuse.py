"""What newcomers get wrong around training is answered before anything is changed."""

from __future__ import annotations

import numpy as np
import pytest

import nbbn
from nbbn import losses, optim, train
from nbbn.data import Batches, split
from nbbn.errors import ArgumentError, DTypeError, ShapeError
from nbbn.train.callbacks import EarlyStopping
from nbbn.train.config import Config
from tests.helpers.refusals import refusing

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(20, 4)).astype(np.float32), RNG.integers(0, 2, 20)


def fit(**changes):
    """Train a model whose parameters must not change."""
    model = nbbn.mlp((4, 3, 2), rng=0)
    before = [p.numpy().copy() for p in model.parameters()]
    arguments = {"batches": Batches(X, Y, 5, rng=0), "optimizer": optim.SGD(model.parameters())}
    arguments |= {"epochs": 1, **changes}
    try:
        train.fit(model, arguments.pop("batches"), arguments.pop("optimizer"), **arguments)
    finally:
        for p, old in zip(model.parameters(), before, strict=True):
            np.testing.assert_array_equal(p.numpy(), old)


def another():
    return nbbn.mlp((4, 2))


MISUSES = [
    ("train.record_step(model := another(), losses.cross_entropy, optim.SGD(model.parameters()))("
     "X[:0], Y[:0])", ShapeError, r"a step needs at least one row, but x has shape \(0, 4\)"),
    ("fit(optimizer=optim.SGD(another().parameters()))",
     ArgumentError, "optimizer has none of the model's parameters: make it of model.parameters"),
    ("train.record_step(another(), losses.cross_entropy, optim.SGD(another().parameters()))",
     ArgumentError, "optimizer has none of the model's parameters"),
    ("fit(optimizer=optim.SGD)", DTypeError, "optimizer must.*got type"),
    ("fit(optimizer=None)", DTypeError, "optimizer must be.*got NoneType"),
    ("optim.SGD(another())", DTypeError, r"such as model.parameters\(\), got Dense"),
    ("fit(batches=None)", DTypeError, "expected batches, got NoneType: pass"),
    ("fit(batches=[(X, Y, X)])", DTypeError, r"must be pairs \(x, y\), got tuple of 3"),
    ("fit(batches=iter([X]))", DTypeError, r"must be pairs \(x, y\), got ndarray"),
    ("train.evaluate(another(), None)", DTypeError, "expected batches, got NoneType"),
    ("train.evaluate(another(), [(X, Y, X)])", DTypeError, "pairs.*tuple of 3"),
    ("train.evaluate(another(), [])", ArgumentError, "nothing to evaluate: batches is empty"),
    ("fit(callbacks=EarlyStopping(3))", DTypeError, r"such as .EarlyStopping\(3\).*got <"),
    ("fit(callbacks=[EarlyStopping])", DTypeError, "callbacks must be a list.*got <class"),
    ("fit(callbacks=[print])", DTypeError, "callbacks must be"),
    ("fit(loss='mse')", DTypeError, "such as nbbn.losses.cross_entropy, got str"),
    ("Config(data='mnist')", ArgumentError, "data must be a tuple of one or two.*'mnist'"),
    ("Config(data=('a', 'b', 'c'))", ArgumentError, "data must be a tuple of one or two"),
    ("nbbn.plots.curves('run')", DTypeError, "runs must map names.*got str: pass {'name'"),
    ("EarlyStopping(True)", DTypeError, "patience must.*bool"),
    ("nbbn.BatchNorm(3, convention=nbbn.Convention(momentum=np.ones(3)))",
     DTypeError, "momentum.*ndarray"),
    ("nbbn.BatchNorm(3, convention=nbbn.Convention(momentum_weighs=''))",
     ArgumentError, "momentum_weighs must be one"),
    ("Batches(X, Y, 5, std=10**400)", ArgumentError, "std must be finite"),
    ("f'{nbbn.Tensor(X):.3f}'", ShapeError, "one element"),
]  # fmt: skip


test_misuse_is_refused = refusing(MISUSES, {**globals(), "Config": Config})


def test_numbers_of_numpy_are_numbers():
    assert EarlyStopping(np.int64(3)).patience == 3
    assert len(split(10, np.float32(0.25))[1]) == 2


def test_a_loss_formats_as_a_number():
    loss = losses.cross_entropy(nbbn.Tensor(X[:, :2]), Y)
    assert f"{loss:.3f}" == f"{loss.item():.3f}"
    assert f"{loss}" == str(loss)


class Blocks(nbbn.Module):
    """A model that keeps layers in a container."""

    def __init__(self, blocks):
        self.blocks, self.head = blocks, nbbn.Dense(8, 3, rng=0)


@pytest.mark.parametrize(
    "kind",
    [list, tuple, set, lambda layers: dict(enumerate(layers)), lambda layers: [layers, layers],
     lambda layers: {"first": ({"second": layers},)}],
    ids=["list", "tuple", "set", "dict", "lists", "deep"],
)  # fmt: skip
def test_layers_in_a_container_are_told_of(kind):
    model = Blocks(kind([nbbn.Dense(4, 8)]))
    words = r"`blocks` of Blocks holds Dense\(4, 8.*nor saved.*self\.blocks = nbbn\.Seq"
    with pytest.warns(RuntimeWarning, match=words):
        assert len(model.parameters()) == 2


def test_parameters_in_a_container_are_told_of():
    model = Blocks([nbbn.Parameter(np.ones((2, 3)))])
    with pytest.warns(RuntimeWarning, match=r"the list `blocks` of Blocks holds a \(2, 3\) param"):
        assert len(model.parameters()) == 2


@pytest.mark.filterwarnings("error")
def test_layers_that_are_part_of_the_model_are_not_told_of():
    model = Blocks(nbbn.Sequential(nbbn.Dense(4, 8), nbbn.ReLU()))
    model.all = [*model.blocks, model.head]
    model.weights = {"all": model.parameters()}
    model.sizes = [4, 8]
    model.sizes.append(model.sizes)
    assert len(model.parameters()) == 4
    assert len(nbbn.LSTM(3, 4).parameters()) == 4
