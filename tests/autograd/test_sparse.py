"""Dense layers of sparse rows: the truth in extended precision, bits, refusals, replays."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

import nbbn
from nbbn import backend, losses, ops, optim
from nbbn.autograd.tensor import SparseTensor
from nbbn.errors import ArgumentError, DTypeError, ShapeError, TapeError
from nbbn.kernels import sparse_cpu
from nbbn.train import record_step

DTYPES = [np.float32, np.float64]


def matrix(rng, rows=9, columns=13, density=0.3, dtype=np.float32, index=np.int32):
    found = sparse.random(rows, columns, density, "csr", dtype, random_state=rng)
    found.data -= 0.5
    found.indices, found.indptr = found.indices.astype(index), found.indptr.astype(index)
    return found


def twins(x):
    """The same batch, sparse and dense."""
    return SparseTensor(backend.as_csr(x)), nbbn.Tensor(np.ascontiguousarray(x.toarray()))


@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(9, 13), (1, 1), (40, 3), (3, 500), (0, 4), (4, 17_000)])
def test_outputs_and_gradients_are_those_of_the_dense_layer(shape, dtype, index, rng):
    x = matrix(rng, *shape, dtype=dtype, index=index)
    weight, bias = rng.normal(size=(6, shape[1])), rng.normal(size=6)
    dy = rng.normal(size=(shape[0], 6)).astype(dtype)
    wide = x.toarray().astype(np.longdouble)
    w, b = (nbbn.Parameter(a.astype(dtype)) for a in (weight, bias))
    with nbbn.Tape() as tape:
        y = ops.linear(twins(x)[0], w, b)
    tape.backward(y, dy)
    assert y.dtype == w.grad.dtype == dtype
    eps = np.finfo(dtype).eps
    size = np.abs(wide) @ np.abs(w.data.T) + np.abs(b.data)
    truth = wide @ w.data.T.astype(np.longdouble) + b.data
    assert (np.abs(y.data - truth) <= 2 * eps * size).all()
    size = np.abs(dy.T.astype(np.longdouble)) @ np.abs(wide)
    truth = dy.T.astype(np.longdouble) @ wide
    assert (np.abs(w.grad - truth) <= (shape[0] + 2) * eps * size).all()
    np.testing.assert_allclose(b.grad, dy.sum(axis=0), rtol=1e-4, atol=1e-5)


def test_columns_that_occur_twice_add_up_and_stored_zeros_count_for_nothing(rng):
    rows = sparse.csr_matrix(
        (np.array([1.0, 2.0, 0.0, 4.0]), np.array([2, 2, 0, 1]), np.array([0, 2, 3, 4])), (3, 4)
    )
    layer = nbbn.Dense(4, 2, rng=0, dtype=np.float64)
    np.testing.assert_allclose(layer(rows).data, layer(rows.toarray()).data, rtol=1e-15)
    np.testing.assert_array_equal(backend.as_csr(rows).toarray(), rows.toarray())


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_threads_gives_the_same_bits(dtype, rng, monkeypatch):
    x = matrix(rng, 60, 900, 0.2, dtype)
    layer = nbbn.Dense(900, 37, rng=0, dtype=dtype)
    dy = rng.normal(size=(60, 37)).astype(dtype)
    found = []
    for threads in (1, 2, 3, 7, 50):
        monkeypatch.setattr(sparse_cpu, "workers", lambda work, n=threads: n)
        layer.zero_grad()
        with nbbn.Tape() as tape:
            y = layer(x)
        tape.backward(y, dy)
        found.append(y.data.tobytes() + layer.weight.grad.tobytes())
    assert len(set(found)) == 1


def test_room_behind_the_values_is_not_read(rng):
    x = backend.as_csr(matrix(rng))
    count = int(x.indptr[-1])
    wide = x.room(len(x), count + 20, x.dtype)
    wide.values[:count], wide.indices[:count], wide.indptr[:] = x.values, x.indices, x.indptr
    wide.values[count:], wide.indices[count:] = np.nan, 2**30
    layer = nbbn.Dense(13, 5, rng=0)
    for rows in (x, wide):
        layer.zero_grad()
        with nbbn.Tape() as tape:
            y = layer(SparseTensor(rows))
            total = y.sum()
        tape.backward(total)
        if rows is x:
            expected = y.data.copy(), layer.weight.grad.copy()
    np.testing.assert_array_equal(y.data, expected[0])
    np.testing.assert_array_equal(layer.weight.grad, expected[1])
    np.testing.assert_array_equal(wide.toarray(), x.toarray())
    assert repr(wide) == f"CSR(shape=(9, 13), {count} values of float32)"


def test_a_whole_model_computes_what_it_does_with_an_array(rng):
    x = matrix(rng, 30, 40, dtype=np.float64)
    model = nbbn.mlp((40, 16, 3), rng=0, dtype=np.float64)
    twin = nbbn.mlp((40, 16, 3), rng=0, dtype=np.float64)
    y = rng.integers(0, 3, 30)
    for own, batch in ((model, x), (twin, x.toarray())):
        with nbbn.Tape() as tape:
            loss = losses.cross_entropy(own(batch), y)
        tape.backward(loss)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        np.testing.assert_allclose(p.grad, q.grad, atol=1e-14)
    nbbn.recalibrate(model, [x])
    nbbn.recalibrate(twin, [x.toarray()])
    np.testing.assert_allclose(model[1].running_var, twin[1].running_var, rtol=1e-13)


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csr_array])
def test_recorded_steps_replay_with_other_rows_bit_for_bit(kind, rng):
    batches = [kind(matrix(rng, 16, 50, 0.1)) for _ in range(8)]
    # Of one filling: arrays of one shape can take each other's place.
    nnz = min(b.nnz for b in batches)
    assert len({b.nnz for b in batches}) == 1 == len({nnz})
    y = rng.integers(0, 3, (8, 16))
    outcomes = []
    for recorded in (True, False):
        model = nbbn.mlp((50, 12, 3), rng=0)
        optimizer = optim.Adam(model.parameters(), 0.01)
        step = record_step(model, losses.cross_entropy, optimizer)
        values = []
        for x, labels in zip(batches, y, strict=True):
            if recorded:
                values.append(step(x, labels))
                continue
            optimizer.zero_grad()
            with nbbn.Tape() as tape:
                loss = losses.cross_entropy(model(x), labels)
            tape.backward(loss)
            optimizer.step()
            values.append(loss.item())
        if recorded:
            assert (step.recordings, step.refusal) == (2, None)
        outcomes.append((values, {k: a.tobytes() for k, a in model.state_dict().items()}))
    assert outcomes[0] == outcomes[1]


# ----------------------------------------------------------------------------------- refusals


def broken(**parts):
    found = sparse.csr_matrix(np.eye(4))
    for name, value in parts.items():
        setattr(found, name, np.array(value, np.int32))
    return found


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: sparse.csc_matrix(np.eye(4)), DTypeError, r"format csc: pass x.tocsr\(\)"),
        (lambda: sparse.coo_array(np.eye(4)), DTypeError, "format coo"),
        (lambda: sparse.csr_matrix(np.eye(4, dtype=int)), DTypeError, "float64, got int64"),
        (lambda: sparse.csr_matrix(np.eye(4, dtype=complex)), DTypeError, "got complex128"),
        (lambda: broken(indices=[0, 1, 2, 4]), ArgumentError, "not a valid CSR matrix"),
        (lambda: broken(indices=[0, -1, 2, 3]), ArgumentError, "check_format"),
        (lambda: broken(indptr=[0, 2, 1, 3, 4]), ArgumentError, "not a valid CSR matrix"),
        (lambda: broken(indptr=[0, 1, 2, 3, 9]), ArgumentError, "not a valid CSR matrix"),
        (lambda: sparse.csr_matrix(np.eye(5)), ShapeError, r"weight \(2, 4\).* of 5 columns"),
    ],
)
def test_matrices_that_cannot_be_taken(make, error, words):
    with pytest.raises(error, match=words):
        nbbn.Dense(4, 2, rng=0)(make())


def test_only_dense_takes_sparse_rows(rng):
    x = matrix(rng, 4, 4)
    for layer in (nbbn.ReLU(), nbbn.BatchNorm(4), nbbn.Sequential(nbbn.Tanh(), nbbn.Dense(4, 2))):
        with pytest.raises(DTypeError, match=r"only Dense takes a sparse batch.*toarray\(\)"):
            layer(x)
    rows = twins(x)[0]
    assert (rows.shape, rows.ndim, rows.size, len(rows)) == ((4, 4), 2, 16, 4)
    assert (rows.dtype, rows.device) == (np.float32, "cpu")
    assert "CSR(shape=(4, 4)" in repr(rows)
    with pytest.raises(DTypeError, match="only Dense"):
        rows + 1


def test_there_is_no_second_derivative(rng):
    layer = nbbn.Dense(4, 1, rng=0)
    with nbbn.Tape(), pytest.raises(TapeError, match="SparseLinear has no second derivative"):
        nbbn.grad(layer(matrix(rng, 4, 4)).sum(), [layer.weight], create_graph=True)
