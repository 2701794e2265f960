"""Nothing that the library makes waits for the cyclic collector, so that memory is free at once."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import nbbn
from nbbn import Parameter, Tape, Tensor, checkpoint, data, losses, optim, train
from nbbn.train.callbacks import EarlyStopping
from nbbn.train.logs import LogFile
from nbbn.train.progress import Lines

X = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
Y = np.arange(64) % 3


def network():
    return nbbn.Sequential(
        nbbn.Dense(8, 6, bias=False, rng=0),
        nbbn.BatchNorm(6, activation="relu"),
        nbbn.Dense(6, 3, rng=1),
    )


def a_tape_that_is_not_walked(folder):
    with Tape():
        losses.cross_entropy(network()(Tensor(X)), Y)


def a_gradient_penalty(folder):
    x = Parameter(X)
    with Tape() as tape:
        loss = losses.cross_entropy(network()(x), Y)
        (slope,) = nbbn.grad(loss, [x], create_graph=True)
        total = loss + (slope * slope).sum()
    tape.backward(total)


def variants(folder):
    for layer in (nbbn.GhostBatchNorm(8, 4), nbbn.BatchRenorm(8), nbbn.InPlaceBatchNorm(8)):
        with Tape():
            (layer(Parameter(X) * 2) ** 2).sum()


def recorded_steps(folder):
    model = network()
    step = train.record_step(model, losses.cross_entropy, optim.Adam(model.parameters()))
    for first in range(0, 64, 16):
        step(X[first : first + 16], Y[first : first + 16])


def a_training(folder):
    model = network()
    optimizer = optim.SGD(model.parameters(), 0.01)
    batches = data.Batches(X, Y, 16, rng=np.random.default_rng(0))
    validation = data.Batches(X, Y, 32, shuffle=False)
    callbacks = [
        EarlyStopping(patience=5), Lines(), LogFile(folder / "log.jsonl"),
        checkpoint.Checkpoints(folder, every=3),
    ]  # fmt: skip
    train.fit(model, batches, optimizer, epochs=2, validation=validation, callbacks=callbacks)


def a_look_inside(folder):
    nbbn.inspect(network(), X, Y)


def folding(folder):
    nbbn.fold(network().eval())


WORK = [
    a_tape_that_is_not_walked, a_gradient_penalty, variants, recorded_steps, a_training,
    a_look_inside, folding,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__)
def test_nothing_is_left_to_the_collector(work, tmp_path):
    # What is imported and compiled at the first call leaves cycles of its own.
    work(tmp_path / "first")
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        work(tmp_path / "second")
        gc.collect()
        left = [
            thing
            for thing in gc.garbage
            if type(thing).__module__.startswith("nbbn")
            or any(isinstance(held, np.ndarray) for held in gc.get_referents(thing))
        ]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert left == []
