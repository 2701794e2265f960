"""Gradients that are differentiated again: `grad`, `gradgradcheck`, beside PyTorch's."""

from __future__ import annotations

import numpy as np
import pytest

import nbbn
from nbbn import Parameter, Tape, Tensor, losses, ops, optim
from nbbn.autograd.ops.batchnorm import BatchNormInputGradient
from nbbn.errors import ArgumentError, DTypeError, ShapeError, TapeError
from tests.helpers.cases import CASES
from tests.helpers.training_pair import Pair, batches, under

DIFFERENTIABLE = [case for case in CASES if not case.name.startswith("variants.")]


def assert_close(got, want, tolerance=1e-11):
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


# ------------------------------------------------------------------------------ every operation


def test_every_operation_of_the_catalogue_has_a_rule():
    catalogue = [value for value in map(vars(ops).get, ops.__all__) if isinstance(value, type)]
    assert len(catalogue) > 20
    assert not [op for op in catalogue if op.backward_graph is nbbn.Op.backward_graph]


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=lambda case: case.name)
def test_second_derivatives_match_central_differences(case, rng):
    assert nbbn.gradgradcheck(case.function, *case.arrays(rng), directions=4) <= 1e-6


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=lambda case: case.name)
def test_gradients_are_those_of_the_tape(case, dtype, rng):
    """Whether recorded or not; the tape goes on to its own backward afterwards."""
    parameters = [Parameter(array) for array in case.arrays(rng, dtype)]
    with Tape() as tape:
        y = case.function(*parameters)
        weights = rng.normal(size=y.shape).astype(dtype)
        recorded = nbbn.grad(y, parameters, weights, create_graph=True)
        plain = nbbn.grad(y, parameters, weights)
    assert all(p.grad is None for p in parameters)
    tape.backward(y, weights)
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    for parameter, graph, array in zip(parameters, recorded, plain, strict=True):
        np.testing.assert_array_equal(array.data, parameter.grad)
        assert graph.dtype == array.dtype == dtype
        assert_close(graph.data, parameter.grad, tolerance)


@pytest.mark.parametrize(
    "case", [c for c in CASES if c not in DIFFERENTIABLE], ids=lambda case: case.name
)
def test_first_gradients_need_no_rule(case, rng):
    parameters = [Parameter(array) for array in case.arrays(rng)]
    with Tape() as tape:
        y = case.function(*parameters)
    found = nbbn.grad(y, parameters, y.data)
    tape.backward(y, y.data.copy())
    for gradient, parameter in zip(found, parameters, strict=True):
        np.testing.assert_array_equal(gradient.data, parameter.grad)


# ------------------------------------------------------------------------------ whole models


def network(*norms):
    layers = []
    for width, norm in zip((5, 6, 7), norms, strict=False):
        layers += [nbbn.Dense(width, width + 1, rng=width, dtype=np.float64), *norm(width + 1)]
    return nbbn.Sequential(*layers, nbbn.Dense(5 + len(norms), 4, rng=9, dtype=np.float64))


def plain(width):
    return [nbbn.BatchNorm(width, dtype=np.float64), nbbn.ReLU()]


def fused(width):
    return [nbbn.BatchNorm(width, activation="relu", dtype=np.float64)]


def frozen(width):
    return [nbbn.BatchNorm(width, activation="relu", frozen=True, dtype=np.float64)]


def shift_only(width):
    return [nbbn.BatchNorm(width, scale=False, dtype=np.float64), nbbn.Tanh()]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("target", ["input", "parameters"])
@pytest.mark.parametrize("norms", [(plain, plain), (fused, fused), (frozen, shift_only, fused)])
def test_a_gradient_penalty_matches_torch(norms, target, training, rng):
    """Of the input (R1, WGAN-GP), and of the parameters; all gradients against PyTorch's."""
    torch = pytest.importorskip("torch")
    model = network(*norms).train(training)
    twin = as_torch(torch, model).train(training)
    x, labels = rng.normal(size=(8, 5)), rng.integers(0, 4, 8)

    leaf = torch.tensor(x, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(twin(leaf), torch.tensor(labels))
    of = [leaf] if target == "input" else list(twin.parameters())
    gradients = torch.autograd.grad(loss, of, create_graph=True)
    total = loss + 3 * sum((g**2).sum() for g in gradients)
    total.backward()

    data = Parameter(x)
    with Tape() as tape:
        loss = losses.cross_entropy(model(data), labels)
        of = [data] if target == "input" else model.parameters()
        total_ = loss
        for gradient in nbbn.grad(loss, of, create_graph=True):
            total_ = total_ + 3 * (gradient * gradient).sum()
    tape.backward(total_)
    assert_close(total_.item(), total.item())
    assert_close(data.grad, leaf.grad.numpy())
    for own, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert_close(own.grad, other.grad.numpy())


def as_torch(torch, model):
    layers = []
    for layer in model:
        if isinstance(layer, nbbn.Dense):
            layers.append(torch.nn.Linear(*layer.weight.shape[::-1], dtype=torch.float64))
        elif isinstance(layer, nbbn.BatchNorm):
            layers.append(TorchNorm(torch, layer))
        else:
            layers.append(getattr(torch.nn, type(layer).__name__)())
    twin = torch.nn.Sequential(*layers)
    with torch.no_grad():
        for own, other in zip(model.parameters(), twin.parameters(), strict=True):
            other.copy_(torch.tensor(own.data))
    return twin


def TorchNorm(torch, layer):  # noqa: N802 - makes a module
    class Norm(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name, value in (("weight", layer.gamma), ("bias", layer.beta)):
                given = None if value is None else torch.nn.Parameter(torch.tensor(value.data))
                self.register_parameter(name, given)

        def forward(self, x):
            batch = self.training and not layer.frozen
            given = [torch.tensor(a) for a in (layer.running_mean, layer.running_var)]
            given = (None, None) if batch else given
            # Double backward of PyTorch wants a weight.
            weight = torch.ones_like(self.bias) if self.weight is None else self.weight
            y = torch.nn.functional.batch_norm(x, *given, weight, self.bias, batch)
            return y.relu() if layer.activation else y

    return Norm()


def test_second_derivatives_of_batch_norm_over_many_blocks(rng):
    """Float32 against float64, with a mean far from 0."""
    x = (rng.normal(size=(3000, 20)) + 100).astype(np.float32)
    found = []
    for dtype in (np.float32, np.float64):
        data = Parameter(x.astype(dtype))
        with Tape() as tape:
            y, _ = ops.batch_norm_train(data)
            (gradient,) = nbbn.grad((y**3).sum(), [data], create_graph=True)
            penalty = (gradient * gradient).sum()
        tape.backward(penalty)
        found.append(data.grad)
    scale = np.abs(found[1]).max()
    assert np.abs(found[0] - found[1]).max() < 3e-6 * scale


def test_a_penalty_trains_in_a_recorded_step(rng):
    """Inside a model; the recorded step gives what the eager one does, bit for bit."""

    class Penalized(nbbn.Module):
        recordable = True

        def __init__(self):
            self.net = nbbn.Sequential(
                nbbn.Dense(4, 6, rng=1),
                nbbn.BatchNorm(6, activation="relu"),
                nbbn.Dense(6, 1, rng=2),
            )

        def forward(self, x):
            x = Tensor(x.data, requires_grad=True)
            y = self.net(x)
            (gradient,) = nbbn.grad(y.sum(), [x], create_graph=True)
            return (y * y).mean() + (gradient * gradient).sum() / len(x)

    pair = Pair(under(Penalized, lambda p: optim.SGD(p, 0.01)), lambda output, y: output)
    assert pair.train(batches(rng, [8] * 5, (4,))) == 3


# ------------------------------------------------------------------------------ grad itself


def test_gradients_of_intermediate_results(rng):
    x = Parameter(rng.normal(size=4))
    with Tape() as tape:
        h = x * x
        y = (h * h + h).sum()
        dh, dx = nbbn.grad(y, [h, x], create_graph=True)
        (ddx,) = nbbn.grad(dh.sum(), [x])
        total = dx.sum()
    assert_close(dh.data, 2 * x.data**2 + 1)
    assert_close(dx.data, 4 * x.data**3 + 2 * x.data)
    assert_close(ddx.data, 4 * x.data)
    tape.backward(total)
    assert_close(x.grad, 12 * x.data**2 + 2)


@pytest.mark.parametrize("create_graph", [True, False])
@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=lambda case: case.name)
def test_a_gradient_has_the_type_of_its_tensor(case, create_graph, rng):
    """Where the first input alone is float32."""
    first, *others = case.arrays(rng)
    parameters = [Parameter(first.astype(np.float32)), *map(Parameter, others)]
    with Tape() as tape:
        y = case.function(*parameters)
        found = nbbn.grad(y, parameters, np.ones(y.shape, y.dtype), create_graph=create_graph)
        total = (found[0] * found[0]).sum()
    assert [g.dtype for g in found] == [p.dtype for p in parameters]
    if total.requires_grad:
        tape.backward(total)


def test_second_derivatives_where_types_mix(rng):
    """A float32 model of float64 input."""
    x, found = rng.normal(size=(6, 4)), []
    for dtype in (np.float32, np.float64):
        model = nbbn.Sequential(
            nbbn.Dense(4, 5, rng=0, dtype=dtype), nbbn.BatchNorm(5, dtype=dtype), nbbn.Tanh()
        )
        model[0].weight.data[...] = np.arange(20).reshape(5, 4) % 7 / 4
        data = Parameter(x)
        with Tape() as tape:
            gradients = nbbn.grad(
                (model(data) ** 2).sum(), [data, model[0].weight], create_graph=True
            )
            total = (gradients[0] ** 2).sum() + (gradients[1] ** 2).sum()
        tape.backward(total)
        found.append((data.grad, model[0].weight.grad))
    for got, want in zip(*found, strict=True):
        assert_close(got, want, 1e-4)


def test_third_derivatives_of_arithmetic(rng):
    x = Parameter(rng.normal(size=4))
    with Tape():
        value = (x**5).sum()
        for factor, power in ((5, 4), (20, 3), (60, 2)):
            (gradient,) = nbbn.grad(value, [x], create_graph=True)
            assert_close(gradient.data, factor * x.data**power)
            value = gradient.sum()


def test_what_an_output_ignores_and_what_passes_no_gradient(rng):
    x, other = Parameter(rng.normal(size=3)), Parameter(rng.normal(size=3))
    with Tape():
        y = (x * 2).sum()
        _ = other * 2
        with pytest.raises(TapeError, match="not depend on input 1"):
            nbbn.grad(y, [x, other])
        with pytest.raises(TapeError, match="not depend on input 0"):
            nbbn.grad(y, [x.data])
        for inputs in (x, None):
            with pytest.raises(DTypeError, match="inputs must be a list of Tensors"):
                nbbn.grad(y, inputs)


def test_where_grad_can_be_called(rng):
    x = Parameter(rng.normal(size=(2, 3)))
    with Tape() as tape:
        y = x * x
        with pytest.raises(ShapeError, match=r"\(2, 3\).*grad_output"):
            nbbn.grad(y, [x])
        with pytest.raises(ShapeError, match=r"\(2, 3\).*\(3,\)"):
            nbbn.grad(y, [x], np.ones(3))
        with pytest.raises(DTypeError, match=r"grad_output.*list"):
            nbbn.grad(y, [x], [1.0])
        total = y.sum()
    with pytest.raises(TapeError, match="inside its `with` block"):
        nbbn.grad(total, [x], create_graph=True)
    assert_close(nbbn.grad(total, [x])[0].data, 2 * x.data)
    tape.backward(total)
    for lost in (total, Tensor(np.ones(1)), 3.0):
        with pytest.raises(TapeError, match="no tape holds"):
            nbbn.grad(lost, [x])


def test_operations_without_a_second_derivative_say_so(rng):
    x = Parameter(rng.normal(size=(6, 3)))
    with Tape():
        y, _ = ops.ghost_batch_norm(x, size=3)
        with pytest.raises(TapeError, match="GhostBatchNorm has no second derivative"):
            nbbn.grad(y.sum(), [x], create_graph=True)
        y, _ = ops.batch_norm_train(x)
        (gradient,) = nbbn.grad((y**3).sum(), [x], create_graph=True)
        with pytest.raises(TapeError, match=BatchNormInputGradient.__name__):
            nbbn.grad(gradient.sum(), [x], create_graph=True)


class Doubled(ops.ReLU):
    """Computes something else than the operation whose rule it inherits."""

    @classmethod
    def forward(cls, ctx, x):
        return 2 * super().forward(ctx, x)


def test_a_subclass_of_an_operation_does_not_inherit_its_second_derivative(rng):
    x = Parameter(rng.normal(size=4))
    with Tape():
        y = nbbn.apply(Doubled, x).sum()
        with pytest.raises(TapeError, match="Doubled has no second derivative"):
            nbbn.grad(y, [x], create_graph=True)


class Cubed(nbbn.Op):
    """An operation of a user, with a rule of its own."""

    slope = 3.0

    @staticmethod
    def forward(ctx, x):
        ctx.x = x
        return x**3

    @staticmethod
    def backward(ctx, dy):
        return 3 * dy * ctx.x**2

    @classmethod
    def backward_graph(cls, ctx, dy, inputs, output):
        return dy * inputs[0] ** 2 * cls.slope


class Wrong(Cubed):
    slope = 2.5


def test_an_operation_of_a_user_can_have_second_derivatives(rng):
    x = rng.normal(size=4)
    nbbn.gradgradcheck(lambda x: nbbn.apply(Cubed, x), x)


def test_gradgradcheck_finds_a_wrong_rule(rng, monkeypatch):
    """One that is not the derivative of the first gradient, and one that is off by a factor."""
    x = rng.normal(size=(6, 3))
    true = BatchNormInputGradient.backward

    def wrong(ctx, dy):
        dg, dx, dgamma = true(ctx, dy)
        return dg, 1.001 * dx, dgamma

    monkeypatch.setattr(BatchNormInputGradient, "backward", staticmethod(wrong))
    with pytest.raises(ArgumentError, match="gradient of input 0 is wrong"):
        nbbn.gradgradcheck(lambda x: ops.batch_norm_train(x)[0], x)
    with pytest.raises(DTypeError, match=r"float64.*float32"):
        nbbn.gradgradcheck(lambda x: x * x, x.astype(np.float32))
