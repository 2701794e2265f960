"""Models to ONNX, judged by onnxruntime, and back."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import nbbn
from nbbn import (
    BatchNorm,
    Convention,
    Dense,
    Dropout,
    Flatten,
    ReLU,
    Sequential,
    Sigmoid,
    Softmax,
    Tanh,
)
from nbbn.errors import (
    ArgumentError,
    CheckpointError,
    DeviceError,
    DTypeError,
    ShapeError,
)
from nbbn.export.onnx import exporter
from nbbn.nn.variants import InPlaceBatchNorm
from tests.helpers.layers import settled

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
from tests.helpers.onnx_backend import Backend  # noqa: E402 - needs onnx

helper, numpy_helper = onnx.helper, onnx.numpy_helper
FLOAT = onnx.TensorProto.FLOAT


def by_runtime(model, x: np.ndarray) -> np.ndarray:
    """Run a ModelProto or a file in onnxruntime."""
    content = model.SerializeToString() if hasattr(model, "graph") else str(model)
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


# Layers for a type, and the shape of the input.
MODELS = {
    "mlp": (lambda d: [*nbbn.mlp((6, 5, 4), rng=0, dtype=d)], (3, 6)),
    "no batch norm": (lambda d: [*nbbn.mlp((6, 5, 4), batch_norm=False, rng=0, dtype=d)], (3, 6)),
    "sigmoid, tanh": (lambda d: [Dense(6, 5, rng=0, dtype=d), Sigmoid(),
                                 Dense(5, 4, rng=1, dtype=d), Tanh()], (3, 6)),
    "softmax": (lambda d: [Dense(6, 5, rng=0, dtype=d), Softmax()], (3, 6)),
    "softmax over rows": (lambda d: [Dense(6, 5, rng=0, dtype=d), Softmax(0)], (3, 6)),
    "dropout": (lambda d: [Dense(6, 5, rng=0, dtype=d), Dropout(0.5, rng=0), ReLU()], (3, 6)),
    "conventions": (
        lambda d: [
            BatchNorm(6, convention="keras", dtype=d),
            BatchNorm(6, convention="onnx", activation="relu", dtype=d),
            BatchNorm(6, scale=False, shift=False, dtype=d),
            BatchNorm(6, scale=False, dtype=d),
            BatchNorm(6, convention=Convention(eps=0.5, momentum=None), shift=False, dtype=d),
        ],
        (3, 6),
    ),
    "planes": (lambda d: [BatchNorm(3, activation="relu", dtype=d), Flatten(),
                          Dense(24, 2, dtype=d)], (4, 3, 2, 4)),
    "channels last": (
        lambda d: [
            BatchNorm(3, convention=Convention(axis=-1), activation="relu", dtype=d),
            Sigmoid(),
            Flatten(),
        ],
        (4, 2, 4, 3),
    ),
    "channels between": (lambda d: [BatchNorm(3, convention=Convention(axis=2), dtype=d),
                                    Flatten()], (4, 2, 3, 4)),
    "volumes": (lambda d: [BatchNorm(3, convention=Convention(axis=-1), dtype=d), Flatten()],
                (2, 2, 3, 2, 3)),
    "convolutions": (
        lambda d: [
            nbbn.Conv2d(3, 8, 3, padding="same", bias=False, rng=0, dtype=d),
            BatchNorm(8, activation="relu", dtype=d),
            nbbn.Conv2d(8, 8, (3, 2), stride=(2, 1), padding=((1, 0), (0, 2)), groups=8, rng=1,
                        dtype=d),
            nbbn.ConvTranspose2d(8, 4, 3, stride=2, padding=1, output_padding=(1, 0), dilation=2,
                                 groups=2, rng=2, dtype=d),
            Flatten(),
        ],
        (4, 3, 6, 5),
    ),
    "convolutions, channels last": (
        lambda d: [
            nbbn.Conv2d(3, 8, 3, stride=2, padding="same", axis=-1, rng=0, dtype=d),
            BatchNorm(8, convention=Convention(axis=-1), activation="relu", dtype=d),
            nbbn.ConvTranspose2d(8, 4, 3, stride=2, axis=-1, groups=2, rng=2, dtype=d),
            Sigmoid(),
        ],
        (4, 6, 5, 3),
    ),
    "activations": (lambda d: [Dense(6, 5, rng=0, dtype=d), nbbn.SiLU(), nbbn.LeakyReLU(0.3),
                               nbbn.SiLU()], (3, 6)),
    "pooling": (
        lambda d: [
            nbbn.MaxPool2d(3, stride=2, padding=((1, 0), (1, 1))),
            nbbn.AvgPool2d(2, stride=1, padding=1, count_include_pad=False),
            nbbn.MaxPool2d((2, 1), stride=1, dilation=(2, 1)),
            nbbn.AvgPool2d((1, 2), stride=1),
            nbbn.MaxPool2d(2, ceil_mode=True),
            nbbn.GlobalAvgPool2d(),
            Dense(3, 2, rng=0, dtype=d),
        ],
        (2, 3, 13, 14),
    ),
    "pooling, channels last": (
        lambda d: [
            nbbn.MaxPool2d(2, axis=-1),
            BatchNorm(3, convention=Convention(axis=-1), dtype=d),
            nbbn.AvgPool2d(2, axis=-1),
            nbbn.GlobalMaxPool2d(axis=-1),
            Dense(3, 2, rng=0, dtype=d),
        ],
        (2, 9, 8, 3),
    ),
    "pooling, channels last, dimensions kept": (
        lambda d: [nbbn.GlobalAvgPool2d(axis=-1, keepdims=True)], (2, 9, 8, 3)),
    "pooling, dimensions kept": (
        lambda d: [nbbn.GlobalMaxPool2d(keepdims=True), Flatten()], (2, 3, 9, 8)),
    "nested": (
        lambda d: [Sequential(Dense(6, 5, rng=0, dtype=d), Sequential(BatchNorm(5, dtype=d)))],
        (3, 6),
    ),
}  # fmt: skip


# With operators that onnxruntime has in float32 alone.
NARROW = {name for name in MODELS if "pooling" in name or name == "activations"}


@pytest.mark.parametrize(("name", "dtype"), [
    (name, dtype) for name in MODELS for dtype in (np.float32, np.float64)
    if dtype == np.float32 or name not in NARROW
])  # fmt: skip
def test_onnxruntime_computes_the_same(name, dtype, rng, tmp_path):
    layers, shape = MODELS[name]
    model = settled(Sequential(*layers(dtype)), rng)
    path = tmp_path / "model.onnx"
    runs = dtype == np.float32 or not name.startswith("convolutions")
    if not runs:
        with pytest.raises(ArgumentError, match=r"cannot run the file in float64.*verify=False"):
            nbbn.onnx.export(model, input_shape=shape[1:])
    exported = nbbn.onnx.export(model, path, input_shape=shape[1:], verify=runs)
    assert (exported.ir_version, exported.opset_import[0].version) == (8, 15)
    assert all(module.training for module in model.modules())
    onnx.checker.check_model(exported, full_check=True)
    x = rng.normal(size=shape).astype(dtype)
    expected = model.eval()(x).data
    if runs:
        np.testing.assert_allclose(by_runtime(path, x), expected, rtol=1e-5, atol=1e-5)
    loaded = nbbn.onnx.load(path)
    assert not loaded.training
    np.testing.assert_allclose(loaded(x).data, expected, rtol=1e-6, atol=1e-6)
    ours = Backend.run_model(onnx.load(path), [x])[0]
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("layers", "shape", "versions"),
    [
        ([nbbn.GELU(), nbbn.GELU("tanh")], (5,), (9, 20)),
        ([nbbn.AvgPool2d(2, stride=1, dilation=2)], (3, 6, 7), (9, 19)),
        ([nbbn.AvgPool2d(2, dilation=(1, 2)), nbbn.GELU()], (3, 6, 7), (9, 20)),
    ],
    ids=str,
)
def test_operators_of_later_opsets(layers, shape, versions, rng):
    model = Sequential(*layers)
    exported = nbbn.onnx.export(model, input_shape=shape)
    assert (exported.ir_version, exported.opset_import[0].version) == versions
    x = rng.normal(size=(2, *shape)).astype(np.float32)
    np.testing.assert_allclose(by_runtime(exported, x), model(x).data, rtol=1e-5, atol=1e-6)
    assert repr(nbbn.onnx.load(exported)) == repr(model)


def test_layers_of_images_come_back_as_they_were():
    model = Sequential(
        nbbn.MaxPool2d(3, stride=2, padding=1), nbbn.AvgPool2d(2, ceil_mode=True), nbbn.SiLU(),
        nbbn.AvgPool2d((2, 1), stride=1, padding=((1, 0), (0, 0)), count_include_pad=False),
        nbbn.LeakyReLU(0.2), nbbn.GlobalAvgPool2d(keepdims=True),
    )  # fmt: skip
    exported = nbbn.onnx.export(model, input_shape=(3, 12, 12))
    assert repr(nbbn.onnx.load(exported)) == repr(model)


def test_a_model_comes_back_as_it_was(rng):
    model = settled(nbbn.mlp((6, 5, 4), rng=0), rng)
    model[1].eps, model[1].momentum = 3e-4, 0.25
    loaded = nbbn.onnx.load(nbbn.onnx.export(model))
    assert [type(layer) for layer in loaded] == [type(layer) for layer in model]
    assert (loaded[1].activation, loaded[1].eps, loaded[1].momentum) == ("relu", 3e-4, 0.9)
    for name, array in model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(loaded.state_dict()[name], array)


def test_any_batch_size_goes_through(rng):
    exported = nbbn.onnx.export(nbbn.mlp((6, 5, 4), rng=0))
    for rows in (1, 7):
        assert by_runtime(exported, np.ones((rows, 6), np.float32)).shape == (rows, 4)
    assert {i.name for i in exported.graph.initializer} >= {"0.weight", "1.running_var", "2.bias"}


def test_float64_that_onnxruntime_cannot_run_is_exported_unverified(rng):
    model = Sequential(Dense(6, 5, rng=0, dtype=np.float64), nbbn.LeakyReLU(0.3))
    with pytest.raises(ArgumentError, match="cannot run the file in float64: use float32, or"):
        nbbn.onnx.export(model)
    x = rng.normal(size=(3, 6))
    loaded = nbbn.onnx.load(nbbn.onnx.export(model, verify=False))
    np.testing.assert_allclose(loaded(x).data, model(x).data, rtol=1e-12)


def graph_of(op, shape, outputs=("y",), **attributes):
    """A model of one operator on images."""
    ends = [helper.make_tensor_value_info("x", FLOAT, shape)]
    values = [
        helper.make_tensor_value_info(name, FLOAT, (None,) * len(shape)) for name in outputs[:1]
    ]
    node = helper.make_node(op, ["x"], outputs, name="node", **attributes)
    graph = helper.make_graph([node], "g", ends, values)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)])


@pytest.mark.parametrize(("op", "shape", "attributes", "words"), [
    ("MaxPool", (1, 2, 8), {"kernel_shape": [2]}, "two dimensions"),
    ("MaxPool", (1, 2, 8, 8), {"kernel_shape": [2, 2], "outputs": ("y", "i")}, "indices"),
    ("MaxPool", (1, 2, 8, 8), {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER"}, "auto_pad"),
    ("AveragePool", (1, 2, 8, 8), {"kernel_shape": [3, 3], "pads": [2, 0, 0, 0]}, "got 2"),
    ("GlobalAveragePool", (1, 2, 8), {}, "two dimensions"),
    ("LeakyRelu", (1, 2), {"alpha": -0.5}, "slope must be at least 0, got -0.5"),
    ("Swish", (1, 2), {"alpha": 2.0}, "alpha=1"),
])  # fmt: skip
def test_operators_of_images_that_no_layer_computes_are_refused(op, shape, attributes, words):
    with pytest.raises(ArgumentError, match=rf"operator {op} \(node\).*{words}"):
        nbbn.onnx.load(graph_of(op, shape, **attributes))


def test_a_product_of_other_values_is_refused():
    shape = [helper.make_tensor_value_info(name, FLOAT, (1, 2)) for name in "xy"]
    for nodes in (
        [("Tanh", ["x"], "t"), ("Mul", ["x", "t"], "y")],
        [("Sigmoid", ["x"], "t"), ("Mul", ["t", "t"], "y")],
    ):
        made = [helper.make_node(op, inputs, [output]) for op, inputs, output in nodes]
        graph = helper.make_graph(made, "g", shape[:1], shape[1:])
        with pytest.raises(ArgumentError, match="a Sigmoid and its input"):
            nbbn.onnx.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)]))


def test_swish_is_silu(rng):
    loaded = nbbn.onnx.load(graph_of("Swish", (1, 4)))
    assert repr(loaded[0]) == "SiLU()"


def test_a_layer_alone_can_be_exported(rng):
    layer = Dense(6, 5, rng=0)
    exported = nbbn.onnx.export(layer)
    assert {i.name for i in exported.graph.initializer} == {"weight", "bias"}
    x = rng.normal(size=(3, 6)).astype(np.float32)
    np.testing.assert_allclose(by_runtime(exported, x), layer(x).data, rtol=1e-5, atol=1e-6)


def test_a_model_that_gives_no_numbers_is_not_exported():
    model = Sequential(Dense(6, 5, rng=0))
    model[0].weight.data[0] = np.nan
    with pytest.raises(ArgumentError, match="outputs are not finite"):
        nbbn.onnx.export(model)


class Residual(nbbn.Module):
    def __init__(self):
        self.norm = BatchNorm(6)

    def forward(self, x):
        return x + self.norm(x)


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (3, {}, DTypeError, "model must be a Module, got int"),
        (Residual(), {"input_shape": (6,)}, ArgumentError, "Residual is not one of Dense, Batch"),
        (Sequential(Dense(6, 6), Residual()), {}, ArgumentError, "cannot export '1': Residual"),
        (Sequential(ReLU()), {}, ArgumentError, "no layer tells the shape of the input"),
        (Sequential(Dense(6, 5), Dense(6, 4)), {}, ShapeError, "'1', Dense.* cannot take .*5,"),
        (Sequential(Dense(6, 5), BatchNorm(6)), {}, ShapeError, "has 6 channels on axis 1, and"),
        (Sequential(BatchNorm(6, convention=Convention(axis=0))), {}, ShapeError,
         "has 6 channels on axis 0, and"),
        (Sequential(nbbn.Conv2d(3, 4, 3), BatchNorm(4)), {}, ArgumentError, "pass input_shape"),
        (Sequential(nbbn.Conv2d(3, 4, 3)), {"input_shape": (3, 2, 4)}, ShapeError,
         r"'0', Conv2d\(3, 4, 3\), cannot take examples of shape \(3, 2, 4\).*kernel"),
        (Sequential(nbbn.Conv2d(3, 4, 3)), {"input_shape": (2, 4, 4)}, ShapeError, "takes 3 chan"),
        (Sequential(Dense(6, 5), Softmax(2)), {}, ShapeError, "has no such axis"),
        (Sequential(Dense(6, 5)), {"input_shape": 6}, DTypeError, "input_shape must be a list"),
        (Sequential(Dense(6, 5)), {"input_shape": (0,)}, ArgumentError, "must be at least 1"),
        (Sequential(Dense(6, 5)), {"path": "no/such/x.onnx"}, ArgumentError, "no folder no/such"),
        (Sequential(Dense(6, 5)), {"path": "/"}, ArgumentError, "is a folder"),
        (Sequential(Dense(6, 5), BatchNorm(5, track_running_stats=False)), {}, ArgumentError,
         "it keeps no running statistics for inference"),
        (Sequential(InPlaceBatchNorm(6)), {}, ArgumentError, "nbbn would not read it back"),
        (Sequential(Dense(6, 5), BatchNorm(5, dtype=np.float64)), {}, DTypeError,
         "the layers mix float32, float64"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported(model, options, error, message):
    with pytest.raises(error, match=message):
        nbbn.onnx.export(model, **options)


def test_a_wrong_export_is_not_written(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    model = Sequential(Dense(6, 5, rng=0), Sigmoid())
    nbbn.onnx.export(model, path)
    before = path.read_bytes()
    for wrong in ("Tanh", "Sqrt"):  # a NaN, of numbers below 0
        monkeypatch.setitem(exporter._EXPORTERS, Sigmoid, exporter._elementwise(wrong))
        with pytest.raises(ArgumentError, match="onnxruntime computes something else"):
            nbbn.onnx.export(model, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# --------------------------------------------------------------------- models of other makers


def graph(nodes, constants=(), *, shape=("N", 4), opset=15, inputs=1, **options):
    """Make a model from x to y out of (op, inputs, outputs, attributes)."""
    return helper.make_model(
        helper.make_graph(
            [helper.make_node(op, ins, outs, **more) for op, ins, outs, more in nodes],
            "test",
            [helper.make_tensor_value_info(name, FLOAT, shape) for name in ("x", "z")[:inputs]],
            [helper.make_tensor_value_info("y", FLOAT, [f"d{i}" for i in range(len(shape))])],
            [numpy_helper.from_array(np.asarray(a, np.float32), n) for n, a in constants],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
        **options,
    )


W = np.random.default_rng(0).normal(size=(4, 3))
B = np.arange(3.0)
STATS = [("s", np.full(4, 2)), ("b", B[[0, 1, 2, 0]]), ("m", np.ones(4)), ("v", np.full(4, 3))]
NORM = ["s", "b", "m", "v"]
FOREIGN = {
    "gemm": graph([("Gemm", ["x", "w", "b"], ["y"], {})], [("w", W), ("b", B)]),
    "gemm, scaled": graph([("Gemm", ["x", "w", "b"], ["y"], {"alpha": 0.5, "beta": 3.0})],
                          [("w", W), ("b", [[2]])]),
    "gemm, beta 0": graph([("Gemm", ["x", "w", "b"], ["y"], {"beta": 0.0})], [("w", W), ("b", B)]),
    "matmul, add": graph([("MatMul", ["x", "w"], ["z"], {}), ("Add", ["b", "z"], ["y"], {})],
                         [("w", W), ("b", B)]),
    "transposed weight": graph([("Transpose", ["w"], ["t"], {}), ("MatMul", ["x", "t"], ["y"], {})],
                               [("w", W.T)]),
    "constant, identity, dropout": graph(
        [
            ("Constant", [], ["w"], {"value": numpy_helper.from_array(W.astype(np.float32))}),
            ("Identity", ["x"], ["i"], {}),
            ("Dropout", ["i"], ["d"], {}),
            ("MatMul", ["d", "w"], ["y"], {}),
        ]
    ),
    "norm": graph([("BatchNormalization", ["x", *NORM], ["y"], {"epsilon": 0.1})], STATS),
    "norm, relu": graph([("BatchNormalization", ["x", *NORM], ["z"], {}),
                         ("Relu", ["z"], ["y"], {})], STATS),
    "old softmax": graph([("Softmax", ["x"], ["y"], {})], opset=11),
    "leaky relu": graph([("LeakyRelu", ["x"], ["y"], {})]),
    "no padding": graph([("Conv", ["x", "k"], ["y"], {"auto_pad": "VALID"})],
                        [("k", np.arange(16).reshape(2, 2, 2, 2) / 9)], shape=("N", 2, 5, 5)),
    "means of what is inside": graph(
        [("AveragePool", ["x"], ["y"], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]})],
        shape=("N", 2, 5, 5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_models_of_other_makers(name, rng):
    shape = FOREIGN[name].graph.input[0].type.tensor_type.shape.dim
    x = rng.normal(size=[n.dim_value or 5 for n in shape]).astype(np.float32)
    loaded = nbbn.onnx.load(FOREIGN[name])
    expected = by_runtime(FOREIGN[name], x)
    np.testing.assert_allclose(loaded(x).data, expected, rtol=1e-5, atol=1e-6)
    found = Backend.run_model(FOREIGN[name], [x])[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_what_inference_does_not_use_comes_in():
    nodes = [
        ("BatchNormalization", ["x", *NORM], ["a"], {"momentum": 0.8}),
        ("Dropout", ["a", "r"], ["y"], {}),
    ]
    norm, dropout = nbbn.onnx.load(graph(nodes, [*STATS, ("r", 0.2)]))
    assert (norm.momentum, dropout.p) == (0.8, 0.2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch's exporter
@pytest.mark.parametrize("folding", [True, False])
def test_what_torch_exports_comes_in(folding, tmp_path):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.BatchNorm1d(12), torch.nn.Linear(12, 8), torch.nn.ReLU(),
        torch.nn.BatchNorm1d(8), torch.nn.Tanh(), torch.nn.Dropout(), torch.nn.Linear(8, 8),
        torch.nn.Sigmoid(), torch.nn.Linear(8, 3, bias=False), torch.nn.Softmax(-1),
    )  # fmt: skip
    for _ in range(3):
        module(torch.randn(16, 3, 4))
    x = torch.randn(5, 3, 4)
    torch.onnx.export(
        module.eval(), (x,), tmp_path / "net.onnx", dynamo=False, do_constant_folding=folding,
        input_names=["x"], dynamic_axes={"x": {0: "N"}},
    )  # fmt: skip
    loaded = nbbn.onnx.load(tmp_path / "net.onnx")
    assert sum(isinstance(layer, BatchNorm) for layer in loaded) == 2
    expected = module(x).detach().numpy()
    np.testing.assert_allclose(loaded(x.numpy()).data, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch's exporter
def test_convolutions_that_torch_exports_come_in(tmp_path):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding="same"), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 3, stride=2, groups=8), torch.nn.ConvTranspose2d(8, 4, 2, stride=2),
        torch.nn.Flatten(), torch.nn.Linear(144, 3),
    ).eval()  # fmt: skip
    x = torch.randn(5, 3, 8, 8)
    torch.onnx.export(
        module, (x,), tmp_path / "net.onnx", dynamo=False, do_constant_folding=False,
        input_names=["x"], dynamic_axes={"x": {0: "N"}},
    )  # fmt: skip
    loaded = nbbn.onnx.load(tmp_path / "net.onnx")
    shown = [repr(layer) for layer in loaded if "Conv" in repr(layer)]
    assert shown[1:] == [
        "Conv2d(8, 8, 3, stride=2, groups=8)",
        "ConvTranspose2d(8, 4, 2, stride=2)",
    ]
    expected = module(x).detach().numpy()
    np.testing.assert_allclose(loaded(x.numpy()).data, expected, rtol=1e-5, atol=1e-6)


REFUSED = {
    "no layer computes it": graph([("Exp", ["x"], ["y"], {})]),
    "it does not take 'a', the result before it": graph([("Relu", ["x"], ["a"], {}),
                                                         ("Tanh", ["x"], ["y"], {})]),
    "only the bias of a matrix product can be added": graph([("Add", ["x", "x"], ["y"], {})]),
    "its B is computed, not stored": graph([("Relu", ["x"], ["a"], {}),
                                            ("Gemm", ["a", "a"], ["y"], {})], shape=(4, 4)),
    r"it transposes the value \(transA\)": graph([("Gemm", ["x", "w"], ["y"], {"transA": 1})],
                                                 [("w", W)], shape=(4, 2)),
    "it adds an array of shape": graph([("Gemm", ["x", "w", "b"], ["y"], {})],
                                       [("w", W), ("b", np.ones((2, 3)))], shape=(2, 4)),
    "only inference with one mean": graph(
        [("BatchNormalization", ["x", *NORM], ["y", "p", "q"], {"training_mode": 1})], STATS
    ),
    "the output is transposed": graph([("Transpose", ["x"], ["y"], {"perm": [0, 2, 1]})],
                                      shape=("N", 4, 2)),
    "it moves the batch axis": graph([("Transpose", ["x"], ["y"], {"perm": [1, 0]})]),
    "only images are convolved": graph([("Conv", ["x", "w"], ["y"], {})],
                                       [("w", np.ones((4, 2, 3)))], shape=("N", 2, 5)),
    "SAME_LOWER depends on the image": graph([("Conv", ["x", "w"], ["y"],
                                               {"auto_pad": "SAME_LOWER"})],
                                             [("w", np.ones((4, 2, 2, 2)))], shape=("N", 2, 5, 5)),
    "its output_shape takes the place": graph([("ConvTranspose", ["x", "w"], ["y"],
                                                {"output_shape": [9, 9]})],
                                              [("w", np.ones((2, 4, 2, 2)))],
                                              shape=("N", 2, 5, 5)),
    "it acts on a transposed value": graph([("Transpose", ["x"], ["a"], {"perm": [0, 2, 1]}),
                                            ("Softmax", ["a"], ["y"], {})], shape=("N", 4, 2)),
    "MaxPool.*it acts on a transposed value": graph(
        [("Transpose", ["x"], ["a"], {"perm": [0, 2, 1, 3]}),
         ("MaxPool", ["a"], ["y"], {"kernel_shape": [2, 2]})], shape=("N", 2, 5, 5)
    ),
    "Conv.*it acts on a transposed value": graph(
        [("Transpose", ["x"], ["a"], {"perm": [0, 2, 1, 3]}), ("Conv", ["a", "w"], ["y"], {})],
        [("w", np.ones((4, 5, 2, 2)))], shape=("N", 2, 5, 5)
    ),
    "a value with the time first": graph([("Transpose", ["x"], ["a"], {"perm": [1, 0, 2]}),
                                          ("BatchNormalization", ["a", *NORM], ["y"], {})],
                                         STATS, shape=("N", 4, 4)),
    r"only inference \(is_test\)": graph([("BatchNormalization", ["x", *NORM], ["y"], {})], STATS,
                                         opset=6),
    "only the last axis": graph([("Softmax", ["x"], ["y"], {})], opset=11, shape=("N", 4, 2)),
    "only Flatten from axis 1": graph([("Flatten", ["x"], ["y"], {"axis": 0})]),
    "the graph must have one input and one output": graph([("Relu", ["x"], ["y"], {})], inputs=2),
    "the last operator does not give 'y'": graph([("Relu", ["x"], ["y"], {}),
                                                  ("Tanh", ["y"], ["a"], {})]),
    "holds int64": graph(
        [("Constant", [], ["w"], {"value": numpy_helper.from_array(W.astype(np.int64))}),
         ("MatMul", ["x", "w"], ["y"], {})]
    ),
    "it multiplies the value from the left": graph([("MatMul", ["w", "x"], ["y"], {})],
                                                   [("w", W)], shape=(4, 4)),
    r"only \(N, in\) times \(in, out\)": graph([("MatMul", ["x", "w"], ["y"], {})],
                                             [("w", W)], shape=("N", 2, 4)),
    "known shape of each example": graph([("Shape", ["x"], ["s"], {}),
                                          ("Reshape", ["x", "s"], ["y"], {})]),
    "it drops in inference too": graph(
        [("Constant", [], ["t"], {"value": numpy_helper.from_array(np.array(True))}),
         ("Dropout", ["x", "", "t"], ["y"], {})]
    ),
    "it reverses the axes": graph([("Transpose", ["x"], ["y"], {})]),
    "only tensors are known": graph([("Constant", [], ["a"], {"value_float": 1.0}),
                                     ("Relu", ["x"], ["y"], {})]),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_imported_is_refused_with_the_reason(message):
    with pytest.raises(ArgumentError, match=message):
        nbbn.onnx.load(REFUSED[message])


def test_files_that_are_not_onnx(tmp_path):
    with pytest.raises(CheckpointError, match="there is no file"):
        nbbn.onnx.load(tmp_path / "none.onnx")
    (tmp_path / "x.onnx").write_bytes(b"not protobuf")
    with pytest.raises(CheckpointError, match=r"x\.onnx"):
        nbbn.onnx.load(tmp_path / "x.onnx")
    with pytest.raises(DTypeError, match="source must be a path or an onnx"):
        nbbn.onnx.load(3)


def test_a_damaged_tensor_is_named():
    proto = nbbn.onnx.export(Sequential(Dense(3, 2, rng=0), BatchNorm(2)))
    proto.graph.initializer[0].dims[0] -= 1
    with pytest.raises(CheckpointError, match=f"tensor '{proto.graph.initializer[0].name}' is dam"):
        nbbn.onnx.load(proto)


# -------------------------------------------------------------------------------- the backend


def test_the_backend_runs_a_node():
    node = helper.make_node("Gemm", ["a", "b"], ["c"], transB=1)
    a, b = np.ones((2, 3), np.float32), np.full((4, 3), 2, np.float32)
    (c,) = Backend.run_node(node, [a, b], opset_version=13)
    np.testing.assert_array_equal(c, np.full((2, 4), 6))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("kind", ["SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss"])
def test_an_ignored_row_of_infinite_loss_counts_nothing(kind, reduction):
    scores = np.log(np.array([[0.25, 0.75], [0.5, 0.5], [0.75, 0.25]], np.float32))
    labels = np.array([0, -1, 1])
    node = helper.make_node(kind, ["x", "t"], ["l"], reduction=reduction, ignore_index=-1)
    expected = Backend.run_node(node, [scores, labels], opset_version=13)[0]
    assert np.isfinite(expected).all()
    scores[1, 0] = -np.inf
    found = Backend.run_node(node, [scores, labels], opset_version=13)[0]
    np.testing.assert_array_equal(found, expected)


def test_the_backend_normalizes_half_precision_and_one_axis(rng):
    """A one-dimensional x has one channel; statistics stay float32 beside a float16 x."""
    x = rng.normal(2, 3, size=50).astype(np.float16)
    vectors = [np.asarray([v], np.float32) for v in (1.5, 0.5, 0.0, 1.0)]
    node = helper.make_node(
        "BatchNormalization", list("xsbmv"), list("ypq"), training_mode=1, momentum=0.5
    )
    y, mean, var = Backend.run_node(node, [x, *vectors], opset_version=15)
    wide = x.astype(np.float64)
    expected = 1.5 * (wide - wide.mean()) / np.sqrt(wide.var() + 1e-5) + 0.5
    assert (y.dtype, mean.dtype) == (np.float16, np.float32)
    np.testing.assert_allclose(y, expected, atol=4e-3)
    np.testing.assert_allclose(mean, [wide.mean() / 2], rtol=1e-6)
    np.testing.assert_allclose(var, [(1 + wide.var()) / 2], rtol=1e-6)


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (lambda b: b.prepare(FOREIGN["gemm"], "CUDA"), DeviceError, "runs on the CPU, got device"),
        (lambda b: b.prepare(FOREIGN["gemm"]).run({}), ArgumentError, r"needs the inputs \['x'\]"),
        (lambda b: b.prepare(REFUSED["no layer computes it"]), ArgumentError, "operator Exp"),
    ],
)
def test_what_the_backend_refuses(action, error, message):
    with pytest.raises(error, match=message):
        action(Backend)
    assert not Backend.supports_device("CUDA:1")


# ---------------------------------------------------------------------------------- the extra


def test_without_the_extra_the_error_names_it(monkeypatch):
    model = Sequential(Dense(6, 5, rng=0))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"the package onnxruntime: .*pip install 'nbbn\[onnx\]'"):
        nbbn.onnx.export(model)
    nbbn.onnx.export(model, verify=False)
    for name in [name for name in sys.modules if name.split(".")[0] == "onnx"]:
        monkeypatch.setitem(sys.modules, name, None)
    for action in (
        lambda: nbbn.onnx.export(model),
        lambda: nbbn.onnx.load("x"),
    ):
        with pytest.raises(ImportError, match=r"pip install 'nbbn\[onnx\]'"):
            action()


def test_onnx_loads_when_it_is_needed():
    script = "import nbbn.export.onnx, sys; print({'onnx', 'onnxruntime'} & {*sys.modules})"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.strip() == "set()", result.stderr
