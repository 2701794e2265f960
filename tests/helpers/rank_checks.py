"""What every rank of a distributed run checks: ``python -m tests.helpers.rank_checks``.

Each check gets the ranks, and raises where it fails. All data are made on every rank, so that each
can compute by itself what one process with the whole batch would.
"""

from __future__ import annotations

import itertools
import json
import sys
import traceback

import numpy as np
import pytest

import nbbn
from nbbn import distributed
from nbbn import functional as F  # noqa: N812 - the usual name
from nbbn.data import Batches
from nbbn.errors import ArgumentError, CheckpointError, ShapeError
from nbbn.train.callbacks import Callback
from nbbn.train.share import _buckets

CHECKS = {}


def check(function):
    CHECKS[function.__name__] = function
    return function


def pieces(ranks, count, lengths=None):
    """Cut `count` rows: evenly, or so that rank 0 has most and the last one none."""
    if lengths is None:
        edges = [rank * count // ranks.size for rank in range(ranks.size + 1)]
    else:
        edges = [0, *np.cumsum(lengths)]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def uneven(ranks, count):
    """Lengths of which the last is 0 and the others differ."""
    if ranks.size == 1:
        return [count]
    first = [count - 3 * (ranks.size - 2)] + [3] * (ranks.size - 2)
    return [*first, 0]


def refuses(kind, words, function):
    with pytest.raises(kind, match=words):
        function()


# ---------------------------------------------------------------------------- batch normalization


@check
def synchronized_batch_norm_is_that_of_the_whole_batch(ranks):
    for dtype, limit in ((np.float64, 1e-12), (np.float32, 3e-6)):
        for shape, axis in (((23, 6), 1), ((11, 5, 4, 3), 1), ((11, 4, 3, 5), -1)):
            for activation in (None, "relu"):
                for residual in (False, True):
                    _compare(ranks, dtype, limit, shape, axis, activation, residual)


def _compare(ranks, dtype, limit, shape, axis, activation, residual):
    C, convention = shape[axis], nbbn.Convention(axis=axis)
    rng = np.random.default_rng(7)
    x = (100 + rng.standard_normal(shape)).astype(dtype)
    added = rng.standard_normal(shape).astype(dtype) if residual else None
    dy = rng.standard_normal(shape).astype(dtype)
    layers = [
        nbbn.BatchNorm(C, sync=sync, convention=convention, activation=activation, dtype=dtype)
        for sync in (False, True)
    ]
    for layer in layers:
        layer.gamma.data[...] = np.linspace(-1, 2, C)
        layer.beta.data[...] = np.linspace(2, -1, C)
    parts = pieces(ranks, shape[0], uneven(ranks, shape[0]))
    for layer, part in zip(layers, (slice(None), parts[ranks.rank]), strict=True):
        given = nbbn.Tensor(x[part], requires_grad=True)
        extra = nbbn.Tensor(added[part], requires_grad=True) if residual else None
        with nbbn.Tape() as tape:
            y = layer(given, extra)
        tape.backward(y, dy[part])
        found = [y.data, given.grad, *([extra.grad] if residual else [])]
        if layer is layers[0]:
            expected = [array[parts[ranks.rank]] for array in found]
        else:
            for name in ("gamma", "beta"):
                gradient = getattr(layer, name).grad.copy()
                ranks.sum(gradient)
                found.append(gradient)
                expected.append(getattr(layers[0], name).grad)
    for own, whole in zip(found, expected, strict=True):
        assert own.shape == whole.shape
        assert np.abs(own - whole).max(initial=0) <= limit * max(1, np.abs(whole).max(initial=0))
    # Statistics: the very bits of the pieces' own, merged in the order of the ranks.
    stats = [F.batch_norm_train(x[part], axis=axis, single=True)[1] for part in parts]
    merged = F.merge_stats(stats)
    running = np.zeros(C, dtype), np.ones(C, dtype)
    F.update_running_stats(*running, merged)
    if ranks.size > 1:
        assert layers[1].running_mean.tobytes() == running[0].tobytes()
        assert layers[1].running_var.tobytes() == running[1].tobytes()


@check
def a_single_value_counts_over_all_ranks(ranks):
    x = np.ones((1, 4), np.float32)
    if ranks.size == 1:
        return refuses(ShapeError, "more than 1 value", lambda: nbbn.SyncBatchNorm(4)(x))
    alone = x if ranks.rank == 0 else x[:0]
    refuses(ShapeError, "got 1 in the batches of all", lambda: nbbn.SyncBatchNorm(4)(alone))
    keras = nbbn.SyncBatchNorm(4, convention="keras")
    assert np.array_equal(keras(alone).data, np.zeros_like(alone))
    # One on each of two ranks is enough.
    layer = nbbn.SyncBatchNorm(4)
    y = layer(2.0 * ranks.rank * x if ranks.rank < 2 else x[:0]).data
    expected = np.full((1, 4), -1.0 if ranks.rank == 0 else 1.0)[: len(y)]
    assert np.abs(y - expected).max(initial=0) < 1e-4
    assert np.allclose(layer.running_var, 0.9 + 0.1 * 2.0)
    return None


@check
def what_has_no_statistics_of_all_ranks_is_refused(ranks):
    if ranks.size == 1:
        return
    x = np.ones((4, 4), np.float32)
    refuses(ArgumentError, "GhostBatchNorm", lambda: nbbn.GhostBatchNorm(4, 2, sync=True)(x))
    refuses(ArgumentError, "weights", lambda: nbbn.SyncBatchNorm(4)(x, weights=np.ones((4, 1))))
    skip = nbbn.Convention(on_single="skip")
    refuses(ArgumentError, "skip", lambda: nbbn.SyncBatchNorm(4, convention=skip)(x))


@check
def evaluation_and_recalibration_ask_no_other_rank(ranks):
    """Ranks make different numbers of calls: a collective among them would never end."""
    layer = nbbn.SyncBatchNorm(4)
    data = np.random.default_rng(1).standard_normal((8, 4)).astype(np.float32)
    nbbn.recalibrate(layer, [data] * (1 + ranks.rank))
    layer.eval()
    for _ in range(1 + ranks.rank):
        layer(data)
    assert np.allclose(layer.running_mean, data.mean(axis=0), atol=1e-6)


# ------------------------------------------------------------------------------------ training


def task(count=102, features=12, classes=3):
    rng = np.random.default_rng(3)
    y = rng.integers(0, classes, count)
    x = rng.standard_normal((count, features)) + 2 * np.eye(classes, features)[y]
    return x.astype(np.float32), y


def trained(model, ranks, x, y, *, optimizer=None, epochs=1, **options):
    """Train with batches of 20, the last of which has 2 rows: some ranks get none."""
    batches = Batches(x, y, 20, rng=5, ranks=ranks)
    optimizer = optimizer or nbbn.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    history = nbbn.train.fit(
        model, batches, optimizer, epochs=epochs, ranks=ranks, test=(x, y), **options
    )
    return history, optimizer


def synchronize(model):
    for layer in model.modules():
        if isinstance(layer, nbbn.BatchNorm):
            layer.sync = True
    return model


def difference(a, b):
    states = a.state_dict(), b.state_dict()
    return max(np.abs(one - states[1][name]).max() for name, one in states[0].items())


@check
def an_epoch_gives_the_weights_of_one_process(ranks):
    class Counting(Callback):
        counts_right = True

    x, y = task()
    for make in (
        lambda: nbbn.mlp((12, 16, 3), rng=0),
        lambda: nbbn.cnn((3, 4), 3, channels=(4,), hidden=(8,), rng=0),
    ):
        whole, own = make(), synchronize(make())
        one, _ = trained(whole, None, x, y, callbacks=[Counting()])
        many, _ = trained(own, ranks, x, y, callbacks=[Counting()])
        assert difference(whole, own) < 1e-6, difference(whole, own)
        assert abs(one[0].loss - many[0].loss) < 1e-6
        assert one[0].accuracy == many[0].accuracy
        assert abs(one[0].test.loss - many[0].test.loss) < 1e-6
        assert (one[0].test.accuracy, 102) == (many[0].test.accuracy, many[0].test.count)


@check
def steps_are_recorded_and_replays_have_the_same_bits(ranks):
    x, y = task(96)
    states = []
    for eager in (False, True):
        model = synchronize(nbbn.mlp((12, 16, 3), rng=0, dropout=0.2))
        optimizer = nbbn.optim.Adam(model.parameters())
        step = nbbn.train.record_step(model, nbbn.losses.cross_entropy, optimizer, ranks=ranks)
        if eager:
            step.refusal = "to compare"
        losses = []
        for _ in range(6):
            for part in (slice(0, 48), slice(48, 96)):
                own = ranks.part(48)
                losses.append(step(x[part][own], y[part][own]))
        assert eager or (step.refusal, step.recordings) == (None, 2)
        # The loss of all: the same on every rank.
        assert len(set(ranks.exchange(tuple(losses)))) == 1
        states.append({name: a.tobytes() for name, a in model.state_dict().items()} | {"l": losses})
    assert states[0] == states[1]


@check
def gradients_in_buckets_are_those_of_one_sum(ranks):
    """While the backward pass goes on; recorded too, and for a parameter without a gradient."""
    for frozen in (True, False):
        _compare_buckets(ranks, frozen)


def _compare_buckets(ranks, frozen):
    x, y = task(96)
    states, begun = [], []
    for bucket in (1 << 22, 1, 500):
        ranks.bucket = bucket
        model = synchronize(nbbn.mlp((12, 16, 16, 3), rng=0))
        model[2].weight.requires_grad = not frozen
        optimizer = nbbn.optim.SGD(model.parameters(), 0.1)
        step = nbbn.train.record_step(model, nbbn.losses.cross_entropy, optimizer, ranks=ranks)
        own = ranks.part(96)
        for _ in range(4):
            step(x[own], y[own])
        assert step.refusal is None
        states.append(model.state_dict())
        begun.append(len(_buckets(optimizer, bucket)))
    ranks.bucket = 1 << 22
    assert begun[0] == 1 < begun[2] < begun[1] == len(model.parameters())
    for state in states[1:]:
        assert max(np.abs(a - states[0][name]).max() for name, a in state.items()) < 1e-6


@check
def a_step_with_declared_code_runs_eagerly(ranks):
    import warnings

    @nbbn.recordable
    def loss(output, y):
        return nbbn.losses.cross_entropy(output, y)

    model = synchronize(nbbn.mlp((12, 16, 3), rng=0))
    optimizer = nbbn.optim.SGD(model.parameters())
    step = nbbn.train.record_step(model, loss, optimizer, ranks=ranks)
    x, y = task(24)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step(x[ranks.part(24)], y[ranks.part(24)])
    assert "tried once" in step.refusal


@check
def each_rank_drops_others(ranks):
    drop = nbbn.Dropout(0.5, rng=0)
    kept = [array.tobytes() for array in ranks.exchange(drop(np.ones((8, 8), np.float32)).data)]
    assert len(set(kept)) == ranks.size
    states = ranks.exchange(repr(drop.rng.bit_generator.state))
    assert len(set(states)) == 1


@check
def local_batch_norm_averages_its_running_statistics(ranks):
    x, y = task(96)
    models = [nbbn.mlp((12, 16, 3), rng=0), synchronize(nbbn.mlp((12, 16, 3), rng=0))]
    for model in models:
        trained(model, ranks, x, y)
    assert len({a.tobytes() for a in ranks.exchange(models[0][1].running_var)}) == 1
    assert difference(*models) > (1e-4 if ranks.size > 1 else -1)
    x[:, 0] = 7  # everywhere, so that five steps have one mean on every rank
    model = nbbn.Sequential(nbbn.BatchNorm(12), nbbn.Dense(12, 3, rng=0))
    trained(model, ranks, x, y)
    assert abs(model[0].running_mean[0] - 7 * (1 - 0.9**5)) < 1e-5


@check
def a_rank_that_is_to_stop_stops_all_after_the_same_step(ranks):
    class Stop(Callback):
        def step(self, run):
            if run.step == 4:
                run.stop("enough")

    x, y = task()
    model = synchronize(nbbn.mlp((12, 16, 3), rng=0))
    callbacks = [Stop()] if ranks.rank == ranks.size - 1 else []
    _, optimizer = trained(model, ranks, x, y, epochs=3, callbacks=callbacks)
    assert set(ranks.exchange(optimizer.step_count)) == {5}


@check
def what_diverges_does_so_on_all_ranks_before_the_step(ranks):
    x, y = task(100)
    if ranks.rank == ranks.size - 1:
        x = np.full_like(x, np.nan)
    model = synchronize(nbbn.mlp((12, 16, 3), rng=0))
    optimizer = nbbn.optim.SGD(model.parameters())
    batches = [(x[ranks.part(100)], y[ranks.part(100)])]
    before = model.state_dict()
    refuses(
        nbbn.errors.DivergenceError, "nan",
        lambda: nbbn.train.fit(model, batches, optimizer, epochs=1, ranks=ranks),
    )  # fmt: skip
    after = model.state_dict()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert model[1].sync


# ---------------------------------------------------------------------------------------- data


@check
def every_number_of_ranks_sees_the_same_order(ranks):
    x = np.arange(46, dtype=np.float32)[:, None]
    whole = Batches(x, x, 8, rng=1)
    own = Batches(x, x, 8, rng=1, ranks=ranks)
    for _ in range(2):
        for (a, _), (b, target) in zip(whole, own, strict=True):
            assert np.array_equal(np.concatenate(ranks.exchange(b)), a)
            assert np.array_equal(b, target)
            assert own.position == whole.position


@check
def evaluation_counts_every_example_once(ranks):
    x, y = task(1003)
    model = nbbn.mlp((12, 16, 3), rng=0)
    one = nbbn.train.evaluate(model, (x, y))
    many = nbbn.train.evaluate(model, (x, y), ranks=ranks)
    assert (one.accuracy, one.count) == (many.accuracy, many.count)
    assert abs(one.loss - many.loss) < 1e-6


# -------------------------------------------------------------------------------------- refusals


@check
def ranks_that_differ_are_refused(ranks):
    if ranks.size == 1:
        return
    last = ranks.rank == ranks.size - 1
    x, y = task(100)

    def fit(seed=0, lr=0.1, epochs=1, x=x, rng=5, given=ranks):
        model = synchronize(nbbn.mlp((12, 16, 3), rng=seed))
        batches = Batches(x, y, 20, rng=rng, ranks=given)
        optimizer = nbbn.optim.SGD(model.parameters(), lr)
        return nbbn.train.fit(model, batches, optimizer, epochs=epochs, ranks=ranks)

    for words, options in (
        ("initial weights", {"seed": 1}),
        ("schedule.lr", {"lr": 0.2}),
        ("epochs", {"epochs": 2}),
        ("batches.fingerprint", {"x": x + 1}),
        ("order of the examples", {"rng": 6}),
    ):
        refuses(ArgumentError, words, lambda o=options: fit(**(o if last else {})))
    refuses(ArgumentError, f"rank {ranks.size - 1}", lambda: ranks.agree({"name": last}))
    refuses(ArgumentError, "pass the same ranks to Batches", lambda: fit(given=None))
    whole = Batches(x, y, 20)
    model = nbbn.mlp((12, 3), rng=0)
    refuses(
        ArgumentError, "divided", lambda: nbbn.train.evaluate(model, whole, ranks=ranks)
    )  # fmt: skip


@check
def a_batch_that_leaves_a_rank_one_example_is_refused_for_local_statistics(ranks):
    x, y = task(100)
    make = {False: nbbn.mlp((12, 16, 3), rng=0), True: synchronize(nbbn.mlp((12, 16, 3), rng=0))}
    for sync, model in make.items():
        batches = Batches(x, y, ranks.size, rng=0, drop_last=True, ranks=ranks)
        optimizer = nbbn.optim.SGD(model.parameters())
        run = nbbn.train.fit, (model, batches, optimizer), {"epochs": 1, "ranks": ranks}
        if sync and ranks.size > 1:
            run[0](*run[1], **run[2])
        else:
            refuses(ArgumentError, "single example", lambda r=run: r[0](*r[1], **r[2]))


@check
def an_error_of_the_first_rank_is_raised_on_all(ranks):
    def fail():
        raise CheckpointError("it is damaged")

    refuses(CheckpointError, "damaged", lambda: ranks.first(fail))
    assert ranks.first(lambda: 7) == 7
    assert ranks.any(ranks.rank == ranks.size - 1)
    assert not ranks.any(False)


if __name__ == "__main__":
    world = distributed.start(timeout=60)
    found = {}
    for name, function in CHECKS.items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        error = ""
        try:
            function(world)
        except Exception:
            error = traceback.format_exc()
        errors = world.exchange(error)
        found[name] = "".join(f"rank {r}: {e}" for r, e in enumerate(errors) if e)
    if world.rank == 0:
        print(f"\n{json.dumps(found)}", flush=True)
