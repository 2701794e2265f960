"""nbbn.inspect: its numbers, its warnings, and that it leaves no trace."""

from __future__ import annotations

import numpy as np
import pytest

import nbbn
from nbbn import (
    BatchNorm,
    Convention,
    Dense,
    Dropout,
    ReLU,
    Sequential,
    Softmax,
    losses,
    optim,
    train,
)
from nbbn.errors import DTypeError
from nbbn.nn.inspect import InspectionWarning
from nbbn.nn.observe import observed
from tests.helpers.layers import state_of


def settled(model, rng):
    """Give every BatchNorm running statistics that are not the initial ones."""
    for layer in model.modules():
        if isinstance(layer, BatchNorm):
            layer.running_mean[...] = rng.normal(0, 0.1, layer.running_mean.shape)
            layer.running_var[...] = rng.uniform(0.9, 1.1, layer.running_var.shape)
            layer.num_batches_tracked[...] = 10
    return model


@pytest.fixture
def batch(rng):
    return rng.normal(size=(64, 6)).astype(np.float32), rng.integers(0, 4, 64)


@pytest.fixture
def model(rng):
    return settled(nbbn.mlp((6, 8, 4), rng=0), rng)


def warnings_of(model, *arguments, **options) -> str:
    return "\n".join(nbbn.inspect(model, *arguments, warn=False, **options).warnings)


# --------------------------------------------------------------------------------- the numbers


def test_the_numbers_are_those_of_the_layers(model, batch):
    x, y = batch
    found = nbbn.inspect(model, x, y, warn=False)
    assert [layer.name for layer in found.layers] == ["0", "1", "2"]
    dense, norm, last = found.layers
    z = x.astype(np.float64) @ model[0].weight.data.T
    mean, std = z.mean(axis=0), np.sqrt(z.var(axis=0) + 1e-5)
    own_std = np.sqrt(model[1].running_var.astype(np.float64) + 1e-5)
    hidden = np.maximum((z - mean) / std, 0)
    logits = hidden @ model[2].weight.data.T + model[2].bias.data
    for layer, array in ((dense, z), (norm, hidden), (last, logits)):
        np.testing.assert_allclose([layer.mean, layer.std], [array.mean(), array.std()], rtol=1e-4)
    expected = np.sqrt(np.mean(((mean - model[1].running_mean) / own_std) ** 2))
    assert norm.mean_gap == pytest.approx(expected, rel=1e-5)
    expected = np.exp(np.sqrt(np.mean(np.log(std / own_std) ** 2)))
    assert norm.std_gap == pytest.approx(expected, rel=1e-5)
    assert (dense.dead, norm.dead, last.mean_gap) == (None, 0.0, None)


def test_gradients_are_those_of_training(model, batch):
    x, y = batch
    found = nbbn.inspect(model, x, y, warn=False)
    with nbbn.Tape() as tape:
        loss = losses.cross_entropy(model(x), y)
    tape.backward(loss)
    assert found.loss == pytest.approx(loss.item())
    for layer, seen in zip(model, found.layers, strict=True):
        squares = sum(float((p.grad.astype(np.float64) ** 2).sum()) for p in layer.parameters())
        assert seen.grad_norm == pytest.approx(np.sqrt(squares), rel=1e-5)
        squares = sum(float((p.data.astype(np.float64) ** 2).sum()) for p in layer.parameters())
        assert seen.weight_norm == pytest.approx(np.sqrt(squares), rel=1e-5)


def test_dead_units_are_counted_by_channel(rng):
    x = rng.normal(size=(8, 4, 3)).astype(np.float32)
    x[:, 1] = -1
    assert nbbn.inspect(ReLU(), x, warn=False).layers[0].dead == 0.25
    last = BatchNorm(4, convention=Convention(axis=-1), activation="relu").eval()
    last.beta.data[:3] = -100
    found = nbbn.inspect(last, x.transpose(0, 2, 1), warn=False)
    assert found.layers[0].dead == 0.75


def test_modules_of_ones_own_are_seen_inside(batch, rng):
    class Net(nbbn.Module):
        def __init__(self):
            self.dense = Dense(6, 4, rng=0)
            self.scale = nbbn.Parameter([2.0])

        def forward(self, x):
            return self.dense(x) * self.scale

    found = nbbn.inspect(Net(), *batch, warn=False)
    assert [layer.name for layer in found.layers] == ["dense", ""]
    assert found.layers[1].weight_norm == 2.0
    assert found.layers[1].grad_norm > 0


def test_a_layer_that_is_used_twice_has_a_row_for_each_time(batch):
    x, _ = batch
    dense = Dense(6, 6, rng=0)
    model = Sequential(dense, ReLU(), dense)
    rows = nbbn.inspect(model, x, warn=False).layers
    assert [row.name for row in rows] == ["0", "1", "0"]
    means = [float(part(x).data.mean()) for part in (dense, Sequential(dense, ReLU()), model)]
    np.testing.assert_allclose([row.mean for row in rows], means, rtol=1e-5)
    assert [row.output for row in nbbn.summary(model, x).layers] == [(64, 6)] * 3


def test_it_prints_as_a_table(model, batch):
    text = str(nbbn.inspect(model, *batch, warn=False))
    lines = text.splitlines()
    assert " ".join(lines[0].split()) == "layer mean std dead |weight| |grad| mean gap std gap"
    assert lines[1].startswith("0 Dense(6, 8, bias=False)")
    assert "0.0%" in lines[2]
    assert lines[4].startswith("loss ")
    assert "loss" not in str(nbbn.inspect(model.eval(), batch[0], warn=False))


# -------------------------------------------------------------------------------- no trace left


def test_a_line_in_the_training_loop_changes_no_bit(batch):
    x, y = batch
    finals = []
    for looking in (False, True):
        model = nbbn.mlp((6, 8, 4), dropout=0.3, rng=0)
        step = train.record_step(model, losses.cross_entropy, optim.Adam(model.parameters()))
        for k in range(8):
            step(x + np.float32(k), np.roll(y, k))
            if looking:
                nbbn.inspect(model, x, y, warn=False)
                assert model.training
                assert step.refusal is None
        finals.append(state_of(model))
    assert finals[0] == finals[1]


def test_a_forward_that_a_layer_has_of_its_own_stays(batch):
    x, _ = batch
    model = Sequential(Dense(6, 6, rng=0), ReLU())
    forward = lambda x: x * 0.0 + 7.0  # noqa: E731
    model[0].forward = forward
    with observed(model, lambda *seen: None):
        assert (model(x).data == 7).all()
    assert model[0].forward is forward
    assert "forward" not in vars(model[1])
    assert (model(x).data == 7).all()


def test_gradients_tape_and_modes_stay(model, batch):
    x, y = batch
    with nbbn.Tape() as tape:
        loss = losses.cross_entropy(model(x), y)
        count = len(tape)
        nbbn.inspect(model, nbbn.Tensor(x, requires_grad=True), y, warn=False)
        assert len(tape) == count
    tape.backward(loss)
    gradients = [p.grad.copy() for p in model.parameters()]
    model[1].eval()
    before = state_of(model)
    nbbn.inspect(model, x, y, warn=False)
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert all("forward" not in vars(module) for module in model.modules())
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.requires_grad
        np.testing.assert_array_equal(parameter.grad, gradient)
    assert state_of(model) == before


# --------------------------------------------------------------------------------- the warnings


def test_a_healthy_model_has_none(model, batch):
    assert warnings_of(model, *batch) == ""
    assert warnings_of(model.eval(), batch[0]) == ""


def test_warnings_are_issued_where_it_is_called(model, batch):
    with pytest.warns(InspectionWarning, match="is in training mode") as caught:
        nbbn.inspect(model, batch[0])
    assert caught[0].filename == __file__


def test_evaluation_in_training_mode(model, batch):
    text = warnings_of(model, batch[0])
    assert "layer 1, BatchNorm(8, activation='relu') is in training mode, so that eval" in text
    model.eval()
    model[1].train()
    assert "in training mode inside a model in evaluation mode" in warnings_of(model, *batch)


def test_evaluation_before_training(batch):
    model = nbbn.mlp((6, 8, 4), rng=0)
    assert "have seen no batch" not in warnings_of(model, *batch)
    assert "running statistics that have seen no batch" in warnings_of(model.eval(), *batch)
    frozen = Sequential(BatchNorm(6, frozen=True))
    assert "running statistics that have seen no batch" in warnings_of(frozen, *batch)


def test_a_batch_of_one(model, batch):
    """Training would raise: the rest is seen all the same."""
    x, y = batch[0][:1], batch[1][:1]
    found = nbbn.inspect(model, x, y, warn=False)
    assert "gets one value per channel, which has no variance" in "\n".join(found.warnings)
    assert found.layers[1].mean_gap is None
    assert found.loss > 0
    assert "one value per channel" not in warnings_of(model.eval(), x, y)
    asked = settled(
        Sequential(BatchNorm(6, convention=Convention(on_single="eval"))),
        np.random.default_rng(0),
    )
    assert "one value per channel" not in warnings_of(asked, x, y)


def test_statistics_that_move_under_frozen_parameters(model, batch):
    for parameter in model[1].parameters():
        parameter.requires_grad = False
    assert "frozen parameters, but its running statistics still move" in warnings_of(model, *batch)
    model[1].frozen = True
    assert "frozen" not in warnings_of(model, *batch)


def test_double_softmax(model, batch):
    double = Sequential(*model, Softmax())
    assert "double softmax: cross_entropy expects logits" in warnings_of(double, *batch)
    assert "softmax" not in warnings_of(double, *batch, loss=losses.nll)
    twice = Sequential(*double, Softmax()).eval()
    assert "takes the softmax of a softmax" in warnings_of(twice, batch[0])


def test_a_bias_in_front_of_batch_norm(batch, rng):
    model = settled(Sequential(Dense(6, 8, rng=0), BatchNorm(8), Dense(8, 4, rng=1)), rng)
    text = warnings_of(model, *batch)
    assert text == (
        "layer 0, Dense(6, 8) has a bias that layer 1, BatchNorm(8) subtracts again: use bias=False"
    )


def test_dead_units(model, batch):
    model[1].beta.data[:5] = -100
    assert "62% of its ReLUs are dead" in warnings_of(model, *batch)
    model[1].beta.data[:] = -100
    assert "the gradient of layer 1" in warnings_of(model, *batch)
    assert "dead" not in warnings_of(model, batch[0][:8], batch[1][:8])


def test_statistics_far_apart(model, batch):
    model[1].running_mean += 5
    assert "training and evaluation differ; the batch's mean is" in warnings_of(model, *batch)
    model[1].running_mean -= 5
    model[1].running_var *= 100
    assert "its deviation a factor of" in warnings_of(model, *batch)


def test_values_that_are_not_finite(model, batch):
    model[0].weight.data[0, 0] = np.inf
    text = warnings_of(model, *batch)
    assert "the output of layer 0, Dense(6, 8, bias=False) is not finite" in text
    assert text.count("the output of") == 1
    assert "the gradient of layer 0, Dense(6, 8, bias=False) is not finite" in text


def test_other_warnings_of_the_loss_come_through(model, batch):
    def loss(output, y):
        import warnings

        warnings.warn("mine", RuntimeWarning, stacklevel=1)
        return losses.cross_entropy(output, y)

    with pytest.warns(RuntimeWarning, match="mine"):
        nbbn.inspect(model, *batch, loss=loss)


def test_variants_and_frozen_models_can_be_looked_at(batch, rng):
    from nbbn.nn.variants import BatchRenorm, GhostBatchNorm, InPlaceBatchNorm

    for layer in (GhostBatchNorm(8, 16), BatchRenorm(8), InPlaceBatchNorm(8)):
        model = Sequential(Dense(6, 8, bias=False, rng=0), layer, Dropout(0.1), Dense(8, 4, rng=0))
        found = nbbn.inspect(model, *batch, warn=False)
        assert found.layers[1].mean_gap is not None
        assert found.layers[0].grad_norm > 0
    for parameter in model.parameters():
        parameter.requires_grad = False
    assert nbbn.inspect(model, *batch, warn=False).layers[0].grad_norm is None


def test_an_empty_batch_and_a_wrong_model(model):
    found = nbbn.inspect(model.eval(), np.empty((0, 6), np.float32), warn=False)
    assert np.isnan(found.layers[0].mean)
    with pytest.raises(DTypeError, match="model must be a Module, got list"):
        nbbn.inspect([], np.ones((2, 2)))
