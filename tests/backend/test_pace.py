"""A replayed step takes all threads or one, whichever was quicker lately; the bits are the same."""

import numpy as np
import pytest

import nbbn
from nbbn.backend import pace, recorder


def run(chosen, seconds, total):
    """Run steps of seconds[alone] for a total time; return the time spent with one thread."""
    spent = {False: 0.0, True: 0.0}
    while sum(spent.values()) < total:
        alone = chosen.alone
        spent[alone] += seconds[alone]
        chosen.took(seconds[alone])
    return spent[True]


@pytest.mark.parametrize("ratio", [0.5, 0.8, 1.2, 2.0])
def test_quicker_way_is_taken(ratio):
    chosen = pace.Pace()
    run(chosen, {False: 1e-3, True: ratio * 1e-3}, 2.0)
    alone = run(chosen, {False: 1e-3, True: ratio * 1e-3}, 100.0)
    wrong = alone if ratio > 1 else 100.0 - alone
    assert wrong < 1.0


def test_change_is_noticed():
    chosen = pace.Pace()
    run(chosen, {False: 1e-3, True: 2e-3}, 30.0)
    assert not chosen.alone
    busy = {False: 4e-3, True: 3e-3}
    run(chosen, busy, 2 * pace.LONGEST_WAIT_SECONDS)
    assert run(chosen, busy, 4.0) > 3.8
    run(chosen, {False: 1e-3, True: 2e-3}, 2 * pace.LONGEST_WAIT_SECONDS)
    assert run(chosen, {False: 1e-3, True: 2e-3}, 4.0) < 0.2


def test_long_steps_keep_all_threads():
    chosen = pace.Pace()
    assert run(chosen, {False: 2 * pace.LONGEST_STEP_SECONDS, True: 1e-3}, 10.0) == 0


def test_compilation_does_not_count():
    chosen = pace.Pace()
    while not chosen.alone:
        chosen.took(1e-3)
    chosen.took(3.0)
    run(chosen, {False: 1e-3, True: 5e-4}, 2 * pace.TRIAL_SECONDS)
    assert chosen.alone


class InTurns:
    """All threads and one by turns."""

    alone = False

    def took(self, seconds):
        self.alone = not self.alone


def weights_after(steps, rng):
    model = nbbn.mlp([100, 256, 10], rng=0)
    train = nbbn.train.record_step(
        model, nbbn.losses.cross_entropy, nbbn.optim.Adam(model.parameters())
    )
    for _ in range(steps):
        train(rng.random((128, 100), dtype=np.float32), rng.integers(0, 10, 128))
    assert train.recordings == 2
    return [p.data for p in model.parameters()]


def test_bits_do_not_depend_on_the_way(monkeypatch):
    usual = weights_after(8, np.random.default_rng(1))
    monkeypatch.setattr(recorder, "Pace", InTurns)
    in_turns = weights_after(8, np.random.default_rng(1))
    for own, other in zip(usual, in_turns, strict=True):
        np.testing.assert_array_equal(own, other)
