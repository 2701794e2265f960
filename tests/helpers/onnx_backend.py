"""The backend through which ONNX's own tests run on nbbn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx.backend.base import Backend as _Base
from onnx.backend.base import BackendRep

from nbbn.errors import ArgumentError, DeviceError
from nbbn.export.onnx.graph import Graph
from tests.helpers.onnx_operators import OPERATORS

__all__ = ["Backend", "Prepared"]


class Prepared(BackendRep):
    """A graph that is ready to run."""

    def __init__(self, model: onnx.ModelProto, device: str) -> None:
        if not Backend.supports_device(device):
            raise DeviceError(f"the ONNX backend runs on the CPU, got device {device!r}")
        self._graph = Graph(model)
        for node in self._graph.nodes:
            if (node.domain or node.op not in OPERATORS) and node.op != "Constant":
                raise node.refusal(f"known are {', '.join(OPERATORS)}")

    def run(
        self, inputs: Sequence[np.ndarray] | Mapping[str, np.ndarray], **kwargs: Any
    ) -> tuple[Any, ...]:
        """Compute the outputs from inputs in the order of the graph's, or by name."""
        graph = self._graph
        given = (
            inputs if isinstance(inputs, Mapping) else dict(zip(graph.inputs, inputs, strict=True))
        )
        missing = [name for name in graph.inputs if name not in given]
        if missing:
            raise ArgumentError(f"the graph needs the inputs {missing}")
        values = {name: np.asarray(value) for name, value in given.items()}

        def value(name: str) -> Any:
            return values[name] if name in values else graph.constant(name)

        for node in graph.nodes:
            if not graph.fold_constant(node):
                count, compute = OPERATORS[node.op]
                operands = [value(node.input(i)) for i in range(count)]
                found = compute(node, operands, graph.opset)
                values.update(zip(node.outputs, found, strict=False))
        return tuple(map(value, graph.outputs))


class Backend(_Base):
    """Runs ONNX models of nbbn's operators on the CPU; see ``onnx.backend.base.Backend``."""

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> Prepared:
        """Check a model and make it ready to run."""
        onnx.checker.check_model(model)
        return Prepared(model, device)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        return device.partition(":")[0] == "CPU"

    @classmethod
    def run_node(
        cls, node: onnx.NodeProto, inputs: Any, device: str = "CPU",
        outputs_info: Any = None, **kwargs: Any,
    ) -> tuple[Any, ...]:  # fmt: skip
        """Run one operator, by default of the newest opset."""
        helper = onnx.helper
        arrays = {name: np.asarray(value) for name, value in zip(node.input, inputs, strict=True)}
        version = kwargs.get("opset_version", onnx.defs.onnx_opset_version())
        graph = helper.make_graph(
            [node],
            "node",
            [onnx.ValueInfoProto(name=name) for name in arrays],
            [onnx.ValueInfoProto(name=name) for name in node.output if name],
        )
        opset = helper.make_opsetid("", version)
        model = helper.make_model(graph, opset_imports=[opset])
        return Prepared(model, device).run(arrays)
