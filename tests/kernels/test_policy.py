"""Batches that have no statistics: one value per channel, and NaN or Inf."""

from __future__ import annotations

import numpy as np
import pytest

import nbbn
import nbbn.functional as F  # noqa: N812
from nbbn import Convention, losses, optim, train
from nbbn.errors import ArgumentError, DTypeError, ShapeError
from tests.helpers import reference

SINGLE = [((1, 3), 1), ((1, 3, 1, 1), 1), ((1, 1, 3), -1), ((3, 1), 0)]


def buffers(dtype=np.float32):
    return np.array([1.0, -2.0, 3.0], dtype), np.array([4.0, 0.25, 1.0], dtype)


def single(rng, shape):
    return rng.normal(size=shape).astype(np.float32)


# -------------------------------------------------------------------- one value per channel


@pytest.mark.parametrize(("shape", "axis"), SINGLE)
def test_error_is_the_default(rng, shape, axis):
    mean, var = buffers()
    for options in ({}, {"on_single": "error"}):
        with pytest.raises(ShapeError, match="more than 1 value per channel"):
            F.batch_norm(single(rng, shape), mean, var, training=True, axis=axis, **options)
    np.testing.assert_array_equal((mean, var), buffers())


@pytest.mark.parametrize(("shape", "axis"), SINGLE)
def test_eval_normalizes_with_the_running_statistics(rng, shape, axis):
    x, gamma, beta = single(rng, shape), np.array([1.0, 2.0, -1.0]), np.array([0.0, 5.0, 1.0])
    mean, var = buffers()
    y = F.batch_norm(x, mean, var, gamma, beta, training=True, axis=axis, on_single="eval")
    expected = reference.batch_norm_infer(x, mean, var, gamma, beta, axis=axis)
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    np.testing.assert_array_equal((mean, var), buffers())


@pytest.mark.parametrize(("shape", "axis"), SINGLE)
@pytest.mark.parametrize("tracked", [True, False])
def test_skip_returns_a_copy_of_x(rng, shape, axis, tracked):
    x = single(rng, shape)
    mean, var = buffers()
    running = (mean, var) if tracked else (None, None)
    options = {"training": True, "axis": axis, "on_single": "skip"}
    y = F.batch_norm(x, *running, np.ones(3), **options)
    np.testing.assert_array_equal(y, x)
    assert not np.shares_memory(y, x)
    out = np.empty_like(x)
    assert F.batch_norm(x, *running, out=out, **options) is out
    np.testing.assert_array_equal(out, x)
    assert F.batch_norm(x, *running, out=x, **options) is x
    np.testing.assert_array_equal(x, out)
    np.testing.assert_array_equal((mean, var), buffers())


@pytest.mark.parametrize("on_single", ["eval", "skip"])
def test_other_batches_are_normalized_as_ever(rng, on_single):
    x = rng.normal(size=(5, 3)).astype(np.float32)
    found, expected = buffers(), buffers()
    y = F.batch_norm(x, *found, training=True, on_single=on_single)
    np.testing.assert_array_equal(y, F.batch_norm(x, *expected, training=True))
    np.testing.assert_array_equal(found, expected)


def test_evaluation_needs_no_policy(rng):
    x = single(rng, (1, 3))
    expected = F.batch_norm_infer(x, *buffers())
    for on_single in ("error", "eval", "skip"):
        y = F.batch_norm(x, *buffers(), on_single=on_single)
        np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"on_single": "ignore"}, ArgumentError, "on_single.*'error', 'eval', 'skip'.*'ignore'"),
        ({"on_single": "eval"}, ArgumentError, "on_single.*running_mean"),
        ({"on_single": "skip", "gamma": np.ones(2)}, ShapeError, r"gamma.*\(3,\).*\(2,\)"),
        ({"on_single": "skip", "out": np.empty((1, 2))}, ShapeError, "out.*shape"),
        ({"on_single": "skip", "out": np.empty((1, 3), "f2")}, DTypeError, "out.*float16"),
        ({"skipped": 0}, DTypeError, "skipped.*int64.*int"),
        ({"skipped": np.zeros(2, int)}, DTypeError, r"skipped.*int64.*\(2,\)"),
        ({"skipped": np.zeros((), np.int32)}, DTypeError, "skipped.*int64.*int32"),
    ],
)
def test_bad_policies_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        F.batch_norm(np.ones((1, 3)), training=True, **options)


def test_a_read_only_counter_is_refused():
    skipped = np.zeros((), np.int64)
    skipped.flags.writeable = False
    with pytest.raises(ArgumentError, match="skipped is read-only"):
        F.batch_norm(np.ones((2, 3)), *buffers(), training=True, skipped=skipped)


# ---------------------------------------------------------------------- running statistics


def test_running_statistics_that_share_memory_are_refused():
    stats = F.batch_norm_train(np.arange(12.0).reshape(4, 3))[1]
    both = np.ones(5)
    for mean, var in [(both[:3],) * 2, (both[:3], both[1:4]), (both[:3], both[2::-1])]:
        with pytest.raises(ArgumentError, match="share memory"):
            F.update_running_stats(mean, var, stats)
    np.testing.assert_array_equal(both, np.ones(5))
    columns = np.ones((3, 2))
    F.update_running_stats(columns[:, 0], columns[:, 1], stats)
    apart = np.ones((2, 3))
    F.update_running_stats(*apart, stats)
    np.testing.assert_array_equal(columns.T, apart)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"mean": np.ones(2)}, ShapeError, r"stats.var.*\(2,\).*\(3,\)"),
        ({"var": np.ones(1)}, ShapeError, r"stats.var.*\(3,\).*\(1,\)"),
        ({"mean": np.ones((3, 1))}, ShapeError, r"stats.mean.*\(3,\).*\(3, 1\)"),
        ({"mean": np.ones(2), "var": np.ones(2)}, ShapeError, r"running_mean.*\(2,\)"),
        ({"mean": [1.0, 2.0, 3.0]}, DTypeError, "stats.mean.*list"),
        ({"var": np.ones(3, complex)}, DTypeError, "stats.var.*complex"),
        ({"count": None}, DTypeError, "stats.count.*NoneType"),
        ({"count": -4}, ArgumentError, "stats.count.*-4"),
    ],
)
def test_statistics_that_do_not_fit_together_are_refused(change, error, match):
    stats = F.batch_norm_train(np.arange(12.0).reshape(4, 3))[1]._replace(**change)
    mean, var = buffers()
    with pytest.raises(error, match=match):
        F.update_running_stats(mean, var, stats)
    np.testing.assert_array_equal((mean, var), buffers())


@pytest.mark.parametrize(
    "call",
    [
        lambda mean, var, stats, out: F.update_running_stats(mean, var, stats),
        lambda mean, var, stats, out: F.batch_norm(out, mean, var, training=True, out=out),
    ],
)
def test_a_negative_running_variance_is_refused(call):
    x = np.arange(12.0).reshape(4, 3)
    mean, var = np.zeros(3), np.array([1.0, -0.5, 2.0])
    out = np.full_like(x, 7)
    stats = F.batch_norm_train(x)[1]
    with pytest.raises(ArgumentError, match=r"running_var must not be negative.*-0\.5"):
        call(mean, var, stats, out)
    np.testing.assert_array_equal(mean, np.zeros(3))
    np.testing.assert_array_equal(out, 7)


# ------------------------------------------------------------------------- non-finite guard


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(6, 3), (2, 3, 5)])
@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", ">f4"])
def test_a_bad_batch_is_counted_and_kept_out(rng, bad, shape, dtype):
    x = rng.normal(size=shape).astype(np.float32)
    poisoned = x.copy()
    poisoned[(1,) * len(shape)] = bad
    mean, var = buffers(dtype)
    skipped = np.zeros((), np.int64)
    options = {"training": True, "skipped": skipped}
    y = F.batch_norm(poisoned, mean, var, **options)
    assert np.isnan(y[:, 1]).any()
    assert skipped == 1
    np.testing.assert_array_equal((mean, var), buffers(dtype))
    F.batch_norm(x, mean, var, **options)
    assert skipped == 1
    expected = buffers(dtype)
    F.batch_norm(x, *expected, training=True)
    np.testing.assert_array_equal((mean, var), expected)


@pytest.mark.parametrize(
    ("mean_dtype", "dtype", "values"),
    [
        (np.float32, np.float32, (1e30, -1e30)),
        (np.float16, np.float16, (3e4, -3e4)),
        (np.float64, np.float64, (1e200, -1e200)),
        (np.float64, np.float32, (1e30, -1e30)),
        (np.float64, np.float64, (1e154, -1e154)),  # the unbiased variance alone
        (np.float32, np.float32, (-1e39, -1e39)),
    ],
)
def test_statistics_beyond_the_range_are_kept_out(mean_dtype, dtype, values):
    """Finite data can have statistics that the running ones cannot hold."""
    x = np.stack([values, (1.0, 2.0)], axis=1)
    mean, var = np.zeros(2, mean_dtype), np.ones(2, dtype)
    skipped = np.zeros(1, np.int64)
    F.update_running_stats(mean, var, F.batch_norm_train(x)[1], skipped=skipped)
    assert skipped == 1
    np.testing.assert_array_equal(var, np.ones(2))


def test_an_empty_batch_is_not_a_bad_one():
    skipped = np.zeros((), np.int64)
    F.batch_norm(np.zeros((0, 3)), *buffers(), training=True, skipped=skipped)
    assert skipped == 0


# --------------------------------------------------------------------------------- the layer


def test_layer_options_are_checked():
    with pytest.raises(ArgumentError, match=r"on_single.*'drop'"):
        nbbn.BatchNorm(3, convention=Convention(on_single="drop"))
    with pytest.raises(ArgumentError, match=r"on_single.*track_running_stats"):
        nbbn.BatchNorm(3, convention=Convention(on_single="eval"), track_running_stats=False)
    with pytest.raises(ArgumentError, match=r"skip_nonfinite.*track_running_stats"):
        nbbn.BatchNorm(3, skip_nonfinite=True, track_running_stats=False)


def gradients(layer, x, residual=None):
    tensor = nbbn.Tensor(x, requires_grad=True)
    with nbbn.Tape() as tape:
        y = layer(tensor) if residual is None else layer(tensor, residual)
        loss = (y * y).sum()
    tape.backward(loss)
    return y.data, tensor.grad


def test_layer_eval_on_a_single_value(rng):
    layer = nbbn.BatchNorm(3, convention=Convention(on_single="eval"), dtype=np.float64)
    layer(rng.normal(size=(8, 3)))
    before = layer.state_dict()
    x = rng.normal(size=(1, 3))
    y, dx = gradients(layer, x)
    gamma_grad = layer.gamma.grad.copy()
    layer.zero_grad()
    layer.eval()
    expected, expected_dx = gradients(layer, x)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(dx, expected_dx)
    np.testing.assert_array_equal(gamma_grad, layer.gamma.grad)
    for name, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_layer_policy_comes_before_the_convention():
    x = np.ones((1, 3), np.float32)
    np.testing.assert_array_equal(nbbn.BatchNorm(3, convention="keras")(x).data, np.zeros((1, 3)))
    with pytest.raises(ShapeError, match="more than 1 value"):
        nbbn.BatchNorm(3, convention=Convention.of("keras", on_single="error"))(x)
    layer = nbbn.BatchNorm(3, convention=Convention.of("keras", on_single="skip"))
    np.testing.assert_array_equal(layer(x).data, x)


@pytest.mark.parametrize("tracked", [True, False])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_layer_skip_on_a_single_value(rng, activation, tracked):
    options = {"activation": activation, "track_running_stats": tracked, "dtype": np.float64}
    layer = nbbn.BatchNorm(3, convention=Convention(on_single="skip"), **options)
    layer.beta.data[...] = 5
    x, residual = rng.normal(size=(2, 1, 3, 1))
    before = layer.state_dict()
    for addend in (None, residual):
        total = x if addend is None else x + addend
        passes = total > 0 if activation else np.ones_like(total, bool)
        y, dx = gradients(layer, x, addend)
        np.testing.assert_array_equal(y, np.where(passes, total, 0))
        np.testing.assert_allclose(dx, np.where(passes, 2 * total, 0))
    assert layer.gamma.grad is None
    for name, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("x", [np.ones(3), np.ones((1, 3), int), np.ones((1, 3, 1, 1, 1, 1))])
def test_layer_skip_checks_its_input(x):
    with pytest.raises((ShapeError, DTypeError)):
        nbbn.BatchNorm(3, convention=Convention(on_single="skip", axis=1 if x.ndim > 1 else 0))(x)
    with pytest.raises(ShapeError, match="residual"):
        nbbn.BatchNorm(3, convention=Convention(on_single="skip"))(np.ones((1, 3)), np.ones((4, 3)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"convention": Convention(momentum=None)},
        {"convention": Convention(zero_debias=True)},
    ],
    ids=str,
)
def test_layer_guard_equals_leaving_the_batch_out(rng, options):
    guarded = nbbn.BatchNorm(3, skip_nonfinite=True, **options)
    plain = nbbn.BatchNorm(3, **options)
    for step in range(6):
        x = rng.normal(step, 1 + step, size=(8, 3)).astype(np.float32)
        if step in (0, 3):
            x[step, 1] = np.nan
        else:
            plain(x)
        guarded(x)
    assert guarded.num_batches_skipped == 2
    assert guarded.num_batches_tracked == 6
    np.testing.assert_array_equal(guarded.running_mean, plain.running_mean)
    np.testing.assert_array_equal(guarded.running_var, plain.running_var)


def test_layer_guard_and_the_state():
    guarded, plain = nbbn.BatchNorm(2, skip_nonfinite=True), nbbn.BatchNorm(2)
    assert plain.num_batches_skipped is None
    guarded(np.full((4, 2), np.nan, np.float32))
    twin = nbbn.BatchNorm(2, skip_nonfinite=True)
    twin.load_state_dict(guarded.state_dict())
    assert twin.num_batches_skipped == 1
    # Where the batches are counted again from 0, the next is the first.
    twin.num_batches_tracked[...], twin.momentum = 0, None
    twin(np.arange(8, dtype=np.float32).reshape(4, 2))
    np.testing.assert_array_equal(twin.running_mean, [3, 4])
    plain.load_state_dict(guarded.state_dict())
    twin.load_state_dict(plain.state_dict())
    assert "num_batches_skipped" not in plain.state_dict()


# ----------------------------------------------------------------------------- recorded steps


def small_model(**options):
    return nbbn.Sequential(
        nbbn.Dense(4, 3, bias=False, rng=1, dtype=np.float64),
        nbbn.BatchNorm(3, dtype=np.float64, **options),
        nbbn.Dense(3, 2, rng=2, dtype=np.float64),
    )


def eager(model, optimizer, x, y):
    with nbbn.Tape() as tape:
        loss = losses.cross_entropy(model(x), y)
    tape.backward(loss)
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("on_single", ["eval", "skip"])
@pytest.mark.parametrize("optimizer", [optim.SGD, optim.Adam])
def test_recorded_steps_follow_the_policy(rng, on_single, optimizer):
    """Batches of 6 and of 1 in turn, some poisoned after the step was recorded."""
    options = {
        "convention": Convention(on_single=on_single, momentum=None),
        "skip_nonfinite": True,
    }
    models = [small_model(**options) for _ in range(2)]
    optimizers = [optimizer(model.parameters(), 0.1) for model in models]
    step = train.record_step(models[0], losses.cross_entropy, optimizers[0])
    for number in range(12):
        count = 1 if number % 2 else 6
        x, y = rng.normal(size=(count, 4)), rng.integers(0, 2, count)
        step(x, y)
        eager(models[1], optimizers[1], x, y)
    assert step.refusal is None
    for found, expected in zip(*(m.state_dict().items() for m in models), strict=True):
        np.testing.assert_array_equal(found[1], expected[1], err_msg=found[0])
    assert models[0].state_dict()["1.num_batches_tracked"] == 6
    x = rng.normal(size=(6, 4))
    x[2] = np.inf
    before = models[0].state_dict()
    with np.errstate(invalid="ignore"):
        step(x, np.zeros(6, int))
    after = models[0].state_dict()
    assert after["1.num_batches_skipped"] == 1
    np.testing.assert_array_equal(after["1.running_mean"], before["1.running_mean"])
    np.testing.assert_array_equal(after["1.running_var"], before["1.running_var"])


# ------------------------------------------------------------------------ what fit checks first


class Planes(nbbn.Module):
    """Turns a row of 12 into 3 channels of 4, so that one row has 4 values per channel."""

    def __init__(self):
        self.norm = nbbn.BatchNorm(3)
        self.out = nbbn.Dense(12, 2, rng=0)

    def forward(self, x):
        return self.out(self.norm(x.reshape(-1, 3, 4)).reshape(-1, 12))


def fitted(model, count, size, **options):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(count, 12)), rng.integers(0, 2, count)
    batches = nbbn.data.Batches(x, y, size, rng=0, **options)
    return train.fit(model, batches, optim.SGD(model.parameters(), 0.1), epochs=1)


def normed(**options):
    return nbbn.Sequential(
        nbbn.Flatten(), nbbn.Sequential(nbbn.Dense(12, 3, rng=0), nbbn.BatchNorm(3, **options)),
        nbbn.Dense(3, 2, rng=1),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("count", "size", "options", "reason"),
    [
        (9, 1, {}, "every batch of 9 by 1 is one: use larger batches"),
        (9, 1, {"drop_last": True}, "every batch of 9 by 1 is one: use larger batches"),
        (1, 9, {}, "every batch of 1 by 9 is one: use larger batches"),
        (9, 4, {}, "the last batch of 9 by 4 is one: use another batch size, drop_last=True or"),
        (9, 9, {"rows": np.array([3])}, "every batch of 1 by 9 is one"),
    ],
)
def test_fit_refuses_single_examples_before_its_first_step(count, size, options, reason):
    model = normed()
    before = {name: array.tobytes() for name, array in model.state_dict().items()}
    with pytest.raises(ArgumentError, match=reason) as caught:
        fitted(model, count, size, **options)
    assert "layer 1.1, BatchNorm(3), cannot normalize a single example" in str(caught.value)
    assert {name: array.tobytes() for name, array in model.state_dict().items()} == before


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (normed(convention=Convention(on_single="eval")), {}),
        (normed(convention=Convention(on_single="skip")), {}),
        (normed(convention="keras"), {}),
        (normed(frozen=True), {}),
        (Planes(), {}),
        (nbbn.Sequential(Planes()), {}),
        (normed(), {"drop_last": True}),
    ],
)
def test_fit_takes_single_examples_where_the_model_does(model, options, caplog):
    (epoch,) = fitted(model, 9, 4, **options)
    assert np.isfinite(epoch.loss)
