"""Device arrays through every floor: tensors, functions, devices that must not mix."""

from __future__ import annotations

import functools
import sys
import types

import ml_dtypes
import numpy as np
import pytest

import nbbn
from nbbn import Convention, Parameter, Tape, Tensor, backend, losses, optim, train
from nbbn import functional as F  # noqa: N812 - the usual name
from nbbn.backend.recorder import GraphPlan
from nbbn.errors import ArgumentError, DeviceError, DivergenceError, DTypeError
from tests.helpers import cases
from tests.helpers.cases import CASES
from tests.helpers.functions import FUNCTIONS, upstream


def cuda(array):
    return backend.to(np.asarray(array), "cuda")


# -------------------------------------------------------------------------------- parity


@pytest.fixture
def constants_on_device(monkeypatch):
    for name in ("LABELS", "MASK", "MEAN", "VAR"):
        monkeypatch.setattr(cases, name, cuda(getattr(cases, name)))


def run(case, arrays, device, dtype):
    parameters = [Parameter(a).to(device).detach() for a in arrays]
    for parameter in parameters:
        parameter.requires_grad = True
    with Tape() as tape:
        y = case.function(*parameters)
    weights = np.random.default_rng(3).normal(size=y.shape)
    tape.backward(y, backend.to(np.asarray(weights, y.dtype), device))
    for tensor in (y, *parameters):
        assert tensor.device == device
        assert tensor.dtype == dtype
    return [y.numpy(), *(backend.host(p.grad) for p in parameters)]


def on_host(case) -> bool:
    return case.name.startswith("variants.")


# "To" leaves the device: it has tests of its own.
ON_DEVICE = [case for case in CASES if not on_host(case) and case.name != "To"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", ON_DEVICE, ids=lambda case: case.name)
def test_values_and_gradients_are_those_of_the_cpu(case, dtype, rng, request):
    arrays = case.arrays(rng, dtype)
    expected = run(case, arrays, "cpu", dtype)
    request.getfixturevalue("constants_on_device")
    got = run(case, arrays, "cuda", dtype)
    tolerance = 2e-5 if dtype == np.float32 else 1e-12
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", [c for c in CASES if on_host(c)], ids=lambda case: case.name)
def test_what_has_no_cuda_kernels_says_so(case, rng):
    with pytest.raises(DeviceError, match="no CUDA kernels"):
        case.function(*(Parameter(a).to("cuda") for a in case.arrays(rng, np.float32)))


# Weights are for the host alone.
SMALL = [f for f in FUNCTIONS if "weights" not in f.shapes and f.size < 1000]


@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
@pytest.mark.parametrize("there", [False, True], ids=["dense", "other memory order"])
@pytest.mark.parametrize("f", SMALL, ids=lambda f: f.name)
def test_functions_of_any_layout_and_type(f, there, dtype, rng):
    """Against the CPU, which computes the half types in float32 and rounds once."""
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    operands = f.operands(rng, kind)
    if there:
        operands[0] = np.asfortranarray(operands[0])
    dy = upstream(f.forward(*operands))
    expected = f.everything(*operands, dy=dy)
    got = f.everything(*map(cuda, operands), dy=cuda(dy))
    tolerance = 2e-2 if kind.itemsize == 2 else 1e-12
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape
        assert a.flags.c_contiguous == b.flags.c_contiguous
        # Statistics, which are float64 on the host, have the type of parameters there.
        assert a.dtype in (b.dtype, np.float32)
        a, b = (np.asarray(c, np.float64) for c in (backend.host(a), b))
        size = max(1.0, np.abs(b).max(initial=0))
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * size)


WEIGHT = np.array([0.5, 2.0, 1.0])
LOSSES = {
    "classes": (
        losses.cross_entropy,
        {"weight": WEIGHT, "ignore_index": 1, "label_smoothing": 0.1},
    ),
    "probabilities": (losses.cross_entropy, {"weight": WEIGHT, "label_smoothing": 0.1}),
    "mse": (losses.mse, {}),
    "huber": (losses.huber, {"delta": 0.3}),
    "binary": (losses.binary_cross_entropy, {"weight": WEIGHT, "pos_weight": WEIGHT}),
}


def loss_there(name, device):
    """A loss with its weights where the batches are."""
    function, options = LOSSES[name]
    options = {
        key: backend.to(value, device) if isinstance(value, np.ndarray) else value
        for key, value in options.items()
    }
    return functools.partial(function, **options)


@pytest.mark.parametrize("name", LOSSES)
def test_steps_with_any_loss_are_replayed(name, rng):
    results = []
    batches = [
        (rng.normal(size=(6, 4)).astype(np.float32),
         rng.integers(0, 3, 6) if name == "classes" else rng.integers(0, 2, (6, 3)) * 1.0)
        for _ in range(5)
    ]  # fmt: skip
    for device in ("cpu", "cuda"):
        model = nbbn.mlp((4, 5, 3), rng=1).to(device)
        optimizer = optim.SGD(model.parameters(), 0.1)
        step = train.record_step(model, loss_there(name, device), optimizer)
        found = [step(*(backend.to(a, device) for a in b)) for b in batches]
        assert step.refusal is None
        results.append(found)
    np.testing.assert_allclose(*results, rtol=1e-5)


@pytest.mark.parametrize("replays", [0, 3])
def test_a_target_out_of_range_is_found_in_eager_and_replayed_steps(rng, replays):
    model = nbbn.mlp((4, 5, 1), rng=1).to("cuda")
    optimizer = optim.SGD(model.parameters(), 0.1)
    step = train.record_step(model, losses.binary_cross_entropy, optimizer)
    for _ in range(replays):
        step(cuda(rng.normal(size=(6, 4)).astype(np.float32)), cuda(rng.uniform(size=(6, 1))))
    with pytest.raises(ArgumentError, match=r"got 2\.0 at position 5"):
        step(cuda(np.ones((6, 4), np.float32)), cuda(np.array([[1, 0, 1, 0.5, 0, 2.0]]).T))


def test_batches_of_numbers(rng):
    x, y = rng.normal(size=(20, 4)), rng.normal(size=(20, 2, 3)).astype(np.float32)
    pairs = [list(nbbn.data.Batches(x, y, 6, rng=1, device=place)) for place in ("cpu", "cuda")]
    for (_, expected), (_, found) in zip(*pairs, strict=True):
        np.testing.assert_array_equal(backend.host(found), expected)


def test_inference_running_statistics_and_outputs_in_place(rng):
    x = rng.normal(size=(8, 3)).astype(np.float32)
    running = [np.zeros(3, np.float32), np.ones(3, np.float32)]
    on_device = [cuda(a) for a in running]
    expected = F.batch_norm(x, *running, training=True)
    got = F.batch_norm(cuda(x), *on_device, training=True)
    np.testing.assert_allclose(backend.host(got), expected, rtol=1e-5, atol=1e-6)
    for a, b in zip(on_device, running, strict=True):
        np.testing.assert_allclose(backend.host(a), b, rtol=1e-6)
    out = cuda(x)
    assert F.batch_norm_infer(out, *on_device, out=out) is out
    np.testing.assert_allclose(
        backend.host(out), F.batch_norm_infer(x, *running), rtol=1e-5, atol=1e-6
    )


# -------------------------------------------------------------------------------- tensors


def test_a_tensor_moves_there_and_back_and_so_does_its_gradient(rng):
    x = Parameter(rng.normal(size=(3, 2)))
    with Tape() as tape:
        moved = x.to("cuda")
        loss = (moved * moved).sum()
    assert (x.device, moved.device, loss.device) == ("cpu", "cuda", "cuda")
    tape.backward(loss)
    assert isinstance(x.grad, np.ndarray)
    np.testing.assert_allclose(x.grad, 2 * x.data)
    assert moved.to("cuda") is moved
    np.testing.assert_array_equal(moved.to("cpu").data, x.data)
    assert "cuda" in repr(moved)
    assert moved.sum().item() == pytest.approx(x.data.sum())


def test_a_copy_on_the_device_is_its_own(rng):
    x = rng.normal(size=3).astype(np.float32)
    moved = Tensor(x).to("cuda")
    before = x.copy()
    x[:] = 0
    np.testing.assert_array_equal(moved.numpy(), before)
    moved.numpy()[:] = 0
    np.testing.assert_array_equal(moved.numpy(), before)


def test_a_module_moves_with_its_buffers_and_its_state_stays_on_the_host(rng):
    model = nbbn.mlp((4, 3, 2), rng=1)
    expected = model.state_dict()
    assert model.to("cuda") is model
    norm = model[1]
    assert {p.device for p in model.parameters()} == {"cuda"}
    assert backend.device_of(norm.running_mean) == "cuda"
    assert isinstance(norm.num_batches_tracked, np.ndarray)
    state = model.state_dict()
    for name, array in expected.items():
        assert isinstance(state[name], np.ndarray)
        np.testing.assert_array_equal(state[name], array)
    model.load_state_dict({name: array + 1 for name, array in expected.items()})
    model.to("cpu")
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, expected[name] + 1)


# ---------------------------------------------------------------- devices that must not mix

X = np.ones((4, 3), np.float32)
V = np.ones(3, np.float32)
MIXED = {
    "x, gamma": lambda: F.batch_norm_train(cuda(X), V),
    "gamma, x": lambda: F.batch_norm_train(X, cuda(V)),
    "residual": lambda: F.batch_norm_train(cuda(X), residual=X),
    "out": lambda: F.relu(cuda(X), out=X.copy()),
    "out there": lambda: F.relu(X, out=cuda(X)),
    "mean": lambda: F.batch_norm_infer(cuda(X), V, V),
    "running": lambda: F.batch_norm(cuda(X), V.copy(), V.copy(), training=True),
    "stats": lambda: F.batch_norm_backward(X, X, F.batch_norm_train(cuda(X))[1]),
    "dy": lambda: F.relu_backward(cuda(X), X),
    "labels": lambda: F.cross_entropy(cuda(X), np.zeros(4, np.int64)),
    "labels there": lambda: F.cross_entropy(X, cuda(np.zeros(4, np.int64))),
    "add": lambda: Tensor(X) + Tensor(cuda(X)),
    "matmul": lambda: Tensor(cuda(X)) @ Tensor(X.T),
    "dense": lambda: nbbn.Dense(3, 2)(cuda(X)),
    "batch norm": lambda: nbbn.BatchNorm(3).to("cuda")(X),
    "foreign": lambda: F.batch_norm_train(X, Foreign(V)),
}


@pytest.mark.parametrize("call", MIXED.values(), ids=MIXED)
def test_operands_on_two_devices_are_refused(call):
    with pytest.raises(DeviceError) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert {word for word in ("cpu", "cuda") if word in str(caught.value)} or "device" in str(
        caught.value
    )


@pytest.mark.parametrize("array", [
    np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1), np.asfortranarray(np.eye(3, 2)),
    np.arange(12.0).reshape(3, 4)[::-1, ::2], np.broadcast_to(np.float32(3), (2, 3)),
    np.array(2.5), np.empty((0, 3)),
], ids=["permuted", "fortran", "gaps", "broadcast", "scalar", "empty"])  # fmt: skip
def test_a_copy_has_the_values_and_the_order_of_axes(array):
    copy = cuda(array)
    np.testing.assert_array_equal(backend.host(copy), array)
    assert copy.shape == array.shape
    assert copy.strides == array.copy("K").strides


def test_an_optimizer_made_before_the_move_says_what_to_do():
    model = nbbn.mlp((3, 2), rng=0)
    optimizer = optim.SGD(model.parameters())
    model.to("cuda")
    with pytest.raises(DeviceError, match=r"after model\.to"):
        optimizer.step()


def test_unknown_devices_are_refused():
    with pytest.raises(DeviceError, match="'gpu'"):
        Tensor(X).to("gpu")


# ---------------------------------------------------------------- arrays of other libraries


class Foreign:
    """Another library's array in what the simulator calls device memory."""

    def __init__(self, array):
        self.array = array

    @property
    def __cuda_array_interface__(self):
        return {**self.array.__array_interface__, "version": 3}


@pytest.fixture(params=["torch", "jax"])
def library(request, monkeypatch):
    """A package whose arrays are Foreign and which speaks DLPack, where PyTorch or JAX does."""
    package = speaks = types.ModuleType(request.param)
    monkeypatch.setattr(Foreign, "__module__", "torch")
    if request.param == "jax":
        speaks = package.numpy = types.ModuleType("jax.numpy")
        monkeypatch.setattr(Foreign, "__module__", "jaxlib._jax")
    speaks.from_dlpack = lambda array: Foreign(array.host)
    monkeypatch.setitem(sys.modules, request.param, package)


@pytest.mark.usefixtures("library")
def test_arrays_of_others_go_in_without_a_copy_and_results_come_back_in_kind(rng):
    x, dy = rng.normal(size=(2, 8, 3)).astype(np.float32)
    gamma = np.full(3, 2, np.float32)
    y, stats = F.batch_norm_train(Foreign(x), Foreign(gamma))
    expected, expected_stats = F.batch_norm_train(x, gamma)
    assert isinstance(y, Foreign)
    assert isinstance(stats.mean, Foreign)
    np.testing.assert_allclose(y.array, expected, rtol=1e-5, atol=1e-6)
    gradients = F.batch_norm_backward(Foreign(dy), Foreign(x), stats, gamma=Foreign(gamma))
    for got, want in zip(
        gradients, F.batch_norm_backward(dy, x, expected_stats, gamma), strict=True
    ):
        np.testing.assert_allclose(got.array, want, rtol=1e-4, atol=1e-5)
    out = Foreign(np.empty_like(x))
    assert F.relu(Foreign(x), out=out) is out
    np.testing.assert_array_equal(out.array, np.maximum(x, 0))
    own = Foreign(x.copy())
    assert F.relu(own, out=own) is own
    np.testing.assert_array_equal(own.array, np.maximum(x, 0))


def test_the_other_library_waits_also_for_what_was_written_into_its_own_arrays(rng, monkeypatch):
    """PyTorch's stream waits for the current one when it is handed an array, and only then."""
    seen = []
    torch = types.ModuleType("torch")
    torch.from_dlpack = lambda array: seen.append([a.copy() for a in watched])
    monkeypatch.setattr(Foreign, "__module__", "torch")
    monkeypatch.setitem(sys.modules, "torch", torch)
    x, out, mean, var = (np.array(a, np.float32) for a in (rng.normal(size=(4, 3)), X, V, V))
    watched = (out,)
    F.relu(Foreign(x), out=Foreign(out))
    np.testing.assert_array_equal(seen.pop()[0], np.maximum(x, 0))
    stats = F.batch_norm_train(cuda(x))[1]
    watched = (mean, var)
    F.update_running_stats(Foreign(mean), Foreign(var), stats)
    expected = V.copy(), V.copy()
    F.update_running_stats(*expected, F.batch_norm_train(x)[1])
    for got, want in zip(seen.pop(), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)
    assert not seen


class ReadOnly(Foreign):
    """An array that its library never changes, such as JAX's."""

    @property
    def __cuda_array_interface__(self):
        interface = super().__cuda_array_interface__
        return {**interface, "data": (interface["data"][0], True)}


def test_arrays_that_others_do_not_change_are_not_written(rng):
    x = rng.normal(size=(4, 3)).astype(np.float32)
    np.testing.assert_array_equal(F.relu(ReadOnly(x)).host, np.maximum(x, 0))
    out = np.zeros_like(x)
    with pytest.raises(ArgumentError, match="out is read-only"):
        F.relu(Foreign(x), out=ReadOnly(out))
    with pytest.raises(ArgumentError, match="running_var is read-only"):
        F.batch_norm(Foreign(x), Foreign(V.copy()), ReadOnly(V.copy()), training=True)
    assert not out.any()


# ---------------------------------------------------------------- the recorded step


def batch(rng, labels=None):
    y = rng.integers(0, 3, 6) if labels is None else np.array(labels)
    return cuda(rng.normal(size=(6, 4)).astype(np.float32)), cuda(y)


def model_and_step(**options):
    model = nbbn.mlp((4, 5, 3), rng=1, dropout=0.3).to("cuda")
    optimizer = optim.Adam(model.parameters(), lr=optim.Cosine(1e-2, 20), **options)
    return model, optimizer, train.record_step(model, losses.cross_entropy, optimizer)


def test_groups_and_counts_are_those_of_the_host():
    def run(device):
        rng = np.random.default_rng(0)
        shapes = [(4, 3), (3,), (2, 5)]
        own = [Parameter(rng.normal(size=shape).astype(np.float32)) for shape in shapes]
        for p in own:
            p.data = backend.to(p.data, device)
        groups = [{"params": own[:2]}, {"params": own[2:], "lr": 0.1, "weight_decay": 0.0}]
        optimizer = optim.AdamW(groups, 0.01)
        for step in range(7):
            for position, p in enumerate(own):
                gradient = backend.to(np.sin(backend.host(p.data) + step), device)
                p.grad = None if (step + position) % 3 == 0 else gradient
            optimizer.step()
        return optimizer.state_dict(), [backend.host(p.data) for p in own]

    (state, own), (expected, others) = run("cuda"), run("cpu")
    assert state["counts"].tolist() == expected["counts"].tolist() == [4, 5, 5]
    for p, other in zip(own, others, strict=True):
        np.testing.assert_allclose(p, other, rtol=1e-6)


def test_replayed_steps_are_the_eager_ones_bit_for_bit(rng):
    batches = [batch(rng) for _ in range(6)]
    model, optimizer, step = model_and_step()
    got = [step(*b) for b in batches]
    assert step.refusal is None
    (plan,) = step._plans.values()
    assert isinstance(plan, GraphPlan)
    eager_model, eager_optimizer, eager = model_and_step()
    assert got == [eager._eager(*b).item() for b in batches]
    assert optimizer.step_count == eager_optimizer.step_count == 6
    expected = eager_model.state_dict()
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, expected[name])


def test_a_replayed_step_runs_no_python_of_the_model_and_changes_when_asked_later(rng):
    model, _, step = model_and_step()
    for _ in range(3):
        step(*batch(rng))
    calls = []
    vars(model)["forward"] = calls.append
    first, second = step.submit(*batch(rng)), step.submit(*batch(rng))
    assert first() != second()
    assert first() == first()
    assert not calls


def test_a_declared_loss_is_tried_once_and_replayed(rng):
    loss = nbbn.recordable(lambda output, y: [losses.cross_entropy(output, y)][0])
    batches = [batch(rng) for _ in range(4)]
    model, optimizer, _ = model_and_step()
    step = train.record_step(model, loss, optimizer)
    got = [step(*b) for b in batches]
    assert step.refusal is None
    assert isinstance(next(iter(step._plans.values())), GraphPlan)
    other, _, eager = model_and_step()
    assert got == [eager._eager(*b).item() for b in batches]
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, other.state_dict()[name])


def test_a_schedule_that_may_look_at_gradients_runs_eagerly(rng):
    seen = []
    _, optimizer, step = model_and_step()
    optimizer.schedule = lambda number: seen.append(number) or 0.01
    seen.clear()  # of the check on assignment
    with pytest.warns(RuntimeWarning, match="a learning-rate schedule could look at gradients"):
        step(*batch(rng))
    assert seen == [0]


@pytest.mark.parametrize("kind", [np.int64, np.uint8])
@pytest.mark.parametrize("replays", [0, 3])
def test_a_label_out_of_range_is_found_in_eager_and_replayed_steps(rng, replays, kind):
    _, _, step = model_and_step()
    for _ in range(replays):
        step(*batch(rng, rng.integers(0, 3, 6).astype(kind)))
    with pytest.raises(ArgumentError, match=r"\[0, 3\).*got 7 at position 2"):
        step(*batch(rng, np.array([0, 1, 7, 2, 0, 9], kind)))


def test_momentum_of_none_counts_on_in_replayed_steps(rng):
    """The weight of a batch is a number on the host: such a step is replayed without a graph."""
    batches = [batch(rng) for _ in range(5)]
    results = []
    for device in ("cpu", "cuda"):
        norm = nbbn.BatchNorm(4, convention=Convention(momentum=None))
        model = nbbn.Sequential(norm, nbbn.Dense(4, 3, rng=2)).to(device)
        step = train.record_step(
            model, losses.cross_entropy, optim.SGD(model.parameters(), momentum=0.9)
        )
        for b in batches:
            step(*(backend.to(a, device) for a in b))
        assert step.refusal is None
        results.append(model.state_dict())
    for name, array in results[0].items():
        np.testing.assert_allclose(results[1][name], array, rtol=1e-5, atol=1e-6)


def test_fit_stops_when_the_loss_is_not_finite(rng):
    model = nbbn.mlp((4, 3), rng=1).to("cuda")
    x = rng.normal(size=(12, 4)).astype(np.float32)
    x[9] = np.nan
    batches = nbbn.data.Batches(x, rng.integers(0, 3, 12), 4, shuffle=False, device="cuda")
    pattern = r"step 3 of epoch 1 \(3 in all\): the batch itself .*; the step has been made; "
    with pytest.raises(DivergenceError, match=pattern):
        train.fit(model, batches, optim.SGD(model.parameters()), epochs=1)


def test_a_step_takes_no_batch_on_two_devices_or_on_another_than_the_model(rng):
    x, y = batch(rng)
    _, _, step = model_and_step()
    with pytest.raises(DeviceError, match="y is on cpu"):
        step(x, backend.host(y))
    with pytest.raises(DeviceError, match="weight is on cuda"):
        step(backend.host(x), backend.host(y))


def test_a_step_takes_no_lists():
    _, _, step = model_and_step()
    with pytest.raises(DTypeError, match="list"):
        step([1.0], [0])
