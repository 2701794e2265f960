"""Groups of parameters, a count for each of them, settings that change; against PyTorch."""

from __future__ import annotations

import copy
import json
import math
import pickle

import numpy as np
import pytest

import nbbn
from nbbn import Parameter, Tape, checkpoint, losses, optim
from nbbn.errors import ArgumentError, CheckpointError, DTypeError
from nbbn.train.loop import fit, record_step
from tests.helpers.layers import state_of
from tests.helpers.optimizers import Twins, advance, bits, parameters
from tests.helpers.refusals import refused
from tests.helpers.training_pair import CLASSES, FEATURES, Pair, adam, batches, under

# ------------------------------------------------------------------------ a count for each


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_counts_of_their_own_match_torch(name, rng):
    """Each parameter has a gradient in some of the steps, in changing neighbourhoods."""
    twins = Twins(rng, lambda library, items: getattr(library, name)(items, lr=0.01))
    for number in range(60):
        twins.step(number, set(np.flatnonzero(rng.random(4) < 0.6)))
    counts = [int(twins.peer.state[p]["step"]) for p in twins.peers]
    assert len(set(counts)) > 1
    assert twins.optimizer.state_dict()["counts"].tolist() == counts


def test_the_first_step_of_a_late_parameter_is_the_learning_rate(rng):
    """Adam's first step is lr * sign(g), whatever the others have done by then."""
    own = parameters(rng, [(3,), (3,)])
    optimizer = optim.Adam(own, 0.01)
    for number in range(1000):
        advance(optimizer, number, having=[0])
    before = own[1].data.copy()
    own[1].grad = np.array([5.0, -0.3, 1.0])
    optimizer.step()
    np.testing.assert_allclose(before - own[1].data, [0.01, -0.01, 0.01], rtol=1e-6)


def test_parameters_that_step_together_are_one_launch(rng, monkeypatch):
    launches = []
    own = parameters(rng, [(3,)] * 5)
    optimizer = optim.Adam(own, 0.01)
    update = optimizer._update
    monkeypatch.setattr(optimizer, "_update", lambda *a: (launches.append(a[1].size), update(*a)))

    def step(having):
        launches.clear()
        advance(optimizer, 0, having)
        return launches

    assert step(range(5)) == [15]
    assert step([0, 1, 3, 4]) == [6, 6]
    assert step(range(5)) == [6, 3, 6]


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))]
)
def test_a_copy_keeps_counts_groups_and_rates(duplicate, rng):
    own = parameters(rng)
    groups = [{"params": own[:2], "lr": optim.Cosine(0.1, 50)}, {"params": own[2:]}]
    optimizer = optim.AdamW(groups, 0.01)
    for number in range(4):
        advance(optimizer, number, having=set(range(4)) - {number})
    optimizer.param_groups[1]["lr"] = 0.5
    others, other = duplicate((own, optimizer))
    assert [g["lr"] for g in other.param_groups] == [g["lr"] for g in optimizer.param_groups]
    for number in range(3):
        advance(optimizer, number)
        advance(other, number)
        assert bits(own) == bits(others)
    optimizer.param_groups[0]["lr"] = 1.0
    assert other.param_groups[0]["lr"] != 1.0


# --------------------------------------------------------------------------------- groups


GROUPS = {
    "SGD": (
        {"lr": 0.1, "momentum": 0.9},
        {"lr": 0.02, "momentum": 0.0, "weight_decay": 0.1},
        {"nesterov": True, "momentum": 0.5},
    ),
    "Adam": (
        {"lr": 0.01},
        {"lr": 0.05, "betas": (0.5, 0.8)},
        {"eps": 1e-3, "weight_decay": 0.2},
    ),
    "AdamW": ({"lr": 0.01}, {"lr": 0.05, "weight_decay": 0.3}, {"weight_decay": 0.0}),
}


@pytest.mark.parametrize("name", GROUPS)
def test_groups_match_torch(name, rng):
    defaults, second, third = GROUPS[name]

    def make(library, items):
        groups = [
            {"params": items[:1]},
            {"params": (p for p in items[1:3]), **second},
            {"params": items[3], **third},
        ]
        return getattr(library, name)(groups, **defaults)

    twins = Twins(rng, make)
    for number in range(20):
        if number == 7:
            for optimizer in (twins.optimizer, twins.peer):
                optimizer.param_groups[1]["lr"] = 0.003
                optimizer.param_groups[2]["weight_decay"] = 0.05
                for group in optimizer.param_groups:
                    group["lr"] *= 0.5
        twins.step(number, set(range(4)) - {number % 5})
    own, peer = (optimizer.param_groups for optimizer in (twins.optimizer, twins.peer))
    for group, other in zip(own, peer, strict=True):
        assert len(group["params"]) == len(other["params"])
        assert {name: group[name] for name in group if name != "params"} == {
            name: other[name] for name in group if name != "params"
        }


def test_a_group_that_is_added_late_matches_torch(rng):
    twins = Twins(rng, lambda library, items: library.AdamW(items[:2], lr=0.01))
    for number in range(5):
        twins.step(number, {0, 1})
    twins.optimizer.add_param_group({"params": twins.own[2:], "lr": 0.1})
    twins.peer.add_param_group({"params": twins.peers[2:], "lr": 0.1})
    for number in range(5):
        twins.step(number)
    assert twins.optimizer.state_dict()["counts"].tolist() == [10, 10, 5, 5]


def test_groups_have_schedules_of_their_own(rng):
    own = parameters(rng, [(3,), (3,), (3,)])
    first, second = optim.Cosine(0.1, 10), optim.StepDecay(0.5, 2, factor=0.5)
    groups = [{"params": own[0], "lr": first}, {"params": own[1]}, {"params": own[2], "lr": 0.25}]
    optimizer = optim.SGD(groups, second)
    for number in range(6):
        rates = [first(number), second(number), 0.25]
        assert [group["lr"] for group in optimizer.param_groups] == rates
        before = [p.data.copy() for p in own]
        for p in own:
            p.grad = np.ones(3)
        optimizer.step()
        for p, old, rate in zip(own, before, rates, strict=True):
            np.testing.assert_allclose(p.data, old - rate, rtol=1e-14)
    optimizer.add_param_group({"params": Parameter(np.ones(3))})
    assert optimizer.param_groups[3]["lr"] == second(6)


def test_a_group_is_a_mapping(rng):
    own = parameters(rng)
    optimizer = optim.Adam([{"params": own, "eps": 1e-3}], 0.01)
    (group,) = optimizer.param_groups
    assert dict(group) == {
        "params": tuple(own), "lr": 0.01, "weight_decay": 0.0, "betas": (0.9, 0.999), "eps": 1e-3,
    }  # fmt: skip
    assert "nesterov" not in group
    assert group.get("nesterov") is None
    group.update(lr=0.5, betas=[0.1, 0.2])
    assert (group["lr"], group["betas"]) == (0.5, (0.1, 0.2))
    assert "4 parameters" in repr(group)
    assert "lr=0.5" in repr(group)


def test_a_setting_of_all_groups(rng):
    own = parameters(rng)
    optimizer = optim.Adam([{"params": own[:2]}, {"params": own[2:], "weight_decay": 0.1}], 0.01)
    assert optimizer.lr == 0.01
    with pytest.raises(ArgumentError, match=r"weight_decay differs.*\[0.0, 0.1\].*param_groups"):
        _ = optimizer.weight_decay
    optimizer.weight_decay = 0.3
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.3]
    optimizer.lr = optim.Cosine(0.5, 10)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]
    assert optimizer.schedule is optimizer.param_groups[1].schedule
    optimizer.param_groups[0]["lr"] = 0.5
    assert optimizer.lr == 0.5
    with pytest.raises(ArgumentError, match="schedule differs"):
        _ = optimizer.schedule


def test_a_setting_that_one_group_refuses_changes_none(rng):
    own = parameters(rng)
    groups = [{"params": own[:2]}, {"params": own[2:], "momentum": 0.0, "nesterov": False}]
    optimizer = optim.SGD(groups, momentum=0.9)
    with pytest.raises(ArgumentError, match="nesterov needs a momentum"):
        optimizer.nesterov = True
    assert [group["nesterov"] for group in optimizer.param_groups] == [False, False]


def test_decay_groups(rng):
    model = nbbn.mlp((FEATURES, 9, CLASSES), rng=1)
    weights, others = groups = optim.decay_groups(model, 0.1)
    assert [p.shape for p in weights["params"]] == [(9, FEATURES), (CLASSES, 9)]
    layers = [layer for layer in model if isinstance(layer, nbbn.BatchNorm)]
    small = {id(p) for layer in layers for p in (layer.gamma, layer.beta)}
    assert small <= {id(p) for p in others["params"]}
    assert (weights["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    optimizer = optim.SGD(groups, 0.5)
    before = [p.data.copy() for p in model.parameters()]
    for p in model.parameters():
        p.grad = np.zeros(p.shape, p.dtype)
    optimizer.step()
    for p, old in zip(model.parameters(), before, strict=True):
        np.testing.assert_allclose(p.data, old * (0.95 if p.ndim == 2 else 1), rtol=1e-6)
    (only,) = optim.decay_groups(nbbn.BatchNorm(3), 0.1)
    assert only["weight_decay"] == 0.0


def test_flat_arrays_start_on_a_cache_line(rng):
    for _ in range(5):
        optimizer = optim.Adam([{"params": p} for p in parameters(rng, [(3001,), (70_003,), (0,)])])
        for arena in optimizer.arenas:
            for array in (arena.data, arena.grad, *arena.states):
                assert array.ctypes.data % 64 == 0 or not array.size


def test_arrays_hold_all_that_an_optimizer_writes(rng):
    own = [*parameters(rng), *parameters(rng, [(5,)], np.float32)]
    optimizer = optim.Adam([{"params": own[:2]}, {"params": own[2:]}])
    arrays = optimizer.arrays()
    assert sum(array.size for array in arrays) == 4 * sum(p.size for p in own) + 5 * 9
    advance(optimizer, 0)
    for p in own:
        assert any(np.shares_memory(p.data, array) for array in arrays)
        assert any(np.shares_memory(p.grad, array) for array in arrays)


# ------------------------------------------------------------------------------- recorded


def mlp():
    return nbbn.mlp((FEATURES, 10, 8, CLASSES), rng=1)


def grouped(kind=optim.AdamW, **options):
    def make():
        model = mlp()
        return model, kind(optim.decay_groups(model, 0.05), **options)

    return make


@pytest.mark.parametrize(
    "make",
    [
        grouped(lr=optim.OneCycle(0.05, 20)),
        grouped(optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
        grouped(optim.Adam),
    ],
)
def test_groups_replay(make, rng):
    assert Pair(make).train(batches(rng, [16] * 20)) == 18


def test_settings_that_change_between_steps_replay(rng):
    pair = Pair(grouped(lr=0.01))
    changes = [
        lambda model, optimizer: setattr(optimizer, "lr", 0.02),
        lambda model, optimizer: optimizer.param_groups[0].update(lr=0.005),
        lambda model, optimizer: optimizer.param_groups[1].update(weight_decay=0.3),
        lambda model, optimizer: setattr(optimizer, "weight_decay", 0.1),
        lambda model, optimizer: setattr(optimizer, "lr", optim.Cosine(0.03, 40)),
        lambda model, optimizer: optimizer.param_groups[1].update(betas=(0.7, 0.9), eps=1e-3),
    ]
    data = batches(rng, [16] * 20)
    assert pair.train(data[:2]) == 0
    for position, change in enumerate(changes):
        before = [p.data.copy() for p in pair.model.parameters()]
        assert pair.train(data[2 + 3 * position :][:3]) == 3
        pair.both(change)
        assert bits(pair.model.parameters()) != [p.tobytes() for p in before]


def test_a_changed_rate_works_from_the_next_replay(rng):
    model = nbbn.Sequential(nbbn.Dense(FEATURES, CLASSES, rng=1))
    optimizer = optim.SGD(model.parameters(), 0.1)
    step = record_step(model, losses.cross_entropy, optimizer)
    data = batches(rng, [16] * 4)
    for x, y in data[:3]:
        step(x, y)
    optimizer.lr = 0
    before = bits(model.parameters())
    step(*data[3])
    assert bits(model.parameters()) == before


class Skipping(nbbn.Module):
    """Uses its second layer for batches of 8 only."""

    def __init__(self):
        self.first = nbbn.Dense(FEATURES, CLASSES, rng=1)
        self.middle = nbbn.Dense(CLASSES, CLASSES, rng=2)
        self.last = nbbn.Dense(CLASSES, CLASSES, rng=3)

    def forward(self, x):
        x = self.first(x)
        return self.last(self.middle(x) if len(x) == 8 else x)


@pytest.mark.parametrize("kind", [optim.SGD, optim.AdamW])
def test_plans_that_update_other_parameters_share_an_optimizer(kind, rng):
    """What one plan leaves out falls behind: launches of the other plan must not mix counts."""
    pair = Pair(under(Skipping, lambda p: kind(p, 0.01)))
    pair.train(batches(rng, [8] * 4 + [5] * 4))
    pair.train(batches(rng, [8] * 3))
    assert pair.train(batches(rng, [8, 5] * 6)) == 12
    pair.train(batches(rng, [5, 8, 8, 5] * 2))
    if kind is optim.AdamW:
        counts = pair.optimizer.state_dict()["counts"]
        assert counts.tolist() == [31, 31, 17, 17, 31, 31]


def test_a_parameter_that_thaws_begins_with_its_first_step(rng):
    pair = Pair(under(mlp, adam))
    pair.both(lambda model, optimizer: setattr(model[0].weight, "requires_grad", False))
    assert pair.train(batches(rng, [16] * 6)) == 4
    pair.both(lambda model, optimizer: setattr(model[0].weight, "requires_grad", True))
    assert pair.train(batches(rng, [16] * 6)) == 4
    assert pair.optimizer.state_dict()["counts"].tolist()[:2] == [6, 12]


def test_steps_by_hand_between_recorded_ones(rng):
    """They may cut what a plan updates as one."""

    def by_hand(model, optimizer):
        optimizer.parameters[2].grad = np.ones(optimizer.parameters[2].shape, np.float32)
        optimizer.step()
        optimizer.zero_grad()

    pair = Pair(under(mlp, adam))
    pair.train(batches(rng, [16] * 4))
    for _ in range(3):
        pair.both(by_hand)
        pair.both(by_hand)
        pair.train(batches(rng, [16] * 4))


def test_a_loaded_state_and_a_new_group_are_noticed(rng):
    def make():
        model = mlp()
        return model, optim.Adam(model.parameters()[:4], 0.01)

    def load(model, optimizer):
        state = optimizer.state_dict()
        optimizer.load_state_dict({**state, "counts": state["counts"] + np.arange(4)})

    pair = Pair(make)
    pair.train(batches(rng, [16] * 5))
    pair.both(load)
    pair.train(batches(rng, [16] * 5))
    pair.both(lambda model, optimizer: model.zero_grad())
    pair.both(lambda m, optimizer: optimizer.add_param_group({"params": m.parameters()[4:]}))
    pair.train(batches(rng, [16] * 5))


# --------------------------------------------------------------- a subset of the parameters


def gradients(model) -> list[bytes | None]:
    return [None if p.grad is None else p.grad.tobytes() for p in model.parameters()]


def head_only(kind=optim.Adam):
    def make():
        model = mlp()
        return model, kind(model[-1].parameters(), 0.01)

    return make


def assign(model, optimizer):
    model[0].weight.grad = np.full(model[0].weight.shape, 0.5, np.float32)


@pytest.mark.parametrize(
    ("kind", "change", "before", "replays"),
    [
        (optim.Adam, None, (), 17),
        (optim.SGD, lambda model, optimizer: model.zero_grad(), range(0, 20, 3), 16),
        (optim.Adam, assign, (6,), 15),
    ],
    ids=["add up", "forgotten", "assigned"],
)
def test_a_subset_replays_and_the_other_gradients_are_right(kind, change, before, replays, rng):
    pair = Pair(head_only(kind))
    replayed = 0
    for number, batch in enumerate(batches(rng, [16] * 20)):
        if number in before:
            pair.both(change)
        replayed += pair.train([batch])
        assert gradients(pair.model) == gradients(pair.twin)
    assert replayed == replays
    assert pair.step.refusal is None
    assert pair.model[0].weight.grad is not None


def test_two_optimizers_share_a_recorded_step(rng):
    """One steps inside it, the other one afterwards, along the gradients that it left."""
    model, twin = mlp(), mlp()
    heads = [optim.Adam(m[-1].parameters(), 0.01) for m in (model, twin)]
    bodies = [
        optim.SGD([p for layer in list(m)[:-1] for p in layer.parameters()], 0.1)
        for m in (model, twin)
    ]
    step = record_step(model, losses.cross_entropy, heads[0])
    for x, y in batches(rng, [16] * 20):
        step(x, y)
        bodies[0].step()
        bodies[0].zero_grad()
        with Tape() as tape:
            loss = losses.cross_entropy(twin(x), y)
        tape.backward(loss)
        for optimizer in (heads[1], bodies[1]):
            optimizer.step()
            optimizer.zero_grad()
        assert bits(model.parameters()) == bits(twin.parameters())
    assert step.refusal is None


def test_replaced_data_of_other_parameters_is_noticed(rng):
    def halve(model, optimizer):
        model[0].weight.data = model[0].weight.data * 0.5

    def freeze(model, optimizer):
        model[0].weight.requires_grad = False

    pair = Pair(head_only())
    for change in (halve, freeze, halve):
        pair.train(batches(rng, [16] * 5))
        pair.both(change)
    assert pair.train(batches(rng, [16] * 5)) >= 3


# ------------------------------------------------------------------------------ checkpoints


def grouped_training(decay=0.05, lr=0.01, second=None, order=1):
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(48, FEATURES)).astype(np.float32), rng.integers(0, CLASSES, 48)
    model = nbbn.mlp((FEATURES, 10, CLASSES), dropout=0.2, rng=2)
    data = nbbn.data.Batches(x, y, 16, rng=3)
    groups = optim.decay_groups(model, decay)[::order]
    groups[1].update(second or {})
    return model, data, optim.AdamW(groups, optim.OneCycle(lr, 12))


def test_groups_resume_bit_for_bit(tmp_path):
    model, data, optimizer = grouped_training()
    fit(model, data, optimizer, epochs=4)
    other, batches_, half = grouped_training()
    fit(other, batches_, half, epochs=2, callbacks=[checkpoint.Checkpoints(tmp_path)])
    other, batches_, half = grouped_training()
    fit(other, batches_, half, epochs=4, resume=checkpoint.latest(tmp_path))
    assert bits(other.parameters()) == bits(model.parameters())
    assert state_of(half) == state_of(optimizer)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"decay": 0.1}, "optimizer: group 0.weight_decay is 0.1 here and 0.05 there"),
        ({"second": {"eps": 0.5}}, "optimizer: group 1.eps is 0.5 here and 1e-08 there"),
        ({"lr": 0.5}, "schedule: group 0.lr is 0.5 here and 0.01 there"),
        ({"second": {"lr": 0.5}}, "schedule: type is 'OneCycle, _Constant' here"),
        ({"order": -1}, r"parameters.group 0 is \['1.gamma'.*here and \['0.weight'"),
    ],
)
def test_other_groups_are_refused(options, words, tmp_path):
    model, data, optimizer = grouped_training()
    checkpoint.save(tmp_path / "c", model, optimizer, data)
    saved = checkpoint.load(tmp_path / "c")
    model, data, optimizer = grouped_training(**options)
    with pytest.raises(CheckpointError, match=words):
        checkpoint.restore(saved, model, optimizer, data)
    # Without strict the settings are free, but for classes and the place of each parameter.
    if "type" in words or "parameters" in words:
        with pytest.raises(CheckpointError, match=words):
            checkpoint.restore(saved, model, optimizer, data, strict=False)
    else:
        checkpoint.restore(saved, model, optimizer, data, strict=False)


def test_a_checkpoint_of_before_the_counts_is_resumed(tmp_path):
    def make():
        model, data, _ = grouped_training()
        return model, data, optim.Adam(model.parameters(), 0.01)

    model, data, optimizer = make()
    fit(model, data, optimizer, epochs=2)
    checkpoint.save(tmp_path / "c", model, optimizer, data)
    saved = checkpoint.load(tmp_path / "c")
    assert json.loads(json.dumps(saved.settings["optimizer"])) == {
        "type": "Adam", "weight_decay": 0.0, "betas": [0.9, 0.999], "eps": 1e-8,
    }  # fmt: skip
    del saved.optimizer["counts"]
    other, batches_, again = make()
    checkpoint.restore(saved, other, again, batches_)
    assert state_of(again) == state_of(optimizer)


def test_logs_have_the_rate_of_the_first_group(tmp_path):
    model, data, optimizer = grouped_training()
    optimizer.param_groups[1]["lr"] = 0.5
    log = nbbn.logs.LogFile(tmp_path / "l.jsonl", every=1)
    fit(model, data, optimizer, epochs=1, callbacks=[log])
    rows = [json.loads(line) for line in (tmp_path / "l.jsonl").read_text().splitlines()]
    rates = [row["lr"] for row in rows if row["kind"] == "step"]
    assert rates == [optim.OneCycle(0.01, 12)(step) for step in range(3)]


# ----------------------------------------------------------------------------------- errors


P, Q = Parameter([1.0, 2.0]), Parameter([3.0])
HUGE = np.broadcast_to(np.float32(1), (2**20, 2**20))

REFUSED = [
    ('optim.SGD({"params": [P]})', DTypeError, "list of Parameters.*groups, got dict"),
    ('optim.SGD([{"params": [P]}, Q])', DTypeError, "both"),
    ('optim.SGD([{"lr": 0.1}])', ArgumentError, "group 0: .*'params'.*'lr'"),
    ('optim.SGD([{"params": [P]}, {"params": []}])',
     ArgumentError, "group 1: .*at least one parameter"),
    ('optim.SGD([{"params": [np.ones(2)]}])', DTypeError, "group 0: .*ndarray"),
    ('optim.SGD([{"params": "weight"}])', DTypeError, "str"),
    ('optim.SGD([{"params": np.ones(2)}])', DTypeError, "got float64"),
    ('optim.SGD([{"params": [P, Q]}, {"params": [Q]}])',
     ArgumentError, r"group 1: .*shape \(1,\) is in group 0"),
    ('optim.Adam([{"params": [P], "momentum": 0.9}])',
     ArgumentError, "group 0: .*'momentum'.*params, lr, weight_decay, betas, eps"),
    ('optim.Adam([{"params": [P], "lr": -1}])', ArgumentError, "group 0: lr.*-1"),
    ('optim.Adam([{"params": [P], "lr": lambda step: math.nan}])',
     ArgumentError, "group 0: lr.*nan"),
    ('optim.Adam([{"params": [P], "weight_decay": "0"}])',
     DTypeError, "group 0: weight_decay.*str"),
    ('optim.SGD([{"params": [P], "nesterov": True}])',
     ArgumentError, "group 0: nesterov.*momentum"),
    ("optim.SGD([P], momentum=0.9, nesterov=np.ones(3))",
     DTypeError, "nesterov must be True or False"),
    ('optim.SGD([P], momentum=0.9, nesterov="yes")',
     DTypeError, "nesterov must be True or False.*yes"),
    ('optim.SGD(memoryview(b"ab"))', DTypeError, "memoryview"),
    ("optim.Adam(memoryview(np.ones((2, 2))))", DTypeError, "memoryview"),
    ("optim.AdamW(np.array(1.0))", DTypeError, "ndarray"),
    ("optim.Adam([Parameter(HUGE) for _ in range(32)])", ArgumentError, "would take 128 TiB"),
    ("optim.decay_groups([P], 0.1)", DTypeError, "Module.*list"),
    ("optim.decay_groups(nbbn.Dense(2, 3), -1)", ArgumentError, "weight_decay.*-1"),
]  # fmt: skip


@refused(REFUSED, globals())
def test_groups_that_do_not_fit_are_refused(call, error, words):
    place = P.data
    with pytest.raises(error, match=words):
        call()
    assert P.data is place


def test_memory_that_cannot_be_had(monkeypatch):
    def fail(*arguments):
        raise MemoryError

    monkeypatch.setattr(nbbn.backend, "aligned_zeros", fail)
    with pytest.raises(ArgumentError, match=r"3,145,728 parameters need 0.0 GiB, 4 arrays of fl"):
        optim.Adam([Parameter(np.ones((3, 2**20), np.float32))])


def _assign(name, value):
    def change(optimizer):
        optimizer.param_groups[0][name] = value

    return change


CHANGES = {
    "lr": (lambda o: setattr(o, "lr", -1), ArgumentError, "lr must be at least 0.*-1"),
    "lr nan": (lambda o: setattr(o, "lr", math.nan), ArgumentError, "lr must be finite"),
    "lr text": (lambda o: setattr(o, "lr", "0.1"), DTypeError, "lr must be a number.*str"),
    "lr of a group": (_assign("lr", -1), ArgumentError, "lr must be at least 0.*-1"),
    "a schedule": (_assign("lr", lambda step: -1), ArgumentError, "lr must be at least 0.*-1"),
    "params": (_assign("params", [P]), ArgumentError, "add_param_group"),
    "unknown": (_assign("betas", (0.1, 0.2)), ArgumentError, "'betas'.*lr, weight_decay, mom"),
    "momentum": (_assign("momentum", 0.9), ArgumentError, "momentum cannot become 0.9.*state"),
    "delete": (lambda o: o.param_groups[0].pop("lr"), ArgumentError, "keeps all of its settings"),
    "a group that is none": (lambda o: o.add_param_group([P]), DTypeError, "dict.*list"),
    "a group with a parameter that is here": (
        lambda o: o.add_param_group({"params": [P, Q]}),
        ArgumentError,
        r"\(1,\) is in group 0",
    ),
}


@pytest.mark.parametrize(("change", "error", "words"), CHANGES.values(), ids=CHANGES)
def test_changes_that_do_not_fit_are_refused(change, error, words):
    optimizer = optim.SGD([Q], 0.1, weight_decay=0.2)
    before = dict(optimizer.param_groups[0])
    with pytest.raises(error, match=words):
        change(optimizer)
    assert [dict(group) for group in optimizer.param_groups] == [before]
