"""Weights of PyTorch models: state dicts and safetensors files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .._validation import instance, iterate
from ..errors import ArgumentError, CheckpointError, DTypeError, ShapeError
from ..functional import checks
from ..nn.layers import BatchNorm, Dense, Module
from .conventions import BatchNormState, as_array, known_updates, torch_can_omit_shift, variance
from .walk import Layer, Loader, Norm, Weighted, layers_of

__all__ = ["load_torch", "to_torch"]

_LEAVES = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


class _Kind(NamedTuple):
    """What decides which PyTorch module fits which layer."""

    name: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} of shape {self.shape}"


def load_torch(
    model: Module,
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    names: Sequence[str] | None = None,
    eps: float | None = None,
    momentum: float | None = None,
    count: int | None = None,
) -> None:
    """Copy the state dict of a PyTorch model into a model of the same layers.

    PyTorch modules meet the model's layers by kind and shape, then by name. Several of one kind and
    shape whose names differ in a number only, such as "fc1" and "fc2" or the positions in a
    Sequential, go in the order of that number; otherwise `names` must tell which is which. The bias
    of a module in front of a BatchNorm whose layer has none goes into the running mean, which
    changes no output. Nothing is changed unless everything fits.

    Parameters
    ----------
    model : Module
        Of Dense, Conv2d, ConvTranspose2d, BatchNorm, LayerNorm, RMSNorm, GroupNorm and
        InstanceNorm layers, and any that have no parameters.
    source : path of a safetensors file, or mapping of str to array
        ``model.state_dict()`` of PyTorch, on the CPU, with or without num_batches_tracked.
    names : sequence of str, optional
        The name of a PyTorch module, such as "encoder.bn1", for each layer with parameters of
        the model in the order of their definition.
    eps, momentum : float, optional
        What the PyTorch modules were built with; files do not say. By default the layers keep their
        own where they follow PyTorch's convention, and get PyTorch's defaults otherwise. Of
        BatchNorm layers only: the others keep theirs.
    count : int, optional
        Values per channel of a training batch, see `BatchNormState.to`; matters only for layers of
        another convention.

    Raises
    ------
    ArgumentError
        Modules and layers do not correspond, or not in one way only.
    ShapeError, DTypeError
        An array that does not fit.
    CheckpointError
        The file cannot be read as safetensors.
    """
    state = _read(source)
    layers = _stateful(model)
    groups = _groups(state)
    matched = _named(layers, groups, names) if names is not None else _match(layers, groups)
    loader = Loader(model, "torch", eps, momentum, count)
    for name, layer in layers.items():
        group, label = groups[matched[name]], f"PyTorch's {matched[name]!r}"
        if not isinstance(layer, Weighted):
            group = _wanted(group, {"weight": (layer.gamma, 1), "bias": (layer.beta, 0)})
        updates = _updates(group, label) if isinstance(layer, BatchNorm) else None
        loader.take(layer, group, label, updates)
    loader.copy()


def to_torch(
    model: Module, *, names: Sequence[str] | None = None, count: int | None = None
) -> dict[str, np.ndarray]:
    """Return a PyTorch state dict of a model, see `load_torch` for its layers.

    PyTorch takes it with ``load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})``,
    and `safetensors.numpy.save_file` writes it. `options` builds the module that each BatchNorm
    fits. Beside a shift PyTorch always has a scale: ones are filled in, and `load_torch` leaves
    them out again. So are zeros beside a scale where the PyTorch that is loaded is too old for
    ``bias=False``.

    Parameters
    ----------
    model : Module
    names : sequence of str, optional
        As for `load_torch`; by default their names here, which in a Sequential are their positions.
    count : int, optional
        As for `load_torch`.

    Returns
    -------
    dict of str to ndarray
        Copies, C-contiguous, in the order of definition.

    Raises
    ------
    ArgumentError
        The wrong number of names, or a model with other parameters.
    """
    layers = _stateful(model)
    wanted = _distinct(names, layers) if names is not None else list(layers)
    found: dict[str, np.ndarray] = {}
    for name, layer in zip(wanted, layers.values(), strict=True):
        arrays: Mapping[str, np.ndarray | None]
        if isinstance(layer, Weighted):
            arrays = layer.state_dict()
        elif isinstance(layer, Norm):
            arrays = layer.state_dict()
            arrays = {**arrays, **_scaled(arrays.get("weight"), arrays.get("bias"))}
            if "running_mean" in arrays:
                # PyTorch's counts no batches, and has the counter all the same.
                arrays["num_batches_tracked"] = np.array(0, np.int64)
        else:
            arrays = _batch_norm_arrays(layer, count)
        prefix = f"{name}." if name else ""
        found |= {prefix + leaf: array for leaf, array in arrays.items() if array is not None}
    return found


def _batch_norm_arrays(layer: BatchNorm, count: int | None) -> dict[str, np.ndarray | None]:
    state = BatchNormState.of(layer)
    updates = None if state.mean is None else np.array(state.updates or 0, np.int64)
    return {
        **_scaled(state.gamma, state.beta),
        "running_mean": state.mean,
        "running_var": variance(state, "torch", count),
        "num_batches_tracked": updates,
    }


def _scaled(gamma: np.ndarray | None, beta: np.ndarray | None) -> dict[str, np.ndarray | None]:
    """Fill in what PyTorch cannot leave out beside the other."""
    if gamma is None and beta is not None:
        gamma = np.ones_like(beta)
    elif beta is None and gamma is not None and not torch_can_omit_shift():
        beta = np.zeros_like(gamma)
    return {"weight": gamma, "bias": beta}


def _stateful(model: Module) -> dict[str, Layer]:
    """All layers but those that leave nothing in a state dict."""
    return {
        name: layer
        for name, layer in layers_of(model).items()
        if layer.parameters() or getattr(layer, "running_mean", None) is not None
    }


def _wanted(group: dict[str, np.ndarray], own: dict[str, Any]) -> dict[str, np.ndarray]:
    """Leave out a scale of 1, or a shift of 0, that the layer does without."""
    without = {name: neutral for name, (parameter, neutral) in own.items() if parameter is None}
    return {k: a for k, a in group.items() if k not in without or (a != without[k]).any()}


def _updates(group: Mapping[str, np.ndarray], label: str) -> int | None:
    counter = group.get("num_batches_tracked")
    if counter is None or "running_mean" not in group or "running_var" not in group:
        return None
    if counter.size != 1 or counter.dtype.kind not in "iu":
        raise ShapeError(
            f"num_batches_tracked of {label} must be one integer, "
            f"got shape {counter.shape} of {counter.dtype}"
        )
    checks.running_statistic(
        counter, "num_batches_tracked", counter.dtype, f"num_batches_tracked of {label}"
    )
    return known_updates(int(counter.item()), group["running_mean"], group["running_var"])


# ---------------------------------------------------------------- reading


def _read(source: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, np.ndarray]:
    if isinstance(source, str | os.PathLike):
        return _read_file(Path(source))
    if not isinstance(source, Mapping):
        raise DTypeError(
            "source must be the path of a safetensors file or a mapping of names to arrays, "
            f"got {type(source).__name__}"
        )
    for name in source:
        if not isinstance(name, str):
            raise DTypeError(f"the names in a state dict are strings, got {name!r}")
    return {name: as_array(value, name) for name, value in source.items()}


def _read_file(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"cannot read {path} as safetensors ({error}): in PyTorch write it with "
            "safetensors.torch.save_file(model.state_dict(), path)"
        ) from None


def _groups(state: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Gather the arrays of each PyTorch module under its name."""
    groups: dict[str, dict[str, np.ndarray]] = {}
    for key, array in state.items():
        module, _, leaf = key.rpartition(".")
        if leaf not in _LEAVES:
            raise ArgumentError(
                f"{key!r} belongs to neither a Linear, a convolution nor a normalization"
            )
        groups.setdefault(module, {})[leaf] = array
    return groups


# ---------------------------------------------------------------- matching


def _kind_of_group(name: str, group: Mapping[str, np.ndarray]) -> _Kind:
    weight, bias = group.get("weight"), group.get("bias")
    if "running_mean" not in group and weight is not None:
        # That of a LayerNorm over several axes, whose bias has as many, is neither.
        if weight.ndim in (2, 4) and (bias is None or bias.ndim == 1):
            return _Kind("Linear" if weight.ndim == 2 else "convolution", weight.shape)
        if weight.ndim == 1 or (bias is not None and bias.shape == weight.shape):
            return _Kind("normalization", weight.shape)
    vector = group.get("running_mean")
    if vector is None or vector.ndim != 1:
        shapes = {leaf: array.shape for leaf, array in group.items()}
        raise ArgumentError(
            f"{name!r} is neither a Linear, a convolution nor a BatchNorm: it has {shapes}"
        )
    return _Kind("normalization with running statistics", vector.shape)


def _kind_of_layer(layer: Layer) -> _Kind:
    if isinstance(layer, Weighted):
        return _Kind("Linear" if isinstance(layer, Dense) else "convolution", layer.weight.shape)
    mean = getattr(layer, "running_mean", None)
    if mean is not None:
        return _Kind("normalization with running statistics", mean.shape)
    (shape,) = {parameter.shape for parameter in layer.parameters()}
    return _Kind("normalization", shape)


def _match(layers: Mapping[str, Layer], groups: Mapping[str, Any]) -> dict[str, str]:
    """Map the name of each layer to that of a PyTorch module, if there is one way only."""
    if list(layers) == list(groups) or set(layers) == set(groups):
        return {name: name for name in layers}
    ours: dict[_Kind, list[str]] = {}
    theirs: dict[_Kind, list[str]] = {}
    for name, layer in layers.items():
        ours.setdefault(_kind_of_layer(layer), []).append(name)
    for name, group in groups.items():
        theirs.setdefault(_kind_of_group(name, group), []).append(name)
    for kind in {**ours, **theirs}:
        here, there = len(ours.get(kind, ())), len(theirs.get(kind, ()))
        if here != there:
            raise ArgumentError(
                f"the model has {here} layers for a {kind}, and the state dict has {there}: "
                f"{theirs.get(kind, [])}"
            )
    return {
        name: other
        for kind, found in ours.items()
        for name, other in zip(found, _ordered(theirs[kind], found, kind), strict=True)
    }


def _ordered(theirs: list[str], ours: list[str], kind: _Kind) -> list[str]:
    """Order names that differ in numbers only by these numbers."""
    if set(theirs) == set(ours):
        return ours
    if len({re.sub(r"\d+", "#", name) for name in theirs}) > 1:
        raise ArgumentError(
            f"several modules are a {kind} and their names give no order: "
            f"pass names=[...] in the order of the model's layers, placing {sorted(theirs)}"
        )
    return sorted(theirs, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])


def _named(
    layers: Mapping[str, Layer], groups: Mapping[str, Any], names: Sequence[str]
) -> dict[str, str]:
    wanted = _distinct(names, layers)
    if set(wanted) != set(groups):
        raise ArgumentError(
            f"names must be the modules of the state dict, {sorted(groups)}, got {wanted}"
        )
    return dict(zip(layers, wanted, strict=True))


def _distinct(names: Sequence[str], layers: Mapping[str, Layer]) -> list[str]:
    wanted = [names] if isinstance(names, str) else list(iterate(names, "names", "names"))
    for name in wanted:
        instance(name, str, "each of names")
    if len(wanted) != len(layers) or len(set(wanted)) != len(wanted):
        raise ArgumentError(
            f"names must hold {len(layers)} different names, one for each layer "
            f"with parameters ({', '.join(layers)}), got {wanted}"
        )
    return wanted
