"""Recurrent networks on arrays: what the table of operations does not reach."""

from __future__ import annotations

import numpy as np
import pytest

from nbbn import functional as F  # noqa: N812 - the usual name
from nbbn.errors import ArgumentError, DTypeError, ShapeError
from nbbn.functional.recurrent import KINDS
from tests.helpers import reference
from tests.helpers.refusals import refusing

T, N, H = 5, 4, 3
every_kind = pytest.mark.parametrize("kind", KINDS)


def operands(kind: str, rng, dtype=np.float32):
    gates = KINDS[kind].gates * H
    shapes = (T, N, gates), (gates, H), (gates,), (KINDS[kind].states, N, H)
    return [rng.normal(size=shape).astype(dtype) for shape in shapes]


@every_kind
def test_no_steps_and_no_sequences(kind, rng):
    projected, weight, bias, initial = operands(kind, rng)
    states = F.recurrent(projected[:0], weight, bias, initial, kind=kind)
    np.testing.assert_array_equal(states.states[:, 0], initial)
    found = F.recurrent_backward(np.ones_like(states.states), weight, states, bias, kind=kind)
    assert (found.initial == 1).all()
    assert not found.weight.any()
    states = F.recurrent(projected[:, :0], weight, bias, kind=kind)
    assert states.states.shape == (KINDS[kind].states, T + 1, 0, H)
    found = F.recurrent_backward(states.states, weight, states, bias, kind=kind)
    assert not found.weight.any()
    assert not found.bias.any()


@every_kind
def test_what_overflows_saturates(kind, rng):
    """Gates of any size: no NaN comes of them, in either direction."""
    projected, weight, bias, initial = operands(kind, rng)
    if kind == "relu":
        projected = np.minimum(projected, 0)
        weight *= 0
    states = F.recurrent(1e30 * projected, weight, bias, initial, kind=kind)
    assert np.isfinite(states.states).all()
    found = F.recurrent_backward(np.ones_like(states.states), weight, states, bias, kind=kind)
    assert all(np.isfinite(array).all() for array in found)


@every_kind
def test_nan_stays_in_its_sequence(kind, rng):
    projected, weight, bias, initial = operands(kind, rng)
    expected = F.recurrent(projected, weight, bias, initial, kind=kind).states
    projected[2, 1] = np.nan
    got = F.recurrent(projected, weight, bias, initial, kind=kind).states
    assert np.isnan(got[0, 3:, 1]).all()
    np.testing.assert_array_equal(np.delete(got, 1, 2), np.delete(expected, 1, 2))


@every_kind
def test_long_sequences_stay_accurate(kind, rng):
    """A thousand steps in float32; the errors of one do not grow over the others."""
    gates = KINDS[kind].gates * H
    projected = rng.normal(size=(1000, 2, gates)).astype(np.float32)
    weight = (rng.normal(size=(gates, H)) / 3).astype(np.float32)
    got = F.recurrent(projected, weight, kind=kind).states[0, 1:]
    want = reference.recurrent(projected, weight, kind=kind)[:1000]
    assert np.abs(got - want).max() <= 5e-6 * max(1, np.abs(want).max())


P, W = np.ones((T, N, 4 * H), np.float32), np.ones((4 * H, H), np.float32)
S = F.recurrent(P, W, kind="lstm")
test_what_does_not_fit_is_refused = refusing(
    [
        ("F.recurrent(P, W, kind='elman')", ArgumentError, "kind.*elman"),
        ("F.recurrent(P, W, kind='gru')", ShapeError, r"gru.*\(3 \* H, H\).*\(12, 3\)"),
        ("F.recurrent(P[..., 1:], W, kind='lstm')", ShapeError, r"\(T, N, 12\).*\(5, 4, 11\)"),
        ("F.recurrent(P, W[:0, :0], kind='lstm')", ShapeError, "H >= 1"),
        ("F.recurrent(P, W, None, P, kind='lstm')", ShapeError, r"\(2, 4, 3\).*\(5, 4, 12\)"),
        ("F.recurrent(P, W, kind='lstm', reverse='no')", DTypeError, "reverse"),
        ("F.recurrent(P, W, kind='lstm', lengths=[1, 2])", DTypeError, "lengths.*list"),
        ("F.recurrent(P, W, kind='lstm', lengths=L)", ArgumentError, "between 1 and the 5.*6"),
        ("F.recurrent_backward(P, W, S, kind='lstm')", ShapeError, r"\(2, 6, 4, 3\).*\(5, 4, 12\)"),
        ("F.recurrent_backward(S.states, W, P, kind='lstm')", DTypeError, "RecurrentStates"),
        ("F.recurrent_backward(S.states, W[:9], S, kind='gru')", ShapeError, "states of gru"),
    ],
    {"F": F, "P": P, "W": W, "S": S, "L": np.array([1, 2, 6, 1])},
)
