"""Optimizers and schedules against PyTorch and closed forms; the flat arrays; saved state."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest

import nbbn
from nbbn import Parameter, Tape, optim
from nbbn.errors import ArgumentError, DTypeError, ShapeError
from tests.helpers.layers import state_of
from tests.helpers.optimizers import Twins, advance, bits, parameters
from tests.helpers.refusals import refusing

NAN = float("nan")

SETTINGS = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.02}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.02}),
    ("SGD", {"lr": 0.1, "momentum": 0.8, "nesterov": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.02}),
    ("Adam", {"lr": 0.01}),
    ("Adam", {"lr": 0.01, "betas": (0.7, 0.95), "eps": 1e-3}),
    ("Adam", {"lr": 0.01, "weight_decay": 0.02}),
    ("AdamW", {"lr": 0.01}),
    ("AdamW", {"lr": 0.01, "weight_decay": 0.3}),
]

every_setting = pytest.mark.parametrize(("name", "options"), SETTINGS, ids=str)


# ------------------------------------------------------------------------------ against torch


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: dtype.__name__)
@every_setting
def test_twenty_steps_match_torch(name, options, dtype, rng):
    twins = Twins(rng, lambda library, items: getattr(library, name)(items, **options), dtype)
    for step in range(20):
        twins.step(step)


def test_a_schedule_sets_the_rate_of_each_step(rng):
    """The same as torch with its scheduler stepped after each step."""
    twins = Twins(rng, lambda library, items: library.SGD(items, 0.1, momentum=0.9))
    twins.optimizer.lr = optim.StepDecay(0.1, 5, factor=0.5)
    scheduler = pytest.importorskip("torch").optim.lr_scheduler.StepLR(twins.peer, 5, 0.5)
    for step in range(20):
        assert twins.optimizer.lr == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12)
        twins.step(step)
        scheduler.step()


# --------------------------------------------------------------------------------- schedules


def test_step_decay():
    schedule = optim.StepDecay(0.8, 3, factor=0.5, warmup=2)
    expected = [0.4, 0.8, 0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.2]
    assert [schedule(step) for step in range(9)] == pytest.approx(expected, rel=1e-15)


def test_cosine():
    schedule = optim.Cosine(0.5, 10, final=0.1, warmup=2)
    assert [schedule(0), schedule(1)] == pytest.approx([0.25, 0.5])
    for step in range(2, 11):
        fraction = (step - 2) / 8
        want = 0.1 + 0.4 * (1 + math.cos(math.pi * fraction)) / 2
        assert schedule(step) == pytest.approx(want, rel=1e-12)
    assert schedule(10) == schedule(11) == schedule(1000) == pytest.approx(0.1)


def cosine(total):
    peer = ("CosineAnnealingLR", (total, 0.01), {})
    return optim.Cosine(0.3, total, final=0.01), total + 1, peer


def one_cycle(total, rise):
    # One fewer: torch's scheduler refuses to be stepped past the end.
    peer = ("OneCycleLR", (0.3, total), {"pct_start": rise})
    return optim.OneCycle(0.3, total, rise=rise), total - 1, peer


SCHEDULES = [
    *(cosine(total) for total in (1, 7, 100)),
    *(one_cycle(*case) for case in ((2, 0.3), (10, 0.3), (97, 0.25), (500, 0.4))),
]


def name(value):
    return type(value).__name__ if callable(value) else str(value)


@pytest.mark.parametrize(("schedule", "count", "peer"), SCHEDULES, ids=name)
def test_schedules_match_torch(schedule, count, peer):
    torch = pytest.importorskip("torch")
    name, arguments, options = peer
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.3)
    scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, *arguments, **options)
    for step in range(count):
        assert schedule(step) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        scheduler.step()
    if name == "OneCycleLR":
        assert schedule(count) == pytest.approx(0.3 / 250_000, rel=1e-9)


@pytest.mark.parametrize("name", optim.SCHEDULES)
def test_a_schedule_by_name_is_for_any_number_of_steps(name):
    assert all(optim.SGD([Parameter(np.ones(1))], optim.SCHEDULES[name](0.3, n)) for n in (1, 2))


@pytest.mark.parametrize("rise", [0.0, 0.01, 0.1, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("total", [1, 2, 10, 100])
def test_one_cycle_stays_in_its_bounds_for_every_length(total, rise):
    schedule = optim.OneCycle(1.0, total, rise=rise)
    rates = [schedule(step) for step in range(total + 3)]
    assert all(1 / 250_000 * (1 - 1e-9) <= rate <= 1 for rate in rates)
    assert rates[total - 1] == rates[total] == rates[total + 2]
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_schedules_and_optimizers_by_name():
    for make in optim.SCHEDULES.values():
        assert 0 < optim.SGD([Parameter([1.0])], make(0.1, 30)).lr <= 0.1
    for make in optim.OPTIMIZERS.values():
        p = Parameter(np.ones(3))
        advance(make([p], lr=0.1), 0)
        assert not np.array_equal(p.data, np.ones(3))


# ------------------------------------------------------------------------------- flat arrays


def test_parameters_keep_their_values_and_share_one_array(rng):
    own = parameters(rng)
    before = bits(own)
    optimizer = optim.Adam(own)
    assert bits(own) == before
    (arena,) = optimizer.arenas
    assert arena.data.size == sum(p.size for p in own)
    assert all(np.shares_memory(p.data, arena.data) for p in own)


@every_setting
def test_data_that_the_user_replaced_is_adopted(name, options, rng):
    own, other = (parameters(np.random.default_rng(1)) for _ in range(2))
    first, second = (getattr(optim, name)(items, **options) for items in (own, other))
    for step in range(4):
        values = rng.normal(size=own[0].shape)
        own[0].data = values.copy()
        other[0].data[...] = values
        advance(first, step)
        advance(second, step)
        assert bits(own) == bits(other)
    assert np.shares_memory(own[0].data, first.arenas[0].data)


@pytest.mark.parametrize("shape", [(1,), (3,), (4, 3, 1), (3, 4), (1, 3), ()])
@pytest.mark.parametrize("name", ["data", "grad"])
def test_replaced_data_or_a_gradient_of_another_shape_is_refused(name, shape, rng):
    (p,) = own = parameters(rng, [(4, 3)])
    optimizer = optim.SGD(own)
    p.grad = np.ones((4, 3))
    setattr(p, name, np.ones(shape))
    before = bits(own)
    with pytest.raises(ShapeError, match=r"\(4, 3\)"):
        optimizer.step()
    assert bits(own) == before


@every_setting
def test_a_parameter_without_a_gradient_is_left_alone(name, options, rng):
    """Its state too: it goes on later as if the steps in between had not been."""
    own = parameters(rng)
    optimizer = getattr(optim, name)(own, **options)
    advance(optimizer, 0)
    before = own[1].data.tobytes()
    kept = [array.copy() for array in optimizer.arenas[0].states]
    for step in range(3):
        advance(optimizer, step, having=(0, 2, 3))
    assert own[1].data.tobytes() == before
    part = slice(own[0].size, own[0].size + own[1].size)
    for array, old in zip(optimizer.arenas[0].states, kept, strict=True):
        np.testing.assert_array_equal(array[part], old[part])
    advance(optimizer, 3)
    assert own[1].data.tobytes() != before


def test_zero_grad_forgets_every_gradient(rng):
    own = parameters(rng)
    optimizer = optim.SGD(own, momentum=0.9)
    advance(optimizer, 0)
    optimizer.zero_grad()
    assert all(p.grad is None for p in own)
    before = bits(own)
    optimizer.step()
    assert bits(own) == before


def test_gradients_do_not_leak_into_the_next_step(rng):
    """The flat gradient array is used again: what the last step left there must not show."""
    own = parameters(rng, [(3,), (3,)])
    optimizer = optim.SGD(own, 1.0)
    for _ in range(3):
        optimizer.zero_grad()
        before = [p.data.copy() for p in own]
        with Tape() as tape:
            tape.backward((own[0] * 2 + own[1] * 3).sum())
        optimizer.step()
        for p, old, slope in zip(own, before, (2, 3), strict=True):
            np.testing.assert_allclose(p.data, old - slope, rtol=1e-15)


def test_gradients_add_up_in_the_flat_array(rng):
    (p,) = own = parameters(rng, [(3,)])
    optim.SGD(own)
    for times in (1, 2, 3):
        with Tape() as tape:
            tape.backward((p * 2 + p).sum())
        np.testing.assert_array_equal(p.grad, np.full(3, 3.0 * times))


def test_parameters_of_both_types_step_side_by_side(rng):
    shapes = [(4, 3), (3,)]
    own = [*parameters(rng, shapes, np.float32), *parameters(rng, shapes)]
    mixed = [own[0], own[2], own[1], own[3]]
    alone = [[Parameter(p.data.copy()) for p in group] for group in (own[:2], own[2:])]
    optimizers = [optim.Adam(group) for group in (mixed, *alone)]
    for step in range(5):
        for optimizer in optimizers:
            advance(optimizer, step)
    assert bits(own) == bits([*alone[0], *alone[1]])
    assert [p.dtype for p in mixed] == [np.float32, np.float64, np.float32, np.float64]


def test_a_parameter_given_twice_steps_once(rng):
    (p,) = parameters(rng, [(3,)])
    before = p.data.copy()
    optimizer = optim.SGD([p, p], 0.5)
    p.grad = np.ones(3)
    optimizer.step()
    np.testing.assert_allclose(p.data, before - 0.5, rtol=1e-15)


def test_a_second_optimizer_does_not_break_the_first(rng):
    """Each adopts the parameters: whichever steps, steps along the gradient there is."""
    (p,) = own = parameters(rng, [(3,)])
    first, second = optim.SGD(own, 0.5), optim.SGD(own, 0.25)
    for optimizer, rate in ((first, 0.5), (second, 0.25), (first, 0.5)):
        optimizer.zero_grad()
        before = p.data.copy()
        with Tape() as tape:
            tape.backward((p * 2).sum())
        optimizer.step()
        np.testing.assert_allclose(p.data, before - 2 * rate, rtol=1e-15)


def test_an_empty_parameter_is_harmless(rng):
    own = [Parameter(np.ones((0, 3))), Parameter(np.ones(2))]
    optimizer = optim.Adam(own)
    advance(optimizer, 0)
    assert own[0].shape == (0, 3)


def test_large_parameters_step_the_same_in_parallel(rng):
    """Above the size at which kernels run in parallel, against the same values in small pieces."""
    values, slopes = rng.normal(size=(2, 200_000)).astype(np.float32)
    whole = Parameter(values.copy())
    pieces = [Parameter(part.copy()) for part in np.split(values, 20)]
    optimizers = [optim.Adam([whole]), *(optim.Adam([piece]) for piece in pieces)]
    for _ in range(3):
        whole.grad = slopes.copy()
        for piece, slope in zip(pieces, np.split(slopes, 20), strict=True):
            piece.grad = slope.copy()
        for optimizer in optimizers:
            optimizer.step()
    assert whole.data.tobytes() == np.concatenate([piece.data for piece in pieces]).tobytes()


# ------------------------------------------------------------------------------------- state


@every_setting
def test_saved_state_continues_bit_for_bit(name, options, rng):
    """Of parameters, too, that had their first gradients one after another."""
    options = {**options, "lr": optim.OneCycle(0.1, 20)}
    own = [*parameters(rng), *parameters(rng, dtype=np.float32)]
    optimizer = getattr(optim, name)(own, **options)
    for step in range(5):
        advance(optimizer, step, having=range(step + 1))
    copies = [Parameter(p.data.copy()) for p in own]
    resumed = getattr(optim, name)(copies, **options)
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.step_count == 5
    assert resumed.lr == optimizer.lr
    if name != "SGD":
        assert resumed.state_dict()["counts"].tolist() == [5, 4, 3, 2, 1, 0, 0, 0]
    for step in range(5, 10):
        advance(optimizer, step)
        advance(resumed, step)
        assert bits(own) == bits(copies)


def test_state_dict_copies(rng):
    optimizer = optim.Adam(parameters(rng))
    advance(optimizer, 0)
    found, before = optimizer.state_dict(), state_of(optimizer)
    advance(optimizer, 1)
    for name, array in found.items():
        assert (array.dtype, array.tobytes()) == before[name]
    assert found["step_count"] == 1


def test_a_parameter_that_is_two_inputs_gets_both_gradients(rng):
    both = Parameter(np.ones(3, np.float32))
    optimizer = optim.SGD([both], lr=1.0)
    x, dy = rng.normal(size=(2, 8, 3)).astype(np.float32)
    with nbbn.Tape() as tape:
        y, stats = nbbn.ops.batch_norm_train(x, both, both)
    tape.backward(y, dy)
    _, dgamma, dbeta = nbbn.functional.batch_norm_backward(dy, x, stats, both.data)
    np.testing.assert_array_equal(both.grad, dgamma + dbeta)
    optimizer.step()
    np.testing.assert_array_equal(both.data, 1 - (dgamma + dbeta))


def test_gradients_of_two_passes_add_up_in_the_flat_array(rng):
    """Operations write there what is the first gradient, and only that."""
    data, found = rng.normal(size=(2, 8, 3)).astype(np.float32), []
    for held in (False, True):
        model = nbbn.Sequential(nbbn.LayerNorm(3), nbbn.mlp((3, 4, 2), rng=0))
        optimizer = optim.SGD(model.parameters()) if held else None
        for x in data:
            with nbbn.Tape() as tape:
                loss = (model(x) ** 2).sum()
            tape.backward(loss)
        assert optimizer is None or optimizer.arenas[0].buffers[0] is model.parameters()[0].grad
        found.append([p.grad.tobytes() for p in model.parameters()])
    assert found[0] == found[1]


ANOTHER = "another optimizer or model"

NO_STATES = [
    (lambda rng: optim.SGD(parameters(rng)).state_dict(), ArgumentError, ANOTHER),
    (lambda rng: optim.Adam(parameters(rng, [(3,)])).state_dict(), ArgumentError, ANOTHER),
    (lambda rng: {}, ArgumentError, ANOTHER),
    ({"extra": np.ones(1)}, ArgumentError, ANOTHER),
    ({"step_count": -5}, ArgumentError, "step_count must be a whole number.*-5"),
    ({"step_count": 2.5}, ArgumentError, "step_count must be a whole number.*2.5"),
    ({"step_count": NAN}, ArgumentError, "step_count must be a whole number.*nan"),
    ({"step_count": "7"}, DTypeError, "step_count must hold numbers.*<U"),
    ({"arena0.state1": 1j}, DTypeError, "arena0.state1 must hold numbers.*complex"),
    ({"arena0.state1": None}, DTypeError, "arena0.state1 must hold numbers.*object"),
    ({"counts": [1, 2, 3]}, ArgumentError, ANOTHER),
    ({"counts": [1, 2, -3, 1]}, ArgumentError, "counts must be a whole number.*-3"),
    ({"counts": [1, 2, 0.5, 1]}, ArgumentError, "counts must be a whole number.*0.5"),
    ({"counts": ["1"] * 4}, DTypeError, "counts must hold numbers"),
]


@pytest.mark.parametrize(("change", "error", "words"), NO_STATES)
def test_a_state_that_does_not_fit_changes_nothing(change, error, words, rng):
    optimizer = optim.Adam(parameters(rng))
    advance(optimizer, 0)
    found, before = optimizer.state_dict(), state_of(optimizer)
    if callable(change):
        wrong = change(rng)
    else:
        ((name, value),) = change.items()
        filled = name in found and not isinstance(value, list)
        wrong = {**found, name: np.full(found[name].shape, value) if filled else np.array(value)}
    with pytest.raises(error, match=words):
        optimizer.load_state_dict(wrong)
    assert state_of(optimizer) == before


def test_a_state_may_be_lists(rng):
    optimizer, again = (optim.Adam(parameters(rng)) for _ in range(2))
    advance(optimizer, 0)
    lists = {name: array.tolist() for name, array in optimizer.state_dict().items()}
    again.load_state_dict(lists)
    assert state_of(again) == state_of(optimizer)


def test_a_state_without_counts_gives_everybody_the_step_count(rng):
    optimizer, again = (optim.Adam(parameters(rng)) for _ in range(2))
    for step in range(3):
        advance(optimizer, step)
    found = optimizer.state_dict()
    del found["counts"]
    again.load_state_dict(found)
    assert state_of(again) == state_of(optimizer)


# ------------------------------------------------------------------------------------ errors


P = Parameter([1.0, 2.0])

REFUSED = [
    ("optim.SGD([])", ArgumentError, "at least one parameter"),
    ("optim.SGD([np.ones(2)])", DTypeError, "Parameters.*ndarray"),
    ("optim.SGD([nbbn.Tensor([1.0])])", DTypeError, "Parameters.*Tensor"),
    ("optim.SGD(P)", DTypeError, "Parameter"),
    ("optim.SGD(nbbn.Dense(2, 3))", DTypeError, "Dense"),
    ("optim.SGD(nbbn.mlp((2, 3)))", DTypeError, "Dense|Sequential"),
    ("optim.SGD([P], NAN)", ArgumentError, "lr.*nan"),
    ('optim.Adam([P], float("inf"))', ArgumentError, "lr.*inf"),
    ("optim.AdamW([P], -0.1)", ArgumentError, "lr.*at least 0.*-0.1"),
    ('optim.SGD([P], "0.1")', DTypeError, "lr.*str"),
    ("optim.SGD([P], None)", DTypeError, "lr.*NoneType"),
    ("optim.SGD([P], np.ones(2))", DTypeError, "lr.*ndarray"),
    ("optim.SGD([P], 1j)", DTypeError, "lr.*complex"),
    ("optim.SGD([P], True)", DTypeError, "lr.*bool"),
    ("optim.SGD([P], lambda step: NAN)", ArgumentError, "lr.*nan"),
    ("optim.SGD([P], nesterov=True)", ArgumentError, "nesterov.*momentum"),
    ("optim.Adam([P], betas=(0.9, 1.0))", ArgumentError, r"betas.*\[0, 1\).*1.0"),
    ("optim.Adam([P], betas=(-0.1, 0.9))", ArgumentError, "betas.*-0.1"),
    ("optim.Adam([P], betas=(0.9,))", ArgumentError, "betas.*two"),
    ("optim.Adam([P], betas=0.9)", DTypeError, "betas.*float"),
    ("optim.Cosine(0.1, 5, warmup=5)", ArgumentError, "warmup.*5.*total"),
]  # fmt: skip


test_arguments_that_do_not_fit_are_refused = refusing(REFUSED, globals())


@pytest.mark.parametrize(
    ("late", "error"), [(NAN, ArgumentError), (-1.0, ArgumentError), (None, DTypeError)]
)
def test_a_schedule_that_fails_later_leaves_everything_as_it_was(rng, late, error):
    own = parameters(rng)
    optimizer = optim.Adam(own, lambda step: 0.1 if step < 2 else late)
    advance(optimizer, 0)
    advance(optimizer, 1)
    before = bits(own), state_of(optimizer)
    with pytest.raises(error, match=f"lr, which the schedule gave.*{late}"):
        advance(optimizer, 2)
    assert (bits(own), state_of(optimizer)) == before


@pytest.mark.parametrize("trained", [0, 3])
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))]
)
def test_a_copy_of_model_and_optimizer_trains_as_the_original_would(duplicate, trained, rng):
    x, y = rng.normal(size=(12, 5)).astype(np.float32), rng.integers(0, 3, 12)
    model = nbbn.mlp((5, 4, 3), rng=0)
    optimizer = optim.Adam(model.parameters(), optim.Cosine(0.1, 10))

    def train(model, optimizer):
        step = nbbn.train.record_step(model, nbbn.losses.cross_entropy, optimizer)
        return [step(x, y) for _ in range(3)]

    for _ in range(trained):
        train(model, optimizer)
    other, others = duplicate((model, optimizer))
    assert others.gradient_norm() == optimizer.gradient_norm()
    before = bits(model.parameters())
    losses = train(other, others)
    assert bits(model.parameters()) == before != bits(other.parameters())
    assert train(model, optimizer) == losses
    assert bits(model.parameters()) == bits(other.parameters())


def pair_with_gradients(rng, dtype, scale):
    own = [Parameter(rng.normal(size=shape).astype(dtype)) for shape in ((3, 4), (4,), (2,))]
    for p in own[:2]:
        p.grad = (scale * rng.normal(size=p.shape)).astype(dtype)
    return own


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("scale", "max_norm"), [(10, 0.5), (1, 100.0), (1e25, 2.0), (0, 1.0)])
def test_clip_grad_norm_matches_torch(dtype, scale, max_norm, rng):
    torch = pytest.importorskip("torch")
    own = pair_with_gradients(rng, dtype, scale)
    theirs = [torch.nn.Parameter(torch.tensor(p.data)) for p in own]
    for p, q in zip(own, theirs, strict=True):
        q.grad = None if p.grad is None else torch.tensor(p.grad, dtype=torch.float64).to(q.dtype)
    before = [None if p.grad is None else p.grad.copy() for p in own]
    norm = optim.clip_grad_norm(own, max_norm)
    true = math.sqrt(sum(float((g.astype(np.longdouble) ** 2).sum()) for g in before[:2]))
    assert norm == pytest.approx(true, rel=1e-12)
    if scale < 1e20 or dtype == np.float64:  # PyTorch's own squares overflow
        torch.nn.utils.clip_grad_norm_(theirs, max_norm)
        for p, q in zip(own[:2], theirs[:2], strict=True):
            # PyTorch divides by the norm plus 1e-6.
            np.testing.assert_allclose(p.grad, q.grad.numpy(), rtol=4e-6)
    if norm <= max_norm:
        assert all((p.grad == g).all() for p, g in zip(own[:2], before[:2], strict=True))
    else:
        left = math.sqrt(sum(float((p.grad.astype(float) ** 2).sum()) for p in own[:2]))
        assert left == pytest.approx(max_norm, rel=1e-6)
    assert own[2].grad is None


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_an_optimizer_clips_as_the_function_does(name, rng):
    given = [rng.normal(size=s).astype(np.float32) for s in ((3, 4), (4,))]
    grads = [rng.normal(size=a.shape).astype(np.float32) for a in given]
    results = []
    for inside in (True, False):
        own = [Parameter(a.copy()) for a in given]
        optimizer = optim.OPTIMIZERS[name](own, 0.1, weight_decay=0.01)
        assert optimizer.max_norm is None
        if inside:
            optimizer.max_norm = 0.3
        for p, g in zip(own, grads, strict=True):
            p.grad = g.copy()
        if not inside:
            assert optim.clip_grad_norm(own, 0.3) > 0.3
        optimizer.step()
        assert optimizer.gradient_norm() == pytest.approx(0.3, rel=1e-6)
        results.append([p.data.copy() for p in own])
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_clipping_refuses():
    own = [Parameter(np.ones(2, np.float32))]
    for value, error in ((0, ArgumentError), (-1.0, ArgumentError), ("1", DTypeError)):
        with pytest.raises(error, match="max_norm"):
            optim.clip_grad_norm(own, value)
        optimizer = optim.SGD(own)
        with pytest.raises(error, match="max_norm"):
            optimizer.max_norm = value
        assert optimizer.max_norm is None
    with pytest.raises(DTypeError, match="Parameters"):
        optim.clip_grad_norm([1.0], 1.0)
    assert optim.clip_grad_norm(own, 1.0) == 0.0
