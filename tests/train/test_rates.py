"""Finding a learning rate: what it sees, what it suggests, and that it changes nothing."""

from __future__ import annotations

import numpy as np
import pytest

import nbbn
from nbbn import losses, optim
from nbbn.data import Batches
from nbbn.errors import ArgumentError, DTypeError
from nbbn.train import evaluate, find_lr, fit
from tests.helpers.layers import state_of


def classes(count=1000):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 6)).astype(np.float32)
    return x, (x[:, 0] * x[:, 1] > 0).astype(np.int64)


def parts(shared=False, kind=optim.Adam):
    """A model with dropout, its batches and its optimizer; one generator for both if `shared`."""
    rng = np.random.default_rng(1)
    model = nbbn.mlp((6, 32, 2), dropout=0.1, rng=rng)
    batches = Batches(*classes(), 50, rng=rng if shared else 2)
    return model, batches, kind(model.parameters(), 0.01)


@pytest.mark.parametrize("shared", [False, True])
def test_training_goes_on_as_if_it_had_not_been(shared):
    outcomes = []
    for tried in (False, True):
        model, batches, optimizer = parts(shared)
        fit(model, batches, optimizer, epochs=1)
        if tried:
            find_lr(model, batches, optimizer)
        order = iter(batches)
        next(order)
        if tried:
            find_lr(model, batches, optimizer)  # in the middle of an epoch
        rest = [y.tolist() for _, y in order]
        model.eval()
        mode = model.training
        history = fit(model, batches, optimizer, epochs=2)
        outcomes.append((rest, mode, state_of(model, optimizer), [e.loss for e in history]))
    assert outcomes[0] == outcomes[1]


def test_the_losses_are_those_of_a_loop_with_these_rates():
    model, batches, optimizer = parts()
    trial = find_lr(model, batches, optimizer, lowest=1e-4, highest=1e-1, steps=40)
    np.testing.assert_allclose(trial.rates, np.geomspace(1e-4, 1e-1, 40), rtol=1e-12)
    model, batches, optimizer = parts()
    pairs = [*batches, *batches]
    for rate, expected, (x, y) in zip(trial.rates, trial.losses, pairs, strict=True):
        with nbbn.Tape() as tape:
            loss = losses.cross_entropy(model(x), y)
        assert loss.item() == expected
        tape.backward(loss)
        optimizer.lr = float(rate)
        optimizer.step()
        optimizer.zero_grad()


def test_batches_in_the_middle_of_an_epoch_stay_there():
    model, _, optimizer = parts()
    batches = Batches(*classes(), 50, rng=2, reuse=True)
    x, _ = next(iter(batches))
    before = x.copy()
    batches.load_state_dict(batches.state_dict())
    find_lr(model, batches, optimizer, steps=3)
    np.testing.assert_array_equal(x, before)
    assert len(list(batches)) == 19


@pytest.mark.parametrize("kind", [optim.Adam, optim.SGD])
def test_the_suggestion_trains(kind):
    model, batches, optimizer = parts(kind=kind)
    trial = find_lr(model, batches, optimizer)
    assert len(trial.rates) == len(trial.losses) == len(trial.smoothed) <= 100
    optimizer.lr = trial.suggestion
    fit(model, batches, optimizer, epochs=20)
    assert trial.suggestion == trial.rates[trial.smoothed.argmin()] / 10
    assert evaluate(model, batches).accuracy > 0.8


def test_it_ends_where_the_loss_goes_up_or_is_not_finite():
    for seed_losses in (losses.mse, losses.huber):
        model = nbbn.Dense(6, 1, rng=0)
        x, _ = classes(100)
        optimizer = optim.SGD(model.parameters())
        data = [(x, 100 * x[:, :1])]
        trial = find_lr(model, data, optimizer, loss=seed_losses, highest=1e12)
        assert 20 < len(trial.losses) < 100
        assert np.isfinite(trial.losses).all()
    # An infinite target makes the loss infinite, and no gradient: the next would be finite again.
    data.append((x, np.full_like(x[:, :1], np.inf)))
    assert len(find_lr(model, data, optimizer, loss=losses.huber).losses) == 1
    with pytest.raises(ArgumentError, match="first loss is nan"):
        find_lr(model, [(x * np.nan, x[:, :1])], optimizer, loss=losses.mse)


def test_on_a_parabola_the_suggestion_is_below_the_largest_stable_rate():
    x = np.eye(4)
    model = nbbn.Dense(4, 1, bias=False, init="ones", rng=0, dtype=np.float64)
    optimizer = optim.SGD(model.parameters())
    # The loss is the mean of squares of four weights, whose second derivative is 1/2.
    trial = find_lr(model, [(x, np.zeros((4, 1)))], optimizer, loss=losses.mse, highest=100)
    assert 0.01 < trial.suggestion < 4


def test_smoothing_takes_the_mean_of_neighbours():
    model, batches, optimizer = parts()
    trial = find_lr(model, batches, optimizer, highest=1e-4, steps=40)
    for place in range(40):
        near = trial.losses[max(place - 2, 0) : place + 3]
        assert trial.smoothed[place] == pytest.approx(near.mean(), rel=1e-12)


def test_nothing_to_learn_has_no_suggestion():
    model = nbbn.Dense(2, 1, init="zeros", rng=0)
    data = [(np.ones((4, 2), np.float32), np.zeros((4, 1), np.float32))]
    trial = find_lr(model, data, optim.SGD(model.parameters()), loss=losses.mse)
    assert trial.suggestion is None


def test_a_pair_of_all_examples():
    model, _, optimizer = parts()
    a, b = (find_lr(model, classes(), optimizer, batch_size=100) for _ in range(2))
    np.testing.assert_array_equal(a.losses, b.losses)


def test_the_picture():
    matplotlib = pytest.importorskip("matplotlib")
    trial = find_lr(*parts())
    figure = nbbn.plots.rates(trial)
    assert isinstance(figure, matplotlib.figure.Figure)
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    (line,) = [line for line in axes.lines if line.get_label() == "smoothed loss"]
    np.testing.assert_array_equal(line.get_ydata(), trial.smoothed)
    assert f"{trial.suggestion:.2g}" in axes.lines[-1].get_label()
    nbbn.plots.rates(trial._replace(suggestion=None))
    with pytest.raises(DTypeError, match="trial must be a RateTrial"):
        nbbn.plots.rates(0.1)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"lowest": 0.0}, ArgumentError, "lowest must be above 0"),
        ({"lowest": 1.0, "highest": 1.0}, ArgumentError, "highest must be above 1"),
        ({"steps": 1}, ArgumentError, "steps must be at least 2"),
        ({"batches": []}, ArgumentError, "there are no batches"),
        ({"batches": iter([])}, ArgumentError, "used up"),
        ({"batches": 3}, DTypeError, "expected batches"),
        ({"loss": None}, DTypeError, "loss must be callable"),
        ({"batch_size": 0}, ArgumentError, "batch_size"),
    ],
)
def test_refusals(options, error, words):
    model, batches, optimizer = parts()
    given = {"batches": batches} | options
    with pytest.raises(error, match=words):
        find_lr(model, given.pop("batches"), optimizer, **given)
