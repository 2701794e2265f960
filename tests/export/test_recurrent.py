"""Recurrent layers between Keras, PyTorch, ONNX and here."""

from __future__ import annotations

import numpy as np
import pytest

import nbbn
from nbbn import GRU, LSTM, RNN, convert
from nbbn.errors import ArgumentError, ShapeError

KINDS = {
    "LSTM": (LSTM, "LSTM", {}, {}),
    "GRU": (GRU, "GRU", {}, {}),
    "RNN": (RNN, "SimpleRNN", {}, {}),
    "ReLU": (RNN, "SimpleRNN", {"nonlinearity": "relu"}, {"activation": "relu"}),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:keras")
def test_layers_compute_what_keras_does(kind, bidirectional, bias, rng, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    own, name, options, given = KINDS[kind]
    layer = own(3, 4, num_layers=2, bidirectional=bidirectional, bias=bias, rng=1, **options)
    stack = [keras.Input((6, 3))]
    for _ in range(2):
        part = getattr(keras.layers, name)(4, return_sequences=True, use_bias=bias, **given)
        stack.append(keras.layers.Bidirectional(part) if bidirectional else part)
    model = keras.Sequential(stack)
    theirs = [(rng.normal(size=w.shape) / 2).astype(np.float32) for w in model.get_weights()]
    model.set_weights(theirs)
    x = rng.normal(size=(5, 6, 3)).astype(np.float32)
    convert.load_keras(layer, theirs)
    np.testing.assert_allclose(layer(x).data, model.predict(x, verbose=0), rtol=0, atol=2e-6)
    again = convert.to_keras(layer)
    for array, expected in zip(again, theirs, strict=True):
        np.testing.assert_array_equal(array, expected)
    # Biases that we have two of add up.
    layer = own(3, 4, num_layers=2, bidirectional=bidirectional, bias=bias, rng=2, **options)
    model.set_weights(convert.to_keras(layer))
    np.testing.assert_allclose(layer(x).data, model.predict(x, verbose=0), rtol=0, atol=2e-6)


def test_what_does_not_fit_is_refused():
    layer, weights = GRU(3, 4, rng=1), convert.to_keras(GRU(3, 4, rng=2))
    before = layer.state_dict()
    with pytest.raises(ArgumentError, match=r"takes 3 arrays.*got 2"):
        convert.load_keras(layer, weights[:2])
    with pytest.raises(ShapeError, match=r"\(12, 3\).*\(12, 5\)"):
        convert.load_keras(layer, [np.ones((5, 12)), *weights[1:]])
    with pytest.raises(ShapeError, match=r"\(2, 12\).*\(12,\).*reset_after"):
        convert.load_keras(layer, [*weights[:2], np.ones(12)])
    with pytest.raises(ArgumentError, match="inside of the recurrence"):
        convert.to_keras(LSTM(3, 4, normalization="batch"))
    for name, array in before.items():
        np.testing.assert_array_equal(layer.state_dict()[name], array)


@pytest.mark.parametrize("kind", KINDS)
def test_models_take_torchs_state_dict_as_it_is(kind, rng):
    torch = pytest.importorskip("torch")
    own, name, options, _ = KINDS[kind]
    name = "RNN" if name == "SimpleRNN" else name
    model = nbbn.Sequential(own(3, 4, bidirectional=True, **options), nbbn.Dense(8, 2))
    other = torch.nn.Sequential(
        getattr(torch.nn, name)(3, 4, bidirectional=True, batch_first=True, **options),
        torch.nn.Linear(8, 2),
    )
    model.load_state_dict(other.state_dict())
    x = rng.normal(size=(5, 6, 3)).astype(np.float32)
    with torch.no_grad():
        expected = other[1](other[0](torch.from_numpy(x))[0])
    np.testing.assert_allclose(model(x).data, expected.numpy(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(("num_layers", "bias"), [(1, True), (2, False)])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_onnxruntime_computes_the_same(kind, bidirectional, num_layers, bias, last, rng):
    """What `verify` compares, on another number of examples; and so does what is read back."""
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    own, _, options, _ = KINDS[kind]
    layer = own(3, 4, bidirectional=bidirectional, num_layers=num_layers, bias=bias, last=last,
                rng=1, **options)  # fmt: skip
    model = nbbn.Sequential(layer, nbbn.Flatten(), nbbn.Tanh())
    exported = nbbn.onnx.export(model, input_shape=(6, 3))
    session = runtime.InferenceSession(
        exported.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x = rng.normal(size=(2, 6, 3)).astype(np.float32)
    np.testing.assert_allclose(session.run(["y"], {"x": x})[0], model(x).data, rtol=0, atol=1e-6)
    loaded = nbbn.onnx.load(exported)
    np.testing.assert_allclose(loaded(x).data, model(x).data, rtol=0, atol=1e-6)
    assert [type(layer) for layer in loaded.layers[:num_layers]] == [own] * num_layers


class Reader:
    """A PyTorch model that looks at all hidden states, at the last, or at the last step."""

    def __new__(cls, torch, cell, looks_at, **options):
        class Module(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.cell = getattr(torch.nn, cell)(3, 4, batch_first=True, **options)

            def forward(self, x):
                y, state = self.cell(x)
                hidden = state[0] if isinstance(state, tuple) else state
                return torch.tanh({"all": y, "step": y[:, -1], "state": hidden[-1]}[looks_at])

        return Module().eval()


@pytest.mark.parametrize("axes", [None, {"x": {0: "N"}}], ids=["of one size", "of any size"])
@pytest.mark.parametrize("looks_at", ["all", "step", "state"])
@pytest.mark.parametrize(
    ("cell", "options"),
    [
        ("LSTM", {}),
        ("GRU", {"num_layers": 2}),
        ("RNN", {"nonlinearity": "relu"}),
        ("LSTM", {"bidirectional": True, "num_layers": 2, "bias": False}),
    ],
    ids=["LSTM", "GRU", "RNN", "both directions"],
)
@pytest.mark.filterwarnings("ignore")  # of the tracer, that sizes become constants
def test_what_torch_exports_comes_in(cell, options, looks_at, axes, rng, tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnx")
    model = Reader(torch, cell, looks_at, **options)
    x, path = torch.from_numpy(rng.normal(size=(2, 5, 3)).astype(np.float32)), tmp_path / "it.onnx"
    torch.onnx.export(model, (x,), path, dynamo=False, input_names=["x"], dynamic_axes=axes)
    if options.get("bidirectional") and looks_at != "all":
        with pytest.raises(ArgumentError, match=r"one direction|by direction"):
            nbbn.onnx.load(path)
        return
    y = nbbn.onnx.load(path)(x.numpy()).data
    np.testing.assert_allclose(y, model(x).detach().numpy(), rtol=0, atol=1e-6)


def one_cell(op, *, gates=4, directions=1, result=0, before=True, arrays=None, **attributes):
    """An ONNX model of one cell whose weights are zeros, 3 features to 2 units."""
    onnx = pytest.importorskip("onnx")
    helper, D = onnx.helper, directions
    given = {"W": np.zeros((D, 2 * gates, 3)), "R": np.zeros((D, 2 * gates, 2)), **(arrays or {})}
    places = ["W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"]
    places = places[: 1 + max(places.index(name) for name in given)]
    results = ["Y", "Y_h", "Y_c"][: result + 1]
    source = "turned" if before else "x"
    nodes = [
        helper.make_node("Transpose", ["x"], ["turned"], perm=(1, 0, 2)),
        helper.make_node(
            op, [source, *(name if name in given else "" for name in places)],
            [*[""] * result, results[-1]], name="cell", hidden_size=2, **attributes,
        ),
    ]  # fmt: skip
    kind = onnx.TensorProto.FLOAT
    tensors = [
        onnx.numpy_helper.from_array(
            np.asarray(array, np.int32 if name == "sequence_lens" else np.float32), name
        )
        for name, array in given.items()
    ]
    ends = [
        helper.make_tensor_value_info(name, kind, (None,) * rank)
        for name, rank in (("x", 3), (results[-1], 3 if result else 4))
    ]
    graph = helper.make_graph(nodes if before else nodes[1:], "g", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)])


@pytest.mark.parametrize(
    ("words", "op", "options"),
    [
        ("linear_before_reset=0", "GRU", {"gates": 3}),
        ("in reverse alone", "LSTM", {"direction": "reverse"}),
        ("sequence_lens", "LSTM", {"arrays": {"sequence_lens": [3, 4]}}),
        ("not zero", "LSTM", {"arrays": {"initial_h": np.ones((1, 2, 2))}}),
        ("peepholes", "LSTM", {"arrays": {"P": np.ones((1, 6))}}),
        ("activations are hardsigmoid, tanh, tanh", "LSTM",
         {"activations": ["HardSigmoid", "Tanh", "Tanh"]}),
        ("has clip", "RNN", {"gates": 1, "clip": 3.0}),
        ("input_forget", "LSTM", {"input_forget": 1}),
        ("turned to time first", "LSTM", {"before": False}),
        ("last cell state", "LSTM", {"result": 2}),
        ("of 1 directions", "LSTM", {"direction": "bidirectional"}),
        ("output is transposed", "RNN", {"gates": 1}),
        ("output is transposed", "RNN", {"gates": 1, "result": 1}),
    ],
)  # fmt: skip
def test_cells_that_no_layer_computes_are_refused(words, op, options):
    with pytest.raises(ArgumentError, match=words):
        nbbn.onnx.load(one_cell(op, **options))


@pytest.mark.parametrize("result", [0, 1], ids=["all states", "the last"])
@pytest.mark.parametrize("layout", [0, 1], ids=["time first", "batch first"])
def test_a_direction_that_is_squeezed_away(layout, result, rng):
    """As programs write it that turn Keras' models into ONNX; beside ONNX's reference."""
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    shapes = {"W": (1, 8, 3), "R": (1, 8, 2), "B": (1, 16)}
    arrays = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    model = one_cell("LSTM", arrays=arrays, result=result, before=not layout, layout=layout)
    graph, helper = model.graph, onnx.helper
    axis = {(0, 0): 1, (0, 1): 2, (1, 0): 0, (1, 1): 1}[result, layout]
    source = graph.output[0].name
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([axis]), "axis"))
    graph.node.append(helper.make_node("Squeeze", [source, "axis"], ["rest"]))
    if not (layout or result):
        graph.node.append(helper.make_node("Transpose", ["rest"], ["back"], perm=(1, 0, 2)))
    end = helper.make_tensor_value_info(
        graph.node[-1].output[0], onnx.TensorProto.FLOAT, (None,) * (3 - result)
    )
    graph.output[0].CopyFrom(end)
    x = rng.normal(size=(4, 5, 3)).astype(np.float32)
    (want,) = ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_allclose(nbbn.onnx.load(model)(x).data, want, rtol=0, atol=1e-6)


def test_what_onnx_cannot_express_is_refused():
    pytest.importorskip("onnx")
    with pytest.raises(ArgumentError, match="inside of the recurrence"):
        nbbn.onnx.export(LSTM(3, 4, normalization="layer"), input_shape=(6, 3))
    with pytest.raises(ShapeError, match=r"\(T, 3\)"):
        nbbn.onnx.export(LSTM(3, 4), input_shape=(6, 2))
