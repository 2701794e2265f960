"""Losses beyond what `cases` shows: refusals, extremes, replays, accuracy, whole trainings."""

from __future__ import annotations

import functools
import math
import warnings

import numpy as np
import pytest

import nbbn
from nbbn import Parameter, Tape, Tensor, losses, ops, optim
from nbbn import functional as fn
from nbbn.data import Batches
from nbbn.errors import ArgumentError, DTypeError, ShapeError
from nbbn.nn.losses import DoubleSigmoidWarning, DoubleSoftmaxWarning
from nbbn.train.callbacks import Callback
from nbbn.train.loop import evaluate, fit
from tests.helpers import reference
from tests.helpers.advice import typed
from tests.helpers.layers import run
from tests.helpers.refusals import refusing
from tests.helpers.training_pair import Pair

OF_NUMBERS = [losses.mse, losses.huber, losses.binary_cross_entropy]
every_loss = pytest.mark.parametrize("loss", OF_NUMBERS, ids=lambda loss: loss.__name__)


# ------------------------------------------------------------------------- what is refused


@every_loss
@pytest.mark.parametrize(
    ("output", "targets"),
    [((8, 1), (8,)), ((8,), (8, 1)), ((8, 3), (1, 8, 3)), ((8, 1, 2), (8, 2)), ((), (1,))],
)
def test_shapes_that_differ_are_refused_with_the_call_that_mends_it(loss, output, targets, rng):
    output, targets = Tensor(rng.uniform(size=output)), rng.uniform(size=targets)
    with pytest.raises(ShapeError) as caught:
        loss(output, targets)
    assert all(str(shape) in str(caught.value) for shape in (output.shape, targets.shape))
    mended = typed(caught.value, targets=targets)
    assert loss(output, mended).item() == loss(output, targets.reshape(output.shape)).item()


@every_loss
@pytest.mark.parametrize("targets", [(3, 8), (8, 1), (8,), (1, 3), (3,), (), (4, 6)])
def test_no_reshape_is_advised_where_it_would_mix_examples(loss, targets):
    with pytest.raises(ShapeError, match="as many outputs as an example has targets") as caught:
        loss(Tensor(np.zeros((8, 3))), np.zeros(targets))
    assert "reshape" not in str(caught.value)


@every_loss
def test_the_loss_of_nothing_has_a_sum_and_no_mean(loss):
    with pytest.raises(ShapeError, match="no values"):
        loss(np.ones((0, 1)), np.ones((0, 1)))
    assert loss(np.ones((0, 1)), np.ones((0, 1)), reduction="sum").item() == 0


LOGITS = np.random.default_rng(3).normal(size=(4, 3))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (np.array([True, False, True, True]), [1, 0, 1, 1]),
        ([1, 0, 1, 2], [1, 0, 1, 2]),
        (np.array(["cat", "dog", "ant", "cat"]), [1, 2, 0, 1]),
        (np.array([2.0, 0.0, 1.0, 1.0]), [2, 0, 1, 1]),
        (np.array([[2], [0], [1], [1]]), [2, 0, 1, 1]),
        (np.eye(3, dtype=int)[[2, 0, 1, 1]], [2, 0, 1, 1]),
    ],
)
def test_advice_on_labels_works_when_typed(labels, expected):
    with pytest.raises((DTypeError, ShapeError)) as caught:
        losses.cross_entropy(LOGITS, labels)
    mended = typed(caught.value, labels=labels)
    found = losses.cross_entropy(LOGITS, mended).item()
    assert found == losses.cross_entropy(LOGITS, np.array(expected)).item()


X, T, P = np.ones((4, 3)), np.ones((4, 3)), np.full((4, 3), 1 / 3)
LABELS, ZEROS = np.array([0, 2, 1, 1]), np.zeros(4, int)


def with_target(value):
    t = np.ones((3, 2))
    t[1, 1] = value
    return losses.binary_cross_entropy(np.ones((3, 2)), t)


REFUSED = [
    *((f"losses.{name}({operands}", error, words)
      for name in ("mse", "huber", "binary_cross_entropy")
      for operands, error, words in (
          ("X.astype('f4'), T.astype(int))", DTypeError,
           r"targets .*got int64.*targets\.astype\(numpy\.float32\)"),
          ("X.astype(int), T)", DTypeError, "the output .*got int64"),
          ("X, T, reduction='average')", ArgumentError, "reduction"))),
    ("losses.huber(X, T, delta=0)", ArgumentError, "delta"),
    ("losses.huber(X, T, delta=-1.0)", ArgumentError, "delta"),
    ("losses.huber(X, T, delta=math.inf)", ArgumentError, "delta"),
    ("losses.huber(X, T, delta='1')", DTypeError, "delta"),
    *((f"with_target({value})", ArgumentError, f"between 0 and 1, got {found} at position 3")
      for value, found in (("-1", "-1.0"), ("2", "2.0"), ("math.nan", "nan"), ("-1e-7", "-1e-07"))),
    *((f"losses.binary_cross_entropy(X, T, {name}={value})", error, name)
      for name in ("weight", "pos_weight")
      for value, error in (
          ("np.ones(2)", ShapeError), ("np.ones((2, 4, 3))", ShapeError), ("[1.0]", DTypeError),
          ("np.ones(3, int)", DTypeError), ("True", DTypeError), ("math.inf", ArgumentError),
          ("3j", DTypeError))),
    *((f"losses.cross_entropy(LOGITS, {labels}, {option})", error, words)
      for labels in ("LABELS", "P")
      for option, error, words in (
          ("weight=np.ones(4)", ShapeError, r"weight.*\(3,\).*\(4,\)"),
          ("weight=np.ones((3, 1))", ShapeError, r"weight.*\(3, 1\)"),
          ("weight=np.ones(3, int)", DTypeError, "weight.*int64"),
          ("weight=[1.0, 1.0, 1.0]", DTypeError, "weight.*list"),
          ("label_smoothing=1.1", ArgumentError, "label_smoothing.*1.1"),
          ("label_smoothing=-0.1", ArgumentError, "label_smoothing.*-0.1"),
          ("label_smoothing='a'", DTypeError, "label_smoothing.*str"),
          ("reduction='average'", ArgumentError, "reduction.*average"))),
    ("losses.cross_entropy(LOGITS, ZEROS, ignore_index=1.0)", DTypeError, "ignore_index.*float"),
    ("losses.cross_entropy(LOGITS, P, ignore_index=1)",
     ArgumentError, "ignore_index.*probabilities"),
    ("losses.cross_entropy(LOGITS, ZEROS, ignore_index=2**63)",
     ArgumentError, f"ignore_index.*int64, got {2**63}"),
    ("losses.cross_entropy(LOGITS, ZEROS - 100)", ArgumentError, "got -100 at position 0"),
    ("losses.cross_entropy(LOGITS, np.array([0, -100, -1, 2]), ignore_index=-100)",
     ArgumentError, "got -1 at position 2"),
    ("losses.cross_entropy(LOGITS[:, :0], P[:, :0])", ShapeError, r"K >= 1, got \(4, 0\)"),
]  # fmt: skip


test_operands_and_options_that_do_not_fit = refusing(REFUSED, globals())


def test_the_output_of_a_sigmoid_warns(rng):
    logits, targets = Tensor(rng.normal(size=(4, 1))), np.ones((4, 1))
    with pytest.warns(DoubleSigmoidWarning, match="drop the Sigmoid layer") as caught:
        losses.binary_cross_entropy(nbbn.Sigmoid()(logits), targets)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses.binary_cross_entropy(logits, targets)
        losses.mse(nbbn.Sigmoid()(logits), targets)


def test_a_softmax_of_another_axis_than_the_classes_lends_no_logits(rng):
    """For (N, K, d), where the classes are on axis 1."""
    logits, labels = Tensor(rng.normal(size=(2, 3, 4))), rng.integers(0, 3, (2, 4))
    with pytest.raises(ShapeError, match="probabilities"):
        losses.nll(ops.softmax(logits), labels)
    found = losses.nll(ops.softmax(logits, axis=1), labels).item()
    assert found == losses.cross_entropy(logits, labels).item()
    with pytest.warns(DoubleSoftmaxWarning):
        losses.cross_entropy(ops.softmax(logits, axis=-2), labels)


# ------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_binary_cross_entropy_neither_overflows_nor_cancels(dtype):
    """Each loss and gradient to a few units in the last place, from 1e-30 to 1e30."""
    x = np.array([1e30, 1e4, 60, 20, 3, 1e-3, 0, -1e-3, -3, -20, -60, -1e4, -1e30], dtype)
    for target in (0.0, 1.0):
        logits = Parameter(x)
        with Tape() as tape:
            loss = losses.binary_cross_entropy(logits, np.full_like(x, target), reduction="none")
        wide = reference.wide(x) * (1 - 2 * target)
        expected = np.maximum(wide, 0) + np.log1p(np.exp(-abs(wide)))
        slope = (1 - 2 * target) / (1 + np.exp(np.minimum(-wide, 11000)))
        bounds = {"rtol": 8 * np.finfo(dtype).eps, "atol": float(np.finfo(dtype).tiny)}
        np.testing.assert_allclose(loss.data, expected.astype(np.float64), **bounds)
        tape.backward(loss, np.ones_like(x))
        np.testing.assert_allclose(logits.grad, slope.astype(np.float64), **bounds)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_huber_of_any_size(dtype):
    x = np.array([np.inf, 1e30, 2, 1, 1 / 3, 1e-9, 0, -1e-9, -1, -2, -1e30, -np.inf], dtype)
    error = Parameter(x)
    with Tape() as tape:
        loss = losses.huber(error, np.zeros_like(x), reduction="none")
        (slope,) = nbbn.grad(loss, [error], np.ones_like(x), create_graph=True)
        (bend,) = nbbn.grad(slope, [error], np.ones_like(x))
    np.testing.assert_allclose(loss.data, reference.huber(x, 1).astype(dtype), rtol=1e-6)
    tape.backward(loss, np.ones_like(x))
    np.testing.assert_array_equal(error.grad, np.clip(x, -1, 1))
    np.testing.assert_array_equal(slope.data, error.grad)
    np.testing.assert_array_equal(bend.data, abs(x) <= 1)


@every_loss
def test_the_loss_has_the_type_of_the_output(loss):
    """Targets of float64, as data sets have them, leave a float32 model in float32."""
    x = Parameter(np.full((3, 1), 0.25, np.float32))
    with Tape() as tape:
        found = loss(x, np.full((3, 1), 0.1))
    assert found.dtype == np.float32
    tape.backward(found)
    assert x.grad.dtype == np.float32


@pytest.mark.parametrize("options", [{}, {"weight": np.array([1.0, 3.0, 0.5])},
                                     {"label_smoothing": 0.2}])  # fmt: skip
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_what_is_ignored_counts_for_nothing_whatever_it_holds(options, reduction, rng):
    """NaN and Inf in such rows reach neither loss nor gradients, the second ones included."""
    labels, keep = np.array([0, 5, 2, 1, 5]), np.array([0, 2, 3])
    x = rng.normal(size=(5, 3))
    x[1], x[4, 0] = np.nan, np.inf

    def everything(x, labels):
        logits = Parameter(x)
        with Tape() as tape:
            loss = losses.cross_entropy(
                logits, labels, ignore_index=5, reduction=reduction, **options
            )
            (slope,) = nbbn.grad(loss, [logits], np.ones(loss.shape), create_graph=True)
            total = (slope * slope).sum()
        tape.backward(total)
        return loss.data, slope.data, logits.grad

    found, expected = everything(x, labels), everything(x[keep], labels[keep])
    for got, want in zip(found, expected, strict=True):
        if got.ndim:
            assert not got[[1, 4]].any()
            got = got[keep]
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-15)


def test_labels_are_looked_at_again_before_the_gradient():
    """They may have changed, and the gradient is written at the places that they name."""
    logits, labels = Parameter(np.ones((3, 2), np.float32)), np.array([0, 1, 0])
    with Tape() as tape:
        loss = losses.cross_entropy(logits, labels)
    labels[1] = 2
    with pytest.raises(ArgumentError, match=r"labels must lie in \[0, 2\).*got 2 at position 1"):
        tape.backward(loss)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_where_nothing_counts_the_mean_is_nan(dtype):
    x, labels = np.ones((3, 2), dtype), np.full(3, 7)
    assert math.isnan(fn.cross_entropy(x, labels, ignore_index=7))
    assert fn.cross_entropy(x, labels, ignore_index=7, reduction="sum") == 0
    for reduction in ("mean", "sum"):
        options = {"ignore_index": 7, "reduction": reduction}
        assert not fn.cross_entropy_backward(x, labels, **options).any()


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3), (5, 0, 0), (0, 0, 2)])
@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_the_softmax_of_nothing_is_nothing(name, axis, shape):
    x = Parameter(np.ones(shape, np.float32))
    with Tape() as tape:
        y = getattr(ops, name)(x, axis=axis)
    assert (y.shape, y.dtype) == (shape, np.float32)
    tape.backward(y, np.ones(shape, np.float32))
    assert x.grad.shape == shape


@pytest.mark.parametrize("shape", [(3,), (0, 3), (2, 0, 3), (2, 5, 3), (2, 1, 2, 1, 3)])
def test_a_dense_layer_of_any_rank(shape, rng):
    layer = nbbn.Dense(3, 4, rng=1)
    x = rng.normal(size=shape).astype(np.float32)
    y = layer(x)
    assert y.shape == (*shape[:-1], 4)
    rows = layer(x.reshape(-1, 3))
    np.testing.assert_array_equal(y.data, rows.data.reshape(y.shape))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dropout_of_everything(dtype, rng):
    x = rng.normal(size=(400, 7)).astype(dtype)
    y, dx, _ = run(nbbn.Dropout(1, rng=0), x, np.ones_like(x))
    assert not y.any()
    assert not dx.any()
    x = Tensor(x)
    assert nbbn.Dropout(1.0, rng=0).eval()(x) is x


# ------------------------------------------------------------------------------- training


def regressor(outputs=1):
    model = nbbn.mlp((6, 8, outputs), rng=4)
    return model, optim.Adam(model.parameters(), 0.01)


WEIGHT = np.array([0.5, 2.0, 1.0])
REPLAYED = {
    "mse": (losses.mse, (1,)),
    "huber": (functools.partial(losses.huber, delta=0.3), (2,)),
    "binary": (losses.binary_cross_entropy, (1,)),
    "multi-hot": (
        functools.partial(losses.binary_cross_entropy, pos_weight=WEIGHT, weight=WEIGHT), (3,)
    ),
    "binary of a number": (
        functools.partial(losses.binary_cross_entropy, pos_weight=2.5, weight=np.float32(2)), (3,)
    ),
    "classes": (
        functools.partial(
            losses.cross_entropy, weight=WEIGHT, ignore_index=1, label_smoothing=0.1
        ), None,
    ),
    "probabilities": (
        functools.partial(losses.cross_entropy, weight=WEIGHT, label_smoothing=0.1), (3,)
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", REPLAYED)
def test_replayed_steps_are_the_eager_ones_bit_for_bit(name, dtype, rng):
    loss, shape = REPLAYED[name]
    pair = Pair(lambda: regressor(3 if shape is None else shape[0]), loss)
    batches = []
    for _ in range(6):
        x = rng.normal(size=(9, 6)).astype(np.float32)
        y = rng.integers(0, 3, 9)
        if shape is not None:
            y = rng.integers(0, 2, (9, *shape)).astype(dtype)
        batches.append((x, y))
    assert pair.train(batches) >= 4
    assert pair.step.refusal is None


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("loss", [losses.mse, losses.huber])
def test_fit_learns_a_regression(loss, rng):
    x = rng.normal(size=(400, 3)).astype(np.float32)
    y = (x @ np.array([[1.5], [-2.0], [0.5]]) + 0.7).astype(np.float32)
    model = nbbn.Sequential(nbbn.Dense(3, 1, rng=0))
    batches, held = Batches(x[:300], y[:300], 50, rng=0), Batches(x[300:], y[300:], 50)
    history = fit(
        model, batches, optim.SGD(model.parameters(), 0.1), epochs=40, loss=loss, validation=held
    )
    assert history[-1].loss < 1e-5 < 0.1 < history[0].loss
    assert history[-1].validation.loss < 1e-5
    assert math.isnan(history[-1].validation.accuracy)
    np.testing.assert_allclose(model[0].weight.data, [[1.5, -2.0, 0.5]], atol=0.01)


@pytest.mark.parametrize("number", [3, 0.3, np.float32(0.3), np.float64(0.3), np.int64(3)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_number_weighs_as_an_array_of_it(number, dtype, rng):
    logits, targets = rng.normal(size=(5, 3)).astype(dtype), rng.random((5, 3)).astype(dtype)
    for name in ("weight", "pos_weight"):
        found, expected = (
            losses.binary_cross_entropy(nbbn.Tensor(logits), targets, **{name: factor})
            for factor in (number, np.array(number, dtype))
        )
        assert found.dtype == dtype
        assert found.item() == expected.item()


class Counts(Callback):
    counts_right = True


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize(
    "loss",
    [
        losses.binary_cross_entropy,
        functools.partial(losses.binary_cross_entropy, pos_weight=np.array(2.0)),
    ],
)
def test_accuracy_of_yes_and_no(loss, outputs, rng):
    """An example is right where all its outputs are; counted in training as in evaluation."""
    x = rng.normal(size=(60, 6)).astype(np.float32)
    y = (x[:, :outputs] + rng.normal(size=(60, outputs)) > 0).astype(np.float64)
    model, _ = regressor(outputs)
    found = evaluate(model, Batches(x, y, 16), loss=loss)
    probabilities = 1 / (1 + np.exp(-model.eval()(x).numpy().astype(np.float64)))
    assert found.accuracy == np.mean(np.all((probabilities > 0.5) == (y == 1), axis=1))
    assert 0 < found.accuracy < 1
    # At a learning rate of almost nothing, training counts what evaluation does.
    model = nbbn.Sequential(nbbn.Dense(6, outputs, rng=1))
    expected = evaluate(model, Batches(x, y, 12), loss=loss).accuracy
    optimizer = optim.SGD(model.parameters(), 1e-30)
    history = fit(model, Batches(x, y, 12), optimizer, epochs=2, loss=loss, callbacks=[Counts()])
    assert [epoch.accuracy for epoch in history] == [expected] * 2


def test_fit_names_what_regression_needs(rng):
    x, y = rng.normal(size=(8, 6)).astype(np.float32), rng.normal(size=8)
    model, optimizer = regressor()
    with pytest.raises(DTypeError, match=r"got float64.*for regression, use losses\.mse"):
        fit(model, Batches(x, y, 4), optimizer, epochs=1)
    with pytest.raises(ShapeError, match=r"\(4, 1\), got \(4,\)") as caught:
        fit(model, Batches(x, y, 4), optimizer, epochs=1, loss=losses.mse)
    mended = typed(caught.value, targets=y)
    fit(model, Batches(x, mended, 4), optimizer, epochs=1, loss=losses.mse)
