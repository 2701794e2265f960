"""Recurrent layers as ONNX's LSTM, GRU and RNN."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import nn
from ...errors import ArgumentError, ShapeError
from ...nn.recurrent import NormalizedDirection, Recurrent

# The operator, the order of its gates among ours, and what it must be told.
_OPERATORS: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "lstm": ("LSTM", (0, 3, 1, 2), {}),
    "gru": ("GRU", (1, 0, 2), {"linear_before_reset": 1}),
    "tanh": ("RNN", (0,), {}),
    "relu": ("RNN", (0,), {"activations": ["Relu"]}),
}


def recurrent(graph: Any, name: str, layer: Recurrent) -> None:
    """Add a recurrent layer, which takes examples (T, F), to a graph."""
    if any(isinstance(cell, NormalizedDirection) for cell in layer.cells):
        raise ArgumentError(
            f"cannot export {name!r}, {layer!r}: it normalizes inside of the recurrence, which no "
            "operator does"
        )
    if len(graph.shape) != 2 or graph.shape[1] != layer.input_size:
        raise ShapeError(
            f"{name!r}, {layer!r}, cannot take examples of shape {graph.shape}: pass input_shape "
            f"(T, {layer.input_size})"
        )
    D, H = layer.directions, layer.hidden_size
    op, order, options = _OPERATORS[layer.kind]
    if D > 1:
        options = {**options, "direction": "bidirectional"}
    if "activations" in options:
        options = {**options, "activations": options["activations"] * D}
    graph.add("Transpose", f"{name}.first", perm=(1, 0, 2))
    for k in range(layer.num_layers):
        cells = layer.cells[k * D : (k + 1) * D]
        label = f"{name}.l{k}"
        arrays = [
            graph.array(
                f"{label}.{leaf}", np.stack([_ordered(getattr(c, leaf), order) for c in cells])
            )
            for leaf in ("weight_ih", "weight_hh")
        ]
        if cells[0].bias_ih is not None:
            both = [[_ordered(b, order) for b in (c.bias_ih, c.bias_hh)] for c in cells]
            arrays.append(graph.array(f"{label}.bias", np.reshape(both, (D, -1))))
        graph.add(op, label, *arrays, hidden_size=H, **options)
        if layer.last and k + 1 == layer.num_layers:
            # The second result is the last hidden state (D, N, H).
            graph.value += ".last"
            graph.nodes[-1].output.append(graph.value)
            graph.add("Transpose", f"{label}.back", perm=(1, 0, 2))
            graph.add("Flatten", label, axis=1)
            graph.shape = (D * H,)
            return
        # From (T, D, N, H), one direction behind the other, to (T, N, D H).
        graph.add("Transpose", f"{label}.back", perm=(0, 2, 1, 3))
        target = f"{label}.shape".lstrip(".")
        graph.arrays.append(graph.numpy_helper.from_array(np.array([0, 0, -1]), target))
        graph.add("Reshape", label, target)
    graph.add("Transpose", f"{name}.last", perm=(1, 0, 2))
    graph.shape = (graph.shape[0], D * H)


def _ordered(weight: Any, order: tuple[int, ...]) -> np.ndarray:
    gates = np.split(weight.data, len(order))
    return np.concatenate([gates[k] for k in order])


EXPORTERS = dict.fromkeys((nn.LSTM, nn.GRU, nn.RNN), recurrent)
