"""What papers have proven about batch normalization, on the layers as they are."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import nbbn
import nbbn.functional as F  # noqa: N812 - the usual name
from nbbn import Tape, Tensor
from tests.helpers import reference

SHAPES = st.one_of(
    st.tuples(st.integers(2, 40), st.integers(1, 5)),
    st.tuples(st.integers(1, 8), st.integers(1, 5), st.integers(2, 12)),
)


@st.composite
def problems(draw):
    """Inputs of some spread around some mean, upstream gradients and a gamma per channel."""
    shape = draw(SHAPES)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale, center = draw(st.floats(1e-3, 1e3)), draw(st.floats(-1e3, 1e3))
    x = scale * rng.normal(size=shape) + scale * center
    dy = rng.normal(size=shape) + draw(st.floats(-2, 2))
    # Without the denormals that squares would fall to.
    factors = st.one_of(st.just(0.0), st.floats(0.1, 3), st.floats(-3, -0.1))
    gamma = draw(hnp.arrays(np.float64, shape[1], elements=factors))
    return x, dy, gamma


def squares(array):
    return reference.narrow(reference.channel_sum(reference.wide(array) ** 2, 1))


@settings(max_examples=150)
@given(problems())
def test_theorem_4_1_of_santurkar(problem):
    """|dL/dx|^2 = gamma^2 / var * (|g|^2 - <1, g>^2 / m - <g, x_hat>^2 / m), channel by channel.

    Santurkar et al., "How Does Batch Normalization Help Optimization?" (2018), for eps = 0. The
    last two terms only ever take off: batch normalization smooths the loss.
    """
    x, dy, gamma = problem
    # So far below every variance that adding it changes nothing.
    _, stats = F.batch_norm_train(x, gamma, eps=1e-300)
    dx, dgamma, dbeta = F.batch_norm_backward(dy, x, stats, gamma)
    slope = gamma**2 / stats.var
    left = squares(dx)
    right = slope * (squares(dy) - (dbeta**2 + dgamma**2) / stats.count)
    assert np.all(np.abs(left - right) <= 1e-10 * slope * squares(dy))
    assert np.all(left <= slope * squares(dy) * (1 + 1e-12))


@settings(max_examples=50)
@given(problems(), st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_scale_and_shift_of_the_input_do_not_matter(problem, scale, shift):
    """y is invariant, and the gradient scales inversely (Ioffe and Szegedy 2015, section 3.3)."""
    x, dy, gamma = problem
    moved = scale * (x + shift)
    results = []
    for data in (x, moved):
        y, stats = F.batch_norm_train(data, gamma, eps=1e-300)
        results.append((y, F.batch_norm_backward(dy, data, stats, gamma)[0]))
    # What rounding leaves of an input whose mean is far from 0.
    digits = 1e-13 * (1 + np.max(np.abs(moved)) / np.sqrt(stats.var.min()))
    (y, dx), (moved_y, moved_dx) = results
    assert np.max(np.abs(moved_y - y)) <= 100 * digits * max(np.max(np.abs(y)), 1)
    bound = np.max(np.abs(gamma)) * np.max(np.abs(dy)) / np.sqrt(F.batch_norm_train(x)[1].var.min())
    assert np.max(np.abs(scale * moved_dx - dx)) <= 1e4 * digits * max(bound, 1)


def test_gradients_grow_by_pi_over_pi_minus_1_per_layer():
    """Squared gradients of a deep ReLU net with batch norm at initialization, within 2 %.

    Yang et al., "A Mean Field Theory of Batch Normalization" (2019): 1.467 in the limit of wide
    layers and large batches.
    """
    width, batch, depth, skipped = 700, 128, 36, 6
    rng = np.random.default_rng(0)
    h = nbbn.Dense(width, width, bias=False, rng=rng)(rng.normal(size=(batch, width)).astype("f4"))
    h = Tensor(h.data, requires_grad=True)
    states = [h]
    with Tape():
        for _ in range(depth):
            norm = nbbn.BatchNorm(width, activation="relu")
            h = nbbn.Dense(width, width, bias=False, rng=rng)(norm(h))
            states.append(h)
        gradients = nbbn.grad(h, states, rng.normal(size=h.shape).astype(np.float32))
    energy = np.array([float(np.sum(g.data.astype(np.float64) ** 2)) for g in gradients])
    # Layers near the end still feel the random gradient that they start from, those near the
    # beginning the random input.
    growth = (energy[skipped] / energy[depth - skipped]) ** (1 / (depth - 2 * skipped))
    assert growth == pytest.approx(math.pi / (math.pi - 1), rel=0.02)
