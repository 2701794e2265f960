"""Whole models: what `nbbn.cnn` is made of, and that it is the same network in PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

import nbbn
from nbbn import losses, optim, train
from nbbn.errors import DTypeError, NbbnError, ShapeError


def kinds(model):
    return [type(layer).__name__ for layer in model]


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({}, ["Dense(6, 5, bias=False)", "BatchNorm(5, activation='relu')", "Dense(5, 3)"]),
        ({"sizes": (6, 5, 4, 3), "dropout": 0.1},
         ["Dense(6, 5, bias=False)", "BatchNorm(5, activation='relu')", "Dropout(0.1)",
          "Dense(5, 4, bias=False)", "BatchNorm(4, activation='relu')", "Dropout(0.1)",
          "Dense(4, 3)"]),
        ({"activation": "tanh"},
         ["Dense(6, 5, bias=False)", "BatchNorm(5)", "Tanh()", "Dense(5, 3)"]),
        ({"activation": "sigmoid"},
         ["Dense(6, 5, bias=False)", "BatchNorm(5)", "Sigmoid()", "Dense(5, 3)"]),
        ({"batch_norm": False}, ["Dense(6, 5)", "ReLU()", "Dense(5, 3)"]),
        ({"sizes": [6, 3]}, ["Dense(6, 3)"]),
    ],
    ids=str,
)  # fmt: skip
def test_layers_of_an_mlp(options, layers):
    model = nbbn.mlp(**{"sizes": (6, 5, 3), **options})
    assert [repr(layer) for layer in model] == layers


def test_mlp_passes_its_options_on():
    model = nbbn.mlp((6, 5, 3), init=0.0, dtype=np.float64)
    assert all(p.dtype == np.float64 for p in model.parameters())
    np.testing.assert_array_equal(model[0].weight.data, np.zeros((5, 6)))
    assert model[1].running_mean.dtype == np.float64


def test_layers_of_a_cnn():
    stage = ["Conv2d", "BatchNorm"] * 2 + ["MaxPool2d"]
    head = ["Flatten", "Dense", "BatchNorm", "Dense"]
    model = nbbn.cnn((28, 28), 10, rng=0)
    assert kinds(model) == ["Unflatten", *stage, *stage, *head]
    assert [layer.bias is None for layer in model if hasattr(layer, "bias")] == [True] * 5 + [False]
    plain = nbbn.cnn((28, 28), 10, channels=(4,), hidden=(), batch_norm=False, dropout=0.2, rng=0)
    assert kinds(plain) == [
        "Unflatten", "Conv2d", "ReLU", "Conv2d", "ReLU", "MaxPool2d", "Flatten", "Dense"
    ]  # fmt: skip
    assert all(layer.bias is not None for layer in plain if hasattr(layer, "bias"))


@pytest.mark.parametrize(
    ("shape", "axis", "inside"),
    [((9, 7), 1, (1, 9, 7)), ((3, 9, 7), 1, (3, 9, 7)), ((9, 7), -1, (9, 7, 1)),
     ((9, 7, 3), -1, (9, 7, 3))],
)  # fmt: skip
def test_images_of_every_shape(shape, axis, inside, rng):
    model = nbbn.cnn(shape, 5, channels=(2, 3), hidden=(4,), axis=axis, rng=0).eval()
    x = rng.normal(size=(2, *inside)).astype(np.float32)
    y = model(x)
    assert y.shape == (2, 5)
    np.testing.assert_array_equal(model(x.reshape(2, -1)).data, y.data)
    np.testing.assert_array_equal(
        model(x).data,
        nbbn.cnn(shape, 5, channels=(2, 3), hidden=(4,), axis=axis, rng=0).eval()(x).data,
    )


def test_a_cnn_is_the_same_network_in_pytorch(rng):
    torch = pytest.importorskip("torch")

    def block(before, after):
        return [torch.nn.Conv2d(before, after, 3, padding=1, bias=False),
                torch.nn.BatchNorm2d(after), torch.nn.ReLU()]  # fmt: skip

    twin = torch.nn.Sequential(
        *block(1, 4), *block(4, 4), torch.nn.MaxPool2d(2), *block(4, 6), *block(6, 6),
        torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.Linear(6 * 2 * 3, 8, bias=False),
        torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 3),
    )  # fmt: skip
    model = nbbn.cnn((11, 13), 3, channels=(4, 6), hidden=(8,), rng=0)
    with torch.no_grad():
        for own, other in zip(model.parameters(), twin.parameters(), strict=True):
            other.copy_(torch.from_numpy(own.data))
    x, labels = rng.normal(size=(16, 143)).astype(np.float32), rng.integers(0, 3, 16)
    mine = optim.SGD(model.parameters(), lr=0.1)
    theirs = torch.optim.SGD(twin.parameters(), lr=0.1)
    step = train.record_step(model, losses.cross_entropy, mine)
    for _ in range(4):
        loss = step(x, labels)
        theirs.zero_grad()
        expected = torch.nn.functional.cross_entropy(
            twin(torch.from_numpy(x.reshape(16, 1, 11, 13))), torch.from_numpy(labels)
        )
        expected.backward()
        theirs.step()
        assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
    assert step.refusal is None
    twin.eval()
    with torch.no_grad():
        want = twin(torch.from_numpy(x.reshape(16, 1, 11, 13))).numpy()
    np.testing.assert_allclose(model.eval()(x).data, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"shape": (28,)}, ShapeError, ("2 or 3", "(28,)")),
        ({"shape": (3, 2, 8), "channels": (4, 4)}, ShapeError, ("2 x 8", "at most 1")),
        ({"shape": (0, 28)}, NbbnError, ("shape", "0")),
        ({"channels": (4, 0)}, NbbnError, ("channels", "0")),
        ({"channels": 4}, DTypeError, ("channels", "int")),
        ({"axis": 2}, NbbnError, ("axis", "2")),
        ({"classes": 0}, NbbnError, ("0",)),
        ({"dropout": 1.5}, NbbnError, ("dropout", "1.5")),
    ],
)
def test_a_cnn_that_cannot_be(options, error, words):
    with pytest.raises(error) as caught:
        nbbn.cnn(**{"shape": (28, 28), "classes": 10, **options})
    for word in words:
        assert word in str(caught.value)


def test_unflatten_gives_examples_their_shape(rng):
    x = nbbn.Parameter(rng.normal(size=(5, 12)))
    layer = nbbn.Unflatten((3, 2, 2))
    with nbbn.Tape() as tape:
        y = layer(x)
    assert y.shape == (5, 3, 2, 2)
    tape.backward(y, np.arange(60.0).reshape(y.shape))
    np.testing.assert_array_equal(x.grad, np.arange(60.0).reshape(5, 12))
    np.testing.assert_array_equal(layer(y).data, y.data)
    assert layer(np.empty((0, 12))).shape == (0, 3, 2, 2)
    with pytest.raises(ShapeError, match=r"\(N, 12\), got shape \(5, 4\)"):
        layer(np.ones((5, 4)))
    with pytest.raises(NbbnError, match="got 0"):
        nbbn.Unflatten((3, 0))
