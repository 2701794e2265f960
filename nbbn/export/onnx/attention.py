"""Attention, encoder layers and positions as ONNX's products, sums and Softmax."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ... import nn
from ...errors import ShapeError


def _attention(graph: Any, name: str, layer: nn.MultiheadAttention) -> None:
    """Add self-attention, which takes examples (T, E), to a graph."""
    E, heads = len(layer.out_proj.weight), layer.num_heads
    _check(graph, name, layer, E)
    T, weight, bias = graph.shape[0], layer.in_proj_weight.data, layer.in_proj_bias
    graph.product(f"{name}.in_proj", weight, None if bias is None else bias.data)
    shape = graph.integers(f"{name}.heads.shape", (0, 0, 3, heads, -1))
    graph.add("Reshape", f"{name}.heads", shape)
    # Queries, keys and values, each (N, heads, T, E / heads).
    graph.add("Transpose", f"{name}.heads", perm=(2, 0, 3, 1, 4))
    whole, parts = graph.value, []
    for k, part in enumerate(("queries", "keys", "values")):
        graph.value = whole
        graph.add("Gather", f"{name}.{part}", graph.integers(f"{name}.{part}.place", k))
        parts.append(graph.value)
    queries, keys, values = parts
    graph.value = keys
    graph.add("Transpose", f"{name}.keys", perm=(0, 1, 3, 2))
    keys, graph.value = graph.value, queries
    scale = np.array(1.0 / math.sqrt(E // heads))
    graph.add("Mul", f"{name}.queries", graph.array(f"{name}.scale", scale))
    graph.add("MatMul", f"{name}.scores", keys)
    if layer.causal:
        hidden = np.where(np.tri(T, dtype=bool), 0.0, -math.inf)
        graph.add("Add", f"{name}.scores", graph.array(f"{name}.hidden", hidden))
    graph.add("Softmax", f"{name}.scores", axis=-1)
    graph.add("MatMul", f"{name}.values", values)
    graph.add("Transpose", f"{name}.values", perm=(0, 2, 1, 3))
    graph.add("Reshape", f"{name}.values", graph.integers(f"{name}.values.shape", (0, 0, E)))
    graph.shape = T, E
    graph.layer(f"{name}.out_proj", layer.out_proj)


def _encoder_layer(graph: Any, name: str, layer: nn.TransformerEncoderLayer) -> None:
    """Add both residuals, with their norms before or behind."""
    _check(graph, name, layer, len(layer.linear2.weight))
    halves = (
        ("norm1", layer.norm1, [("self_attn", layer.self_attn)]),
        ("norm2", layer.norm2, [(leaf, getattr(layer, leaf))
                                for leaf in ("linear1", "activation", "linear2")]),
    )  # fmt: skip
    for leaf, norm, inside in halves:
        before = graph.value
        if layer.norm_first:
            graph.layer(f"{name}.{leaf}", norm)
        for part, module in inside:
            graph.layer(f"{name}.{part}", module)
        graph.add("Add", f"{name}.{leaf}.residual", before)
        if not layer.norm_first:
            graph.layer(f"{name}.{leaf}", norm)


def _positions(graph: Any, name: str, layer: nn.PositionalEmbedding) -> None:
    positions: Any = layer.table if layer.weight is None else layer.weight.data
    _check(graph, name, layer, positions.shape[1])
    if graph.shape[0] > len(positions):
        raise ShapeError(f"{name!r}, {layer!r}, cannot take {graph.shape[0]} steps")
    graph.add("Add", name, graph.array(f"{name}.weight", positions[: graph.shape[0]]))


def _check(graph: Any, name: str, layer: nn.Module, features: int) -> None:
    if len(graph.shape) != 2 or graph.shape[1] != features:
        raise ShapeError(
            f"{name!r}, {layer!r}, cannot take examples of shape {graph.shape}: it takes "
            f"(T, {features})"
        )


EXPORTERS: dict[type[nn.Module], Any] = {
    nn.MultiheadAttention: _attention,
    nn.TransformerEncoderLayer: _encoder_layer,
    nn.PositionalEmbedding: _positions,
}
