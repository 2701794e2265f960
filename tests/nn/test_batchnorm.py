"""The BatchNorm layer: what each framework means by it, and how its statistics move."""

from __future__ import annotations

import numpy as np
import pytest

import nbbn
from nbbn import Convention
from nbbn.errors import ArgumentError, ShapeError
from nbbn.nn.batchnorm import CONVENTIONS
from nbbn.train.checkpoint.state import describe
from tests.helpers import reference
from tests.helpers.layers import assert_all_close, assert_close, run, state_of

BATCHES = 4
# eps, weight of the new value, channel axis, unbiased running variance.
MEANINGS = {
    "torch": (1e-5, 0.1, 1, True),
    "keras": (1e-3, 0.01, -1, False),
    "onnx": (1e-5, 0.1, 1, False),
}


def make(*args, **options):
    return nbbn.BatchNorm(*args, dtype=np.float64, **options)


# ------------------------------------------------------------------------------ conventions


@pytest.mark.parametrize("shape", [(8, 3), (4, 3, 3), (2, 3, 4, 3)])
@pytest.mark.parametrize("convention", MEANINGS)
def test_a_convention_decides_everything_at_once(convention, shape, rng):
    """Against the formulas of each framework, over several batches and in evaluation."""
    eps, weight, axis, unbiased = MEANINGS[convention]
    layer = make(3, convention=convention)
    mean, var = np.zeros(3), np.ones(3)
    for _ in range(BATCHES):
        x = rng.normal(size=shape) * 2 + 1
        want, stats = reference.batch_norm_train(x, eps=eps, axis=axis)
        assert_close(layer(x).data, want)
        mean, var = reference.running_stats(mean, var, stats, weight, unbiased)
        assert_close(layer.running_mean, mean)
        assert_close(layer.running_var, var)
    layer.eval()
    assert_close(layer(x).data, reference.batch_norm_infer(x, mean, var, eps=eps, axis=axis))


@pytest.mark.parametrize(
    ("parts", "weight", "unbiased", "eps", "axis"),
    [
        ({"momentum": 0.9}, 0.1, False, 1e-3, -1),
        ({"momentum": 0.2, "momentum_weighs": "new"}, 0.2, False, 1e-3, -1),
        ({"momentum_weighs": "new"}, 0.99, False, 1e-3, -1),
        ({"unbiased": True}, 0.01, True, 1e-3, -1),
        ({"eps": 0.5}, 0.01, False, 0.5, -1),
        ({"axis": 1}, 0.01, False, 1e-3, 1),
    ],
    ids=str,
)
def test_each_part_of_a_convention_can_be_replaced(parts, weight, unbiased, eps, axis, rng):
    layer = make(3, convention=Convention.of("keras", **parts))
    x = rng.normal(size=(5, 3, 3))
    want, stats = reference.batch_norm_train(x, eps=eps, axis=axis)
    assert_close(layer(x).data, want)
    mean, var = reference.running_stats(np.zeros(3), np.ones(3), stats, weight, unbiased)
    assert_close(layer.running_mean, mean)
    assert_close(layer.running_var, var)


def test_a_convention_of_ones_own(rng):
    """PyTorch's, but for one value per channel and the variance that it needs."""
    x = rng.normal(size=(1, 3))
    layer = make(3, convention=Convention(unbiased=False, on_single="normalize"))
    np.testing.assert_array_equal(layer(x).data, np.zeros((1, 3)))
    np.testing.assert_array_equal(layer.running_var, np.full(3, 0.9))
    with pytest.raises(ShapeError, match="more than 1 value"):
        make(3, convention=Convention(on_single="normalize"))(x)
    with pytest.raises(ShapeError, match="more than 1 value"):
        make(3, convention=Convention(unbiased=False))(x)


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1)])
@pytest.mark.parametrize("convention", ["keras", "onnx"])
def test_one_value_per_channel_gives_beta(convention, shape, rng):
    layer = make(3, convention=Convention.of(convention, axis=1, momentum=0.75))
    layer.beta.data[...] = [1.0, 2.0, 3.0]
    x = rng.normal(size=shape)
    y, dx, (dgamma, dbeta) = run(layer, x)
    assert_close(y.ravel(), [1, 2, 3])
    assert_close(dx, 0)
    assert_close(dgamma, 0)
    assert_close(dbeta, np.cos(x).ravel())
    assert_close(layer.running_mean, 0.25 * x.ravel())
    assert_close(layer.running_var, 0.75)


def test_one_value_per_channel_is_an_error_in_torch_s_convention():
    layer = make(3)
    with pytest.raises(ShapeError, match="more than 1 value per channel"):
        layer(np.ones((1, 3)))
    assert layer(np.ones((1, 3, 2))).shape == (1, 3, 2)


def test_onnx_takes_one_dimension_as_one_channel(rng):
    x = rng.normal(size=7)
    y, dx, _ = run(make(1, convention="onnx"), x)
    want, _ = reference.batch_norm_train(x[:, None])
    assert_close(y, want[:, 0])
    assert_close(dx, reference.batch_norm_backward(np.cos(x)[:, None], x[:, None])[0][:, 0])
    with pytest.raises(ShapeError, match=r"1 channels.*\(7,\)"):
        make(1)(x)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"convention": "caffe"}, "convention.*torch.*keras.*onnx.*caffe"),
        ({"convention": (1e-5, 0.1)}, "convention.*torch.*keras.*onnx.*0.1"),
        ({"convention": Convention(framework="caffe")}, "framework.*torch.*keras.*onnx.*caffe"),
        ({"convention": Convention(momentum_weighs="both")}, "momentum_weighs.*both"),
        ({"convention": Convention(momentum=1.5)}, "momentum.*1.5"),
        ({"convention": Convention(eps=0.0)}, "eps.*> 0"),
        ({"frozen": True, "track_running_stats": False}, "frozen.*track"),
        ({"convention": Convention(zero_debias=True, momentum=0.0)}, "zero_debias.*weight 0"),
    ],
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(ArgumentError, match=words):
        make(3, **options)


# ------------------------------------------------------------------------------ running statistics


def test_zero_debiased_statistics_are_adam_s(rng):
    """Averages that start at 0, divided by the total weight that they have seen."""
    layer = make(3, convention=Convention(momentum=0.1, zero_debias=True))
    mean, var = np.zeros(3), np.zeros(3)
    for k in range(1, 8):
        x = rng.normal(size=(6, 3)) + 5
        layer(x)
        stats = reference.statistics(x)
        mean, var = reference.running_stats(mean, var, stats, 0.1)
        assert_close(layer.running_mean, mean / (1 - 0.9**k))
        assert_close(layer.running_var, var / (1 - 0.9**k))


def test_a_cumulative_average_weighs_all_batches_equally(rng):
    layer = make(3, convention=Convention.of("keras", momentum=None))
    seen = [rng.normal(size=(6, 3)) for _ in range(5)]
    for x in seen:
        layer(x)
    assert_close(layer.running_mean, np.mean([x.mean(axis=0) for x in seen], axis=0))
    assert_close(layer.running_var, np.mean([x.var(axis=0) for x in seen], axis=0))


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ["weight", "bias"]),
        ({"shift": False}, ["weight"]),
        ({"scale": False}, ["bias"]),
        ({"scale": False, "shift": False}, []),
    ],
    ids=str,
)
def test_scale_and_shift_on_their_own(options, names, rng):
    layer = make(3, track_running_stats=False, **options)
    assert list(layer.state_dict()) == names
    for parameter in layer.parameters():
        parameter.data[...] = rng.uniform(0.5, 2, 3)
    gamma, beta = (p if p is None else p.data for p in (layer.gamma, layer.beta))
    x = rng.normal(size=(6, 3, 2))
    y, dx, gradients = run(layer, x)
    want = reference.batch_norm_train(x, gamma, beta)[0]
    expected = reference.batch_norm_backward(np.cos(x), x, gamma)
    assert_close(y, want)
    assert_close(dx, expected[0])
    for name, gradient in zip(names, gradients, strict=True):
        assert_close(gradient, expected[1] if name == "weight" else expected[2])


def test_frozen_statistics_stay_while_gamma_and_beta_train(rng):
    layer = make(3, frozen=True)
    layer.running_mean[...], layer.running_var[...] = rng.normal(size=3), rng.uniform(1, 2, 3)
    before = state_of(layer)
    x = rng.normal(size=(6, 3))
    y, dx, gradients = run(layer, x)
    given = layer.running_mean, layer.running_var
    assert_close(y, reference.batch_norm_infer(x, *given))
    expected = reference.batch_norm_infer_backward(np.cos(x), x, *given)
    assert_all_close((dx, *gradients), expected)
    assert state_of(layer) == before
    layer.frozen = False
    layer(x)
    assert layer.num_batches_tracked == 1


def test_every_convention_is_tested():
    assert set(CONVENTIONS) == set(MEANINGS)


# ------------------------------------------------------------------------------ edges, as PyTorch


def twins(torch, momentum=0.1):
    layer = make(3, convention=Convention(momentum=momentum))
    return layer, torch.nn.BatchNorm1d(3, dtype=torch.float64, momentum=momentum)


def assert_same_buffers(layer, twin):
    for name, tensor in twin.state_dict().items():
        np.testing.assert_allclose(layer.state_dict()[name], tensor.numpy(), rtol=1e-12)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 2)])
def test_an_empty_batch_as_in_torch(shape, momentum):
    torch = pytest.importorskip("torch")
    layer, twin = twins(torch, momentum=momentum)
    twin(torch.zeros(shape, dtype=torch.float64)).sum().backward()
    y, dx, gradients = run(layer, np.zeros(shape))
    assert y.shape == dx.shape == shape
    for got, tensor in zip(gradients, twin.parameters(), strict=True):
        np.testing.assert_array_equal(got, tensor.grad.numpy())
    assert_same_buffers(layer, twin)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_stay_in_their_channel_as_in_torch(value, rng):
    torch = pytest.importorskip("torch")
    layer, twin = twins(torch)
    x = rng.normal(size=(7, 3, 2))
    x[4, 1, 0] = value
    leaf = torch.tensor(x, requires_grad=True)
    expected = twin(leaf)
    dy = rng.normal(size=x.shape)
    expected.backward(torch.tensor(dy))
    y, dx, _ = run(layer, x, dy)
    for got, want in ((y, expected.detach()), (dx, leaf.grad)):
        np.testing.assert_allclose(got[:, [0, 2]], want.numpy()[:, [0, 2]], rtol=1e-6, atol=1e-9)
        assert np.isnan(got[:, 1]).any()
    assert_same_buffers(layer, twin)


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1), (5, 4), (5,), (2, 3, 4, 5, 6, 7)])
def test_what_torch_refuses_is_refused(shape, rng):
    torch = pytest.importorskip("torch")
    layer, twin = twins(torch)
    x = rng.normal(size=shape)
    with pytest.raises((ValueError, RuntimeError)):
        twin(torch.tensor(x))
    with pytest.raises(ValueError, match=r"\("):
        layer(x)
    assert layer.num_batches_tracked == 0


def test_eps_may_be_zero_in_evaluation_only(rng):
    torch = pytest.importorskip("torch")
    x, mean, var = rng.normal(size=(5, 3)), rng.normal(size=3), rng.uniform(1, 2, 3)
    want = torch.nn.functional.batch_norm(*map(torch.tensor, (x, mean, var)), eps=0.0)
    assert_close(nbbn.functional.batch_norm_infer(x, mean, var, eps=0.0), want.numpy())
    with pytest.raises(ValueError, match="eps"):
        nbbn.functional.batch_norm_train(x, eps=0.0)


def test_without_other_ranks_sync_changes_nothing():
    x = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    found = []
    for layer in (nbbn.BatchNorm(4), nbbn.BatchNorm(4, sync=True), nbbn.SyncBatchNorm(4)):
        y = layer(x).data.tobytes()
        found.append((y, layer.running_mean.tobytes(), layer.running_var.tobytes()))
    assert found[0] == found[1] == found[2]
    # What a checkpoint says of a layer does not depend on it.
    plain, sync = (describe(nbbn.BatchNorm(4, sync=s), None, None) for s in (False, True))
    assert plain == sync
