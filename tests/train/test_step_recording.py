"""When a step is recorded again, when it falls back to eager ones, and what it refuses."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

import nbbn
from nbbn import Tape, Tensor, losses, ops, optim
from nbbn.errors import ArgumentError, DTypeError, NbbnError, ShapeError
from nbbn.functional import update_running_stats
from nbbn.train.loop import record_step
from tests.helpers.layers import state_of
from tests.helpers.training_pair import CLASSES, FEATURES, Pair, adam, adam_mlp, batches, under

# ------------------------------------------------------------------------- recording again


@pytest.fixture
def trained(rng):
    pair = Pair(adam_mlp)
    assert pair.train(batches(rng, [16] * 3)) == 1
    return pair


def test_an_evaluation_in_between_costs_no_new_recording(trained, rng):
    plans = [*trained.step._plans.values()]
    trained.model.eval()
    trained.model.train()
    assert trained.train(batches(rng, [16] * 2)) == 2
    assert [*trained.step._plans.values()] == plans


def _freeze(parameter):
    parameter.requires_grad = False


def _shrink(model, optimizer):
    for parameter in model.parameters():
        parameter.data *= 0.5


def _replace_weight(model, optimizer):
    model[0].weight.data = model[0].weight.data * 0.5


def _load_state(model, optimizer):
    model.load_state_dict({name: array * 2 for name, array in model.state_dict().items()})


def _load_optimizer(model, optimizer):
    optimizer.load_state_dict({name: array * 0 for name, array in optimizer.state_dict().items()})


def _leave_gradients(model, optimizer):
    with Tape() as tape:
        loss = model(np.ones((4, FEATURES), np.float32)).sum()
    tape.backward(loss)


def _set(which, name, value):
    def change(model, optimizer):
        target = optimizer if which is None else model[which]
        setattr(target, name, value)

    return change


# What is done between two steps -> how many of the next four steps replay at least.
CHANGES = {
    "nothing": (lambda model, optimizer: None, 4),
    "eval": (lambda model, optimizer: model.eval(), 2),
    "eval and back": (lambda model, optimizer: model.eval().train(), 2),
    "one layer in evaluation": (lambda model, optimizer: model[1].eval(), 2),
    "frozen weight": (lambda model, optimizer: _freeze(model[2].weight), 2),
    "frozen gamma": (lambda model, optimizer: _freeze(model[1].gamma), 2),
    "replaced weight": (_replace_weight, 2),
    "loaded model": (_load_state, 2),
    "loaded optimizer": (_load_optimizer, 2),
    "gradients left over": (_leave_gradients, 2),
    "eps of a layer": (_set(1, "eps", 0.1), 2),
    "momentum of a layer": (_set(1, "momentum", 0.5), 2),
    "lr schedule": (_set(None, "schedule", lambda step: 0.2), 2),
    "weight decay": (_set(None, "weight_decay", 0.1), 2),
    "betas": (_set(None, "betas", (0.5, 0.9)), 2),
    "eps of the optimizer": (_set(None, "eps", 0.1), 2),
    "decay of parameters by hand": (_shrink, 2),
    "running statistics by hand": (_set(1, "running_mean", np.ones(10, np.float32)), 2),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_between_steps_is_noticed(name, trained, rng):
    change, replayed = CHANGES[name]
    trained.both(change)
    assert trained.train(batches(rng, [16] * 4)) >= replayed
    assert trained.step.refusal is None


def test_thawing_a_frozen_parameter(trained, rng):
    for gradient in (False, True):
        trained.both(lambda model, _, g=gradient: setattr(model[0].weight, "requires_grad", g))
        trained.train(batches(rng, [16] * 3))


def test_a_frozen_step_replays(rng):
    """Fine-tuning: a step with frozen parameters is worth recording too."""

    def make():
        model, optimizer = adam_mlp()
        _freeze(model[0].weight)
        return model, optimizer

    assert Pair(make).train(batches(rng, [16] * 5)) == 3


@pytest.mark.parametrize(
    ("name", "value"), [("nesterov", True), ("momentum", 0.2), ("weight_decay", 0.3)]
)
def test_a_changed_setting_of_sgd_is_noticed(name, value, rng):
    model = functools.partial(nbbn.mlp, (FEATURES, 9, CLASSES), rng=1)
    pair = Pair(under(model, lambda p: optim.SGD(p, 0.1, momentum=0.9)))
    pair.train(batches(rng, [16] * 3))
    pair.both(_set(None, name, value))
    pair.train(batches(rng, [16] * 4))


def test_a_replaced_layer_is_noticed(rng):
    class Net(nbbn.Module):
        def __init__(self):
            self.body = nbbn.Dense(FEATURES, 8, rng=1)
            self.head = nbbn.Dense(8, CLASSES, rng=2)

        def forward(self, x):
            return self.head(ops.tanh(self.body(x)))

    def make():
        model = Net()
        return model, optim.SGD(model.body.parameters(), 0.1)

    def change(model, optimizer):
        model.head = nbbn.Dense(8, CLASSES, rng=3)
        for parameter in model.head.parameters():
            _freeze(parameter)

    pair = Pair(make)
    pair.both(lambda model, optimizer: [_freeze(p) for p in model.head.parameters()])
    pair.train(batches(rng, [16] * 3))
    pair.both(change)
    pair.train(batches(rng, [16] * 3))


def test_another_number_of_features_is_refused_without_harm(trained, rng):
    wrong = rng.normal(size=(16, FEATURES + 1)).astype(np.float32)
    with pytest.raises(ShapeError, match=r"\(16, 13\)"):
        trained.step(wrong, np.zeros(16, np.int64))
    assert trained.train(batches(rng, [16] * 2)) >= 1


def test_many_batch_shapes(rng):
    pair = Pair(adam_mlp)
    sizes = list(range(2, 14))
    for _ in range(3):
        pair.train(batches(rng, sizes))


def test_a_recordable_operation_of_a_user_is_recorded(rng):
    from nbbn import backend

    class Half(nbbn.Op):
        recordable = True

        @staticmethod
        def forward(ctx, x):
            y = backend.empty(x.shape, x.dtype)
            backend.run(np.multiply, x, 0.5, y)
            return y

        @staticmethod
        def backward(ctx, dy):
            return Half.forward(ctx, dy)

    class Layer(nbbn.Module):
        def forward(self, x):
            return nbbn.apply(Half, x)

    def layers():
        return nbbn.Dense(FEATURES, 8, rng=0), Layer(), nbbn.Dense(8, CLASSES, rng=1)

    assert Pair(under(layers, adam)).train(batches(rng, [16] * 5)) == 3


def test_a_launch_that_is_not_in_every_step_is_found(rng):
    from nbbn import backend

    class Halving(optim.SGD):
        recordable = True

        def _update(self, hyper, grad, data, states):
            super()._update(hyper, grad, data, states)
            if self.step_count % 2:
                backend.run(np.multiply, data, 0.5, data)

    pair = Pair(under(lambda: nbbn.mlp((FEATURES, CLASSES), rng=1), Halving))
    with pytest.warns(RuntimeWarning, match="the number of operations changes"):
        assert pair.train(batches(rng, [16] * 4)) == 0


# ------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize("wrong", [-1, CLASSES, 200])
@pytest.mark.parametrize("label", [np.int64, np.int16])
def test_a_label_out_of_range_stops_a_replayed_step(wrong, label, rng):
    pair = Pair(adam_mlp)
    data = batches(rng, [16] * 6, label=label)
    assert pair.train(data[:3]) == 1
    before = state_of(pair.model, pair.optimizer)
    x, y = data[3]
    bad = y.copy()
    bad[5] = wrong
    with pytest.raises(ArgumentError, match=rf"got {wrong} at position 5"):
        pair.step(x, bad)
    after = state_of(pair.model, pair.optimizer)
    changed = {name for name in after if after[name] != before[name]}
    assert all("running" in name or "tracked" in name for name in changed)
    # The eager forward moved the running statistics before its loss failed, too.
    with pytest.raises(ArgumentError):
        pair.eager(x, bad)
    assert pair.train(data[3:]) == 3


def test_a_momentum_out_of_range_stops_a_replayed_step(rng):
    class Norm(nbbn.Module):
        recordable = True

        def __init__(self):
            super().__init__()
            self.running_mean, self.running_var = np.zeros(FEATURES), np.ones(FEATURES)
            self.momentum = np.array(0.1)

        def forward(self, x):
            y, stats = ops.batch_norm_train(x)
            update_running_stats(self.running_mean, self.running_var, stats, momentum=self.momentum)
            return y

    pair = Pair(under(lambda: (Norm(), nbbn.Dense(FEATURES, CLASSES, rng=1))))
    data = batches(rng, [16] * 5)
    assert pair.train(data[:3]) == 1
    norm = pair.model[0]
    for momentum in (1.5, -1.0, np.nan):
        before = norm.running_mean.copy()
        norm.momentum[...] = momentum
        with pytest.raises(ArgumentError, match=rf"momentum must be .*got {momentum}"):
            pair.step(*data[3])
        np.testing.assert_array_equal(norm.running_mean, before)
    norm.momentum[...] = 0.1
    assert pair.train(data[3:]) == 2


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([[0.0] * FEATURES] * 2, np.zeros(2, int)),
        (np.zeros((2, FEATURES), np.float32), [0, 1]),
        (Tensor(np.zeros((2, FEATURES), np.float32)), np.zeros(2, int)),
        (np.zeros((2, FEATURES), np.uint8), np.zeros(2, int)),
        (np.zeros((2, FEATURES), complex), np.zeros(2, int)),
        (np.zeros((2, FEATURES), np.float32), np.zeros(2)),
    ],
)
def test_a_step_takes_arrays_of_the_right_type(x, y):
    model, optimizer = adam_mlp()
    with pytest.raises(DTypeError):
        record_step(model, losses.cross_entropy, optimizer)(x, y)


def test_record_step_checks_what_it_is_given():
    model, optimizer = adam_mlp()
    for arguments, found in (
        ((losses.cross_entropy, losses.cross_entropy, optimizer), "function"),
        ((model, "cross_entropy", optimizer), "str"),
        ((model, losses.cross_entropy, "adam"), "str"),
        ((model, losses.cross_entropy, model.parameters()), "list"),
    ):
        with pytest.raises(DTypeError, match=found):
            record_step(*arguments)


ONE = np.float32(1)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda output, y: None, "NoneType"),
        (lambda output, y: 1.0, "float"),
        (lambda output, y: ONE, "float32"),
        (lambda output, y: output, r"\(16, 4\)"),
    ],
)
def test_the_loss_must_be_a_tensor_of_one_number(loss, words, rng):
    model, optimizer = adam_mlp()
    with pytest.raises(NbbnError, match=words):
        record_step(model, loss, optimizer)(*batches(rng, [16])[0])


def test_an_error_while_recording_leaves_nothing_behind(rng):
    model, optimizer = adam_mlp()
    fail = [True]

    @nbbn.recordable
    def loss(output, y):
        if fail[0]:
            raise RuntimeError("stop")
        return losses.cross_entropy(output, y)

    step = record_step(model, loss, optimizer)
    data = batches(rng, [16] * 4)
    with pytest.raises(RuntimeError, match="stop"):
        step(*data[0])
    fail[0] = False
    for x, y in data:
        assert math.isfinite(step(x, y))
    assert step.refusal is None
