"""Checkpoints: exact resumes, damage, foreign files, full disks, kills and locks."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import nbbn
from nbbn import checkpoint, optim
from nbbn.data import Batches
from nbbn.errors import ArgumentError, CheckpointError, DivergenceError, DTypeError
from nbbn.train.callbacks import Callback, EarlyStopping, Run
from nbbn.train.checkpoint import Checkpoints
from nbbn.train.logs import LogFile, read_log
from nbbn.train.loop import Epoch, Evaluation, fit
from tests.helpers.layers import state_of

FEATURES, CLASSES, ROWS = 12, 4, 70


def training(seed=0, *, hidden=(9, 7), make=optim.Adam, dropout=0.3, batch_size=16, lr=0.01):
    """A model, batches and optimizer that share one random generator, and a test set."""
    rng = np.random.default_rng(seed)
    images = np.random.default_rng(5).normal(size=(ROWS, FEATURES)).astype(np.float32)
    labels = np.random.default_rng(6).integers(0, CLASSES, ROWS)
    model = nbbn.mlp((FEATURES, *hidden, CLASSES), dropout=dropout, rng=rng)
    batches = Batches(images, labels, batch_size, rng=rng, reuse=True)
    optimizer = make(model.parameters(), optim.OneCycle(lr, 6 * len(batches)))
    test = Batches(images[:30], labels[:30], 30, shuffle=False)
    return model, batches, optimizer, test


def results(history):
    """What a history says, without times."""
    return [(e.epoch, e.loss, e.accuracy, e.validation, e.test) for e in history]


class Trained(NamedTuple):
    model: nbbn.Module
    optimizer: optim.Optimizer
    history: list[Epoch]

    def bits(self):
        return state_of(self.model, self.optimizer)

    def outcome(self):
        """All that the same training gives again."""
        return self.bits(), results(self.history)


class StopAfter(Callback):
    """Stop after some steps of this call of fit; count right answers on the way."""

    counts_right = True

    def __init__(self, steps):
        self.left = steps

    def step(self, run):
        self.left -= 1
        if self.left == 0:
            run.stop("test")


def run(
    folder, steps=10**9, *, epochs=6, resume=None, every=None, keeper=None, callbacks=(),
    watch="loss", restore_best=False, strict=True, **options,
):  # fmt: skip
    """Train, with checkpoints in `folder`; `resume="latest"` goes on from the last of them."""
    model, batches, optimizer, test = training(**options)
    keeper = keeper or Checkpoints(folder, every=every)
    history = fit(
        model, batches, optimizer, epochs=epochs, test=test,
        callbacks=[*callbacks, StopAfter(steps), keeper],
        resume=checkpoint.latest(folder) if resume == "latest" else resume,
        watch=watch, restore_best=restore_best, strict=strict,
    )  # fmt: skip
    return Trained(model, optimizer, history)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted: 6 epochs of 5 steps."""
    return run(tmp_path_factory.mktemp("whole")).outcome()


@pytest.fixture
def saved(tmp_path):
    """The path of a checkpoint in the middle of an epoch."""
    run(tmp_path / "run", 7)
    return tmp_path / "run" / "step-00000007.safetensors"


# ---------------------------------------------------------------------------- exact resumes


@pytest.mark.parametrize("stops", [(1, 1, 1), (3, 4, 5, 6), (5, 5, 5), (29,), (2, 9, 1, 15)])
def test_a_resumed_run_is_the_same_bit_for_bit(stops, whole, tmp_path):
    for seed, steps in enumerate(stops):
        run(tmp_path, steps, seed=seed, resume="latest")
    assert run(tmp_path, seed=99, resume="latest").outcome() == whole


@pytest.mark.parametrize(
    "make",
    [
        lambda p, lr: optim.SGD(p, lr, momentum=0.9, nesterov=True),
        lambda p, lr: optim.SGD(p, lr),
        optim.AdamW,
    ],
)
def test_every_optimizer_resumes(make, tmp_path):
    expected = run(tmp_path / "whole", make=make)
    run(tmp_path / "cut", 13, make=make)
    found = checkpoint.load(tmp_path / "cut")
    again = run(tmp_path / "cut", make=make, seed=8, resume=found)
    assert again.bits() == expected.bits()


def test_a_list_of_pairs_resumes_in_the_middle_of_an_epoch(tmp_path, rng):
    pairs = [
        (rng.normal(size=(8, FEATURES)).astype(np.float32), rng.integers(0, CLASSES, 8))
        for _ in range(5)
    ]

    def go(folder, steps=10**9):
        model, _, optimizer, _ = training()
        fit(
            model, pairs, optimizer, epochs=3,
            callbacks=[Checkpoints(folder), StopAfter(steps)], resume=checkpoint.latest(folder),
        )  # fmt: skip
        return state_of(model, optimizer)

    expected = go(tmp_path / "whole")
    go(tmp_path / "cut", 7)
    assert go(tmp_path / "cut") == expected


@pytest.mark.parametrize("kind", ["MT19937", "Philox", "PCG64DXSM", "SFC64"])
def test_any_generator_resumes(kind, tmp_path):
    def make(seed):
        generator = np.random.Generator(getattr(np.random, kind)(seed))
        model = nbbn.Sequential(nbbn.Dense(3, 2, rng=0), nbbn.Dropout(0.5, rng=generator))
        return model, Batches(np.zeros((9, 3), np.float32), np.zeros(9, int), 4, rng=seed)

    model, batches = make(1)
    model[1].rng.random(7), batches.rng.random(3), next(iter(batches))
    checkpoint.save(tmp_path / "a", model, batches=batches)
    again, others = make(2)
    checkpoint.restore(checkpoint.load(tmp_path / "a"), again, batches=others)
    np.testing.assert_array_equal(again[1].rng.random(9), model[1].rng.random(9))
    np.testing.assert_array_equal(others.rng.random(9), batches.rng.random(9))
    np.testing.assert_array_equal(others.order, batches.order)


@pytest.mark.parametrize(("measure", "better"), [("loss", -1), ("accuracy", 1)])
def test_early_stopping_takes_nan_for_no_improvement(measure, better):
    run = Run(None, None, None, 9, measure, "validation")
    values = [math.nan, 0.5, 0.5 + better / 8, math.nan, 0.5]
    stopped = []
    for number, value in enumerate(values, 1):
        result = Evaluation(value, value, 1)
        run.history.append(Epoch(number, 0.0, None, 1.0, 1.0, result, None))
        EarlyStopping(2).epoch(run, run.history[-1])
        stopped.append(run.stopped)
    assert stopped == [None] * 4 + [f"no better validation_{measure} than in epoch 3"]


def test_early_stopping_and_until_hold_after_a_resume(tmp_path):
    options = {"lr": 0.0, "dropout": 0.0, "watch": "accuracy"}  # so that nothing improves
    first = run(tmp_path, callbacks=[EarlyStopping(2)], **options)
    assert [epoch.epoch for epoch in first.history] == [1, 2, 3]
    found = checkpoint.latest(tmp_path)
    same = run(tmp_path, callbacks=[EarlyStopping(2)], resume=found, **options)
    assert results(same.history) == results(first.history)
    assert same.optimizer.step_count == first.optimizer.step_count
    assert len(run(tmp_path, epochs=5, resume=found, **options).history) == 5


def test_a_run_goes_on_from_before_a_damaged_checkpoint(whole, tmp_path, caplog):
    run(tmp_path, 18)
    damaged = max(tmp_path.glob("step-*"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    content = damaged.read_bytes()
    assert run(tmp_path, resume="latest").outcome() == whole
    aside = tmp_path / f"{damaged.name}.damaged"
    assert aside.read_bytes() == content
    (told,) = [message for message in caplog.messages if "is damaged or cut short: " in message]
    assert told.startswith(str(damaged))
    assert f"{damaged} is now {aside}" in caplog.messages


# ------------------------------------------------------------------------- the best epoch


def best_of(history, watch):
    values = [getattr(epoch.test, watch) for epoch in history]
    return values.index(min(values) if watch == "loss" else max(values)) + 1


@pytest.mark.parametrize("watch", ["loss", "accuracy"])
def test_the_best_file_and_early_stopping_watch_the_same(watch, tmp_path):
    log = LogFile(tmp_path / "log.jsonl")
    callbacks = [log, EarlyStopping(3)]
    history = run(tmp_path, epochs=30, watch=watch, lr=0.2, callbacks=callbacks).history
    best = best_of(history, watch)
    assert len(history) == best + 3
    found = checkpoint.load(tmp_path / "best.safetensors").progress
    assert (found["epoch"] - 1, found["best_epoch"]) == (best, best)
    assert (found["watch"], found["watched"]) == (watch, f"test_{watch}")
    rows = [row for row in read_log(tmp_path / "log.jsonl") if row["kind"] == "epoch"]
    assert {row["watched"] for row in rows} == {f"test_{watch}"}
    assert [row["best_epoch"] for row in rows] == [
        best_of(history[: number + 1], watch) for number in range(len(rows))
    ]


def test_the_loss_and_the_accuracy_are_not_best_together(tmp_path):
    """So that the test above tells them apart."""
    history = run(tmp_path, lr=0.2).history
    assert best_of(history, "loss") != best_of(history, "accuracy")


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_what_is_watched_is_in_every_log(ending, tmp_path):
    run(tmp_path, epochs=2, callbacks=[LogFile(tmp_path / f"log.{ending}", every=3)])
    rows = [row for row in read_log(tmp_path / f"log.{ending}") if row["kind"] == "epoch"]
    assert [(row["watched"], row["best_epoch"] >= 1) for row in rows] == [("test_loss", True)] * 2


def regression(seed=0):
    x = np.random.default_rng(1).normal(size=(40, FEATURES)).astype(np.float32)
    y = x[:, :2] * 2 + 1
    model = nbbn.mlp((FEATURES, 6, 2), rng=seed)
    pairs = [(x[start : start + 8], y[start : start + 8]) for start in range(0, 40, 8)]
    return model, pairs, optim.Adam(model.parameters(), 0.05)


def squares(output, target):
    return ((output - target) ** 2).mean()


def test_a_loss_without_labels_has_a_best_file(tmp_path):
    model, pairs, optimizer = regression()
    keeper = Checkpoints(tmp_path)
    history = fit(model, pairs, optimizer, epochs=4, test=pairs, loss=squares, callbacks=[keeper])
    assert all(math.isnan(epoch.test.accuracy) for epoch in history)
    best = checkpoint.load(tmp_path / "best.safetensors").progress
    assert best["epoch"] - 1 == best_of(history, "loss")


@pytest.mark.parametrize("options", [{"watch": "accuracy"}, {"until": 0.9}])
def test_an_accuracy_that_there_is_not_is_refused_at_the_first_step(options, tmp_path):
    model, pairs, optimizer = regression()
    before = state_of(model, optimizer)
    with pytest.raises(ArgumentError, match=r"(watch='accuracy'|until) needs accuracies: class"):
        fit(model, pairs, optimizer, epochs=4, test=pairs, loss=squares, **options)
    after = state_of(model, optimizer)
    changed = {name for name, content in after.items() if content != before[name]}
    assert not {name for name in changed if "running" not in name and "batches" not in name}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"restore_best": True}, "restore_best needs data to watch"),
        ({"until": 0.5}, "until needs data to watch"),
        ({"callbacks": [EarlyStopping(1)]}, "early stopping needs data to watch"),
        ({"watch": "f1"}, "watch must be one of 'loss', 'accuracy'; got 'f1'"),
    ],
)
def test_nothing_to_watch_is_refused_before_the_first_step(options, reason):
    model, batches, optimizer, _ = training()
    with pytest.raises(ArgumentError, match=reason):
        fit(model, batches, optimizer, epochs=2, **options)
    assert optimizer.step_count == 0


class States(Callback):
    """Keep the state of the model after every epoch."""

    def __init__(self):
        self.after = {}

    def epoch(self, run, result):
        self.after[result.epoch] = state_of(run.model)


@pytest.mark.parametrize("watch", ["loss", "accuracy"])
def test_the_best_weights_are_restored(watch, tmp_path):
    states = States()
    done = run(
        tmp_path, epochs=20, lr=0.2, watch=watch, restore_best=True,
        callbacks=[EarlyStopping(3), states],
    )  # fmt: skip
    best = best_of(done.history, watch)
    assert best < len(done.history)
    assert any("running_mean" in name for name in states.after[best])
    assert state_of(done.model) == states.after[best]
    # A longer run goes on from the last step, not from the best.
    last = checkpoint.load(tmp_path)
    again = training()[0]
    again.load_state_dict(last.model)
    assert state_of(again) == states.after[len(done.history)]
    assert last.optimizer["step_count"] == done.optimizer.step_count


@pytest.mark.parametrize("steps", [7, 13, 24])
def test_a_resumed_run_restores_the_best_too(steps, tmp_path):
    options = {"lr": 0.2, "restore_best": True}
    expected = run(tmp_path / "whole", **options)
    run(tmp_path / "cut", steps, **options)
    again = run(tmp_path / "cut", seed=5, resume="latest", **options)
    assert again.outcome() == expected.outcome()
    # The same again, of a run that had ended.
    again = run(tmp_path / "cut", seed=6, resume="latest", **options)
    assert again.bits() == expected.bits()


def test_a_checkpoint_without_the_best_weights_cannot_restore_them(tmp_path):
    run(tmp_path, 12)
    found = checkpoint.latest(tmp_path)
    assert not found.best
    with pytest.raises(CheckpointError, match=r"does not hold the weights of epoch \d, the best"):
        run(tmp_path, resume=found, restore_best=True)
    run(tmp_path, resume=found)


def test_another_watch_than_before_is_refused(tmp_path):
    run(tmp_path, 12)
    found = checkpoint.latest(tmp_path)
    with pytest.raises(CheckpointError, match="trained with watch='loss', not 'accuracy'"):
        run(tmp_path, resume=found, watch="accuracy")
    run(tmp_path, resume=found, watch="accuracy", strict=False)


def test_checkpoints_from_before_watch_are_read(tmp_path, whole):
    run(tmp_path, 12)
    found = checkpoint.latest(tmp_path)
    for name in ("watch", "watched", "best_epoch"):
        del found.progress[name]
    assert run(tmp_path, resume=found, watch="loss").outcome() == whole


def test_the_seconds_before_a_resume_count(tmp_path):
    run(tmp_path, 12)
    found = checkpoint.latest(tmp_path)
    found.progress["seconds"] = 1000.0
    assert run(tmp_path, resume=found).history[2].seconds > 1000


def test_a_finished_run_stays_finished(whole, tmp_path):
    run(tmp_path)
    before = sorted(path.stat().st_mtime_ns for path in tmp_path.iterdir())
    assert run(tmp_path, seed=4, resume="latest").outcome() == whole
    assert sorted(path.stat().st_mtime_ns for path in tmp_path.iterdir()) == before


def test_what_is_kept(tmp_path):
    history = run(tmp_path, every=2).history
    names = sorted(path.name for path in tmp_path.iterdir())
    steps = [f"step-{step:08}.safetensors" for step in (26, 28, 30)]
    assert names == ["best.safetensors", *steps]
    best = checkpoint.load(tmp_path / "best.safetensors")
    assert best.progress["epoch"] - 1 == best_of(history, "loss")
    assert checkpoint.load(tmp_path).path.name == steps[-1]


# ------------------------------------------------------------------------------- the content


def test_the_content_is_given_back(tmp_path):
    model, batches, optimizer, _ = training()
    path = tmp_path / "new" / "a.safetensors"
    extra = {"widths": (3, 4), "rate": np.float32(0.5), "where": Path("x"), "none": None}
    checkpoint.save(path, model, optimizer, batches, config=extra, progress={"loss": 0.1 + 0.2})
    found = checkpoint.load(path)
    assert found.config == {"widths": [3, 4], "rate": 0.5, "where": "x", "none": None}
    assert found.progress == {"loss": 0.1 + 0.2}
    assert found.version == nbbn.__version__
    for own, stored in ((model, found.model), (optimizer, found.optimizer)):
        expected = own.state_dict()
        assert expected.keys() == stored.keys()
        for name, array in expected.items():
            assert stored[name].dtype == array.dtype
            np.testing.assert_array_equal(stored[name], array, strict=True)
    assert sorted(path.parent.iterdir()) == [path]


def test_arrays_of_any_layout_are_saved_right(tmp_path):
    model, *_ = training()
    weight = model.parameters()[0]
    weight.data = np.asfortranarray(weight.data)
    checkpoint.save(tmp_path / "a", model)
    np.testing.assert_array_equal(checkpoint.load(tmp_path / "a").model["0.weight"], weight.data)


def test_what_json_cannot_hold_is_refused(tmp_path):
    model, *_ = training()
    with pytest.raises(DTypeError, match=r"config of a checkpoint must fit into JSON.*set"):
        checkpoint.save(tmp_path / "a", model, config={"a": {1}})
    assert not list(tmp_path.iterdir())


def test_torch_loads_the_weights_by_their_names(saved):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file as load_torch

    found = checkpoint.load(saved)
    nn, peer = torch.nn, torch.nn.Sequential()
    for name, layer in {
        "0": nn.Linear(FEATURES, 9, bias=False), "1": nn.BatchNorm1d(9), "1relu": nn.ReLU(),
        "3": nn.Linear(9, 7, bias=False), "4": nn.BatchNorm1d(7), "4relu": nn.ReLU(),
        "6": nn.Linear(7, CLASSES),
    }.items():  # fmt: skip
        peer.add_module(name, layer)
    state = {k: v for k, v in load_torch(saved).items() if not k.startswith("training/")}
    peer.load_state_dict(state, strict=True)
    x = np.random.default_rng(0).normal(size=(5, FEATURES)).astype(np.float32)
    model, *_ = training(seed=3)
    model.load_state_dict(found.model)
    with torch.no_grad():
        expected = peer.eval()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(model.eval()(x).numpy(), expected, rtol=1e-5, atol=1e-6)


# -------------------------------------------------------------------------- what must not load


def swap(path, change, arrays=dict):
    """Rewrite a checkpoint's metadata or arrays as a later or foreign program might."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as stored:
        metadata = dict(stored.metadata())
    change(metadata)
    save_file(arrays(load_file(path)), path, metadata)


def test_truncation_at_every_length_is_noticed(saved):
    content = saved.read_bytes()
    lengths = {*range(64), *range(64, len(content), 97), len(content) - 1}
    for length in sorted(lengths):
        saved.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"damaged"):
            checkpoint.load(saved)


def test_every_bit_flip_is_noticed(saved):
    content = saved.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    rng = random.Random(0)
    places = [*range(0, header, 5), *(rng.randrange(header, len(content)) for _ in range(300))]
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.randrange(8)
        saved.write_bytes(flipped)
        with pytest.raises(CheckpointError):
            checkpoint.load(saved)


def test_files_that_are_no_checkpoints(tmp_path, saved):
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*nothing"):
        checkpoint.load(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no checkpoint in the folder"):
        checkpoint.load(tmp_path / "empty")
    save_file({"a": np.zeros(3)}, tmp_path / "foreign")
    with pytest.raises(CheckpointError, match=r"not a checkpoint of nbbn"):
        checkpoint.load(tmp_path / "foreign")
    swap(saved, lambda metadata: None, lambda arrays: {n: a.reshape(-1) for n, a in arrays.items()})
    with pytest.raises(CheckpointError, match=r"damaged"):
        checkpoint.load(saved)
    swap(saved, lambda metadata: metadata.update(format="nbbn checkpoint 2", version="9.1"))
    with pytest.raises(CheckpointError, match=r"'nbbn checkpoint 2'.*version that wrote it, 9.1"):
        checkpoint.load(saved)
    assert checkpoint.latest(tmp_path / "nothing") is None


def test_a_damaged_latest_is_passed_over(tmp_path, caplog):
    run(tmp_path, 12)
    paths = sorted(tmp_path.glob("step-*"))
    paths[-1].write_bytes(paths[-1].read_bytes()[:-1])
    assert checkpoint.latest(tmp_path).path == paths[-2]
    assert "damaged" in caplog.text
    for path in paths:
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged"):
        checkpoint.latest(tmp_path)


def test_the_latest_of_a_folder_is_not_that_of_a_file(tmp_path):
    run(tmp_path, 5)
    (path,) = tmp_path.glob("step-*")
    with pytest.raises(ArgumentError, match=rf"{path} is a file, where .*: load\(path\) reads it"):
        checkpoint.latest(path)
    assert checkpoint.latest(tmp_path / "nothing.safetensors") is None
    for step in (99_999_999, 100_000_000):  # which come in another order as text
        checkpoint.save(tmp_path / f"step-{step}.safetensors", training()[0])
    assert checkpoint.latest(tmp_path).path.name == "step-100000000.safetensors"


class Shallow(nbbn.Module):
    def __init__(self):
        self.layers = nbbn.mlp((FEATURES, 9, CLASSES), rng=0)


def other(change=lambda model, batches, optimizer: None, **options):
    """A training with other options, of which `change` may change or replace the parts."""

    def make():
        parts = training(**options)[:3]
        return change(*parts) or parts

    return make


def test_an_option_that_came_later_is_none_in_older_files(saved):
    model, batches, optimizer = other(lambda m, b, o: setattr(m[0], "later", None))()
    checkpoint.restore(checkpoint.load(saved), model, optimizer, batches)
    assert batches.position


def other_model(model):
    return other(lambda _, b, o: (model, b, optim.Adam(model.parameters(), o.schedule)))


def mlp(**options):
    return nbbn.mlp((FEATURES, 9, 7, CLASSES), **{"rng": 0, "dropout": 0.3, **options})


def other_rng(model, batches, optimizer):
    batches.rng = model[2].rng = model[5].rng = np.random.Generator(np.random.MT19937(1))


FEWER = Batches(np.zeros((9, FEATURES), np.float32), np.zeros(9, int), 16)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (other(hidden=(9, 8)), "model: 3.weight is float32 .8, 9. here and float32 .7, 9. there"),
        (other(hidden=(9,)), "model: 3.type is 'Dense' here|there is no"),
        (other(hidden=(9, 7, 7)), "there"),
        (other(dropout=0.2), "model: 2.p is 0.2 here and 0.3 there"),
        (other(dropout=0), "2"),
        (other_model(mlp(dtype=np.float64)), "0.weight is float64"),
        (other_model(mlp(activation="tanh")), "1.activation is None here and 'relu' there"),
        (other_model(mlp(batch_norm=False)), "there"),
        (other_model(Shallow()), "type is 'Shallow' here and 'Sequential' there"),
        (other(lambda m, b, o: setattr(m[1], "momentum", 0.01)),
         "1.momentum is 0.01 here and 0.1 there"),
        (other(make=optim.AdamW), "optimizer: type is 'AdamW' here and 'Adam' there"),
        (other(make=lambda p, lr: optim.SGD(p, lr, momentum=0.9)), "type is 'SGD' here"),
        (other(make=lambda p, lr: optim.Adam(p, lr, eps=1e-7)), "eps is 1e-07 here"),
        (other(make=lambda p, lr: optim.Adam(p, 0.01)), "schedule: type"),
        (other(lr=0.02), "schedule: lr is 0.02 here and 0.01 there"),
        (other(lambda m, b, o: setattr(b, "batch_size", 8)),
         "batches: batch_size is 8 here and 16 there"),
        (other(lambda m, b, o: (m, FEWER, o)),
         "trained on 70 examples of .* values, these batches hold 9 examples"),
        (other(lambda m, b, o: setattr(m[2], "rng", np.random.default_rng(4))),
         "its random generators serve"),
        (other(other_rng), "states of PCG64, but this generator is MT19937"),
    ],
)  # fmt: skip
def test_another_training_is_refused_without_harm(make, reason, saved):
    model, batches, optimizer = make()
    before = state_of(model, optimizer), repr(batches.rng.bit_generator.state)
    with pytest.raises(CheckpointError, match=reason) as caught:
        checkpoint.restore(checkpoint.load(saved), model, optimizer, batches)
    assert str(saved) in str(caught.value)
    assert (state_of(model, optimizer), repr(batches.rng.bit_generator.state)) == before
    assert batches.position == 0


def test_settings_may_change_on_request(saved):
    model, batches, optimizer, _ = training(lr=0.02)
    found = checkpoint.load(saved)
    checkpoint.restore(found, model, optimizer, batches, strict=False)
    assert (optimizer.step_count, batches.position) == (7, 32)
    model, batches, optimizer, _ = training(make=optim.AdamW)
    with pytest.raises(CheckpointError, match=r"'AdamW' here and 'Adam' there"):
        checkpoint.restore(found, model, optimizer, batches, strict=False)


def test_weights_alone(saved, tmp_path):
    model, batches, optimizer, _ = training(seed=1)
    checkpoint.restore(checkpoint.load(saved), model)
    checkpoint.save(tmp_path / "weights", model)
    with pytest.raises(CheckpointError, match=r"saved without"):
        checkpoint.restore(checkpoint.load(tmp_path / "weights"), model, optimizer, batches)
    with pytest.raises(DTypeError, match=r"got str: pass checkpoint.load"):
        checkpoint.restore(str(saved), model)


def test_arguments_of_other_types(saved, tmp_path):
    model, batches, optimizer, _ = training()
    found = checkpoint.load(saved)
    for wrong, name in (
        ((None,), "model must be of type Module, got NoneType"),
        ((model, batches), "optimizer must be of type Optimizer, got Batches"),
        ((model, optimizer, 3), "batches must be of type Batches, got int"),
    ):
        with pytest.raises(DTypeError, match=name):
            checkpoint.save(tmp_path / "a", *wrong)
        with pytest.raises(DTypeError, match=name):
            checkpoint.restore(found, *wrong)
    assert not (tmp_path / "a").exists()
    for thing in (model, optimizer):
        with pytest.raises(DTypeError, match=r"state must be a mapping.*got NoneType"):
            thing.load_state_dict(None)


# ------------------------------------------------------------------------------ the folder


def test_two_runs_in_one_folder(tmp_path):
    first = Checkpoints(tmp_path)
    with pytest.raises(ArgumentError, match=r"another run writes to"):
        Checkpoints(tmp_path)
    first.close()
    Checkpoints(tmp_path).close()


def test_two_processes_in_one_folder(tmp_path):
    script = (
        "import sys, time; from nbbn.train.checkpoint import Checkpoints\n"
        "kept = Checkpoints(sys.argv[1]); print('ready', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE) as own:
        assert own.stdout.readline() == b"ready\n"
        with pytest.raises(ArgumentError, match=r"another run"):
            Checkpoints(tmp_path)
        own.kill()
    Checkpoints(tmp_path).close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_folder_is_not_kept_by_a_forked_child(tmp_path):
    kept = Checkpoints(tmp_path)
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        theirs.send(b"ready")
        # Until the parent's end is closed.
        theirs.recv(1)
        os._exit(0)
    try:
        assert ours.recv(5) == b"ready"
        with pytest.raises(ArgumentError, match=r"another run writes to"):
            Checkpoints(tmp_path)
        kept.close()
        Checkpoints(tmp_path).close()
    finally:
        ours.close()
        os.waitpid(pid, 0)
        theirs.close()


def test_a_folder_of_another_run_is_left_alone(tmp_path):
    run(tmp_path, 7)
    with pytest.raises(ArgumentError, match=r"another run's.*up to step-00000007.*at step 0"):
        run(tmp_path)
    older = checkpoint.load(tmp_path / "step-00000005.safetensors")
    with pytest.raises(ArgumentError, match=r"resume from there, or use another folder"):
        run(tmp_path, resume=older)
    assert len(list(tmp_path.glob("step-*"))) == 2


def test_a_folder_that_cannot_be_used(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ArgumentError, match=r"cannot write to .*file"):
        Checkpoints(tmp_path / "file")


class Disk:
    """Lets files be written only while it has room; also a real limit of the system."""

    full = False


@pytest.fixture
def disk(monkeypatch):
    state, sync = Disk(), os.fsync

    def fsync(descriptor):
        if state.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return state


class Fill(Callback):
    def __init__(self, disk, steps):
        self.disk, self.steps = disk, steps

    def step(self, run):
        self.disk.full = run.step in self.steps


@pytest.mark.filterwarnings("ignore:.*safetensors:DeprecationWarning")
def test_a_full_disk_does_not_stop_training(disk, whole, tmp_path, caplog):
    keeper = Checkpoints(tmp_path, every=3)
    done = run(tmp_path, keeper=keeper, callbacks=[Fill(disk, range(8, 16))])
    assert done.outcome() == whole
    text = caplog.text
    assert "step-00000009.safetensors cannot be saved: No space left on device" in text
    assert f"the last one is {tmp_path / 'step-00000006.safetensors'}, and training goes on" in text
    assert keeper.error is None
    assert checkpoint.load(tmp_path).progress["epoch"] == 7
    assert not list(tmp_path.glob(".*"))


@pytest.mark.filterwarnings("ignore:.*safetensors:DeprecationWarning")
def test_a_checkpoint_that_cannot_be_saved_is_told_of_once(disk, tmp_path, caplog):
    keeper = Checkpoints(tmp_path)
    run(tmp_path, epochs=2, keeper=keeper, callbacks=[Fill(disk, range(8, 99))])
    told = [message for message in caplog.messages if "step-00000010.safetensors" in message]
    assert len(told) == 1
    assert keeper.error.errno == errno.ENOSPC


def test_a_disk_that_stays_full_keeps_what_was_there(disk, tmp_path, caplog):
    keeper = Checkpoints(tmp_path, every=4)
    run(tmp_path, epochs=2, keeper=keeper, callbacks=[Fill(disk, range(6, 99))])
    assert keeper.error.errno == errno.ENOSPC
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["best.safetensors", "step-00000004.safetensors"]
    assert checkpoint.latest(tmp_path).optimizer["step_count"] == 4


def test_the_systems_own_limit(tmp_path):
    """A limit on the size of files fails where a full disk does: inside the write."""
    script = """
import resource, sys
import nbbn
from nbbn import checkpoint
small, large = nbbn.mlp((4, 3, 2), rng=0), nbbn.mlp((400, 300, 2), rng=0)
checkpoint.save(sys.argv[1], small)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    checkpoint.save(sys.argv[1], large)
except OSError as error:
    print(error.strerror)
"""
    path = tmp_path / "a.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", script, path], capture_output=True, text=True, check=True
    )
    assert done.stdout == "File too large\n"
    assert list(tmp_path.iterdir()) == [path]
    assert checkpoint.load(path).model["0.weight"].shape == (3, 4)


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system with room for about three checkpoints."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", folder]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except OSError as error:
        pytest.skip(f"nothing can be mounted here: {error}")
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_is_really_full(tiny_disk, whole, caplog):
    keeper = Checkpoints(tiny_disk, every=2, keep=99)
    assert run(tiny_disk, keeper=keeper).outcome() == whole
    assert "cannot be saved: No space left on device" in caplog.text
    assert keeper.error.errno == errno.ENOSPC
    assert not list(tiny_disk.glob(".*"))
    kept = sorted(tiny_disk.glob("step-*"))
    assert len(kept) >= 2
    for path in kept:
        assert checkpoint.load(path).optimizer["step_count"] == int(path.stem[5:])


def test_a_log_on_a_full_disk_lacks_rows_and_nothing_else(tiny_disk, whole, tmp_path, caplog):
    class Fill(Callback):
        def step(self, run):
            if run.step == 10:
                stream = open(tiny_disk / "stuff", "wb", buffering=0)  # noqa: SIM115
                with stream, contextlib.suppress(OSError):
                    while stream.write(bytes(512)):
                        pass
            if run.step == 20:
                (tiny_disk / "stuff").unlink()

    log = LogFile(tiny_disk / "log.jsonl", every=1)
    done = run(tmp_path / "elsewhere", callbacks=[Fill(), log])
    assert done.outcome() == whole
    assert "log.jsonl lacks rows from here on: " in caplog.text
    steps = {row["step"] for row in read_log(tiny_disk / "log.jsonl") if row["kind"] == "step"}
    assert steps >= {*range(1, 10), *range(20, 31)}
    assert len(steps) < 30


def test_the_first_layer_to_diverge_and_the_last_checkpoint_are_named(tmp_path):
    class Poison(Callback):
        def step(self, run):
            if run.step == 12:
                run.model[3].weight.data[0, 0] = np.inf

    path = tmp_path / "step-00000010.safetensors"
    pattern = (
        r"step 3 of epoch 3 \(13 in all\).*the weight of layer 3, Dense.*last good checkpoint is "
        f"{path};"
    )
    with np.errstate(all="ignore"), pytest.raises(DivergenceError, match=pattern):
        run(tmp_path, callbacks=[Poison()])
    assert checkpoint.latest(tmp_path).path == path


def test_a_model_that_is_not_finite_is_not_saved(tmp_path, caplog):
    class Poison(Callback):
        def step(self, run):
            if run.step == 5:
                run.model.parameters()[0].data[0, 0] = np.nan
                run.stop("test")

    run(tmp_path, every=5, epochs=1, callbacks=[Poison()])
    assert not list(tmp_path.iterdir())
    assert "no longer finite" in caplog.text


# ------------------------------------------------------------------------------------ kills

_SAVER = """
import itertools, os, signal, sys
import nbbn
from nbbn import checkpoint
from nbbn import _validation as files
from nbbn.train.checkpoint import Checkpoints
keeper = Checkpoints(sys.argv[1])
model = nbbn.mlp((300, 200, 4), rng=0)
point = int(sys.argv[2])
calls = itertools.count()

def deadly(function):
    def call(*args, **kwargs):
        if next(calls) == point:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call

for value in itertools.count(1):
    for parameter in model.parameters():
        parameter.data[...] = value
    if point >= 0 and value == 2:
        files.open = deadly(open)
        for name in ("fsync", "replace", "open", "close"):
            setattr(os, name, deadly(getattr(os, name)))
    checkpoint.save(f"{sys.argv[1]}/a.safetensors", model)
    print(value, flush=True)
"""


def check_after_kill(folder, said):
    """The old or the new checkpoint is whole, and the next start leaves no litter."""
    path = folder / "a.safetensors"
    if said or path.exists():
        values = {float(v) for a in checkpoint.load(path).model.values() if a.ndim == 2
                  for v in np.unique(a)}  # fmt: skip
        assert len(values) == 1
        assert values <= {said, said + 1}
    Checkpoints(folder).close()
    assert [p.name for p in folder.iterdir()] == ([path.name] if path.exists() else [])


@pytest.mark.parametrize("point", range(6))
def test_a_kill_at_every_call_to_the_system(point, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _SAVER, tmp_path, str(point)], capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    check_after_kill(tmp_path, int(done.stdout.split()[-1]))


def test_a_kill_at_any_moment(tmp_path):
    rng = random.Random(1)
    for attempt in range(8):
        folder = tmp_path / str(attempt)
        command = [sys.executable, "-c", _SAVER, folder, "-1"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            first = int(child.stdout.readline())
            time.sleep(rng.uniform(0, 0.05))
            child.kill()
            said = [first, *map(int, child.stdout.read().split())]
        check_after_kill(folder, said[-1])


_RUNNER = """
import os, signal, sys
from nbbn import checkpoint
from tests.train.test_checkpoint import run
count, at, name = 0, int(sys.argv[2]), sys.argv[3]
replace = os.replace

def deadly(part, path):
    global count
    replace(part, path)
    count += path.name.startswith(name)
    if count == at and path.name.startswith(name):
        os.kill(os.getpid(), signal.SIGKILL)

os.replace = deadly
run(sys.argv[1], lr=0.2)
"""


def killed(folder, at, name):
    """Train, and be killed right after a file was put in its place."""
    done = subprocess.run(
        [sys.executable, "-c", _RUNNER, folder, str(at), name], cwd=Path(__file__).parents[2],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_no_more_are_kept_after_a_kill_between_a_save_and_a_removal(tmp_path):
    killed(tmp_path, 4, "step-")
    assert len(list(tmp_path.glob("step-*"))) == 4
    run(tmp_path, epochs=4, resume="latest", lr=0.2)  # nothing is left to do
    names = sorted(path.name for path in tmp_path.glob("step-*"))
    assert names == [f"step-{step:08}.safetensors" for step in (10, 15, 20)]


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("name", ["step-", "best"])
def test_the_best_is_kept_after_a_kill_between_it_and_the_last(name, at, tmp_path):
    run(tmp_path / "whole", lr=0.2)
    killed(tmp_path / "cut", at, name)
    run(tmp_path / "cut", lr=0.2, resume="latest")
    one, other = (checkpoint.load(tmp_path / f / "best.safetensors") for f in ("whole", "cut"))
    assert one.progress["best_epoch"] == other.progress["best_epoch"]
    for part, array in one.model.items():
        np.testing.assert_array_equal(array, other.model[part])


def test_a_refused_fit_gives_its_folder_back_and_the_next_takes_it_again(tmp_path):
    model, batches, optimizer, _ = training()
    keeper = Checkpoints(tmp_path)
    with pytest.raises(ArgumentError, match="epochs must be at least 1"):
        fit(model, batches, optimizer, epochs=0, callbacks=[keeper])
    Checkpoints(tmp_path).close()

    class Other(Callback):
        def step(self, run):
            with pytest.raises(ArgumentError, match="another run writes to"):
                Checkpoints(tmp_path)

    fit(model, batches, optimizer, epochs=1, callbacks=[keeper, Other()])
    assert checkpoint.latest(tmp_path).progress["epoch"] == 2
    Checkpoints(tmp_path).close()


def test_every_callback_is_closed_though_one_fails(tmp_path):
    class Failing(Callback):
        def close(self):
            raise OSError("no room")

    model, batches, optimizer, _ = training()
    keeper = Checkpoints(tmp_path)
    with pytest.raises(OSError, match="no room"):
        fit(model, batches, optimizer, epochs=1, callbacks=[Failing(), keeper])
    Checkpoints(tmp_path).close()
