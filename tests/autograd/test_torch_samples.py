"""PyTorch's own sample inputs for the operations that both have: computed right, or refused."""

from __future__ import annotations

import functools
import sys
import types
import unittest
from collections import Counter

import numpy as np
import pytest

import nbbn
from nbbn import Parameter, Tape, losses, ops
from nbbn.autograd.ops.shapes import Cast
from nbbn.autograd.tensor import Tensor, apply
from nbbn.errors import NbbnError

torch = pytest.importorskip("torch")

# What is refused: the sample, as `described`, and the words of the refusal.
REFUSED: dict[str, str] = {}


def sample_inputs(dtype):
    """Yield operations and samples; PyTorch's list asks for a package that it barely uses."""
    if "expecttest" not in sys.modules:
        try:
            import expecttest  # noqa: F401 - only to see whether it is there
        except ImportError:
            stand_in = types.ModuleType("expecttest")
            stand_in.TestCase = unittest.TestCase
            sys.modules["expecttest"] = stand_in
    from torch.testing._internal.common_methods_invocations import op_db

    for op in op_db:
        name = op.name.removeprefix("nn.functional.")
        if name in OPERATIONS:
            for sample in op.sample_inputs("cpu", dtype, requires_grad=True):
                yield name, op.op, sample


def softmax(x, axis, *, dtype=None, of=ops.softmax):
    return of(x if dtype is None else apply(Cast, x, dtype=np.dtype(str(dtype)[6:])), axis=axis)


def dropout(x, *, p=0.5, training=True):
    return nbbn.Dropout(p, rng=0).train(training)(x)


OPERATIONS = {
    "softmax": softmax,
    "log_softmax": functools.partial(softmax, of=ops.log_softmax),
    "cross_entropy": losses.cross_entropy,
    "linear": ops.linear,
    "dropout": dropout,
    "mse_loss": losses.mse,
    "huber_loss": losses.huber,
    "binary_cross_entropy_with_logits": losses.binary_cross_entropy,
}
# So that a change of PyTorch's list shows.
LEAST = {"softmax": 14, "log_softmax": 14, "cross_entropy": 21, "linear": 18, "dropout": 19,
         "mse_loss": 6, "huber_loss": 9, "binary_cross_entropy_with_logits": 26}  # fmt: skip


def described(name, sample) -> str:
    def brief(value):
        return tuple(value.shape) if isinstance(value, torch.Tensor) else value

    options = {key: brief(value) for key, value in sample.kwargs.items()}
    return f"{name}{brief(sample.input), *map(brief, sample.args)} {options}"


def as_ours(value):
    if not isinstance(value, torch.Tensor):
        return value
    array = value.detach().numpy().copy()
    return Parameter(array) if value.requires_grad else array


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: dtype.__name__)
def test_every_sample_is_computed_right_or_refused(dtype, rng):
    right, refused = Counter(), {}
    for name, function, sample in sample_inputs(getattr(torch, dtype.__name__)):
        theirs = [sample.input, *sample.args]
        own = [as_ours(value) for value in theirs]
        options = {key: as_ours(value) for key, value in sample.kwargs.items()}
        try:
            with Tape() as tape:
                y = OPERATIONS[name](*own, **options)
        except NbbnError as error:
            refused[described(name, sample)] = str(error)
            continue
        expected = function(*theirs, **sample.kwargs)
        leaves = [pair for pair in zip(own, theirs, strict=True) if isinstance(pair[0], Parameter)]
        if name == "dropout":
            check_dropout(sample, y, tape, leaves[0][0])
        else:
            tolerance = 2e-6 if dtype == np.float32 else 1e-13
            compare(y.data, expected, tolerance)
            dy = np.asarray(rng.normal(size=y.shape), y.dtype)
            tape.backward(y, dy)
            expected.backward(torch.tensor(dy))
            for mine, other in leaves:
                compare(mine.grad, other.grad, tolerance)
        right[name] += 1
    assert refused.keys() == REFUSED.keys()
    assert all(REFUSED[sample] in words for sample, words in refused.items())
    assert {name: right[name] >= least for name, least in LEAST.items()} == dict.fromkeys(
        LEAST, True
    )


def compare(found, expected, tolerance):
    expected = expected.detach().numpy()
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    scale = max(1.0, float(np.max(np.abs(expected), initial=0)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


def check_dropout(sample, y: Tensor, tape: Tape, x: Parameter):
    """Its own randomness: each element is dropped or scaled, and so is its gradient."""
    p = sample.kwargs.get("p", 0.5) if sample.kwargs.get("training", True) else 0.0
    scaled = x.data / (1 - p) if p < 1 else np.zeros_like(x.data)
    kept = np.isclose(y.data, scaled)
    assert np.all(kept | (y.data == 0))
    if p == 0:
        assert kept.all()
    if y is not x:
        tape.backward(y, np.ones_like(y.data))
        factor = 0 if p == 1 else 1 / (1 - p)
        np.testing.assert_allclose(x.grad, np.where(kept, factor, 0), rtol=1e-6)
