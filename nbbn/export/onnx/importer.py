"""ONNX files to Sequential models.

The graph must be a chain of the operators that `export` writes, or of their older forms: one input,
each operator applied to the result of the one before it and to constants.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ... import nn
from ...errors import ArgumentError, CheckpointError, DTypeError, NbbnError
from ..walk import dense_of
from .extra import require
from .graph import Graph, Node
from .recurrent import IMPORTERS as RECURRENT
from .recurrent import arrange

__all__ = ["load"]


def load(source: str | os.PathLike[str] | Any) -> nn.Sequential:
    """Build a Sequential from an ONNX file.

    Parameters
    ----------
    source : path, or onnx.ModelProto
        A chain of Gemm or MatMul and Add, Conv and ConvTranspose of images, BatchNormalization,
        LayerNormalization, RMSNormalization, GroupNormalization, InstanceNormalization, LRN, Relu,
        LeakyRelu, Gelu, Sigmoid, Mul of a Sigmoid and its input, Swish, Tanh, Softmax, MaxPool,
        AveragePool, GlobalMaxPool, GlobalAveragePool, Flatten, Reshape of each example, Dropout,
        Identity and Transpose; LSTM, GRU and RNN, forward or bidirectional, which start from zeros,
        and of their results the hidden states of all steps or of the last.

    Returns
    -------
    Sequential
        In evaluation mode. A Relu behind a BatchNormalization is part of its layer.

    Raises
    ------
    CheckpointError
        The file is missing or is no valid ONNX.
    ArgumentError
        An operator, or a use of one, that no layer of nbbn computes.
    ImportError
        The extra ``nbbn[onnx]`` is not installed.
    """
    chain = _Chain(Graph(read(source)))
    return chain.build()


def read(source: Any) -> Any:
    """Return a checked ModelProto."""
    onnx = require("onnx")
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if not path.is_file():
            raise CheckpointError(f"there is no file {path}")
        try:
            source = onnx.load(path)
        except Exception as error:  # whatever the parser of protobuf raises
            raise CheckpointError(f"{path} is not an ONNX file: {error}") from None
    if not isinstance(source, onnx.ModelProto):
        raise DTypeError(
            f"source must be a path or an onnx.ModelProto, got {type(source).__name__}"
        )
    try:
        onnx.checker.check_model(source)
    except onnx.checker.ValidationError as error:
        raise CheckpointError(f"ONNX's checker refuses the model: {error}") from None
    return source


class _Chain:
    """Layers in the making, and what the value that runs through them is."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.layers: list[nn.Module] = []
        if len(graph.inputs) != 1 or len(graph.outputs) != 1:
            raise ArgumentError(
                f"the graph must have one input and one output, got {graph.inputs} and "
                f"{graph.outputs}"
            )
        self.value = self.before = graph.inputs[0]
        self.rank: int | None = graph.rank(self.value)
        # The axes of the model's own value in the order that the graph has them now.
        self.axes: tuple[int, ...] | None = None
        # Of a recurrent layer's result that still has its directions; see recurrent.py.
        self.letters = ""
        self.last_states: list[str] = []
        # Values that are computed from shapes alone: sizes, and zeros of such sizes.
        self._sizes: set[str] = set()
        self._zeros: set[str] = set()

    def build(self) -> nn.Sequential:
        """Follow the nodes from the input to the output."""
        for node in self.graph.nodes:
            if self.graph.fold_constant(node) or self._follow_shapes(node):
                continue
            convert = arrange if self.letters else _IMPORTERS.get(node.op)
            if convert is None or node.domain:
                raise node.refusal(f"no layer computes it; known are {', '.join(_IMPORTERS)}")
            if node.input(0) != self.value and not (
                node.op in ("Add", "MatMul", "Mul", "Concat") and self.value in node.inputs
            ):
                raise node.refusal(f"it does not take {self.value!r}, the result before it")
            self.before, self.value = self.value, convert(self, node) or node.outputs[0]
        if self.value != self.graph.outputs[0]:
            raise ArgumentError(f"the last operator does not give {self.graph.outputs[0]!r}")
        if self.axes is not None or self.letters:
            raise ArgumentError("the output is transposed, which no layer computes")
        model = nn.Sequential(*self.layers)
        model.eval()
        return model

    def constant(self, node: Node, position: int, what: str) -> np.ndarray:
        """Return an input that must be known beforehand, in a type that layers hold."""
        array = self.graph.constant(node.input(position))
        if array is None:
            raise node.refusal(f"its {what} is computed, not stored")
        if array.dtype.kind != "f":
            raise node.refusal(f"its {what} holds {array.dtype}")
        return array if array.dtype == np.float64 else array.astype(np.float32)

    def _follow_shapes(self, node: Node) -> bool:
        """Note what a node computes from shapes alone, such as the zeros a cell starts from."""
        source, constant = node.input(0), self.graph.constant(node.input(0))
        taken = {name for name in node.inputs if self.graph.constant(name) is None}
        zero = False
        if node.op == "ConstantOfShape":
            value = node.attribute("value", None)
            zero = value is None or not self.graph.array(value).any()
        elif node.op == "Expand" and constant is not None:
            zero = not constant.any()
        elif node.op in _OF_SHAPES and taken:
            zero = source in self._zeros
        elif node.op != "Shape":
            return False
        if node.op != "Shape" and not taken <= self._sizes | self._zeros:
            return False
        (self._zeros if zero else self._sizes).update(node.outputs)
        return True

    def is_zero(self, name: str) -> bool:
        """Whether an input is left out or nothing but zeros."""
        array = self.graph.constant(name)
        return not name or name in self._zeros or (array is not None and not array.any())

    def channels(self, node: Node) -> int:
        """The model's own axis that the graph has as axis 1."""
        if self.axes is not None and self.axes[0] != 0:
            raise node.refusal("it acts on a value with the time first")
        return 1 if self.axes is None else self.axes[1]

    def plain(self, node: Node) -> None:
        """Refuse a node that would act on transposed axes."""
        if self.axes is not None:
            raise node.refusal("it acts on a transposed value")


# ---------------------------------------------------------------- operators


def _gemm(chain: _Chain, node: Node) -> None:
    chain.plain(node)
    if node.attribute("transA", 0):
        raise node.refusal("it transposes the value (transA)")
    weight = node.attribute("alpha", 1.0) * chain.constant(node, 1, "B")
    weight = weight if node.attribute("transB", 0) else weight.T
    bias = None
    if node.input(2) and node.attribute("beta", 1.0) != 0:
        bias = node.attribute("beta", 1.0) * chain.constant(node, 2, "C")
        bias = _row(node, bias, len(weight))
    chain.layers.append(dense_of(weight, bias, weight.dtype))
    chain.rank = 2


def _convolution(chain: _Chain, node: Node) -> None:
    transposed = node.op == "ConvTranspose"
    weight = chain.constant(node, 1, "W")
    bias = chain.constant(node, 2, "B") if node.input(2) else None
    if weight.ndim != 4:
        raise node.refusal(f"only images are convolved, and its kernels are {weight.shape[2:]}")
    if chain.axes not in (None, (0, 3, 1, 2)):
        raise node.refusal("it acts on a transposed value")
    groups = node.attribute("group", 1)
    layer = (nn.ConvTranspose2d if transposed else nn.Conv2d)(
        *_channels(weight, groups, transposed), weight.shape[2:],
        groups=groups, axis=1 if chain.axes is None else -1, bias=bias is not None, init=0.0,
        dtype=weight.dtype, **_window(node, transposed),
    )  # fmt: skip
    layer.weight.data[...] = weight
    if layer.bias is not None:
        layer.bias.data[...] = bias
    chain.layers.append(layer)


def _channels(weight: np.ndarray, groups: int, transposed: bool) -> tuple[int, int]:
    first, second = weight.shape[0], weight.shape[1] * groups
    return (first, second) if transposed else (second, first)


def _window(node: Node, transposed: bool) -> dict[str, Any]:
    """Options of a layer from the attributes of Conv or ConvTranspose."""
    top, left, bottom, right = node.attribute("pads", (0, 0, 0, 0))
    even = (top, left) == (bottom, right)
    padding: Any = (top, left) if even else ((top, bottom), (left, right))
    pad = node.attribute("auto_pad", b"NOTSET").decode()
    if pad not in ("NOTSET", "VALID"):
        if pad != "SAME_UPPER" or transposed:
            raise node.refusal(f"its padding {pad} depends on the image: give it as pads")
        padding = "same"
    if node.attribute("output_shape", None) is not None:
        raise node.refusal("its output_shape takes the place of its pads: give these")
    found = {
        "stride": tuple(node.attribute("strides", (1, 1))),
        "padding": padding,
        "dilation": tuple(node.attribute("dilations", (1, 1))),
    }
    if transposed:
        found["output_padding"] = tuple(node.attribute("output_padding", (0, 0)))
    return found


def _matmul(chain: _Chain, node: Node) -> None:
    chain.plain(node)
    if node.inputs[0] != chain.value:
        raise node.refusal("it multiplies the value from the left")
    weight = chain.constant(node, 1, "matrix")
    if weight.ndim != 2 or chain.rank not in (None, 2):
        raise node.refusal(f"only (N, in) times (in, out) is a layer, got {weight.shape}")
    chain.layers.append(dense_of(weight.T, None, weight.dtype))
    chain.rank = 2


def _add(chain: _Chain, node: Node) -> None:
    last = chain.layers[-1] if chain.layers else None
    if not isinstance(last, nn.Dense) or last.bias is not None:
        raise node.refusal("only the bias of a matrix product can be added")
    position = 1 - node.inputs.index(chain.value)
    bias = _row(node, chain.constant(node, position, "addend"), last.weight.shape[0])
    chain.layers[-1] = dense_of(last.weight.data, bias, last.weight.dtype)


def _row(node: Node, bias: np.ndarray, width: int) -> np.ndarray:
    """Broadcast a bias to one row, and refuse one that differs between rows."""
    if bias.ndim > 2 or (bias.ndim == 2 and bias.shape[0] != 1) or bias.size not in (1, width):
        raise node.refusal(f"it adds an array of shape {bias.shape}, not one number a feature")
    return np.broadcast_to(bias.reshape(-1), (width,))


def _batch_norm(chain: _Chain, node: Node) -> None:
    if node.attribute("training_mode", 0) or not node.attribute("spatial", 1):
        raise node.refusal("only inference with one mean and variance per channel can be imported")
    if chain.graph.opset < 7 and not node.attribute("is_test", 0):
        raise node.refusal("only inference (is_test) can be imported")
    names = ("weight", "bias", "running_mean", "running_var")
    state = {name: chain.constant(node, i + 1, name) for i, name in enumerate(names)}
    layer = nn.BatchNorm(
        len(state["weight"]),
        convention=nn.Convention.of(
            "onnx",
            eps=_decimal(node.attribute("epsilon", 1e-5)),
            momentum=_decimal(node.attribute("momentum", 0.9)),
            axis=chain.channels(node),
        ),
        dtype=np.result_type(*state.values()),
    )
    _take(chain, node, layer, state)


def _of_last_axes(chain: _Chain, node: Node) -> None:
    """LayerNormalization and RMSNormalization."""
    chain.plain(node)
    if len(node.outputs) > 1 and any(node.outputs[1:]):
        raise node.refusal("it returns its statistics, which no layer does")
    state = {"weight": chain.constant(node, 1, "scale")}
    shape, axis = state["weight"].shape, node.attribute("axis", -1)
    if axis >= 0 and chain.rank is None:
        raise node.refusal("its axis counts from the front, of a value of unknown rank")
    if len(shape) != (-axis if axis < 0 else (chain.rank or 0) - axis):
        raise node.refusal(f"its scale has shape {shape}, but it normalizes from axis {axis} on")
    eps, kind = _decimal(node.attribute("epsilon", 1e-5)), state["weight"].dtype
    layer: nn.Module
    if node.op == "RMSNormalization":
        layer = nn.RMSNorm(shape, eps=eps, dtype=kind)
    else:
        if node.input(2):
            state["bias"] = chain.constant(node, 2, "bias")
        layer = nn.LayerNorm(shape, eps=eps, shift="bias" in state, dtype=kind)
    _take(chain, node, layer, state)


def _of_channels(chain: _Chain, node: Node) -> None:
    """GroupNormalization and InstanceNormalization."""
    state = {"weight": chain.constant(node, 1, "scale"), "bias": chain.constant(node, 2, "bias")}
    channels, kind = state["weight"].size, state["weight"].dtype
    eps = _decimal(node.attribute("epsilon", 1e-5))
    axis = chain.channels(node)
    layer: nn.Module
    if node.op == "InstanceNormalization":
        layer = nn.InstanceNorm(channels, eps=eps, axis=axis, scale=True, shift=True, dtype=kind)
    else:
        # ONNX's checker refuses the form before opset 21, which scaled groups, not channels.
        groups = node.attribute("num_groups", 0)
        if groups < 1 or channels % groups:
            raise node.refusal(f"its {channels} channels do not divide into {groups} groups")
        layer = nn.GroupNorm(groups, channels, eps=eps, axis=axis, dtype=kind)
    _take(chain, node, layer, state)


def _take(chain: _Chain, node: Node, layer: nn.Module, state: dict[str, np.ndarray]) -> None:
    """Append a layer with its arrays."""
    try:
        layer.load_state_dict(state)
    except NbbnError as error:
        raise node.refusal(str(error)) from None
    chain.layers.append(layer)


def _lrn(chain: _Chain, node: Node) -> None:
    size = node.attribute("size", 0)
    if size % 2 == 0:
        raise node.refusal(f"its windows, of the even size {size}, reach to the other side")
    names = {"alpha": 1e-4, "beta": 0.75, "bias": 1.0}
    alpha, beta, k = (_decimal(node.attribute(name, value)) for name, value in names.items())
    axis = chain.channels(node)
    chain.layers.append(nn.LocalResponseNorm(size, alpha=alpha, beta=beta, k=k, axis=axis))


def _decimal(value: float) -> float:
    """Return the short decimal that was meant by a number that the file holds in float32."""
    return float(str(np.float32(value)))


def _relu(chain: _Chain, node: Node) -> None:
    last = chain.layers[-1] if chain.layers else None
    if isinstance(last, nn.BatchNorm) and last.activation is None:
        last.activation = "relu"
    else:
        chain.layers.append(nn.ReLU())


def _leaky_relu(chain: _Chain, node: Node) -> None:
    try:
        chain.layers.append(nn.LeakyReLU(_decimal(node.attribute("alpha", 0.01))))
    except NbbnError as error:
        raise node.refusal(str(error)) from None


def _gelu(chain: _Chain, node: Node) -> None:
    chain.layers.append(nn.GELU(node.attribute("approximate", b"none").decode()))


def _mul(chain: _Chain, node: Node) -> None:
    last = chain.layers[-1] if chain.layers else None
    if not isinstance(last, nn.Sigmoid) or {*node.inputs} != {chain.before, chain.value}:
        raise node.refusal("only a Sigmoid and its input can be multiplied")
    chain.layers[-1] = nn.SiLU()


def _swish(chain: _Chain, node: Node) -> None:
    if node.attribute("alpha", 1.0) != 1.0:
        raise node.refusal("only x times its sigmoid is a layer (alpha=1)")
    chain.layers.append(nn.SiLU())


def _image_axis(chain: _Chain, node: Node) -> int:
    """The channel axis of images of rank 4."""
    if chain.rank not in (None, 4):
        raise node.refusal("only images of two dimensions are pooled")
    if chain.axes is None:
        return 1
    if chain.axes != (0, 3, 1, 2):
        raise node.refusal("it acts on a transposed value")
    return -1


def _pooling(kind: type[nn.MaxPool2d] | type[nn.AvgPool2d]) -> Callable[[_Chain, Node], None]:
    def convert(chain: _Chain, node: Node) -> None:
        axis, size = _image_axis(chain, node), tuple(node.attribute("kernel_shape", ()))
        if len(size) != 2:
            raise node.refusal("only images of two dimensions are pooled")
        if len(node.outputs) > 1:
            raise node.refusal("it gives indices too")
        if node.attribute("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
            raise node.refusal("its padding depends on the size of the images (auto_pad)")
        top, left, bottom, right = node.attribute("pads", (0, 0, 0, 0))
        options: dict[str, Any] = {"ceil_mode": bool(node.attribute("ceil_mode", 0)), "axis": axis}
        if kind is nn.AvgPool2d:
            options["count_include_pad"] = bool(node.attribute("count_include_pad", 0))
        try:
            layer = kind(
                size,
                stride=tuple(node.attribute("strides", (1, 1))),
                padding=((top, bottom), (left, right)),
                dilation=tuple(node.attribute("dilations", (1, 1))),
                **options,
            )
        except NbbnError as error:
            raise node.refusal(str(error)) from None
        chain.layers.append(layer)

    return convert


def _global_pooling(kind: type[nn.GlobalAvgPool2d]) -> Callable[[_Chain, Node], None]:
    return lambda chain, node: chain.layers.append(
        kind(axis=_image_axis(chain, node), keepdims=True)
    )


def _softmax(chain: _Chain, node: Node) -> None:
    chain.plain(node)
    axis = node.attribute("axis", 1 if chain.graph.opset < 13 else -1)
    # Before opset 13 all axes from this one on were one.
    if chain.graph.opset < 13 and (chain.rank is None or axis not in (-1, chain.rank - 1)):
        raise node.refusal("before opset 13 only the last axis of a value of known rank will do")
    chain.layers.append(nn.Softmax(axis))


def _flatten(chain: _Chain, node: Node) -> None:
    chain.plain(node)
    if node.attribute("axis", 1) != 1:
        raise node.refusal("only Flatten from axis 1 on is a layer")
    chain.layers.append(nn.Flatten())
    chain.rank = 2


def _reshape(chain: _Chain, node: Node) -> None:
    chain.plain(node)
    shape = chain.graph.constant(node.input(1))
    if shape is None or shape.size < 2 or shape[0] not in (0, -1) or (shape[1:] < 1).any():
        raise node.refusal("only (N, features) to a known shape of each example is a layer")
    chain.layers.append(nn.Unflatten(shape[1:].tolist()))
    chain.rank = shape.size


def _dropout(chain: _Chain, node: Node) -> None:
    ratio, mode = (chain.graph.constant(node.input(i)) for i in (1, 2))
    if (node.input(2) and mode is None) or (mode is not None and mode.any()):
        raise node.refusal("it drops in inference too (training_mode)")
    p = node.attribute("ratio", 0.5) if ratio is None else float(ratio)
    chain.layers.append(nn.Dropout(_decimal(p)))


def _transpose(chain: _Chain, node: Node) -> None:
    perm = node.attribute("perm", None)
    if perm is None:
        raise node.refusal("it reverses the axes")
    before = chain.axes or tuple(range(len(perm)))
    after = tuple(before[d] for d in perm)
    if after[0] != 0 and after != (1, 0, 2):
        raise node.refusal("it moves the batch axis")
    chain.axes = None if after == tuple(range(len(perm))) else after


def _layer(kind: Callable[[], nn.Module]) -> Callable[[_Chain, Node], None]:
    return lambda chain, node: chain.layers.append(kind())


# What may come between a shape and the zeros of that shape.
_OF_SHAPES = ("Cast", "Concat", "Gather", "Slice", "Squeeze", "Unsqueeze")
# Each may return the name of the result that the chain goes on with.
_IMPORTERS: dict[str, Callable[[_Chain, Node], Any]] = {
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Add": _add,
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "BatchNormalization": _batch_norm,
    "GroupNormalization": _of_channels,
    "InstanceNormalization": _of_channels,
    "LayerNormalization": _of_last_axes,
    "LRN": _lrn,
    "RMSNormalization": _of_last_axes,
    "Relu": _relu,
    "LeakyRelu": _leaky_relu,
    "Gelu": _gelu,
    "Mul": _mul,
    "Swish": _swish,
    "MaxPool": _pooling(nn.MaxPool2d),
    "AveragePool": _pooling(nn.AvgPool2d),
    "GlobalMaxPool": _global_pooling(nn.GlobalMaxPool2d),
    "GlobalAveragePool": _global_pooling(nn.GlobalAvgPool2d),
    "Sigmoid": _layer(nn.Sigmoid),
    "Tanh": _layer(nn.Tanh),
    "Softmax": _softmax,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Dropout": _dropout,
    "Identity": lambda chain, node: None,
    "Transpose": _transpose,
    **RECURRENT,
}
