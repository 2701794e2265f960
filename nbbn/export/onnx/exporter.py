"""Sequential models to ONNX files: opset 15, IR 8, for inference.

Dense is Gemm, BatchNorm is BatchNormalization (and Relu), the other layers are operators of the
same name; Dropout disappears.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ... import nn
from ..._validation import as_path, instance, iterate, positive, switch, write_atomically
from ..._version import __version__
from ...errors import ArgumentError, DTypeError, ShapeError
from ...nn.layers import unnested
from .extra import require
from .recurrent import EXPORTERS as RECURRENT

__all__ = ["export"]

OPSET, IR_VERSION = 15, 8
TOLERANCE = 1e-5
_BATCH = "N"
_PROBE_ROWS = 8


def export(
    model: nn.Module,
    path: str | os.PathLike[str] | None = None,
    *,
    input_shape: Sequence[int] | None = None,
    verify: bool = True,
) -> Any:
    """Write a Sequential model as an ONNX file for inference.

    The graph maps "x" (N, ...) to "y", its batch size left open; its tensors have the names of the
    state dict. The file is opset 15 and IR 8, passes ONNX's checker, and, unless `verify` is False,
    has computed what the model computes in onnxruntime before it is written.

    Parameters
    ----------
    model : Sequential
        Of the layers of nbbn, in any nesting; not changed.
    path : path, optional
        Where to write; replaced atomically. Without it nothing is written.
    input_shape : sequence of int, optional
        Shape of one example, such as (3, 32, 32); by default the width of the first Dense or
        BatchNorm.
    verify : bool, default True
        Compare with onnxruntime on standard normal numbers: every output to 1e-5 of the larger of
        1 and the largest output.

    Returns
    -------
    onnx.ModelProto

    Raises
    ------
    ArgumentError
        A layer that ONNX cannot express, an unknown input shape, a result that differs.
    ShapeError
        Layers that do not fit together.
    ImportError
        The extra ``nbbn[onnx]`` is not installed.
    """
    instance(model, nn.Module, "model")
    verify = switch(verify, "verify")
    target = None if path is None else as_path(path, "path")
    if target is not None and not target.parent.is_dir():
        raise ArgumentError(f"there is no folder {target.parent} to write {target.name} to")
    if target is not None and target.is_dir():
        raise ArgumentError(f"{target} is a folder: give the name of a file in it")
    model = copy.deepcopy(model).to("cpu").eval()
    layers = list(unnested(model))
    shape = _example_shape(layers, input_shape)
    graph = _Graph(shape, _dtype(model))
    for name, layer in layers:
        _exporter(layer, name)(graph, name, layer)
    result = graph.finish()
    require("onnx.checker").check_model(result, full_check=True)
    if verify:
        _verify(model, result, graph.dtype, shape)
    if target is not None:
        write_atomically(target, result.SerializeToString())
    return result


class _Graph:
    """An ONNX graph that grows by one operator after the other."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.helper = require("onnx.helper")
        self.numpy_helper = require("onnx.numpy_helper")
        self.dtype = dtype
        self.input_shape = self.shape = shape
        self.nodes: list[Any] = []
        self.arrays: list[Any] = []
        self.value = "x"

    def array(self, name: str, array: np.ndarray) -> str:
        """Store an array and return its name."""
        name = name.lstrip(".")
        found = np.ascontiguousarray(array, dtype=self.dtype)
        self.arrays.append(self.numpy_helper.from_array(found, name))
        return name

    def add(self, op: str, name: str, *arrays: str, **attributes: Any) -> None:
        """Apply an operator to the value so far."""
        label = f"{name}.{op}".lstrip(".")
        self.nodes.append(
            self.helper.make_node(op, [self.value, *arrays], [label], name=label, **attributes)
        )
        self.value = label

    def finish(self) -> Any:
        """Return the model."""
        if not self.nodes:
            self.add("Identity", "y")
        self.nodes[-1].output[0] = "y"
        element = self.helper.np_dtype_to_tensor_dtype(self.dtype)
        ends = [
            self.helper.make_tensor_value_info(name, element, (_BATCH, *shape))
            for name, shape in (("x", self.input_shape), ("y", self.shape))
        ]
        graph = self.helper.make_graph(self.nodes, "nbbn", ends[:1], ends[1:], self.arrays)
        return self.helper.make_model(
            graph,
            opset_imports=[self.helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="nbbn",
            producer_version=__version__,
        )


# ---------------------------------------------------------------- layers


def _dense(graph: _Graph, name: str, layer: nn.Dense) -> None:
    out_features, in_features = layer.weight.shape
    if graph.shape != (in_features,):
        raise ShapeError(
            f"{name!r}, {layer!r}, cannot take examples of shape {graph.shape}: ONNX's Gemm takes "
            f"({in_features},) only"
        )
    arrays = [graph.array(f"{name}.weight", layer.weight.data)]
    if layer.bias is not None:
        arrays.append(graph.array(f"{name}.bias", layer.bias.data))
    graph.add("Gemm", name, *arrays, transB=1)
    graph.shape = (out_features,)


def _batch_norm(graph: _Graph, name: str, layer: nn.BatchNorm) -> None:
    if layer.running_mean is None or layer.running_var is None:
        raise ArgumentError(
            f"cannot export {name!r}, {layer!r}: it keeps no running statistics for inference"
        )
    if isinstance(layer, nn.InPlaceBatchNorm):
        raise ArgumentError(f"cannot export {name!r}, {layer!r}: nbbn would not read it back")
    rank = 1 + len(graph.shape)
    axis = layer.axis % rank if -rank <= layer.axis < rank else 0
    channels = len(layer.running_mean)
    if axis == 0 or graph.shape[axis - 1] != channels:
        raise ShapeError(
            f"{name!r}, {layer!r}, has {channels} channels on axis {layer.axis}, and examples of "
            f"shape {graph.shape}"
        )
    gamma = np.ones(channels) if layer.gamma is None else layer.gamma.data
    beta = np.zeros(channels) if layer.beta is None else layer.beta.data
    arrays = [
        graph.array(f"{name}.{leaf}", array)
        for leaf, array in (
            ("weight", gamma),
            ("bias", beta),
            ("running_mean", layer.running_mean),
            ("running_var", layer.running_var),
        )
    ]
    first = (0, axis, *(d for d in range(1, rank) if d != axis))
    back = tuple(first.index(d) for d in range(rank))
    if axis != 1:
        graph.add("Transpose", f"{name}.first", perm=first)
    graph.add("BatchNormalization", name, *arrays, epsilon=layer.eps)
    if axis != 1:
        graph.add("Transpose", f"{name}.back", perm=back)
    if layer.activation:
        graph.add("Relu", name)


def _softmax(graph: _Graph, name: str, layer: nn.Softmax) -> None:
    rank = 1 + len(graph.shape)
    if not -rank <= layer.axis < rank:
        raise ShapeError(f"{name!r}, {layer!r}, has no such axis in examples {graph.shape}")
    graph.add("Softmax", name, axis=layer.axis)


def _flatten(graph: _Graph, name: str, layer: nn.Flatten) -> None:
    if len(graph.shape) != 1:
        graph.add("Flatten", name, axis=1)
        graph.shape = (int(np.prod(graph.shape)),)


def _elementwise(op: str) -> Callable[[_Graph, str, Any], None]:
    return lambda graph, name, layer: graph.add(op, name)


_EXPORTERS: dict[type[nn.Module], Callable[[_Graph, str, Any], None]] = {
    nn.Dense: _dense,
    nn.BatchNorm: _batch_norm,
    nn.ReLU: _elementwise("Relu"),
    nn.Sigmoid: _elementwise("Sigmoid"),
    nn.Tanh: _elementwise("Tanh"),
    nn.Softmax: _softmax,
    nn.Flatten: _flatten,
    nn.Dropout: lambda graph, name, layer: None,
    **RECURRENT,
}


def _exporter(layer: nn.Module, name: str) -> Callable[[_Graph, str, Any], None]:
    for kind, found in _EXPORTERS.items():
        if isinstance(layer, kind):
            return found
    known = ", ".join(kind.__name__ for kind in _EXPORTERS)
    raise ArgumentError(
        f"cannot export {name!r}: {type(layer).__name__} is not one of {known}, whose ONNX "
        "operators are known"
    )


# ---------------------------------------------------------------- input and verification


def _example_shape(
    layers: list[tuple[str, nn.Module]], input_shape: Sequence[int] | None
) -> tuple[int, ...]:
    if input_shape is not None:
        return tuple(
            positive(n, "a length in input_shape")
            for n in iterate(input_shape, "input_shape", "integers")
        )
    for _, layer in layers:
        if isinstance(layer, nn.Dense):
            return (layer.weight.shape[1],)
        if isinstance(layer, nn.BatchNorm) and layer.running_mean is not None:
            return (len(layer.running_mean),)
    raise ArgumentError("no layer tells the shape of the input: pass input_shape")


def _dtype(model: nn.Module) -> np.dtype[Any]:
    found = {array.dtype for array in model.state_dict().values() if array.dtype.kind == "f"}
    if len(found) > 1:
        raise DTypeError(f"the layers mix {', '.join(sorted(map(str, found)))}: use one type")
    return found.pop() if found else np.dtype(np.float32)


def _verify(model: nn.Module, exported: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    runtime = require("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(
        exported.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    x = np.random.default_rng(0).standard_normal((_PROBE_ROWS, *shape)).astype(dtype)
    found = session.run(["y"], {"x": x})[0]
    expected = model(x).numpy()
    if not np.isfinite(expected).all():
        raise ArgumentError("the model's outputs are not finite: there is nothing to export")
    scale = max(1.0, float(np.max(np.abs(expected), initial=0.0)))
    error = float(np.max(np.abs(found - expected), initial=0.0)) / scale
    if found.shape != expected.shape or not error <= TOLERANCE:
        raise ArgumentError(
            f"onnxruntime computes something else than the model: the outputs differ by "
            f"{error:.1e} of the largest; {TOLERANCE:.0e} is allowed"
        )
