"""The backend through which ONNX's own tests run on nbbn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx.backend.base import Backend as _Base
from onnx.backend.base import BackendRep

from ...errors import ArgumentError, DeviceError
from .graph import Graph
from .operators import OPERATORS

__all__ = ["Backend", "Prepared"]


class Prepared(BackendRep):  # type: ignore[misc]
    """A graph that is ready to run.

    Parameters
    ----------
    model : onnx.ModelProto
    device : str
    """

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
        """Compute the outputs.

        Parameters
        ----------
        inputs : sequence of ndarray, or mapping of str to ndarray
            In the order of the graph's inputs, or by name.
        **kwargs
            Ignored.

        Returns
        -------
        tuple of ndarray
        """
        graph = self._graph
        given = (
            inputs if isinstance(inputs, Mapping) else dict(zip(graph.inputs, inputs, strict=True))
        )
        missing = [name for name in graph.inputs if name not in given]
        if missing:
            raise ArgumentError(f"the graph needs the inputs {missing}")
        values = {**graph.constants(), **{n: np.asarray(v) for n, v in given.items()}, "": None}
        for node in graph.nodes:
            if graph.fold_constant(node):
                values.update({name: graph.constant(name) for name in node.outputs})
                continue
            count, compute = OPERATORS[node.op]
            operands = [values[node.input(i)] for i in range(count)]
            for name, value in zip(
                node.outputs, compute(node, operands, graph.opset), strict=False
            ):
                values[name] = value
        return tuple(values[name] for name in graph.outputs)


class Backend(_Base):  # type: ignore[misc]
    """Runs ONNX models of nbbn's operators on the CPU; see ``onnx.backend.base.Backend``."""

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> Prepared:
        """Check a model and make it ready to run.

        Parameters
        ----------
        model : onnx.ModelProto
        device : str, default "CPU"
            Nothing else is supported.
        **kwargs
            Ignored.

        Returns
        -------
        Prepared
            ``prepare(model).run(inputs)`` gives the outputs.

        Raises
        ------
        ArgumentError
            An operator that nbbn does not compute.
        DeviceError
            Another device.
        """
        onnx.checker.check_model(model)
        return Prepared(model, device)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Say whether models run on a device.

        Parameters
        ----------
        device : str

        Returns
        -------
        bool
        """
        return device.partition(":")[0] == "CPU"

    @classmethod
    def run_node(
        cls, node: onnx.NodeProto, inputs: Any, device: str = "CPU",
        outputs_info: Any = None, **kwargs: Any,
    ) -> tuple[Any, ...]:  # fmt: skip
        """Run one operator.

        Parameters
        ----------
        node : onnx.NodeProto
        inputs : sequence of ndarray
        device : str, default "CPU"
        outputs_info : optional
            Ignored.
        **kwargs
            ``opset_version`` decides the meaning of the operator, by default the newest.

        Returns
        -------
        tuple of ndarray
        """
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
