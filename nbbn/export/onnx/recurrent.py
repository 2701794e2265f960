"""Recurrent layers as ONNX's LSTM, GRU and RNN, and back.

ONNX has the time first, and returns the hidden states (T, D, N, H) of D directions or the last ones
(D, N, H). Reading a graph, the axes of such a value are followed by these letters until the
directions are gone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import nn
from ...errors import ArgumentError, NbbnError, ShapeError
from ...nn.recurrent import NormalizedDirection, Recurrent
from ..recurrent import reordered

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
    op, _, options = _OPERATORS[layer.kind]
    if D > 1:
        options = {**options, "direction": "bidirectional"}
    if "activations" in options:
        options = {**options, "activations": options["activations"] * D}
    graph.add("Transpose", f"{name}.first", perm=(1, 0, 2))
    for k in range(layer.num_layers):
        cells = layer.cells[k * D : (k + 1) * D]
        label = f"{name}.l{k}"
        leaves = {
            "weight_ih": _stacked(cells, "weight_ih"),
            "weight_hh": _stacked(cells, "weight_hh"),
        }
        if cells[0].bias_ih is not None:
            leaves["bias"] = np.hstack([_stacked(cells, "bias_ih"), _stacked(cells, "bias_hh")])
        arrays = [graph.array(f"{label}.{leaf}", array) for leaf, array in leaves.items()]
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
        graph.add("Reshape", label, graph.integers(f"{label}.shape", (0, 0, -1)))
    graph.add("Transpose", f"{name}.last", perm=(1, 0, 2))
    graph.shape = (graph.shape[0], D * H)


def _stacked(cells: Any, leaf: str) -> np.ndarray:
    """Return what the directions of a layer have of a name, in ONNX's order of gates."""
    _, order, _ = _OPERATORS[cells[0].kind]
    return np.stack([reordered(getattr(cell, leaf).data, order) for cell in cells])


# ---------------------------------------------------------------- reading


def kind_of(node: Any) -> str:
    """Return what `nbbn.functional` calls the cell of a node; refuse what it does not compute."""
    D = 2 if node.attribute("direction", b"forward") == b"bidirectional" else 1
    names = [name.decode().lower() for name in node.attribute("activations", ())]
    kinds = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"], "RNN": ["tanh"]}
    rectified = node.op == "RNN" and names == ["relu"] * D
    if names and names != kinds[node.op] * D and not rectified:
        raise node.refusal(f"its activations are {', '.join(names)}")
    for name in ("activation_alpha", "activation_beta", "clip"):
        if node.attribute(name, None):
            raise node.refusal(f"it has {name}")
    if node.attribute("input_forget", 0):
        raise node.refusal("its input and forget gates are one (input_forget)")
    if node.input(7):
        raise node.refusal("its gates look at the cell state (peepholes, P)")
    if node.op == "GRU" and not node.attribute("linear_before_reset", 0):
        raise node.refusal(
            "it resets the state before the product, not the product (linear_before_reset=0)"
        )
    return {"LSTM": "lstm", "GRU": "gru", "RNN": "relu" if rectified else "tanh"}[node.op]


def weights_of(kind: str, W: Any, R: Any, B: Any) -> dict[str, np.ndarray]:
    """Return one direction's weights by the names of ours; B may be None."""
    order = tuple(int(k) for k in np.argsort(_OPERATORS[kind][1]))
    found = {"weight_ih": W, "weight_hh": R}
    if B is not None:
        found["bias_ih"], found["bias_hh"] = np.split(B, 2)
    return {name: reordered(array, order) for name, array in found.items()}


def _read(chain: Any, node: Any) -> str:
    """Add a recurrent layer to a chain; return which of its results the chain follows."""
    kind, direction = kind_of(node), node.attribute("direction", b"forward").decode()
    if direction == "reverse":
        raise node.refusal("no layer runs in reverse alone")
    if node.input(4):
        raise node.refusal("its sequences have lengths of their own (sequence_lens)")
    for position in (5, 6):
        if not chain.is_zero(node.input(position)):
            raise node.refusal("it starts from a state that is not zero")
    first = node.attribute("layout", 0) == 0
    turned = chain.axes == (1, 0, 2) if first else chain.axes is None
    if not turned or chain.rank not in (None, 3):
        raise node.refusal("it does not take sequences (N, T, features), turned to time first")
    arrays = [chain.constant(node, 1, "W"), chain.constant(node, 2, "R")]
    arrays.append(chain.constant(node, 3, "B") if node.input(3) else [None] * len(arrays[0]))
    D, H = len(arrays[0]), arrays[1].shape[-1]
    known: dict[str, type[Recurrent]] = {"lstm": nn.LSTM, "gru": nn.GRU}
    options: dict[str, Any] = {} if kind in known else {"nonlinearity": kind}
    layer = known.get(kind, nn.RNN)(
        arrays[0].shape[-1], H, bidirectional=direction == "bidirectional",
        bias=bool(node.input(3)), rng=0, dtype=arrays[0].dtype, **options,
    )  # fmt: skip
    if layer.directions != D or node.attribute("hidden_size", H) != H:
        raise node.refusal(f"its weights are of {D} directions with {H} units")
    state = {
        f"{name}{suffix}": array
        for suffix, *given in zip(layer._suffixes(), *arrays, strict=True)
        for name, array in weights_of(kind, *given).items()
    }
    try:
        layer.load_state_dict(state)
    except NbbnError as error:
        raise node.refusal(str(error)) from None
    every, last, cell = (str(name) for name in [*node.outputs, "", ""][:3])
    if chain.graph.is_used(cell):
        raise node.refusal("its last cell state is used, which no layer gives")
    layer.last = not chain.graph.is_used(every)
    chain.layers.append(layer)
    chain.last_states.append(last)
    if layer.last:
        chain.letters = "DNH" if first else "NDH"
        return last
    chain.letters = "TDNH" if first else "NTDH"
    return every


def arrange(chain: Any, node: Any) -> None:
    """Move and merge the axes of a recurrent layer's result, until no direction is left."""
    letters, D = chain.letters, chain.layers[-1].directions
    constant = chain.graph.constant(node.input(1)) if node.input(1) else None
    if node.op == "Transpose":
        found = "".join(letters[d] for d in node.attribute("perm", range(len(letters))[::-1]))
    elif node.op == "Squeeze" and D == 1:
        axes = node.attribute("axes", ()) if constant is None else constant.tolist()
        gone = {d % len(letters) for d in axes}
        found = "".join(x for d, x in enumerate(letters) if d not in gone)
        if found != letters.replace("D", ""):
            raise node.refusal("it removes other axes of a recurrent layer's result")
    elif node.op == "Flatten" and letters == "NDH" and node.attribute("axis", 1) == 1:
        found = "NH"
    elif node.op == "Reshape" and letters[-2:] == "DH" and constant is not None:
        found = letters[:-2] + "H"
        H = D * chain.layers[-1].hidden_size
        if constant.size != len(found) or constant[:-1].any() or constant[-1] not in (-1, H):
            raise node.refusal("it does not put the directions side by side")
    elif node.op == "Concat" and letters == "DNH" and D == 1 and node.attribute("axis", 0) == 0:
        # The last states of all layers, of which the last is taken.
        if node.inputs != chain.last_states:
            raise node.refusal("it joins more than the last states of all layers")
        found = "LNH"
    elif node.op == "Gather" and letters in ("DNH", "LNH") and D == 1:
        found = letters[1:]
        layers = 1 if letters == "DNH" else len(chain.last_states)
        if _index(node, constant) not in ((0, -1), (0, layers - 1)):
            raise node.refusal("it does not take the last state of the last layer")
    else:
        raise node.refusal("it takes a recurrent layer's result by direction, which no layer gives")
    chain.letters = found
    if not {"D", "L"} & set(found):
        order = "NTH" if "T" in found else "NH"
        axes = tuple(order.index(letter) for letter in found)
        chain.letters, chain.rank = "", len(found)
        chain.axes = None if found == order else axes


def _index(node: Any, index: Any) -> tuple[int, int] | None:
    """Axis and position of a Gather of one position."""
    return None if index is None or index.ndim else (node.attribute("axis", 0), int(index))


def _last_step(chain: Any, node: Any) -> None:
    """The last step of what a layer of one direction returns is its last state."""
    layer = chain.layers[-1] if chain.layers else None
    if not isinstance(layer, Recurrent) or layer.last or layer.directions > 1:
        raise node.refusal("only the last step of a recurrent layer of one direction is taken")
    steps = 1 if chain.axes is None else 0
    if _index(node, chain.graph.constant(node.input(1))) != (steps, -1):
        raise node.refusal("it does not take the last step (-1)")
    layer.last, chain.axes, chain.rank = True, None, 2


IMPORTERS = {"LSTM": _read, "GRU": _read, "RNN": _read, "Gather": _last_step}
EXPORTERS = dict.fromkeys((nn.LSTM, nn.GRU, nn.RNN), recurrent)
