"""An ONNX graph as plain Python: nodes, attributes, constants."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import ArgumentError, CheckpointError
from .extra import require


class Node:
    """One operator of a graph, from an onnx.NodeProto."""

    def __init__(self, proto: Any) -> None:
        helper = require("onnx.helper")
        self.op: str = proto.op_type
        self.domain: str = "" if proto.domain == "ai.onnx" else proto.domain
        self.name: str = proto.name or ", ".join(proto.output)
        self.inputs: list[str] = list(proto.input)
        self.outputs: list[str] = list(proto.output)
        self._attributes = {a.name: helper.get_attribute_value(a) for a in proto.attribute}

    def input(self, position: int) -> str:
        """Return the name of an input, "" if it is left out."""
        return self.inputs[position] if position < len(self.inputs) else ""

    def attribute(self, name: str, default: Any) -> Any:
        """Return an attribute or what the operator takes without it."""
        return self._attributes.get(name, default)

    def refusal(self, reason: str) -> ArgumentError:
        """Make the error that says why this node cannot be taken."""
        return ArgumentError(f"cannot take the operator {self.op} ({self.name}): {reason}")


class Graph:
    """The graph of an onnx.ModelProto."""

    def __init__(self, model: Any) -> None:
        self._to_array = require("onnx.numpy_helper").to_array
        graph = model.graph
        self.opset: int = max(
            (o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1
        )
        self._constants: dict[str, np.ndarray] = {
            tensor.name: self.array(tensor) for tensor in graph.initializer
        }
        self._values = {value.name: value for value in graph.input}
        self.inputs = [name for name in self._values if name not in self._constants]
        self.outputs = [value.name for value in graph.output]
        self.nodes = [Node(proto) for proto in graph.node]
        self._used = {name for node in self.nodes for name in node.inputs} | {*self.outputs}

    def array(self, tensor: Any) -> np.ndarray:
        """Return an onnx.TensorProto as an array."""
        try:
            array: np.ndarray = self._to_array(tensor)
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"the tensor {tensor.name!r} is damaged: {error}") from None
        return array

    def constant(self, name: str) -> np.ndarray | None:
        """Return a value that is known without running the graph, or None."""
        return self._constants.get(name)

    def is_used(self, name: str) -> bool:
        """Whether a node takes a value, or the graph returns it."""
        return bool(name) and name in self._used

    def rank(self, name: str) -> int | None:
        """Return the number of axes of an input, or None if the graph does not say."""
        kind = self._values[name].type.tensor_type
        return len(kind.shape.dim) if kind.HasField("shape") else None

    def fold_constant(self, node: Node) -> bool:
        """Work out a node whose result does not depend on the input, if it is such a one."""
        if node.op == "Constant":
            value = node.attribute("value", None)
            if value is None:
                raise node.refusal("only tensors are known as constants")
            self._constants[node.outputs[0]] = self.array(value)
            return True
        array = self.constant(node.input(0))
        if array is None or node.op not in ("Transpose", "Identity"):
            return False
        if node.op == "Transpose":
            array = array.transpose(node.attribute("perm", None))
        self._constants[node.outputs[0]] = array
        return True
