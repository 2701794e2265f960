"""Settings, statistics and weights between PyTorch, Keras and ONNX."""

from __future__ import annotations

import contextlib
import inspect
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

import nbbn
from nbbn import Convention, convert
from nbbn.errors import ArgumentError, CheckpointError, DTypeError, ShapeError
from nbbn.export import BatchNormState
from tests.helpers.layers import state_of
from tests.helpers.refusals import refusing


def recorded(batches, channels, *, of_old: float) -> tuple[np.ndarray, np.ndarray]:
    """What Keras records after `batches`, by its recursion in float64."""
    mean, var = np.zeros(channels), np.ones(channels)
    for x in batches:
        mean = of_old * mean + (1 - of_old) * x.mean(axis=0)
        var = of_old * var + (1 - of_old) * x.var(axis=0, ddof=0)
    return mean, var


def net(bias: bool = True, **options) -> nbbn.Sequential:
    return nbbn.Sequential(
        nbbn.Dense(4, 6, bias=bias, rng=0, dtype=np.float64),
        nbbn.BatchNorm(6, activation="relu", dtype=np.float64, **options),
        nbbn.Dense(6, 3, rng=1, dtype=np.float64),
    )


# -------------------------------------------------------------------------------- conventions


@pytest.mark.parametrize("updates", [0, 1, 3, 200])
@pytest.mark.parametrize(("target", "old"), [("keras", 0.7), ("onnx", 0.7)])
def test_the_other_framework_would_have_recorded_the_same(updates, target, old, rng):
    """The weight of the initial variance differs from one: after 3 updates it is a third."""
    batches = [rng.normal(2, 3, size=(5, 4)) for _ in range(updates)]
    layer = nbbn.BatchNorm(4, convention=Convention(momentum=1 - old), dtype=np.float64)
    for x in batches:
        layer(x)
    state = BatchNormState.of(layer)
    there = state.to(target, count=5)
    mean, var = recorded(batches, 4, of_old=old)
    np.testing.assert_allclose(there.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(there.var, var, rtol=1e-12)
    assert there.momentum == pytest.approx(old, abs=1e-15)
    assert (there.momentum_weighs, there.unbiased) == ("old", False)
    assert (there.eps, there.updates) == (1e-5, updates)
    back = there.to("torch", count=5)
    np.testing.assert_allclose(back.var, state.var, rtol=1e-13)
    assert back.momentum == pytest.approx(layer.momentum, abs=1e-15)


def test_a_cumulative_average_converts_too(rng):
    layer = nbbn.BatchNorm(3, convention=Convention(momentum=None), dtype=np.float64)
    batches = [rng.normal(size=(4, 3)) for _ in range(5)]
    for x in batches:
        layer(x)
    expected = np.mean([x.var(axis=0) for x in batches], axis=0)
    found = BatchNormState.of(layer)._replace(momentum=0.1).to("keras", count=4).var
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    with pytest.raises(ArgumentError, match="momentum=None averages all batches"):
        BatchNormState.of(layer).to("keras")


def test_without_a_count_the_variance_and_so_inference_stays(rng):
    layer = nbbn.BatchNorm(3)
    layer(rng.normal(size=(4, 3)).astype(np.float32))
    state = BatchNormState.of(layer)
    for target in ("torch", "keras", "onnx"):
        assert state.to(target).var.tobytes() == state.var.tobytes()
    assert state.to("keras").momentum == pytest.approx(0.9)


def test_without_updates_the_statistics_count_as_settled():
    options = {"momentum": 0.99, "momentum_weighs": "old", "unbiased": False}
    state = BatchNormState(np.zeros(2), np.array([2.0, 4.0]), **options)
    np.testing.assert_allclose(state.to("torch", count=5).var, [2.5, 5.0], rtol=1e-15)
    assert state.to("torch").momentum == pytest.approx(0.01)


def test_a_state_goes_into_a_layer_and_out_again(rng):
    a, b = nbbn.BatchNorm(3, convention=Convention(eps=1e-2, momentum=0.3)), nbbn.BatchNorm(3)
    for _ in range(3):
        a(rng.normal(size=(4, 3)).astype(np.float32))
    BatchNormState.of(a).to("keras", count=4).assign(b, count=4)
    assert (b.eps, int(b.num_batches_tracked)) == (1e-2, 3)
    assert b.momentum == pytest.approx(0.3)
    np.testing.assert_allclose(b.running_var, a.running_var, rtol=1e-6)
    np.testing.assert_array_equal(b.running_mean, a.running_mean)


def test_layers_of_two_conventions_record_the_same(rng):
    """Trained on the same batches, each holds what the other's state converts to."""
    batches = [rng.normal(2, 3, size=(6, 4)) for _ in range(4)]
    torch = nbbn.BatchNorm(4, convention=Convention(momentum=0.2), dtype=np.float64)
    keras = nbbn.BatchNorm(4, convention=Convention.of("keras", momentum=0.8), dtype=np.float64)
    own = Convention.of("onnx", momentum=0.8, unbiased=True)
    mixed = nbbn.BatchNorm(4, convention=own, dtype=np.float64)
    own = Convention(momentum=0.2, zero_debias=True)
    debiased = nbbn.BatchNorm(4, convention=own, dtype=np.float64)
    for x in batches:
        for layer in (torch, keras, mixed, debiased):
            layer(x)
    for source in (torch, keras, mixed):
        for like in (torch, keras, mixed):
            own = Convention.of(like.convention, unbiased=like.unbiased)
            target = nbbn.BatchNorm(4, convention=own, dtype=np.float64)
            BatchNormState.of(source).assign(target, count=6)
            np.testing.assert_allclose(target.running_var, like.running_var, rtol=1e-12)
            assert target.momentum == pytest.approx(like.momentum, abs=1e-15)
    biased = BatchNormState.of(debiased).to("onnx", count=6).var
    np.testing.assert_allclose(biased, debiased.running_var * 5 / 6, rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int64])
def test_a_variance_of_few_bits_loses_none(dtype):
    state = BatchNormState(np.zeros(1), np.array([3], dtype))
    found = state.to("keras", count=7).var
    assert found.dtype == (np.float64 if dtype == np.int64 else np.float32)
    np.testing.assert_allclose(found, [3 * 6 / 7], rtol=1e-7)


def test_a_count_of_no_batches_beside_statistics_says_nothing(rng):
    """Such a file comes from a framework without the counter: the statistics have settled."""
    model = net(convention="keras")
    state = convert.to_torch(model) | {"1.running_var": np.full(6, 2.0)}
    assert state["1.num_batches_tracked"] == 0
    convert.load_torch(model, state, count=5)
    np.testing.assert_allclose(model[1].running_var, 2 * 4 / 5)


def test_batches_that_were_skipped_are_no_updates(rng):
    layer = nbbn.BatchNorm(3, skip_nonfinite=True, dtype=np.float64)
    batches = [rng.normal(size=(4, 3)) for _ in range(2)]
    for x in (batches[0], np.full((4, 3), np.nan), batches[1]):
        layer(x)
    state = BatchNormState.of(layer)
    assert state.updates == 2
    _, var = recorded(batches, 3, of_old=0.9)
    np.testing.assert_allclose(state.to("keras", count=4).var, var, rtol=1e-12)
    state.assign(layer)
    assert (int(layer.num_batches_tracked), int(layer.num_batches_skipped)) == (2, 0)


def test_a_keras_layer_goes_on_where_torch_left_off():
    """The momentum of the layer tells how much of the initial variance is left."""
    torch = pytest.importorskip("torch")
    module, model = trained_torch(torch), net(convention="keras")
    convert.load_torch(model, module.state_dict(), count=16)
    recursion = (module[1].running_var.numpy() - 0.9**5) * 15 / 16 + 0.9**5
    np.testing.assert_allclose(model[1].running_var, recursion, rtol=1e-12)
    assert (model[1].eps, model[1].momentum) == (1e-5, pytest.approx(0.9))
    back = convert.to_torch(model, count=16)["1.running_var"]
    np.testing.assert_allclose(back, module[1].running_var.numpy(), rtol=1e-12)


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (lambda s: s.to("caffe"), ArgumentError, "framework must be one of 'torch', 'keras'"),
        (lambda s: s.to("keras", count=1), ArgumentError, "count must be at least 2"),
        (lambda s: s.to("keras", count=2.5), DTypeError, "count must be an integer"),
        (lambda s: s.assign(nbbn.Dense(2, 2)), DTypeError, "layer must be a BatchNorm, got Dense"),
        (lambda s: s.assign(nbbn.BatchNorm(4)), ShapeError, "gamma of the layer must have shape"),
        (lambda s: s.assign(nbbn.BatchNorm(3, scale=False, shift=False)),
         ArgumentError, "no place for the ga"),
        (lambda s: s._replace(mean=None).assign(nbbn.BatchNorm(3)), ArgumentError, "is missing"),
        (lambda s: s._replace(momentum=2.0).assign(nbbn.BatchNorm(3)), ArgumentError, "momentum"),
    ],
)  # fmt: skip
def test_states_that_do_not_fit(action, error, message):
    with pytest.raises(error, match=message):
        action(BatchNormState.of(nbbn.BatchNorm(3)))


def test_options_build_the_same_layer_elsewhere():
    layer = nbbn.BatchNorm(3, convention=Convention(eps=2e-5, momentum=0.25))
    assert convert.options(layer, "torch") == {
        "eps": 2e-5, "momentum": 0.25, "affine": True, "track_running_stats": True,
    }  # fmt: skip
    assert convert.options(layer, "keras") == {
        "axis": 1, "epsilon": 2e-5, "momentum": 0.75, "scale": True, "center": True,
    }  # fmt: skip
    assert convert.options(layer, "onnx") == {"epsilon": 2e-5, "momentum": 0.75}


# ------------------------------------------------------------------------------------ PyTorch


def trained_torch(torch, *, bias: bool = True):
    """Train a small PyTorch net for a few batches; return it in evaluation mode."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Linear(4, 6, bias=bias), torch.nn.BatchNorm1d(6), torch.nn.ReLU(),
        torch.nn.Linear(6, 3),
    ).double()  # fmt: skip
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        module(torch.randn(16, 4, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
    return module


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("how", ["tensors", "arrays", "file", "old"])
def test_a_torch_model_computes_the_same_here(how, bias, rng, tmp_path):
    """The Dense here has no bias: PyTorch's goes into the running mean."""
    torch = pytest.importorskip("torch")
    module = trained_torch(torch, bias=bias)
    source = module.state_dict()
    if how == "file":
        save = pytest.importorskip("safetensors.torch").save_file
        save(source, tmp_path / "net.safetensors")
        source = tmp_path / "net.safetensors"
    elif how != "tensors":
        source = {name: tensor.numpy() for name, tensor in source.items()}
    if how == "old":
        del source["1.num_batches_tracked"]
    model = net(bias=False)
    convert.load_torch(model, source)
    assert int(model[1].num_batches_tracked) == (0 if how == "old" else 5)
    x = rng.normal(size=(7, 4))
    for training in (False, True, False):
        module.train(training)
        model.train(training)
        expected = module(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_allclose(model(x).data, expected, rtol=1e-12, atol=1e-12)
    expected_var = module[1].running_var.numpy()
    np.testing.assert_allclose(model[1].running_var, expected_var, rtol=1e-12)


def test_a_model_goes_to_torch_and_back(rng, tmp_path):
    torch = pytest.importorskip("torch")
    model = net()
    for _ in range(3):
        model(rng.normal(size=(8, 4)))
    state = convert.to_torch(model, names=["0", "1", "3"])
    module = trained_torch(torch)
    module.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    x = rng.normal(size=(5, 4))
    expected = module.eval()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(model.eval()(x).data, expected, rtol=1e-12, atol=1e-12)
    safetensors.numpy.save_file(state, tmp_path / "net.safetensors")
    again = net()
    convert.load_torch(again, tmp_path / "net.safetensors")
    assert state_of(again) == state_of(model)


def test_the_bias_in_front_of_untracked_statistics_is_dropped(rng):
    """A batch's own mean subtracts it: nothing is lost."""
    model = net(bias=False, track_running_stats=False)
    state = convert.to_torch(model) | {"0.bias": rng.normal(size=6)}
    x = rng.normal(size=(5, 4))
    expected = model(x).data
    convert.load_torch(model, state)
    np.testing.assert_array_equal(model(x).data, expected)


def test_a_batch_norm_without_state_is_skipped(rng):
    model = net(scale=False, shift=False, track_running_stats=False)
    state = convert.to_torch(model)
    assert list(state) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    other = net(scale=False, shift=False, track_running_stats=False)
    other[0].weight.data[...] = 0
    convert.load_torch(other, state)
    assert state_of(other) == state_of(model)


AFFINE = [(True, True), (True, False), (False, True), (False, False)]


@pytest.fixture(params=["this", "older"])
def torch_of_an_age(request, monkeypatch):
    """PyTorch, and PyTorch as it was when a scale came with a shift."""
    torch = pytest.importorskip("torch")
    if request.param == "older":

        class BatchNorm1d(torch.nn.BatchNorm1d):
            def __init__(
                self, num_features, eps=1e-5, momentum=0.1, affine=True, track_running_stats=True
            ):
                super().__init__(num_features, eps, momentum, affine, track_running_stats)

        monkeypatch.setattr(torch.nn, "BatchNorm1d", BatchNorm1d)
    elif "bias" not in inspect.signature(torch.nn.BatchNorm1d).parameters:
        pytest.skip("this PyTorch has no BatchNorm with scale and no shift")
    return torch, request.param


@pytest.mark.parametrize("tracked", [True, False])
@pytest.mark.parametrize(("scale", "shift"), AFFINE)
def test_options_build_the_same_module_in_torch(scale, shift, tracked, torch_of_an_age, rng):
    """It learns what the layer learns, under the same names, and trains alike."""
    torch, age = torch_of_an_age
    learns = {"scale": scale, "shift": shift, "track_running_stats": tracked}
    model = net(convention=Convention(eps=1e-2, momentum=0.3), **learns)
    inexact = (scale, shift) == (False, True) or (scale > shift and age == "older")
    absent = "weight" if shift else "bias"
    warned = rf"module\.{absent}\.requires_grad_\(False\)"
    with pytest.warns(UserWarning, match=warned) if inexact else contextlib.nullcontext():
        options = convert.options(model[1], "torch")
    assert ("bias" in options) == ((scale, shift) == (True, False) and age == "this")
    module = torch.nn.Sequential(
        torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6, **options), torch.nn.ReLU(),
        torch.nn.Linear(6, 3),
    ).double()  # fmt: skip
    if inexact:
        getattr(module[1], absent).requires_grad_(False)
    learned = [name for name, p in module[1].named_parameters() if p.requires_grad]
    assert learned == ["weight"] * scale + ["bias"] * shift
    assert (module[1].eps, module[1].momentum) == (1e-2, 0.3)

    names = ["0", "1", "3"] if scale or shift or tracked else ["0", "3"]
    state = convert.to_torch(model, names=names)
    module.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1)
    own = nbbn.optim.SGD(model.parameters(), 0.1)
    for _ in range(4):
        x = rng.normal(size=(8, 4))
        optimizer.zero_grad()
        loss = module(torch.from_numpy(x)).square().mean()
        loss.backward()
        optimizer.step()
        with nbbn.Tape() as tape:
            value = (model(nbbn.Tensor(x)) ** 2).mean()
        tape.backward(value)
        own.step()
        own.zero_grad()
        assert value.item() == pytest.approx(loss.item(), rel=1e-10)

    again = net(**learns)
    convert.load_torch(again, module.state_dict(), names=names, eps=1e-2, momentum=0.3)
    for name, array in model.state_dict().items():
        np.testing.assert_allclose(again.state_dict()[name], array, rtol=1e-9, atol=1e-12)


def test_a_scale_alone_leaves_no_shift_in_the_state(rng):
    """Without any PyTorch loaded too: files are for the present one."""
    model = net(shift=False)
    assert "1.bias" not in convert.to_torch(model, names=["0", "1", "3"])
    code = (
        "import sys, nbbn; from nbbn import convert; layer = nbbn.BatchNorm(3, shift=False);"
        "assert convert.options(layer, 'torch')['bias'] is False;"
        "assert 'bias' not in convert.to_torch(layer);"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("missing", ["scale", "shift"])
def test_what_does_nothing_is_left_out_on_the_way_back(missing):
    """A scale of ones, which PyTorch always has beside a shift, and a shift of zeros."""
    model, other = net(**{missing: False}), net(**{missing: False})
    state = convert.to_torch(model)
    name, neutral = {"scale": ("1.weight", 1), "shift": ("1.bias", 0)}[missing]
    state.setdefault(name, np.zeros(6))
    np.testing.assert_array_equal(state[name], np.full(6, neutral))
    other[0].weight.data[...] = 0
    convert.load_torch(other, state)
    assert state_of(other) == state_of(model)
    state[name] = state[name] + 1
    with pytest.raises(ArgumentError, match="the model has no place for"):
        convert.load_torch(other, state)


def test_a_module_without_shift_needs_a_layer_without():
    torch = pytest.importorskip("torch")
    if "bias" not in inspect.signature(torch.nn.BatchNorm1d).parameters:
        pytest.skip("this PyTorch has no BatchNorm with scale and no shift")
    module = torch.nn.BatchNorm1d(3, bias=False)
    layer = nbbn.BatchNorm(3, shift=False)
    convert.load_torch(layer, module.state_dict())
    full = nbbn.BatchNorm(3)
    before = state_of(full)
    with pytest.raises(ArgumentError, match="the beta of PyTorch's '' is missing"):
        convert.load_torch(full, module.state_dict())
    assert state_of(full) == before


@pytest.mark.parametrize(("scale", "shift"), AFFINE)
def test_keras_options_say_what_is_learned(scale, shift):
    layer = nbbn.BatchNorm(3, scale=scale, shift=shift)
    options = convert.options(layer, "keras")
    assert (options["scale"], options["center"]) == (scale, shift)
    assert len(convert.to_keras(layer)) == 2 + scale + shift


def deep(width: int = 5) -> nbbn.Sequential:
    return nbbn.mlp((width,) * 13, rng=3)


def renamed(state, names, own) -> dict:
    """Rename modules, and forget the order as a safetensors file does."""
    table = dict(zip(own, names, strict=True))
    found = {}
    for key, array in state.items():
        module, _, leaf = key.rpartition(".")
        found[f"{table[module]}.{leaf}"] = array
    return dict(sorted(found.items()))


def modules_of(state) -> list[str]:
    return list(dict.fromkeys(key.rpartition(".")[0] for key in state))


@pytest.mark.parametrize("template", ["net.{}", "block{}.part", "{}", "module.layers.{}.0"])
def test_numbered_names_are_put_in_order(template):
    """Twelve layers of one shape: 10 must not come before 2."""
    model = deep()
    for position, parameter in enumerate(model.parameters()):
        parameter.data[...] = position
    state = convert.to_torch(model)
    own = modules_of(state)
    names = [template.format(7 + 3 * position) for position in range(len(own))]
    other = deep()
    convert.load_torch(other, renamed(state, names, own))
    assert state_of(other) == state_of(model)


def test_shapes_decide_where_names_say_nothing():
    model, other = (nbbn.mlp((3, 5, 4, 2), rng=seed) for seed in (0, 1))
    state = convert.to_torch(model)
    names = ["zebra", "yak", "ox", "newt", "ant"]
    convert.load_torch(other, renamed(state, names, modules_of(state)))
    assert state_of(other) == state_of(model)


def test_names_decide_where_shapes_say_nothing():
    model, other = (nbbn.mlp((4, 4, 4), rng=seed) for seed in (0, 1))
    state = convert.to_torch(model)
    state = renamed(state, ["hidden", "norm", "classifier"], modules_of(state))
    before = state_of(other)
    with pytest.raises(ArgumentError, match=r"their names give no order: pass names=\[...\]"):
        convert.load_torch(other, state)
    assert state_of(other) == before
    convert.load_torch(other, state, names=["hidden", "norm", "classifier"])
    assert state_of(other) == state_of(model)


def test_settings_that_files_lack():
    model = net()
    state = convert.to_torch(model)
    given = {"eps": 1e-4, "momentum": 0.2}
    for options, expected in (({}, (1e-5, 0.1)), (given, (1e-4, 0.2)), ({}, (1e-4, 0.2))):
        convert.load_torch(model, state, **options)
        assert (model[1].eps, model[1].momentum) == expected


def _without(state, name):
    return {key: array for key, array in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: _without(s, "1.running_var"), ArgumentError, "running variance of PyTorch's"),
        (lambda s: _without(s, "2.bias"), ArgumentError, "bias of PyTorch's '2' is missing"),
        (lambda s: s | {"7.weight": np.ones((9, 9))}, ArgumentError, "has 0 layers for a Linear"),
        (lambda s: s | {"7.weight": np.ones((9, 9, 3))}, ArgumentError, "neither a Linear, a conv"),
        (lambda s: s | {"7.weight": np.ones((9, 9, 3, 3))}, ArgumentError, "0 layers for a conv"),
        (lambda s: s | {"7.alpha": np.ones(3)}, ArgumentError, "'7.alpha' belongs to neither"),
        (lambda s: s | {"2.bias": np.ones(5)}, ShapeError, r"must have shape \(3,\), got \(5,\)"),
        (lambda s: s | {"2.bias": np.array("x")}, DTypeError, "2.bias must hold real numbers"),
        (lambda s: s | {"1.num_batches_tracked": np.ones(3)}, ShapeError, "must be one integer"),
        (lambda s: {3: np.ones(3)}, DTypeError, "names in a state dict are strings, got 3"),
        (lambda s: [1, 2], DTypeError, "path of a safetensors file or a mapping"),
        (lambda s: "nowhere.safetensors", CheckpointError, "there is no file nowhere.safetensors"),
        (lambda s: __file__, CheckpointError, "safetensors.torch.save_file"),
    ],
)
def test_state_dicts_that_do_not_fit_change_nothing(change, error, message):
    model = net()
    state = {name: array + 1 for name, array in convert.to_torch(model).items()}
    before = state_of(model)
    with pytest.raises(error, match=message):
        convert.load_torch(model, change(state))
    assert state_of(model) == before


def test_convolutions_come_from_pytorch_and_go_back(rng):
    torch = pytest.importorskip("torch")
    theirs = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, (3, 2), stride=2, groups=8, bias=False),
        torch.nn.ConvTranspose2d(8, 4, 3, stride=2, output_padding=1, groups=2),
        torch.nn.Flatten(), torch.nn.Linear(320, 5),
    ).double()  # fmt: skip
    for _ in range(3):
        theirs(torch.randn(4, 3, 8, 8).double())
    wide = {"dtype": np.float64}
    ours = nbbn.Sequential(
        nbbn.Conv2d(3, 8, 3, padding=1, bias=False, **wide),
        nbbn.BatchNorm(8, activation="relu", **wide),
        nbbn.Conv2d(8, 8, (3, 2), stride=2, groups=8, bias=False, **wide),
        nbbn.ConvTranspose2d(8, 4, 3, stride=2, output_padding=1, groups=2, **wide),
        nbbn.Flatten(), nbbn.Dense(320, 5, **wide),
    )  # fmt: skip
    convert.load_torch(ours, theirs.state_dict())
    x = rng.normal(size=(2, 3, 8, 8))
    expected = theirs.eval()(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(ours.eval()(x).data, expected, rtol=1e-10, atol=1e-12)
    state = convert.to_torch(ours, names=["0", "1", "3", "4", "6"])
    state["0.bias"] = np.zeros(8)
    theirs.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    again = theirs(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(again, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("names", ["0", ["0", "1"], ["0", "1", "1"], ["0", "1", "9"]])
def test_names_that_do_not_fit(names):
    model = net()
    with pytest.raises(ArgumentError, match="names must"):
        convert.load_torch(model, convert.to_torch(model), names=names)


class Scaled(nbbn.Module):
    def __init__(self):
        self.dense = nbbn.Dense(3, 3)
        self.scale = nbbn.Parameter([1.0])


REFUSED = [
    ("convert.to_torch(Scaled())",
     ArgumentError, "1 parameters outside of the layers"),
    ("convert.to_keras(nbbn.Sequential(nbbn.ReLU()))",
     ArgumentError, "no layers whose weights"),
    ("convert.to_torch(nbbn.Sequential(nbbn.InPlaceBatchNorm(3)))",
     ArgumentError, r"scales by \|gamma\| \+ eps"),
    ("convert.load_keras([], [])", DTypeError, "model must be a Module, got list"),
    ("convert.options(nbbn.BatchNorm(3, convention=Convention(axis=2)), 'onnx')",
     ArgumentError, "onnx normalizes axis 1 and this layer axis 2"),
    ("convert.options(nbbn.BatchNorm(3, track_running_stats=False), 'keras')",
     ArgumentError, "keras has no batch normalization without running"),
]  # fmt: skip


test_what_cannot_move_is_refused = refusing(REFUSED, globals())
