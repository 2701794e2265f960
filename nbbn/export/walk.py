"""The layers of a model that have parameters, in order, and what to do with a bias they don't need.

``BN(x W + b)`` with running mean r equals ``BN(x W)`` with running mean ``r - b``: in training the
batch's mean subtracts the bias anyway.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .._validation import instance
from ..autograd.tensor import Parameter
from ..errors import ArgumentError
from ..functional import checks
from ..nn.convolution import Conv2d, ConvTranspose2d
from ..nn.groupnorm import GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from ..nn.layers import BatchNorm, Dense, Module, Sequential, is_linear
from ..nn.reweighted import Reweighted
from ..nn.variants import InPlaceBatchNorm
from .conventions import BatchNormState, assignment, fill, fitting, with_settings

# With a weight and a bias.
Convolution = Conv2d | ConvTranspose2d
Weighted = Dense | Convolution
Norm = LayerNorm | RMSNorm | GroupNorm | InstanceNorm
Layer = Weighted | BatchNorm | Norm
_NAMES = {"gamma": "weight", "beta": "bias"}


def layers_of(model: Module) -> dict[str, Layer]:
    """Return all layers that have a state here, by name, each once, in the order of definition."""
    instance(model, Module, "model")
    found: dict[str, Layer] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, Reweighted):
            raise ArgumentError(
                f"layer {name!r}, {module!r}, uses another weight than it learns: put its plain() "
                "in its place, or move its own state_dict"
            )
        if isinstance(module, Layer) and id(module) not in seen:
            seen.add(id(module))
            found[name] = module
            if isinstance(module, InPlaceBatchNorm):
                raise ArgumentError(
                    f"layer {name!r}, {module!r}, scales by |gamma| + eps, which no layer of "
                    "PyTorch or Keras does: only its own state_dict can hold it"
                )
    if not found:
        raise ArgumentError(
            "the model has no layers whose weights another library has, such as Dense or BatchNorm"
        )
    strays = {id(p) for p in model.parameters()} - {
        id(p) for layer in found.values() for p in layer.parameters()
    }
    if strays:
        raise ArgumentError(
            f"the model has {len(strays)} parameters outside of the layers that other libraries "
            "have: move those with state_dict"
        )
    return found


def dense_of(weight: np.ndarray, bias: np.ndarray | None, dtype: np.dtype[Any]) -> Dense:
    """Make a Dense of these weights (out, in)."""
    layer = Dense(*weight.shape[::-1], bias=bias is not None, init=0.0, dtype=dtype)
    layer.weight.data[...] = weight
    if layer.bias is not None:
        layer.bias.data[...] = bias
    return layer


class Loader:
    """Takes in the arrays of a framework's layers, and copies them once all are checked."""

    def __init__(
        self, model: Module, framework: str, eps: float | None, momentum: float | None,
        count: int | None,
    ) -> None:  # fmt: skip
        self._framework, self._settings, self._count = framework, (eps, momentum), count
        self._copies: list[Callable[[], None]] = []
        # The BatchNorm behind a layer in a Sequential, and the bias that it takes in; by id.
        self._behind = {
            id(before): after
            for module in model.modules()
            if isinstance(module, Sequential)
            for before, after in itertools.pairwise(module)
            if is_linear(before) and isinstance(after, BatchNorm)
        }
        self._biases: dict[int, np.ndarray] = {}

    def absorbs(self, layer: Layer) -> bool:
        """Whether a bias that a layer does without can go into the BatchNorm behind it."""
        return isinstance(layer, Weighted) and layer.bias is None and id(layer) in self._behind

    def take(
        self, layer: Layer, arrays: Mapping[str, Any], label: str, updates: int | None = None
    ) -> None:
        """Take in the arrays of a layer, by their names in states; of a BatchNorm its updates."""
        if isinstance(layer, Weighted):
            self._weighted(layer, arrays.get("weight"), arrays.get("bias"), label)
        elif isinstance(layer, BatchNorm):
            mean, var = arrays.get("running_mean"), arrays.get("running_var")
            gamma, beta = arrays.get("weight"), arrays.get("bias")
            state = BatchNormState(mean, var, gamma, beta, updates=updates)
            self._batch_norm(layer, state, label)
        else:
            self._norm(layer, arrays, label)

    def _weighted(self, layer: Weighted, weight: Any, bias: Any, label: str) -> None:
        if bias is not None and self.absorbs(layer):
            self._biases[id(self._behind[id(layer)])] = bias
            bias = None
        own_bias = None if layer.bias is None else layer.bias.data
        pairs = [
            (layer.weight.data, fitting(weight, layer.weight.data, f"weight of {label}")),
            (own_bias, fitting(bias, own_bias, f"bias of {label}")),
        ]
        self._copies.append(lambda: fill(pairs))

    def _norm(self, layer: Norm, arrays: Mapping[str, Any], label: str) -> None:
        pairs = []
        for attribute in ("gamma", "beta", "running_mean", "running_var"):
            own = getattr(layer, attribute, None)
            own, name = own.data if isinstance(own, Parameter) else own, _NAMES.get(attribute)
            given = fitting(arrays.get(name or attribute), own, f"{name or attribute} of {label}")
            if own is not None and given is not None:
                checks.running_statistic(given, attribute, own.dtype, f"{attribute} of {label}")
            pairs.append((own, given))
        self._copies.append(lambda: fill(pairs))

    def _batch_norm(self, layer: BatchNorm, state: BatchNormState, label: str) -> None:
        """Take in a state that lacks what its framework's files do not say."""
        bias = self._biases.get(id(layer))
        if bias is not None and state.mean is not None:
            mean = state.mean.astype(np.float64) - bias.astype(np.float64)
            kind = np.result_type(state.mean.dtype, bias.dtype, np.float32)
            state = state._replace(mean=mean.astype(kind))
        state = with_settings(state, self._framework, layer, *self._settings)
        self._copies.append(assignment(state, layer, self._count, label))

    def copy(self) -> None:
        """Change the model: nothing can fail any more."""
        for copy in self._copies:
            copy()
