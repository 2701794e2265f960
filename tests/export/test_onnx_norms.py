"""Normalization of groups and local response normalization to ONNX and back."""

from __future__ import annotations

import numpy as np
import pytest

import nbbn
from nbbn.errors import ArgumentError, CheckpointError, ShapeError
from tests.helpers.layers import settled
from tests.helpers.refusals import refusing

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
from tests.helpers.onnx_backend import Backend  # noqa: E402 - needs onnx

helper, numpy_helper = onnx.helper, onnx.numpy_helper

# A layer, the shape of its input, and the opset that it needs.
LAYERS = {
    "layer": (lambda: nbbn.LayerNorm(6, eps=1e-3), (3, 6), 17),
    "layer, several axes": (lambda: nbbn.LayerNorm((4, 6)), (3, 4, 6), 17),
    "layer, no affine": (lambda: nbbn.LayerNorm(6, scale=False, shift=False), (3, 4, 6), 17),
    "rms": (lambda: nbbn.RMSNorm(6), (3, 6), 23),
    "rms, several axes": (lambda: nbbn.RMSNorm((4, 6), eps=0.1, scale=False), (3, 4, 6), 23),
    "group": (lambda: nbbn.GroupNorm(2, 6), (3, 6, 4, 2), 21),
    "group, channels last": (lambda: nbbn.GroupNorm(3, 6, eps=0.1, axis=-1), (3, 4, 2, 6), 21),
    "instance": (lambda: nbbn.InstanceNorm(6), (3, 6, 4), 15),
    "instance, channels last": (
        lambda: nbbn.InstanceNorm(6, scale=True, shift=True, axis=-1), (3, 4, 2, 6), 15
    ),
    "instance, running": (
        lambda: nbbn.InstanceNorm(6, scale=True, track_running_stats=True), (3, 6, 4, 2), 15
    ),
    "response": (lambda: nbbn.LocalResponseNorm(5, alpha=0.5, k=2), (3, 6, 4, 2), 15),
    "response, AlexNet's": (
        lambda: nbbn.LocalResponseNorm(3, alpha=0.5, beta=0.6, alpha_of="sum"), (3, 6, 4, 2), 15
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_onnxruntime_computes_the_same(name, rng):
    make, shape, opset = LAYERS[name]
    model = nbbn.Sequential(make(), nbbn.Sigmoid())
    if not name.startswith("response"):
        settled(model, rng)
    exported = nbbn.onnx.export(model, input_shape=shape[1:])
    assert exported.opset_import[0].version == opset
    x = rng.normal(2, 3, size=shape).astype(np.float32)
    expected = model.eval()(x).data
    session = runtime.InferenceSession(
        exported.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(Backend.run_model(exported, [x])[0], expected, rtol=1e-5, atol=1e-5)
    loaded = nbbn.onnx.load(exported)
    np.testing.assert_allclose(loaded(x).data, expected, rtol=1e-6, atol=1e-6)
    if "running" not in name:
        assert type(loaded[0]) is type(model[0])


def test_the_shape_of_a_layer_norm_is_that_of_examples():
    exported = nbbn.onnx.export(nbbn.LayerNorm((2, 3)))
    dims = exported.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_value for d in dims[1:]] == [2, 3]


def model_of(op, arrays, opset, shape=("N", 6), outputs=("y",), **attributes):
    """Make a model of one node with the constants that it takes."""
    names = [f"c{i}" for i in range(len(arrays))]
    node = helper.make_node(op, ["x", *names], list(outputs), **attributes)
    kind = onnx.TensorProto.FLOAT
    ends = [helper.make_tensor_value_info(n, kind, shape) for n in ("x", "y")]
    constants = [
        numpy_helper.from_array(np.ones(a, np.float32), n)
        for n, a in zip(names, arrays, strict=True)
    ]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def test_an_axis_from_the_front_and_no_bias():
    loaded = nbbn.onnx.load(model_of("LayerNormalization", [(6,)], 17, axis=1))
    assert (loaded[0].shape, loaded[0].beta) == ((6,), None)


PLANES = {"shape": ("N", 6, 4, 4)}
test_loading_refuses = refusing(
    [
        ("load(m('LayerNormalization', [(1,)], 17, axis=0))", ArgumentError, r"\(1,\).*axis 0"),
        ("load(m('LayerNormalization', [(6,)], 17, outputs=('y', 'mean')))", ArgumentError,
         "statistics"),
        ("load(m('GroupNormalization', [(2,), (2,)], 18, num_groups=2, **P))", CheckpointError,
         "deprecated"),
        ("load(m('GroupNormalization', [(6,), (6,)], 21, num_groups=4, **P))", ArgumentError,
         "6 channels.*4 groups"),
        ("load(m('LRN', [], 13, size=4, **P))", ArgumentError, "even size 4"),
        ("load(m('InstanceNormalization', [(6,), (5,)], 6, **P))", ArgumentError, "bias"),
    ],
    {"load": nbbn.onnx.load, "m": model_of, "P": PLANES},
)  # fmt: skip

test_exporting_refuses = refusing(
    [
        ("export(nbbn.LayerNorm(6), input_shape=(5,))", ShapeError, r"LayerNorm\(6\).*\(5,\)"),
        ("export(nbbn.GroupNorm(2, 6), input_shape=(5, 2))", ShapeError, r"6 channels.*\(5, 2\)"),
        ("export(nbbn.InstanceNorm(6), input_shape=(6,))", ShapeError, r"InstanceNorm.*\(6,\)"),
        ("export(nbbn.LocalResponseNorm(4), input_shape=(6, 2, 2))", ArgumentError, "size 4"),
        ("export(nbbn.LocalResponseNorm(3, over='positions'), input_shape=(6, 2, 2))",
         ArgumentError, "over positions"),
    ],
    {"export": nbbn.onnx.export, "nbbn": nbbn},
)  # fmt: skip
