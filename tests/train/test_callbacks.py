"""The moving average of weights: its formula, its checkpoints, and what it is good for."""

from __future__ import annotations

import numpy as np
import pytest

import nbbn
from nbbn import losses, optim
from nbbn.data import Batches
from nbbn.errors import ArgumentError, CheckpointError, DTypeError
from nbbn.train import checkpoint, fit
from nbbn.train.callbacks import EMA, Callback
from nbbn.train.checkpoint import Checkpoints


class Weights(Callback):
    """Remember the weights after each step."""

    def __init__(self):
        self.all = []

    def step(self, run):
        self.all.append([p.data.astype(np.longdouble) for p in run.model.parameters()])


class Stop(Callback):
    def __init__(self, step):
        self.at = step

    def step(self, run):
        if run.step == self.at:
            run.stop("test")


def training(seed=0):
    rng = np.random.default_rng(seed)
    data = np.random.default_rng(1)
    x, y = data.normal(size=(60, 5)).astype(np.float32), data.integers(0, 3, 60)
    model = nbbn.mlp((5, 8, 3), rng=rng)
    return model, Batches(x, y, 13, rng=rng), optim.Adam(model.parameters(), 0.05)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.9999])
def test_the_average_is_that_of_the_formula(decay):
    model, batches, optimizer = training()
    weights, ema = Weights(), EMA(decay)
    fit(model, batches, optimizer, epochs=4, callbacks=[ema, weights])
    expected = weights.all[0]
    for number, step in enumerate(weights.all[1:], 2):
        share = max(1 - np.longdouble(decay), 1 / np.longdouble(number))
        expected = [a + share * (w - a) for a, w in zip(expected, step, strict=True)]
    if decay == 0.9999:  # 20 steps: still the mean of all
        for a, *all_steps in zip(expected, *weights.all, strict=True):
            np.testing.assert_allclose(a, np.mean(all_steps, axis=0), rtol=1e-12)
    state = ema.state_dict()
    assert state.pop("count") == 20
    assert state.keys() == {"0.weight", "1.weight", "1.bias", "2.weight", "2.bias"}
    for found, a in zip(state.values(), expected, strict=True):
        np.testing.assert_allclose(found, a.astype(float), rtol=2e-5, atol=1e-6)


def test_training_goes_on_as_without_it():
    outcomes = []
    for callbacks in ([], [EMA(0.9)]):
        model, batches, optimizer = training()
        fit(model, batches, optimizer, epochs=3, callbacks=callbacks)
        outcomes.append({k: a.tobytes() for k, a in model.state_dict().items()})
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("stops", [[3], [5, 9]])
def test_a_resumed_average_is_the_same_bit_for_bit(stops, tmp_path):
    averages = []
    for folder, parts in (("whole", [0]), ("parts", [*stops, 0])):
        for seed, stop in enumerate(parts):
            model, batches, optimizer = training(seed)
            ema = EMA(0.8)
            fit(
                model, batches, optimizer, epochs=3,
                callbacks=[ema, Stop(stop), Checkpoints(tmp_path / folder)],
                resume=checkpoint.latest(tmp_path / folder),
            )  # fmt: skip
        averages.append({name: a.tobytes() for name, a in ema.state_dict().items()})
    saved = checkpoint.load(tmp_path / "parts").average
    assert averages[0] == averages[1] == {name: a.tobytes() for name, a in saved.items()}
    # It is the model of no state, but beside that.
    model.load_state_dict(checkpoint.load(tmp_path / "parts").model)


def test_a_resume_without_its_average_is_refused(tmp_path):
    for name, callbacks in (("with", [EMA()]), ("without", [])):
        model, batches, optimizer = training()
        fit(model, batches, optimizer, epochs=1,
            callbacks=[*callbacks, Checkpoints(tmp_path / name)])  # fmt: skip
    found = {name: checkpoint.load(tmp_path / name) for name in ("with", "without")}
    for name, callbacks, words in (
        ("with", [], "pass EMA again"),
        ("without", [EMA()], "holds no average"),
    ):
        model, batches, optimizer = training()
        with pytest.raises(CheckpointError, match=words):
            fit(model, batches, optimizer, epochs=2, callbacks=callbacks, resume=found[name])
    model, batches, optimizer = training()
    fit(model, batches, optimizer, epochs=2, resume=found["with"], strict=False)


def test_apply_gives_weights_and_the_statistics_that_belong_to_them():
    model, batches, optimizer = training()
    ema = EMA(0.9)
    fit(model, batches, optimizer, epochs=3, callbacks=[ema])
    before = model.state_dict()
    with pytest.raises(ArgumentError, match="as batches"):
        ema.apply(model)
    with pytest.raises(ArgumentError, match="no data"):
        ema.apply(model, [])
    assert all((before[k] == a).all() for k, a in model.state_dict().items())
    whole = batches.first(60)[0]
    ema.apply(model, [whole])
    state = model.state_dict()
    for name, average in ema.state_dict().items():
        if name != "count":
            np.testing.assert_array_equal(state[name], average)
    hidden = whole.astype(float) @ state["0.weight"].T.astype(float)
    np.testing.assert_allclose(state["1.running_mean"], hidden.mean(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state["1.running_var"], hidden.var(axis=0, ddof=1), rtol=1e-4)
    # Another model takes it too; one of another shape does not.
    twin, *_ = training(5)
    ema.apply(twin, [whole])
    np.testing.assert_array_equal(twin.eval()(whole).data, model.eval()(whole).data)
    with pytest.raises(ArgumentError, match="does not fit"):
        ema.apply(nbbn.Dense(5, 3))


def test_the_average_is_nearer_to_the_optimum_than_noisy_weights():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 4))
    y = x @ np.array([[1.0], [-2.0], [0.5], [3.0]]) + rng.normal(size=(2000, 1))
    exact = np.linalg.lstsq(x, y, rcond=None)[0].ravel()
    model = nbbn.Dense(4, 1, bias=False, rng=0, dtype=np.float64)
    ema = EMA(0.995)
    pairs = [(x[i : i + 10], y[i : i + 10]) for i in range(0, 2000, 10)]
    optimizer = optim.SGD(model.parameters(), 0.05)
    fit(model, pairs, optimizer, epochs=5, loss=losses.mse, callbacks=[ema])
    last = np.linalg.norm(model.weight.data - exact)
    ema.apply(model)
    assert np.linalg.norm(model.weight.data - exact) < last / 3


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_decays_out_of_range(decay):
    with pytest.raises(ArgumentError, match="decay"):
        EMA(decay)


def test_what_apply_refuses():
    with pytest.raises(ArgumentError, match="no average yet"):
        EMA().apply(nbbn.Dense(2, 2))
    with pytest.raises(DTypeError, match="model"):
        EMA().apply(3)
