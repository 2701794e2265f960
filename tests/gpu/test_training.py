"""One epoch on real MNIST images, on the simulated device and on the CPU."""

from __future__ import annotations

import json

import numpy as np
import pytest

import nbbn
from nbbn import backend, data, optim, train
from nbbn.backend.recorder import Arena, GraphPlan, Recorder
from nbbn.train.callbacks import EMA

IMAGES, TESTED = 256, 50


@pytest.fixture(scope="module")
def mnist():
    return data.load_mnist()


def fit(mnist, device, make_optimizer, monkeypatch, images=IMAGES, **options):
    """Train for an epoch; return its result, the weights and the plans that were made."""
    steps = []
    record = train.record_step

    def remember(*args):
        steps.append(record(*args))
        return steps[0]

    monkeypatch.setattr(train.loop, "record_step", remember)
    model = nbbn.mlp((784, 8, 10), rng=4, **options).to(device)
    place = {"reuse": True, "device": device}
    batches = data.Batches(
        mnist.train_images[:images], mnist.train_labels[:images], 32, rng=5, **place
    )
    test = data.Batches(
        mnist.test_images[:TESTED], mnist.test_labels[:TESTED], 50, shuffle=False, **place
    )
    optimizer = make_optimizer(model.parameters())
    (epoch,) = train.fit(model, batches, optimizer, epochs=1, test=test)
    return epoch, model.state_dict(), [*steps[0]._plans.values()]


@pytest.mark.parametrize(
    ("make_optimizer", "options"),
    [
        (lambda p: optim.Adam(p, lr=optim.OneCycle(2e-2, 8)), {"dropout": 0.2}),
        (lambda p: optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3), {}),
    ],
    ids=["adam, dropout", "sgd"],
)
def test_an_epoch_of_mnist_ends_as_on_the_cpu(mnist, make_optimizer, options, monkeypatch):
    expected, weights, _ = fit(mnist, "cpu", make_optimizer, monkeypatch, **options)
    monkeypatch.undo()
    got, device_weights, plans = fit(mnist, "cuda", make_optimizer, monkeypatch, **options)
    assert [type(plan) for plan in plans] == [GraphPlan]
    assert got.loss == pytest.approx(expected.loss, rel=1e-4)
    assert got.test.loss == pytest.approx(expected.test.loss, rel=1e-3)
    # A sample on the border between two classes may fall to either side.
    assert abs(got.test.accuracy - expected.test.accuracy) <= 1 / TESTED
    # The epoch has learned something: the first loss is ln 10.
    assert got.loss < 2.1
    for name, array in weights.items():
        # Adam divides by the root of a square: a gradient of about 0 may change its sign.
        np.testing.assert_allclose(device_weights[name], array, rtol=2e-3, atol=2e-3)


def test_the_same_training_gives_the_same_bits(mnist, monkeypatch):
    results = []
    for _ in range(2):
        results.append(fit(mnist, "cuda", optim.SGD, monkeypatch, images=96))
        monkeypatch.undo()
    (first, weights, _), (second, again, _) = results
    assert (first.loss, first.test) == (second.loss, second.test)
    for name, array in weights.items():
        np.testing.assert_array_equal(array, again[name])


def test_the_command_line_trains_on_the_device_and_goes_on(mnist, monkeypatch, capsys, tmp_path):
    """A run is logged, saved, resumed and evaluated."""
    from nbbn import cli, logs

    few = mnist._replace(
        train_images=mnist.train_images[:64], train_labels=mnist.train_labels[:64],
        test_images=mnist.test_images[:50], test_labels=mnist.test_labels[:50],
    )  # fmt: skip
    monkeypatch.setattr(data, "load", lambda *args, **options: few)
    flags = ["--hidden", "8", "--batch-size", "32", "--quiet", "--out", str(tmp_path)]
    flags += ["--device", "cuda", "--schedule", "constant", "--log-every", "1", "--percentiles"]
    assert cli.main(["train", *flags, "--save-every", "1", "--epochs", "1"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["device"] == "cuda"
    assert result["steps"] == 2
    assert cli.main(["train", *flags, "--resume", "auto", "--epochs", "2"]) == 0
    resumed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert resumed["steps"] == 4
    assert resumed["train_loss"] < result["train_loss"]
    assert backend.choose("auto") == "cpu"
    steps = [row for row in logs.read_log(tmp_path) if row["kind"] == "step"]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    assert all(row["gradient_norm"] > 0 and row["1.p15"] < row["1.p85"] for row in steps)
    assert cli.main(["eval", str(tmp_path)]) == 0


def test_arrays_of_a_recorded_step_are_aligned_as_cuda_aligns_its_own():
    recorder = Recorder((), device=backend.device_module().Memory)
    kept = [recorder.empty(size, np.float32, "cuda") for size in (7, 100, 3, 65)]
    arena = Arena(recorder)
    assert len(kept) == len(set(arena.offsets)) == 4
    assert not any(offset % 256 for offset in arena.offsets)


def test_clipping_and_averages_are_those_of_the_cpu(mnist):
    states = []
    for device in ("cpu", "cuda"):
        model = nbbn.mlp((784, 8, 10), rng=4).to(device)
        images, labels = mnist.train_images[:160], mnist.train_labels[:160]
        batches = data.Batches(images, labels, 32, rng=5, device=device)
        optimizer = optim.SGD(model.parameters(), 0.5)
        optimizer.max_norm = 0.2
        average = EMA(0.5)
        train.fit(model, batches, optimizer, epochs=1, callbacks=[average])
        assert optimizer.gradient_norm() == pytest.approx(0.2, rel=1e-5)
        states.append(average.state_dict())
    for name, array in states[0].items():
        np.testing.assert_allclose(states[1][name], array, rtol=2e-3, atol=2e-3)
