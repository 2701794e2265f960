"""Weights of Keras' recurrent layers: transposed, their gates in another order.

A Keras LSTM, GRU or SimpleRNN has a kernel (F, G * H), a recurrent kernel (H, G * H) and a bias;
that of a GRU, which must have reset_after=True as by default, has a row for each of the two. A
Bidirectional layer has those of both directions, the forward one's first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import ArgumentError, ShapeError
from ..nn.recurrent import Direction, NormalizedDirection, Recurrent
from .conventions import fill, fitting

# Where each of our gates is among Keras': i, f, g, o as in PyTorch; r, z, n behind z.
_ORDER = {"lstm": (0, 1, 2, 3), "gru": (1, 0, 2), "tanh": (0,), "relu": (0,)}


def load_keras_recurrent(layer: Recurrent, arrays: Sequence[np.ndarray]) -> None:
    """Copy Keras' arrays, those of all layers and directions in order, into a recurrent layer."""
    each = 3 if _checked(layer)[0].bias_ih is not None else 2
    if len(arrays) != each * len(layer.cells):
        raise ArgumentError(
            f"{layer!r} takes {each * len(layer.cells)} arrays of Keras, {each} for each direction "
            f"of a layer, got {len(arrays)}"
        )
    pairs: list[tuple[Any, Any]] = []
    for k, cell in enumerate(_checked(layer)):
        kernel, recurrent, *bias = arrays[each * k : each * (k + 1)]
        found = {"weight_ih": kernel.T, "weight_hh": recurrent.T}
        if bias:
            if cell.kind == "gru" and (bias[0].ndim != 2 or len(bias[0]) != 2):
                raise ShapeError(
                    f"the bias of a GRU must have shape (2, {len(cell.weight_ih)}), "
                    f"got {bias[0].shape}: build Keras' with reset_after=True"
                )
            # PyTorch has two biases where Keras has one.
            both = bias[0] if cell.kind == "gru" else np.stack([bias[0], np.zeros_like(bias[0])])
            found |= {"bias_ih": both[0], "bias_hh": both[1]}
        for name, array in found.items():
            own = getattr(cell, name).data
            label = f"{name} of Keras' layer {k}"
            pairs.append((own, reordered(fitting(array, own, label), _ORDER[cell.kind])))
    fill(pairs)


def to_keras_recurrent(layer: Recurrent) -> list[np.ndarray]:
    """Return what `load_keras_recurrent` takes: copies, C-contiguous."""
    found: list[np.ndarray] = []
    for cell in _checked(layer):
        order = _ORDER[cell.kind]
        # An order of two that change places is its own inverse.
        weights = [reordered(w.numpy(), order) for w in (cell.weight_ih, cell.weight_hh)]
        found += [np.array(w.T, order="C") for w in weights]
        if cell.bias_ih is not None and cell.bias_hh is not None:
            own, inside = (reordered(b.numpy(), order) for b in (cell.bias_ih, cell.bias_hh))
            found.append(np.stack([own, inside]) if cell.kind == "gru" else own + inside)
    return found


def _checked(layer: Recurrent) -> tuple[Direction, ...]:
    if any(isinstance(cell, NormalizedDirection) for cell in layer.cells):
        raise ArgumentError(
            f"{layer!r} normalizes inside of the recurrence, which no layer of Keras does: only "
            "its own state_dict can hold it"
        )
    return layer.cells


def reordered(array: Any, order: tuple[int, ...]) -> Any:
    """Reorder the gates along the first axis."""
    gates = np.split(array, len(order))
    return np.concatenate([gates[k] for k in order])
