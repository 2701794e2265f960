"""Layers, models and losses against PyTorch, their state, their randomness, their errors."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import threadpoolctl

import nbbn
from nbbn import Convention, Parameter, Tape, Tensor, initializers, losses, optim
from nbbn.errors import ArgumentError, DTypeError, NbbnError, ShapeError
from nbbn.nn.losses import DoubleSoftmaxWarning
from tests.helpers import reference
from tests.helpers.layers import run, state_of
from tests.helpers.refusals import refusing

FLOATS = [np.float32, np.float64]
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12}

every_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: dtype.__name__)


def assert_close(got, want, dtype) -> None:
    """Compare with a torch tensor or an array, relative to its largest value."""
    want = want.detach().numpy() if hasattr(want, "detach") else np.asarray(want)
    assert got.shape == want.shape
    scale = max(float(np.max(np.abs(want), initial=0)), 1e-30)
    assert float(np.max(np.abs(got - want), initial=0)) <= TOLERANCE[dtype] * scale


def assert_all_close(found, expected) -> None:
    for got, want in zip(found, expected, strict=True):
        assert_close(got, want, np.float64)


def assert_matches_torch(torch, model, twin, x, dtype) -> None:
    """Compare output, gradients and, afterwards, the state of a layer and its torch twin."""
    leaf = torch.tensor(x, requires_grad=True)
    twin.zero_grad()
    expected = twin(leaf)
    dy = np.random.default_rng(1).normal(size=tuple(expected.shape)).astype(dtype)
    expected.backward(torch.tensor(dy))
    y, dx, found = run(model, x, dy)
    assert_close(y, expected, dtype)
    for got, tensor in zip([dx, *found], [leaf, *twin.parameters()], strict=True):
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
    layer, other = (
        nbbn.BatchNorm(3, convention=Convention(axis=a), dtype=np.float64).train(training)
        for a in (axis, 1)
    )
    y, dx, found = run(layer, x)
    want, dx_want, expected = run(other, np.moveaxis(x, axis, 1))
    moved = np.moveaxis(y, axis, 1), np.moveaxis(dx, axis, 1), *found
    assert_all_close(moved, (want, dx_want, *expected))
    assert_all_close(layer.state_dict().values(), other.state_dict().values())


@pytest.mark.parametrize("training", [True, False])
def test_fused_batch_norm_equals_its_parts(training, rng):
    x, residual = rng.normal(size=(2, 6, 3, 4))
    fused = nbbn.BatchNorm(3, activation="relu", dtype=np.float64).train(training)
    plain = nbbn.BatchNorm(3, dtype=np.float64).train(training)
    for addend in (None, residual):
        y, dx, found = run(_with(fused, addend), x)
        parts = nbbn.Sequential(_with(plain, addend, after=True), nbbn.ReLU())
        want, dx_want, expected = run(parts, x)
        assert_all_close((y, dx, *found), (want, dx_want, *expected))


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
    y, dx, found = run(layer, np.zeros((0, 3), np.float32))
    assert (y.shape, dx.shape) == ((0, 3), (0, 3))
    np.testing.assert_array_equal(found, np.zeros((2, 3)))
    np.testing.assert_array_equal(layer.running_var, np.ones(3))
    assert layer.num_batches_tracked == 1


def test_evaluation_changes_no_state(rng):
    layer = nbbn.BatchNorm(3)
    layer(rng.normal(size=(8, 3)).astype(np.float32))
    before = state_of(layer)
    layer.eval()
    layer(rng.normal(size=(1, 3)).astype(np.float32))
    assert state_of(layer) == before


@every_dtype
@pytest.mark.parametrize("training", [True, False])
def test_a_model_matches_torch(training, dtype, rng):
    torch = pytest.importorskip("torch")
    kind = {"dtype": torch_dtype(torch, dtype)}
    pairs = [
        (nbbn.Flatten(), torch.nn.Flatten()),
        (nbbn.Dense(12, 8, bias=False, dtype=dtype), torch.nn.Linear(12, 8, bias=False, **kind)),
        (nbbn.BatchNorm(8, dtype=dtype), torch.nn.BatchNorm1d(8, **kind)),
        (nbbn.Tanh(), torch.nn.Tanh()),
        (nbbn.Dense(8, 6, bias=False, dtype=dtype), torch.nn.Linear(8, 6, bias=False, **kind)),
        (nbbn.BatchNorm(6, dtype=dtype), torch.nn.BatchNorm1d(6, **kind)),
        (nbbn.ReLU(), torch.nn.ReLU()),
        (nbbn.Dense(6, 5, dtype=dtype), torch.nn.Linear(6, 5, **kind)),
        (nbbn.Sigmoid(), torch.nn.Sigmoid()),
        (nbbn.Softmax(axis=1), torch.nn.Softmax(dim=1)),
    ]
    layers, peers = zip(*pairs, strict=True)
    model = nbbn.Sequential(*layers).train(training)
    twin = torch.nn.Sequential(*peers).train(training)
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
        found.append(run(layer, x)[2][0])
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
    assert state_of(other) == state_of(model)


def test_state_dict_names_and_types():
    state = nbbn.mlp((4, 3, 2), rng=0).state_dict()
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert list(state) == ["0.weight", *(f"1.{name}" for name in norm), "2.weight", "2.bias"]
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
    before = state_of(model)
    state = {name: array + 1 for name, array in model.state_dict().items()}
    change(state)
    with pytest.raises(error, match=words):
        model.load_state_dict(state)
    assert state_of(model) == before


def test_loading_loosely_takes_what_fits():
    model = nbbn.mlp((4, 3, 2), rng=0)
    before = state_of(model)
    model.load_state_dict({"2.bias": np.array([5, 6]), "unknown": np.ones(1)}, strict=False)
    before["2.bias"] = np.dtype("f4"), np.array([5, 6], np.float32).tobytes()
    assert state_of(model) == before


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
    _, dx, found = run(block, rng.normal(size=(6, 3)).astype(np.float32))
    assert all(np.all(np.isfinite(g)) for g in (dx, *found))
    block.zero_grad()
    assert all(p.grad is None for p in block.parameters())


def test_modules_take_arrays_and_tensors(rng):
    x = rng.normal(size=(4, 3)).astype(np.float32)
    layer = nbbn.Dense(3, 2, rng=0)
    np.testing.assert_array_equal(layer(x).data, layer(Tensor(x)).data)


def test_a_slice_of_a_sequential_is_one_of_the_same_layers(rng):
    model = nbbn.mlp((4, 8, 3), rng=0).eval()
    features = model[:-1]
    assert isinstance(features, nbbn.Sequential)
    assert all(own is part for own, part in zip(model, features, strict=False))
    x = rng.normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_array_equal(model[-1](features(x)).data, model(x).data)
    assert list(model[1:].state_dict()) == list(nbbn.Sequential(*model[1:]).state_dict())
    assert len(model[5:]) == 0


def test_sequential_is_a_sequence():
    layers = [nbbn.Dense(2, 3), nbbn.ReLU()]
    model = nbbn.Sequential(*layers)
    assert len(model) == 2
    assert list(model) == layers
    assert model[-1] is layers[1]


@pytest.mark.parametrize(
    "text",
    [
        "Flatten()", "Dense(4, 3)", "Dense(3, 3, bias=False)", "BatchNorm(3, activation='relu')",
        "Dropout(0.25)", "Sigmoid()", "Tanh()", "ReLU()", "Softmax(axis=-1)",
    ],
)  # fmt: skip
def test_repr(text):
    layer = eval(text, vars(nbbn))
    assert repr(layer) == text
    assert repr(nbbn.Sequential(layer, layer)) == f"Sequential(\n    {text},\n    {text},\n)"


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
    first, second, shared, other = (
        state_of(nbbn.mlp(sizes, dropout=0.2, rng=rng))
        for rng in (7, 7, np.random.default_rng(7), 8)
    )
    assert first == second == shared
    assert first["0.weight"] != other["0.weight"]


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
        ("lecun", (1 / 300) ** 0.5, None),
        ("lecun_uniform", (1 / 300) ** 0.5, (3 / 300) ** 0.5),
        ("zeros", 0, 0),
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


def test_initializers_have_the_names_of_keras_and_of_pytorch():
    of_keras = {"zeros", "ones", "orthogonal"} | {
        f"{rule}_{kind}" for rule in ("lecun", "glorot", "he") for kind in ("normal", "uniform")
    }
    of_torch = {
        f"{rule}_{kind}" for rule in ("xavier", "kaiming") for kind in ("normal", "uniform")
    }
    table = initializers.INITIALIZERS
    assert table.keys() == of_keras | of_torch | {"he", "glorot", "lecun", "xavier", "kaiming"}
    for name, draw in table.items():
        same = name.replace("xavier", "glorot").replace("kaiming", "he")
        assert draw is table[same.removesuffix("_normal")]


@pytest.mark.parametrize("name", ["orthogonal", "ones", "zeros"])
@pytest.mark.parametrize("shape", [(5, 5), (3, 8), (8, 3), (1, 4)])
def test_initializers_that_torch_has_too(name, shape):
    weight = initializers.initialize(name, shape, 0, np.float64)
    if name == "orthogonal":
        small = weight if shape[0] <= shape[1] else weight.T
        np.testing.assert_allclose(small @ small.T, np.eye(min(shape)), atol=1e-14)
        rows = [initializers.initialize(name, shape, seed, np.float64)[0, 0] for seed in range(60)]
        # Both signs occur, as they do in a draw of QR alone for the first column only by chance.
        assert min(np.mean(np.array(rows) > 0), np.mean(np.array(rows) < 0)) > 0.25
    else:
        assert (weight == (name == "ones")).all()
    with threadpoolctl.threadpool_limits(1):
        again = initializers.initialize(name, shape, 0, np.float64)
    np.testing.assert_array_equal(weight, again)


def test_initializers_have_the_bounds_of_torch():
    torch = pytest.importorskip("torch")
    for name, draw in (
        ("kaiming_uniform", torch.nn.init.kaiming_uniform_),
        ("xavier_uniform", torch.nn.init.xavier_uniform_),
    ):
        theirs = draw(torch.empty(200, 300, dtype=torch.float64)).numpy()
        own = initializers.initialize(name, (200, 300), 0, np.float64)
        assert np.abs(theirs).max() == pytest.approx(np.abs(own).max(), rel=1e-3)


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
    y, dx, _ = run(nbbn.Dropout(0.5, rng=4), x, np.ones_like(x))
    np.testing.assert_array_equal(dx, y)


@pytest.mark.parametrize("layer", [nbbn.Dropout(0.5).eval(), nbbn.Dropout(0.0)])
def test_dropout_is_the_identity_in_evaluation_and_for_0(layer):
    x = Tensor(np.ones((3, 4)))
    assert layer(x) is x


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
        runs.append((seen, state_of(model)))
    assert runs[0] == runs[1]


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
    with pytest.warns(DoubleSoftmaxWarning, match=r"double softmax.*losses\.nll") as caught:
        losses.cross_entropy(probabilities, labels)
    assert caught[0].filename == __file__
    losses.cross_entropy(logits, labels)
    losses.nll(probabilities, labels)


# ----------------------------------------------------------------------------------- errors


X = np.ones((4, 3), np.float32)


class Empty(nbbn.Module):
    pass


REFUSED = [
    ('nbbn.Dense(2, 3, init="hee")', ArgumentError, "init.*he.*glorot.*hee"),
    ("nbbn.Dense(2, 3, init=-0.1)", ArgumentError, "deviation.*-0.1"),
    ("nbbn.Dense(2, 3, init=np.nan)", ArgumentError, "init.*nan"),
    ("nbbn.Dense(2, 3, init=None)", DTypeError, "init.*NoneType"),
    ("nbbn.Dense(2, 3, init=1e39)", ArgumentError, r"1e\+39, gives weights beyond float32"),
    ("initializers.initialize('he', (3, 2), 0, np.float32, fans=2)", DTypeError, "fan_out.*got 2"),
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
    ('nbbn.mlp((4, 3, 2), activation="swish")', ArgumentError, "relu.*sigmoid.*tanh.*gelu"),
    ('nbbn.mlp((4, 2), activation="swish")', ArgumentError, "gelu"),
    ('nbbn.mlp((4, 3, 2), init="he2")', ArgumentError, "he2"),
    ("nbbn.mlp((4, 3, 2), dropout=1.5)", ArgumentError, "1.5"),
    ("nbbn.Dense(3, 2)([[1.0, 2.0, 3.0]])", NbbnError, "list"),
    ('nbbn.Sequential(nbbn.Dense(2, 3), "relu")', DTypeError, "str"),
    ("Empty()(X)", NotImplementedError, "Empty must define forward"),
]  # fmt: skip


test_arguments_that_do_not_fit_are_refused = refusing(REFUSED, globals())


def test_a_refused_batch_leaves_the_state_alone(rng):
    layer = nbbn.BatchNorm(3)
    before = state_of(layer)
    for wrong in (np.ones((1, 3), np.float32), np.ones((4, 2), np.float32)):
        with pytest.raises(ShapeError):
            layer(wrong)
    assert state_of(layer) == before
