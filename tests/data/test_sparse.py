"""Batches of sparse rows: the same as of the dense ones, without ever making these."""

from __future__ import annotations

import copy
import tracemalloc

import numpy as np
import pytest
from scipy import sparse

import nbbn
from nbbn import optim
from nbbn.data import Batches
from nbbn.errors import ArgumentError, CheckpointError, DivergenceError, ShapeError
from nbbn.train import evaluate, find_lr, fit


def data(rng, rows=50, columns=30, dtype=np.float32, kind=sparse.csr_matrix):
    x = sparse.random(rows, columns, 0.2, "csr", dtype, random_state=rng)
    x.data -= 0.5
    # Rows of very different fillings, an empty one too.
    x = x.tolil()
    x[0], x[1] = 0, 1
    return kind(x.tocsr().astype(dtype)), rng.integers(0, 3, rows)


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csr_array])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "options",
    [{}, {"shuffle": False}, {"drop_last": True}, {"std": 2.5}, {"reuse": True},
     {"std": np.linspace(0.5, 3, 30)}, {"rows": np.arange(0, 50, 3)}, {"batch_size": 64}],
    ids=str,
)  # fmt: skip
def test_batches_hold_what_those_of_the_array_hold(options, dtype, kind, rng):
    x, y = data(rng, dtype=dtype, kind=kind)
    given = {"batch_size": 16, "rng": 3} | options
    own, dense = (Batches(a, y, **given) for a in (x, x.toarray()))
    assert (own.count, own.features, len(own)) == (dense.count, dense.features, len(dense))
    shapes = set()
    for _ in range(2):
        for (a, b), (c, d) in zip(own, dense, strict=True):
            assert a.dtype == np.float32
            np.testing.assert_array_equal(a.toarray(), c)
            np.testing.assert_array_equal(b, d)
            shapes.add((len(b), *(part.shape for part in a.parts())))
    # A full batch and a short one: two layouts for recorded steps.
    assert len(shapes) <= 2
    np.testing.assert_array_equal(own.first(7)[0].toarray(), dense.first(7)[0])


def test_training_and_evaluation_are_those_of_the_array(rng):
    x, y = data(rng)
    outcomes = []
    for own in (x, x.toarray()):
        model = nbbn.mlp((30, 12, 3), rng=0)
        optimizer = optim.SGD(model.parameters(), 0.05)
        held = Batches(own, y, 20, shuffle=False)
        history = fit(model, Batches(own, y, 16, rng=1), optimizer, epochs=3, validation=held)
        outcomes.append([e.loss for e in history] + [e.validation.loss for e in history])
        assert evaluate(model, held).count == 50
    np.testing.assert_allclose(*outcomes, rtol=1e-5)


@pytest.mark.filterwarnings("error")
def test_steps_are_replayed_and_a_pair_will_do(rng, monkeypatch):
    made = []
    record = nbbn.train.loop.record_step
    monkeypatch.setattr(
        nbbn.train.loop, "record_step", lambda *parts: made.append(record(*parts)) or made[-1]
    )
    x, y = data(rng)
    model = nbbn.mlp((30, 12, 3), rng=0)
    optimizer = optim.Adam(model.parameters())
    fit(model, (x, y), optimizer, epochs=6, batch_size=16, validation=(x, y))
    assert (made[0].refusal, made[0].recordings) == (None, 4)
    assert find_lr(model, (x, y), optimizer, steps=20, batch_size=16).losses.size


def test_a_resumed_epoch_goes_on_with_the_same_rows(rng):
    x, y = data(rng)
    whole = Batches(x, y, 16, rng=0)
    part = iter(whole)
    next(part)
    state = copy.deepcopy(whole.state_dict())
    expected = [batch.toarray() for batch, _ in part]
    again = Batches(x, y, 16, rng=9)
    again.load_state_dict(state)
    for found, truth in zip([batch.toarray() for batch, _ in again], expected, strict=True):
        np.testing.assert_array_equal(found, truth)
    other = Batches(x[:40], y[:40], 16)
    with pytest.raises(CheckpointError):
        other.load_state_dict(state)


def test_the_fingerprint_tells_data_apart(rng):
    x, y = data(rng)
    one = Batches(x, y, 16).fingerprint
    assert one == Batches(x.copy(), y, 8, rng=1).fingerprint
    changed = x.copy()
    changed.data[0] += 1
    assert Batches(changed, y, 16).fingerprint != one


def test_no_dense_array_is_ever_made(rng):
    rows, columns = 4000, 50_000  # 800 MB as float32
    x = sparse.random(rows, columns, 2e-4, "csr", np.float32, random_state=rng)
    y = rng.integers(0, 2, rows)
    model = nbbn.Dense(columns, 2, rng=0)
    optimizer = optim.SGD(model.parameters())
    tracemalloc.start()
    fit(model, Batches(x, y, 128), optimizer, epochs=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # One batch alone would be 25 MB.
    assert peak < 20e6


def test_what_is_not_finite_is_found_among_the_values(rng):
    x, y = data(rng)
    x.data[5] = np.nan
    model = nbbn.mlp((30, 12, 3), rng=0)
    with pytest.raises(DivergenceError, match="the batch itself holds NaN"):
        fit(model, (x, y), optim.SGD(model.parameters()), epochs=1)
    x.data[:] = 3e38
    model = nbbn.Dense(30, 3, rng=0)
    with pytest.raises(DivergenceError, match="the output of the model is the first"):
        fit(model, (x, y), optim.SGD(model.parameters()), epochs=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mean": 0.5}, "would fill every zero"),
        ({"std": 0.0}, "std must be positive"),
        ({"device": "cuda"}, "sparse rows stay on the cpu"),
    ],
)
def test_options_that_sparse_rows_do_not_have(options, words, rng):
    with pytest.raises(ArgumentError, match=words):
        Batches(*data(rng), 16, **options)


def test_rows_and_columns_are_needed():
    with pytest.raises(ShapeError, match=r"rows and columns, got \(0, 3\)"):
        Batches(sparse.csr_matrix((0, 3)), np.zeros(0, int), 2)
