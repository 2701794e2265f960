"""The Dense and BatchNorm layers of a model, in order, and what to do with a bias they don't need.

``BN(x W + b)`` with running mean r equals ``BN(x W)`` with running mean ``r - b``: in training the
batch's mean subtracts the bias anyway.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from .._validation import instance
from ..errors import ArgumentError
from ..nn.layers import BatchNorm, Dense, Module, Sequential
from ..nn.variants import InPlaceBatchNorm
from .conventions import fill, fitting

Layer = Dense | BatchNorm


def layers_of(model: Module) -> dict[str, Layer]:
    """Return the Dense and BatchNorm layers by name, each once, in the order of definition."""
    instance(model, Module, "model")
    found: dict[str, Layer] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, Layer) and id(module) not in seen:
            seen.add(id(module))
            found[name] = module
            if isinstance(module, InPlaceBatchNorm):
                raise ArgumentError(
                    f"layer {name!r}, {module!r}, scales by |gamma| + eps, which no layer of "
                    "PyTorch or Keras does: only its own state_dict can hold it"
                )
    if not found:
        raise ArgumentError("the model has neither Dense nor BatchNorm layers")
    strays = {id(p) for p in model.parameters()} - {
        id(p) for layer in found.values() for p in layer.parameters()
    }
    if strays:
        raise ArgumentError(
            f"the model has {len(strays)} parameters outside of its Dense and BatchNorm layers: "
            "move those with state_dict"
        )
    return found


def followers(model: Module) -> dict[int, BatchNorm]:
    """Map the id of each Dense to the BatchNorm that comes next to it in a Sequential."""
    return {
        id(before): after
        for module in model.modules()
        if isinstance(module, Sequential)
        for before, after in itertools.pairwise(module)
        if isinstance(before, Dense) and isinstance(after, BatchNorm)
    }


def without_bias(mean: np.ndarray | None, bias: np.ndarray) -> np.ndarray | None:
    """Running mean of a BatchNorm once the bias in front of it is left out."""
    if mean is None:
        return None
    difference = mean.astype(np.float64) - bias.astype(np.float64)
    return difference.astype(np.result_type(mean.dtype, bias.dtype, np.float32))


def copy_dense(layer: Dense, weight: Any, bias: Any, label: str) -> Callable[[], None]:
    """Check the arrays of a Dense layer, and return a function that then only copies."""
    own_bias = None if layer.bias is None else layer.bias.data
    pairs = [
        (layer.weight.data, fitting(weight, layer.weight.data, f"weight of {label}")),
        (own_bias, fitting(bias, own_bias, f"bias of {label}")),
    ]

    return lambda: fill(pairs)
