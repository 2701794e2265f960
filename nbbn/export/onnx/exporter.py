"""Sequential models to ONNX files: opset 15, IR 8, for inference; later ones where an operator is.

Dense is Gemm, and MatMul and Add over sequences, Conv2d is Conv, BatchNorm is BatchNormalization
(and Relu), SiLU is Sigmoid and Mul, attention is products and Softmax, the other layers are
operators of the same name; Dropout disappears. ONNX has the channels first: others are transposed
before and after.
Layer, group and RMS normalization need opset 17, 21 and 23.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ... import nn
from ..._validation import as_path, instance, iterate, positive, switch, write_atomically
from ..._version import __version__
from ...errors import ArgumentError, DTypeError, ShapeError
from ...functional.convolution import Convolution
from ...nn.layers import unnested
from .attention import EXPORTERS as ATTENTION
from .extra import require
from .recurrent import EXPORTERS as RECURRENT

__all__ = ["export"]

OPSET = 15
# The opset that has an operator, or an attribute of it, that earlier ones lack; the IR of opsets.
_OPSETS = {
    "LayerNormalization": 17, "Gelu": 20, "GroupNormalization": 21, "RMSNormalization": 23,
}  # fmt: skip
_DILATED_MEANS = 19
_IR_VERSIONS = {15: 8, 17: 8, 19: 9, 20: 9, 21: 10, 23: 11}
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
    state dict. The file is opset 15 and IR 8, or the first opset that has all of its operators: 17
    with a LayerNorm, 19 with an AvgPool2d with dilation, 20 with GELU, 21 with a GroupNorm, 23 with
    an RMSNorm. It passes ONNX's checker, and, unless `verify` is False, has computed what the model
    computes in onnxruntime before it is written.

    Parameters
    ----------
    model : Sequential
        Of the layers of nbbn, in any nesting; not changed.
    path : path, optional
        Where to write; replaced atomically. Without it nothing is written.
    input_shape : sequence of int, optional
        Shape of one example, such as (3, 32, 32); by default the width of the first Dense or
        BatchNorm, or the shape of the first LayerNorm or RMSNorm. Where a convolution comes first,
        it must be given.
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
        graph.layer(name, layer)
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
        self.opset = OPSET

    def array(self, name: str, array: np.ndarray) -> str:
        """Store an array and return its name."""
        name = name.lstrip(".")
        found = np.ascontiguousarray(array, dtype=self.dtype)
        self.arrays.append(self.numpy_helper.from_array(found, name))
        return name

    def integers(self, name: str, values: Any) -> str:
        """Store a shape, or one position on an axis, and return its name."""
        name = name.lstrip(".")
        self.arrays.append(self.numpy_helper.from_array(np.array(values), name))
        return name

    def add(self, op: str, name: str, *arrays: str, **attributes: Any) -> None:
        """Apply an operator to the value so far."""
        label = f"{name}.{op}".lstrip(".")
        self.opset = max(self.opset, _OPSETS.get(op, OPSET))
        self.nodes.append(
            self.helper.make_node(op, [self.value, *arrays], [label], name=label, **attributes)
        )
        self.value = label

    def layer(self, name: str, layer: nn.Module) -> None:
        """Apply a layer to the value so far."""
        _exporter(layer, name)(self, name, layer)

    def product(self, name: str, weight: np.ndarray, bias: np.ndarray | None) -> None:
        """Multiply the last axis of the value so far with weight (out, in), and add bias (out,)."""
        self.add("MatMul", name, self.array(f"{name}.weight.T", weight.T))
        if bias is not None:
            self.add("Add", name, self.array(f"{name}.bias", bias))
        self.shape = (*self.shape[:-1], len(weight))

    def add_channels_first(
        self, axis: int, op: str, name: str, *arrays: str, **attributes: Any
    ) -> None:
        """Apply an operator that has the channels on axis 1 to a value that has them on `axis`."""
        rank = 1 + len(self.shape)
        first = (0, axis, *(d for d in range(1, rank) if d != axis))
        if axis != 1:
            self.add("Transpose", f"{name}.first", perm=first)
        self.add(op, name, *arrays, **attributes)
        if axis != 1:
            self.add("Transpose", f"{name}.back", perm=tuple(first.index(d) for d in range(rank)))

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
            opset_imports=[self.helper.make_opsetid("", self.opset)],
            ir_version=_IR_VERSIONS[self.opset],
            producer_name="nbbn",
            producer_version=__version__,
        )


# ---------------------------------------------------------------- layers


def _dense(graph: _Graph, name: str, layer: nn.Dense) -> None:
    out_features, in_features = layer.weight.shape
    if graph.shape[-1:] != (in_features,):
        raise ShapeError(
            f"{name!r}, {layer!r}, cannot take examples of shape {graph.shape}: it takes "
            f"({in_features},), or sequences of that"
        )
    if len(graph.shape) > 1:
        bias = None if layer.bias is None else layer.bias.data
        graph.product(name, layer.weight.data, bias)
        return
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
    _with_running_stats(graph, name, layer, layer.running_mean, layer.running_var)
    if layer.activation:
        graph.add("Relu", name)


def _with_running_stats(
    graph: _Graph, name: str, layer: Any, mean: np.ndarray, var: np.ndarray
) -> None:
    statistics = ("running_mean", mean), ("running_var", var)
    arrays = [*_affine(graph, name, layer, mean.shape)]
    arrays += [graph.array(f"{name}.{leaf}", array) for leaf, array in statistics]
    settings = {"epsilon": layer.eps}
    _over_channels(graph, name, layer, "BatchNormalization", mean.size, *arrays, **settings)


def _affine(graph: _Graph, name: str, layer: Any, shape: tuple[int, ...]) -> tuple[str, str]:
    """Store gamma and beta, ones and zeros where a layer does without."""
    beta = np.zeros(shape) if layer.beta is None else layer.beta.data
    return _scale(graph, name, layer, shape), graph.array(f"{name}.bias", beta)


def _scale(graph: _Graph, name: str, layer: Any, shape: tuple[int, ...]) -> str:
    gamma = np.ones(shape) if layer.gamma is None else layer.gamma.data
    return graph.array(f"{name}.weight", gamma)


def _over_channels(
    graph: _Graph, name: str, layer: Any, op: str, channels: int | None, *arrays: str,
    **attributes: Any,
) -> None:  # fmt: skip
    """Apply an operator whose channels are on axis 1, between transpositions if needed."""
    rank = 1 + len(graph.shape)
    axis = layer.axis % rank if -rank <= layer.axis < rank else 0
    if axis == 0 or channels not in (None, graph.shape[axis - 1]):
        raise ShapeError(
            f"{name!r}, {layer!r}, has {channels or 'its'} channels on axis {layer.axis}, and "
            f"examples of shape {graph.shape}"
        )
    graph.add_channels_first(axis, op, name, *arrays, **attributes)


def _check_last(graph: _Graph, name: str, layer: nn.LayerNorm | nn.RMSNorm) -> int:
    """Return the first axis that a layer normalizes."""
    axis = -len(layer.shape)
    if graph.shape[axis:] != layer.shape:
        raise ShapeError(f"{name!r}, {layer!r}, does not fit examples of shape {graph.shape}")
    return axis


def _layer_norm(graph: _Graph, name: str, layer: nn.LayerNorm) -> None:
    axis, arrays = _check_last(graph, name, layer), _affine(graph, name, layer, layer.shape)
    graph.add("LayerNormalization", name, *arrays, axis=axis, epsilon=layer.eps)


def _rms_norm(graph: _Graph, name: str, layer: nn.RMSNorm) -> None:
    axis, scale = _check_last(graph, name, layer), _scale(graph, name, layer, layer.shape)
    eps = float(np.finfo(graph.dtype).eps) if layer.eps is None else layer.eps
    graph.add("RMSNormalization", name, scale, axis=axis, epsilon=eps)


def _group_norm(graph: _Graph, name: str, layer: nn.GroupNorm) -> None:
    # Before its opset, scale and bias had one number a group.
    channels, settings = layer.channels, {"num_groups": layer.groups, "epsilon": layer.eps}
    arrays = _affine(graph, name, layer, (channels,))
    _over_channels(graph, name, layer, "GroupNormalization", channels, *arrays, **settings)


def _instance_norm(graph: _Graph, name: str, layer: nn.InstanceNorm) -> None:
    if len(graph.shape) < 2:
        raise ShapeError(f"{name!r}, {layer!r}, does not fit examples of shape {graph.shape}")
    if layer.running_mean is not None and layer.running_var is not None:
        _with_running_stats(graph, name, layer, layer.running_mean, layer.running_var)
        return
    channels, settings = layer.channels, {"epsilon": layer.eps}
    arrays = _affine(graph, name, layer, (channels,))
    _over_channels(graph, name, layer, "InstanceNormalization", channels, *arrays, **settings)


def _local_response_norm(graph: _Graph, name: str, layer: nn.LocalResponseNorm) -> None:
    if layer.over != "channels" or layer.size % 2 == 0:
        raise ArgumentError(
            f"cannot export {name!r}, {layer!r}: ONNX's LRN is over channels, and its windows of "
            f"even size reach further to the other side; this one is over {layer.over} of size "
            f"{layer.size}"
        )
    alpha = layer.alpha * (layer.size if layer.alpha_of == "sum" else 1)
    settings = {"alpha": alpha, "beta": layer.beta, "bias": layer.k, "size": layer.size}
    _over_channels(graph, name, layer, "LRN", None, **settings)


def _pooling(op: str) -> Callable[[_Graph, str, Any], None]:
    def add(graph: _Graph, name: str, layer: Any) -> None:
        (top, bottom), (left, right) = layer.padding
        attributes = {
            "kernel_shape": layer.size,
            "strides": layer.stride,
            "pads": (top, left, bottom, right),
            "ceil_mode": int(layer.ceil_mode),
        }
        if op == "AveragePool":
            attributes["count_include_pad"] = int(layer.count_include_pad)
        if layer.dilation != (1, 1):
            attributes["dilations"] = layer.dilation
            if op == "AveragePool":
                graph.opset = max(graph.opset, _DILATED_MEANS)
        _pooled(graph, op, name, layer, **attributes)

    return add


def _pooled(graph: _Graph, op: str, name: str, layer: Any, **attributes: Any) -> None:
    """Apply an operator of pooling; the layer says what shape it gives."""
    shape = layer(np.zeros((1, *graph.shape), graph.dtype)).shape[1:]
    graph.add_channels_first(layer.axis % 4, op, name, **attributes)
    graph.shape = shape


def _global_pooling(op: str) -> Callable[[_Graph, str, Any], None]:
    def add(graph: _Graph, name: str, layer: Any) -> None:
        _pooled(graph, op, name, layer)
        if not layer.keepdims:
            graph.add("Flatten", name, axis=1)

    return add


def _gelu(graph: _Graph, name: str, layer: nn.GELU) -> None:
    graph.add("Gelu", name, approximate=layer.approximate)


def _silu(graph: _Graph, name: str, layer: nn.SiLU) -> None:
    x = graph.value
    graph.add("Sigmoid", name)
    graph.add("Mul", name, x)


def _convolution(graph: _Graph, name: str, layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
    x = np.broadcast_to(np.zeros((), graph.dtype), (1, *graph.shape))
    window = layer.stride, layer.padding
    rest = layer.dilation, layer.groups, layer.axis
    more = {}
    try:
        if isinstance(layer, nn.ConvTranspose2d):
            found = Convolution.of_output(
                x, layer.weight.data, *window, layer.output_padding, *rest
            )
            op, shape = "ConvTranspose", found.x_shape
            more["output_padding"] = layer.output_padding
        else:
            found = Convolution(x, layer.weight.data, *window, *rest)
            op, shape = "Conv", found.y_shape
    except ShapeError as error:
        raise ShapeError(
            f"{name!r}, {layer!r}, cannot take examples of shape {graph.shape}: {error}"
        ) from None
    arrays = [graph.array(f"{name}.weight", layer.weight.data)]
    if layer.bias is not None:
        arrays.append(graph.array(f"{name}.bias", layer.bias.data))
    (top, bottom), (left, right) = found.options["padding"]
    graph.add_channels_first(
        3 if found.last else 1, op, name, *arrays, kernel_shape=layer.weight.shape[2:],
        strides=layer.stride, pads=(top, left, bottom, right), dilations=layer.dilation,
        group=layer.groups, **more,
    )  # fmt: skip
    graph.shape = shape[1:]
    if isinstance(layer, nn.Conv2d) and layer.activation:
        graph.add("Relu", name)


def _softmax(graph: _Graph, name: str, layer: nn.Softmax) -> None:
    rank = 1 + len(graph.shape)
    if not -rank <= layer.axis < rank:
        raise ShapeError(f"{name!r}, {layer!r}, has no such axis in examples {graph.shape}")
    graph.add("Softmax", name, axis=layer.axis)


def _flatten(graph: _Graph, name: str, layer: nn.Flatten) -> None:
    if len(graph.shape) != 1:
        graph.add("Flatten", name, axis=1)
        graph.shape = (math.prod(graph.shape),)


def _unflatten(graph: _Graph, name: str, layer: nn.Unflatten) -> None:
    if math.prod(graph.shape) != math.prod(layer.shape):
        raise ShapeError(f"{name!r}, {layer!r}, cannot take examples of shape {graph.shape}")
    graph.add("Reshape", name, graph.integers(f"{name}.shape", (-1, *layer.shape)))
    graph.shape = layer.shape


def _elementwise(op: str) -> Callable[[_Graph, str, Any], None]:
    return lambda graph, name, layer: graph.add(op, name)


_EXPORTERS: dict[type[nn.Module], Callable[[_Graph, str, Any], None]] = {
    nn.Dense: _dense,
    nn.BatchNorm: _batch_norm,
    nn.Conv2d: _convolution,
    nn.ConvTranspose2d: _convolution,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.GroupNorm: _group_norm,
    nn.InstanceNorm: _instance_norm,
    nn.LocalResponseNorm: _local_response_norm,
    # The layer inside, with the weight that is used.
    nn.Reweighted: lambda graph, name, layer: graph.layer(name, layer.plain()),
    nn.ReLU: _elementwise("Relu"),
    nn.Sigmoid: _elementwise("Sigmoid"),
    nn.Tanh: _elementwise("Tanh"),
    nn.GELU: _gelu,
    nn.SiLU: _silu,
    nn.LeakyReLU: lambda graph, name, layer: graph.add("LeakyRelu", name, alpha=layer.slope),
    nn.MaxPool2d: _pooling("MaxPool"),
    nn.AvgPool2d: _pooling("AveragePool"),
    nn.GlobalMaxPool2d: _global_pooling("GlobalMaxPool"),
    nn.GlobalAvgPool2d: _global_pooling("GlobalAveragePool"),
    nn.Softmax: _softmax,
    nn.Flatten: _flatten,
    nn.Unflatten: _unflatten,
    nn.Dropout: lambda graph, name, layer: None,
    **RECURRENT,
    **ATTENTION,
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
        inside = layer.layer if isinstance(layer, nn.Reweighted) else layer
        if isinstance(inside, nn.Dense):
            return (inside.weight.shape[1],)
        if isinstance(layer, nn.Unflatten):
            return (math.prod(layer.shape),)
        if isinstance(layer, nn.BatchNorm) and layer.running_mean is not None:
            return (len(layer.running_mean),)
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            break
        if isinstance(layer, nn.LayerNorm | nn.RMSNorm):
            return layer.shape
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
    try:
        session = runtime.InferenceSession(
            exported.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as reason:  # of its own classes: float64 lacks many operators
        raise ArgumentError(
            f"onnxruntime cannot run the file in {dtype}: use float32, or verify=False ({reason})"
        ) from None
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
