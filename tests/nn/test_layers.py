"""Layers, models and losses against PyTorch, their state, their randomness, their errors."""

from __future__ import annotations

import logging

import numpy as np
import pytest

import nbbn
from nbbn import Convention, Parameter, Tape, Tensor, initializers, losses, optim
from nbbn.errors import ArgumentError, DTypeError, NbbnError, ShapeError
from nbbn.nn.losses import DoubleSoftmaxWarning
from tests.helpers import reference
from tests.helpers.refusals import refused

FLOATS = [np.float32, np.float64]
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12}

every_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: dtype.__name__)


def assert_close(got, want, dtype) -> None:
    """Compare with a torch tensor or an array, relative to its largest value."""
    want = want.detach().numpy() if hasattr(want, "detach") else np.asarray(want)
    assert got.shape == want.shape
    scale = max(float(np.max(np.abs(want), initial=0)), 1e-30)
    assert float(np.max(np.abs(got - want), initial=0)) <= TOLERANCE[dtype] * scale


def assert_same_state(a, b) -> None:
    """Check that two state dicts hold the same bits."""
    assert a.keys() == b.keys()
    for name, array in a.items():
        assert array.dtype == b[name].dtype
        assert array.tobytes() == b[name].tobytes(), name


def gradients(model, x, dy=None, loss=None):
    """Run forward and backward; return the output and the gradients of x and all parameters."""
    x = Parameter(x)
    model.zero_grad()
    with Tape() as tape:
        y = model(x)
        result = y if loss is None else loss(y)
    tape.backward(result, dy)
    return y.data, [x.grad, *(p.grad for p in model.parameters())]


def assert_matches_torch(torch, model, twin, x, dtype) -> None:
    """Compare output, gradients and, afterwards, the state of a layer and its torch twin."""
    leaf = torch.tensor(x, requires_grad=True)
    twin.zero_grad()
    expected = twin(leaf)
    dy = np.random.default_rng(1).normal(size=tuple(expected.shape)).astype(dtype)
    expected.backward(torch.tensor(dy))
    y, found = gradients(model, x, dy)
    assert_close(y, expected, dtype)
    for got, tensor in zip(found, [leaf, *twin.parameters()], strict=True):
        assert got.dtype == dtype
        assert_close(got, tensor.grad, dtype)
    for name, tensor in twin.state_dict().items():
        assert_close(model.state_dict()[name], tensor, dtype)


def copy_to_torch(torch, model, twin) -> None:
    """Load the state of a model into its torch twin, whose names and shapes must be the same."""
    own = {name: array.shape for name, array in model.state_dict().items()}
    assert own == {name: tuple(t.shape) for name, t in twin.state_dict().items()}
    assert list(own) == list(twin.state_dict())
    twin.load_state_dict({name: torch.from_numpy(a) for name, a in model.state_dict().items()})


def torch_dtype(torch, dtype):
    return {np.float32: torch.float32, np.float64: torch.float64}[dtype]


# --------------------------------------------------------------------- layers against torch


SHAPES = {1: (9, 3), 2: (4, 3, 5, 2), 3: (3, 3, 2, 4, 2)}
OPTIONS = [
    {},
    {"momentum": 0.3},
    {"momentum": None},
    {"eps": 1e-2},
    {"affine": False},
    {"track_running_stats": False},
    {"momentum": None, "affine": False, "track_running_stats": False},
]


def like_torch(dtype, eps=1e-5, momentum=0.1, affine=True, **options):
    """Build the layer for the arguments of PyTorch's."""
    convention = Convention(eps, momentum)
    return nbbn.BatchNorm(
        3, convention=convention, scale=affine, shift=affine, dtype=dtype, **options
    )


@every_dtype
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_batch_norm_matches_torch(options, rank, dtype, rng):
    """Three training batches, then evaluation, then training again."""
    torch = pytest.importorskip("torch")
    model = like_torch(dtype, **options)
    if model.gamma is not None:
        model.gamma.data[...] = rng.uniform(0.5, 1.5, 3)
        model.beta.data[...] = rng.normal(size=3)
    twin = getattr(torch.nn, f"BatchNorm{rank}d")(3, dtype=torch_dtype(torch, dtype), **options)
    copy_to_torch(torch, model, twin)
    for training in (True, True, True, False, True):
        model.train(training)
        twin.train(training)
        x = (2 * rng.normal(size=SHAPES[rank]) + 1).astype(dtype)
        assert_matches_torch(torch, model, twin, x, dtype)


@pytest.mark.parametrize(("shape", "axis"), [((4, 5, 3), -1), ((3, 8), 0), ((2, 4, 3, 5), 2)])
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_over_another_axis(shape, axis, training, rng):
    x = rng.normal(size=shape)
    layers = [
        nbbn.BatchNorm(3, convention=Convention(axis=a), dtype=np.float64).train(training)
        for a in (axis, 1)
    ]
    found = gradients(layers[0], x, np.cos(x))
    moved = np.moveaxis(x, axis, 1)
    expected = gradients(layers[1], moved, np.cos(moved))
    assert_close(np.moveaxis(found[0], axis, 1), expected[0], np.float64)
    assert_close(np.moveaxis(found[1][0], axis, 1), expected[1][0], np.float64)
    for got, want in zip(found[1][1:], expected[1][1:], strict=True):
        assert_close(got, want, np.float64)
    for name, array in layers[0].state_dict().items():
        assert_close(array, layers[1].state_dict()[name], np.float64)


@pytest.mark.parametrize("training", [True, False])
def test_fused_batch_norm_equals_its_parts(training, rng):
    x, residual = rng.normal(size=(2, 6, 3, 4))
    fused = nbbn.BatchNorm(3, activation="relu", dtype=np.float64).train(training)
    plain = nbbn.BatchNorm(3, dtype=np.float64).train(training)
    for addend in (None, residual):
        found = gradients(_with(fused, addend), x, np.cos(x))
        parts = nbbn.Sequential(_with(plain, addend, after=True), nbbn.ReLU())
        expected = gradients(parts, x, np.cos(x))
        assert_close(found[0], expected[0], np.float64)
        for got, want in zip(found[1], expected[1], strict=True):
            assert_close(got, want, np.float64)


class _with(nbbn.Module):  # noqa: N801 - reads as a phrase
    """A BatchNorm with a residual, given to it or added after it."""

    def __init__(self, norm, residual, *, after=False):
        self.norm, self.residual, self.after = norm, residual, after

    def forward(self, x):
        if self.residual is None:
            return self.norm(x)
        return self.norm(x) + self.residual if self.after else self.norm(x, self.residual)


def test_an_empty_batch_counts_but_changes_nothing_else():
    layer = nbbn.BatchNorm(3)
    y, (dx, dgamma, dbeta) = gradients(layer, np.zeros((0, 3), np.float32), np.zeros((0, 3), "f4"))
    assert (y.shape, dx.shape) == ((0, 3), (0, 3))
    np.testing.assert_array_equal([dgamma, dbeta], np.zeros((2, 3)))
    np.testing.assert_array_equal(layer.running_var, np.ones(3))
    assert layer.num_batches_tracked == 1


def test_evaluation_changes_no_state(rng):
    layer = nbbn.BatchNorm(3)
    layer(rng.normal(size=(8, 3)).astype(np.float32))
    before = layer.state_dict()
    layer.eval()
    layer(rng.normal(size=(1, 3)).astype(np.float32))
    assert_same_state(layer.state_dict(), before)


@every_dtype
@pytest.mark.parametrize("training", [True, False])
def test_a_model_matches_torch(training, dtype, rng):
    torch = pytest.importorskip("torch")
    model = nbbn.Sequential(
        nbbn.Flatten(),
        nbbn.Dense(12, 8, bias=False, rng=rng, dtype=dtype),
        nbbn.BatchNorm(8, dtype=dtype),
        nbbn.Tanh(),
        nbbn.Dense(8, 6, bias=False, rng=rng, dtype=dtype),
        nbbn.BatchNorm(6, dtype=dtype),
        nbbn.ReLU(),
        nbbn.Dense(6, 5, rng=rng, dtype=dtype),
        nbbn.Sigmoid(),
        nbbn.Softmax(axis=1),
    ).train(training)
    nn, kind = torch.nn, {"dtype": torch_dtype(torch, dtype)}
    twin = nn.Sequential(
        nn.Flatten(),
        nn.Linear(12, 8, bias=False, **kind),
        nn.BatchNorm1d(8, **kind),
        nn.Tanh(),
        nn.Linear(8, 6, bias=False, **kind),
        nn.BatchNorm1d(6, **kind),
        nn.ReLU(),
        nn.Linear(6, 5, **kind),
        nn.Sigmoid(),
        nn.Softmax(dim=1),
    ).train(training)
    copy_to_torch(torch, model, twin)
    assert_matches_torch(torch, model, twin, rng.normal(size=(10, 3, 4)).astype(dtype), dtype)


def test_float64_input_to_a_float32_model(rng):
    """The usual slip with NumPy: it must train as float32 input does, or say what to do."""
    x, labels = rng.normal(size=(6, 4)), np.arange(6) % 2
    model = nbbn.mlp((4, 3, 2), rng=0)
    optimizer = optim.SGD(model.parameters(), 0.1)
    with Tape() as tape:
        loss = losses.cross_entropy(model(x), labels)
    tape.backward(loss)
    assert all(p.grad.dtype == np.float32 for p in model.parameters())
    optimizer.step()


def test_tied_parameters_get_the_sum_of_their_gradients(rng):
    """Also with an optimizer, into whose flat array the gradients are written directly."""
    x = rng.normal(size=(6, 3))
    found = []
    for adopted in (False, True):
        layer = nbbn.BatchNorm(3, dtype=np.float64)
        layer.beta = layer.gamma
        if adopted:
            optim.SGD(layer.parameters(), 0.1)
        found.append(gradients(layer, x, np.cos(x))[1][1])
    np.testing.assert_array_equal(*found)


# ------------------------------------------------------------------------------------ state


def test_state_goes_both_ways_between_nbbn_and_torch(rng):
    torch = pytest.importorskip("torch")
    model = nbbn.mlp((6, 5, 3), rng=rng)
    model(rng.normal(size=(8, 6)).astype(np.float32))
    nn = torch.nn
    twin = nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.Linear(5, 3))
    copy_to_torch(torch, model, twin)
    other = nbbn.mlp((6, 5, 3), rng=99)
    other.load_state_dict(twin.state_dict())
    assert_same_state(other.state_dict(), model.state_dict())


def test_state_dict_names_and_types():
    state = nbbn.mlp((4, 3, 2), rng=0).state_dict()
    assert list(state) == [
        "0.weight",
        "1.weight",
        "1.bias",
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
        "2.weight",
        "2.bias",
    ]
    assert state["1.num_batches_tracked"].dtype == np.int64
    assert state["1.num_batches_tracked"].shape == ()


def test_state_dict_copies(rng):
    model = nbbn.Dense(2, 2, rng=rng)
    state = model.state_dict()
    state["weight"] += 1
    assert not np.array_equal(state["weight"], model.weight.data)


def test_loading_keeps_the_arrays_in_place():
    """Optimizers and recorded steps hold on to them."""
    model = nbbn.BatchNorm(2)
    arrays = [model.gamma.data, model.running_mean, model.num_batches_tracked]
    model.load_state_dict({name: array + 1 for name, array in model.state_dict().items()})
    assert arrays[0] is model.gamma.data
    np.testing.assert_array_equal(arrays[0], [2, 2])
    np.testing.assert_array_equal(arrays[1], [1, 1])
    assert arrays[2] == 1


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda s: s.pop("1.running_var"), ArgumentError, "missing.*1.running_var"),
        (lambda s: s.update(extra=np.ones(1)), ArgumentError, "unexpected.*extra"),
        (lambda s: s.update({"2.bias": np.ones(3)}), ShapeError, r"2.bias.*\(2,\).*\(3,\)"),
        (lambda s: s.update({"2.bias": np.ones((2, 1))}), ShapeError, r"2.bias.*\(2, 1\)"),
        (lambda s: s.update({"2.bias": np.ones(2, complex)}), DTypeError, "2.bias.*complex128"),
        (lambda s: s.update({"2.bias": np.array(["a", "b"])}), DTypeError, "2.bias.*U1"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change, error, words):
    model = nbbn.mlp((4, 3, 2), rng=0)
    before = model.state_dict()
    state = {name: array + 1 for name, array in before.items()}
    change(state)
    with pytest.raises(error, match=words):
        model.load_state_dict(state)
    assert_same_state(model.state_dict(), before)


def test_loading_loosely_takes_what_fits():
    model = nbbn.mlp((4, 3, 2), rng=0)
    before = model.state_dict()
    model.load_state_dict({"2.bias": np.array([5, 6]), "unknown": np.ones(1)}, strict=False)
    before["2.bias"] = np.array([5, 6], np.float32)
    assert_same_state(model.state_dict(), before)


def test_a_state_from_before_the_batch_counter_loads():
    model = nbbn.BatchNorm(2)
    state = model.state_dict()
    del state["num_batches_tracked"]
    model.load_state_dict(state)
    assert model.num_batches_tracked == 0


# ---------------------------------------------------------------------------------- modules


class Block(nbbn.Module):
    """A user's module: parameters, submodules, plain attributes, a shared layer."""

    def __init__(self):
        self.scale = Parameter([2.0])
        self.first = nbbn.Dense(3, 3, rng=0)
        self.again = self.first
        self.inner = nbbn.Sequential(nbbn.BatchNorm(3), nbbn.Dropout(0.5, rng=1))
        self.name = "block"

    def forward(self, x):
        return self.inner(self.again(self.first(x))) * self.scale


def test_parameters_come_once_and_in_order():
    block = Block()
    norm = block.inner[0]
    expected = [block.scale, block.first.weight, block.first.bias, norm.gamma, norm.beta]
    assert [id(p) for p in block.parameters()] == [id(p) for p in expected]


def test_train_and_eval_reach_every_module():
    block = Block()
    assert block.training
    assert block.eval() is block
    assert [module.training for module in block.modules()] == [False] * 5
    assert block.train() is block
    assert all(module.training for module in block.modules())


def test_a_users_module_trains(rng):
    block = Block()
    _, found = gradients(block, rng.normal(size=(6, 3)).astype(np.float32), loss=lambda y: y.mean())
    assert all(np.all(np.isfinite(g)) for g in found)
    block.zero_grad()
    assert all(p.grad is None for p in block.parameters())


def test_forward_must_be_defined():
    class Empty(nbbn.Module):
        pass

    with pytest.raises(NotImplementedError, match="Empty must define forward"):
        Empty()(np.ones((1, 1)))


def test_modules_take_arrays_and_tensors(rng):
    x = rng.normal(size=(4, 3)).astype(np.float32)
    layer = nbbn.Dense(3, 2, rng=0)
    np.testing.assert_array_equal(layer(x).data, layer(Tensor(x)).data)
    with pytest.raises(NbbnError, match="list"):
        layer([[1.0, 2.0, 3.0]])


def test_sequential_is_a_sequence():
    layers = [nbbn.Dense(2, 3), nbbn.ReLU()]
    model = nbbn.Sequential(*layers)
    assert len(model) == 2
    assert list(model) == layers
    assert model[-1] is layers[1]
    with pytest.raises(DTypeError, match="str"):
        nbbn.Sequential(layers[0], "relu")


def test_repr():
    model = nbbn.Sequential(
        nbbn.Flatten(),
        nbbn.Dense(4, 3),
        nbbn.Dense(3, 3, bias=False),
        nbbn.BatchNorm(3, activation="relu"),
        nbbn.Dropout(0.25),
        nbbn.Sigmoid(),
        nbbn.Tanh(),
        nbbn.ReLU(),
        nbbn.Softmax(),
    )
    assert repr(model).splitlines() == [
        "Sequential(",
        "    Flatten(),",
        "    Dense(4, 3),",
        "    Dense(3, 3, bias=False),",
        "    BatchNorm(3, activation='relu'),",
        "    Dropout(0.25),",
        "    Sigmoid(),",
        "    Tanh(),",
        "    ReLU(),",
        "    Softmax(axis=-1),",
        ")",
    ]


def test_a_bias_before_batch_norm_is_noted(caplog):
    with caplog.at_level(logging.INFO, logger="nbbn"):
        nbbn.Sequential(nbbn.Dense(2, 3, bias=False), nbbn.BatchNorm(3), nbbn.Dense(3, 2))
        assert not caplog.records
        nbbn.Sequential(nbbn.Dense(2, 3), nbbn.BatchNorm(3))
    assert "bias=False" in caplog.text


@pytest.mark.parametrize("shape", [(4, 6), (4, 2, 3), (4, 1, 2, 3), (0, 2, 3), (4,)])
def test_flatten(shape):
    y = nbbn.Flatten()(np.zeros(shape, np.float32))
    assert y.shape == (shape[0], int(np.prod(shape[1:])))


# ------------------------------------------------------------------------------- randomness


def test_the_same_seed_gives_the_same_model():
    sizes = (20, 16, 12, 5)
    first, second = (nbbn.mlp(sizes, dropout=0.2, rng=7).state_dict() for _ in range(2))
    assert_same_state(first, second)
    shared = nbbn.mlp(sizes, dropout=0.2, rng=np.random.default_rng(7)).state_dict()
    assert_same_state(first, shared)
    other = nbbn.mlp(sizes, rng=8).state_dict()
    assert not np.array_equal(first["0.weight"], other["0.weight"])


def test_the_seed_decides_for_both_types():
    single, double = (nbbn.Dense(9, 8, rng=3, dtype=dtype).weight.data for dtype in FLOATS)
    assert (single.dtype, double.dtype) == (np.float32, np.float64)
    np.testing.assert_array_equal(single, double.astype(np.float32))


@pytest.mark.parametrize(
    ("init", "sigma", "bound"),
    [
        ("he", (2 / 300) ** 0.5, None),
        ("he_uniform", (2 / 300) ** 0.5, (6 / 300) ** 0.5),
        ("glorot", (2 / 500) ** 0.5, None),
        ("glorot_uniform", (2 / 500) ** 0.5, (6 / 500) ** 0.5),
        (0.01, 0.01, None),
        (0, 0, 0),
    ],
)
def test_initializers(init, sigma, bound):
    weight = nbbn.Dense(300, 200, init=init, rng=1, dtype=np.float64).weight.data
    assert weight.shape == (200, 300)
    # Five standard errors of 60,000 draws.
    assert abs(weight.mean()) <= 5 * sigma / 60_000**0.5
    assert abs(weight.std() - sigma) <= 5 * sigma / (2 * 60_000) ** 0.5
    if bound is not None:
        assert np.abs(weight).max() <= bound


def test_every_initializer_is_in_the_table():
    assert set(initializers.INITIALIZERS) == {"he", "he_uniform", "glorot", "glorot_uniform"}


def test_dropout_statistics():
    x = np.full((400, 500), 2.0, np.float32)
    y = nbbn.Dropout(0.3, rng=1)(x).data
    kept = y != 0
    # Five standard errors of 200,000 draws.
    assert abs(kept.mean() - 0.7) < 5 * (0.3 * 0.7 / x.size) ** 0.5
    np.testing.assert_allclose(y[kept], 2 / 0.7, rtol=1e-6)
    assert y.dtype == np.float32


def test_philox_gives_the_published_words():
    """The known answers that Random123 publishes for philox4x32-10."""
    assert reference.philox(0, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = reference.philox(2**128 - 1, 2**64 - 1)
    assert ones == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


@pytest.mark.parametrize("size", [1, 3, 4, 1001])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dropout_masks_are_philox_words_against_p(size, dtype):
    from nbbn.kernels.dropout_cpu import dropout_mask

    mask = np.full(size, np.nan, dtype)
    key = np.array([0xFEDCBA9876543210], np.uint64)
    dropout_mask(key, 0.3, mask)
    kept = reference.dropout_kept((size,), 0.3, int(key[0]))
    np.testing.assert_array_equal(mask, np.where(kept, dtype(1 / 0.7), dtype(0)))


def test_dropout_draws_anew_and_alike_for_a_seed():
    x = np.ones((30, 40), np.float32)
    first, second = (nbbn.Dropout(0.5, rng=4) for _ in range(2))
    draws = [first(x).data for _ in range(3)]
    for draw in draws:
        np.testing.assert_array_equal(draw, second(x).data)
    assert not np.array_equal(draws[0], draws[1])


def test_dropout_passes_the_gradient_where_it_passes_the_value():
    x = np.ones((30, 40))
    y, (dx,) = gradients(nbbn.Dropout(0.5, rng=4), x, np.ones_like(x))
    np.testing.assert_array_equal(dx, y)


@pytest.mark.parametrize("layer", [nbbn.Dropout(0.5).eval(), nbbn.Dropout(0.0)])
def test_dropout_is_the_identity_in_evaluation_and_for_0(layer):
    x = Tensor(np.ones((3, 4)))
    assert layer(x) is x


# -------------------------------------------------------------------------------------- mlp


def names(model):
    return [repr(layer) for layer in model]


def test_mlp_puts_batch_norm_and_relu_in_one():
    assert names(nbbn.mlp((6, 5, 4, 3), dropout=0.1)) == [
        "Dense(6, 5, bias=False)",
        "BatchNorm(5, activation='relu')",
        "Dropout(0.1)",
        "Dense(5, 4, bias=False)",
        "BatchNorm(4, activation='relu')",
        "Dropout(0.1)",
        "Dense(4, 3)",
    ]


@pytest.mark.parametrize(("activation", "layer"), [("tanh", "Tanh()"), ("sigmoid", "Sigmoid()")])
def test_mlp_with_other_activations(activation, layer):
    hidden = ["Dense(6, 5, bias=False)", "BatchNorm(5)", layer]
    assert names(nbbn.mlp((6, 5, 3), activation=activation)) == [*hidden, "Dense(5, 3)"]


def test_mlp_without_batch_norm():
    assert names(nbbn.mlp([6, 5, 3], batch_norm=False)) == ["Dense(6, 5)", "ReLU()", "Dense(5, 3)"]
    assert names(nbbn.mlp((6, 3))) == ["Dense(6, 3)"]


def test_mlp_passes_its_options_on():
    model = nbbn.mlp((6, 5, 3), init=0.0, dtype=np.float64)
    assert all(p.dtype == np.float64 for p in model.parameters())
    np.testing.assert_array_equal(model[0].weight.data, np.zeros((5, 6)))
    assert model[1].running_mean.dtype == np.float64


# ----------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@every_dtype
def test_nll_of_a_softmax_equals_cross_entropy_of_its_logits(dtype, reduction, rng):
    """Bit for bit, over several training steps: losses, gradients and parameters."""
    x = rng.normal(size=(16, 6)).astype(dtype)
    labels = rng.integers(0, 4, 16)
    runs = []
    for ends_in_softmax in (False, True):
        body = nbbn.mlp((6, 8, 4), rng=2, dtype=dtype)
        model = nbbn.Sequential(*body, nbbn.Softmax()) if ends_in_softmax else body
        loss_fn = losses.nll if ends_in_softmax else losses.cross_entropy
        optimizer = optim.Adam(model.parameters(), 0.01)
        seen = []
        for _ in range(5):
            optimizer.zero_grad()
            with Tape() as tape:
                loss = loss_fn(model(x), labels, reduction=reduction)
            tape.backward(loss, np.ones(loss.shape, dtype))
            seen += [loss.data.tobytes(), *(p.grad.tobytes() for p in model.parameters())]
            optimizer.step()
        runs.append((seen, model.state_dict()))
    assert runs[0][0] == runs[1][0]
    assert_same_state(runs[0][1], runs[1][1])


def test_nll_of_a_softmax_stays_finite_where_the_probability_underflows():
    logits = Parameter(np.array([[0.0, 2000.0]], np.float32))
    labels = np.array([0])
    with Tape() as tape:
        loss = losses.nll(nbbn.Softmax()(logits), labels)
    assert loss.item() == 2000
    tape.backward(loss)
    np.testing.assert_array_equal(logits.grad, [[-1, 1]])


def test_nll_of_probabilities_of_another_axis_is_taken_as_it_is(rng):
    x = Tensor(rng.normal(size=(3, 3)))
    labels = np.arange(3)
    p = nbbn.Softmax(axis=0)(x)
    want = -np.log(p.data[labels, labels]).mean()
    np.testing.assert_allclose(losses.nll(p, labels).item(), want, rtol=1e-12)


def test_double_softmax_warns(rng):
    logits, labels = Tensor(rng.normal(size=(4, 3))), np.array([0, 1, 2, 0])
    probabilities = nbbn.Softmax()(logits)
    with pytest.warns(DoubleSoftmaxWarning, match=r"double softmax.*losses\.nll"):
        losses.cross_entropy(probabilities, labels)
    losses.cross_entropy(logits, labels)
    losses.nll(probabilities, labels)


def test_the_warning_points_at_the_caller(rng):
    probabilities = nbbn.Softmax()(rng.normal(size=(2, 3)))
    with pytest.warns(DoubleSoftmaxWarning) as caught:
        losses.cross_entropy(probabilities, np.array([0, 1]))
    assert caught[0].filename == __file__


# ----------------------------------------------------------------------------------- errors


X = np.ones((4, 3), np.float32)

REFUSED = [
    ('nbbn.Dense(2, 3, init="hee")', ArgumentError, "init.*he.*glorot.*hee"),
    ("nbbn.Dense(2, 3, init=-0.1)", ArgumentError, "deviation.*-0.1"),
    ("nbbn.Dense(2, 3, init=np.nan)", ArgumentError, "init.*nan"),
    ("nbbn.Dense(2, 3, init=None)", DTypeError, "init.*NoneType"),
    ("nbbn.Dense(2, 3, dtype=int)", DTypeError, "float32 or float64.*int"),
    ('nbbn.Dense(2, 3, dtype="f2")', DTypeError, "float32 or float64.*f2"),
    ('nbbn.Dense(2, 3, dtype="x")', DTypeError, "float32 or float64.*x"),
    ("nbbn.Dense(5, 2)(X)", ShapeError, r"\(N, 5\).*\(4, 3\)"),
    ("nbbn.Dense(5, 2)(np.ones((2, 5, 1)))", ShapeError, r"\(2, 5, 1\)"),
    ("nbbn.Dense(3, 2)(np.ones((4, 3), int))", DTypeError, "int64"),
    ("nbbn.Dense(3, 2)(X * 1j)", DTypeError, "complex"),
    ("nbbn.Dense(2**24, 2**23)", ArgumentError, "8388608, 16777216.*512 TiB.*smaller sizes"),
    ("nbbn.BatchNorm(10**20)", ArgumentError, "BatchNorm.*100000000000000000000.*TiB"),
    ("nbbn.mlp((784, 2**62, 10))", ArgumentError, "Dense.*TiB"),
    ('nbbn.BatchNorm(3, activation="tanh")', ArgumentError, "activation.*relu.*tanh"),
    ("nbbn.BatchNorm(4)(X)", ShapeError, r"4 channels.*\(4, 3\)"),
    ("nbbn.BatchNorm(3, convention=Convention(axis=2))(X)", ShapeError, r"axis 2.*\(4, 3\)"),
    ("nbbn.BatchNorm(3)(X[:1])", ShapeError, "more than 1 value"),
    ("nbbn.BatchNorm(3, track_running_stats=False).eval()(X[:1])", ShapeError, "more than 1 value"),
    ("nbbn.BatchNorm(3)(np.ones(3))", ShapeError, r"\(3,\)"),
    ("nbbn.BatchNorm(3)(X, X[:2])", ShapeError, r"\(2, 3\)"),
    ("nbbn.Softmax(axis=2)(X)", ShapeError, r"axis 2.*\(4, 3\)"),
    ("nbbn.Flatten()(np.ones(()))", ShapeError, r"\(\)"),
    ("nbbn.mlp((784,))", ArgumentError, r"\(784,\)"),
    ("nbbn.mlp(784)", DTypeError, "int"),
    ("nbbn.mlp((784, 0, 10))", ArgumentError, "at least 1.*0"),
    ('nbbn.mlp((4, 3, 2), activation="gelu")', ArgumentError, "relu.*sigmoid.*tanh.*gelu"),
    ('nbbn.mlp((4, 2), activation="gelu")', ArgumentError, "gelu"),
    ('nbbn.mlp((4, 3, 2), init="he2")', ArgumentError, "he2"),
    ("nbbn.mlp((4, 3, 2), dropout=1.5)", ArgumentError, "1.5"),
]  # fmt: skip


@refused(REFUSED, globals())
def test_arguments_that_do_not_fit_are_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_refused_batch_leaves_the_state_alone(rng):
    layer = nbbn.BatchNorm(3)
    before = layer.state_dict()
    for wrong in (np.ones((1, 3), np.float32), np.ones((4, 2), np.float32)):
        with pytest.raises(ShapeError):
            layer(wrong)
    assert_same_state(layer.state_dict(), before)
