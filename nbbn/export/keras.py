"""Weights of Keras models, as ``model.get_weights()`` lists them.

A Keras Dense has a kernel (in, out), the transpose of ours, and a bias. The kernel of a Conv2D is
(height, width, in / groups, out), of a Conv2DTranspose (height, width, out, in), of a
DepthwiseConv2D (height, width, in, filters of each). A BatchNormalization has gamma (if it
scales), beta (if it centers), moving_mean, moving_variance; a LayerNormalization and a
GroupNormalization have gamma and beta, an RMSNormalization has its scale. An LSTM, a GRU or an
RNN goes by itself: the module `recurrent` says how.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .._validation import iterate
from ..errors import ArgumentError, DTypeError, ShapeError
from ..nn.convolution import Conv2d
from ..nn.groupnorm import InstanceNorm, LayerNorm, RMSNorm
from ..nn.layers import BatchNorm, Module
from ..nn.recurrent import Recurrent
from .conventions import BatchNormState, as_array, variance
from .recurrent import load_keras_recurrent, to_keras_recurrent
from .walk import Layer, Loader, Weighted, layers_of

__all__ = ["load_keras", "to_keras"]

# Keras' axes of a kernel in our order, by how many there are; of our own in Keras' order next.
_AXES = {2: (1, 0), 4: (3, 2, 0, 1)}
_BACK = {2: (1, 0), 4: (2, 3, 1, 0)}


def load_keras(
    model: Module,
    weights: Sequence[Any],
    *,
    eps: float | None = None,
    momentum: float | None = None,
    count: int | None = None,
) -> None:
    """Copy the weights of a Keras model of Dense, convolution and normalization layers.

    The bias of a Keras layer in front of a batch normalization whose layer has none here goes into
    the running mean, which changes no output. A Conv2d with as many groups as channels takes those
    of a Conv2D or a DepthwiseConv2D. Nothing is changed unless everything fits.

    Parameters
    ----------
    model : Module
        Of Dense, Conv2d, ConvTranspose2d, BatchNorm, LayerNorm, RMSNorm, GroupNorm and InstanceNorm
        layers in the order of the Keras model, and any without parameters. Behind a Flatten,
        weights fit only layers that have the channels on the same axis, -1 by default in Keras. All
        but BatchNorm layers keep their eps, which is 1e-3 in Keras, of RMSNormalization 1e-6.
        Keras' GroupNormalization with ``groups=-1`` is an InstanceNorm.
    weights : sequence of ndarray
        ``keras_model.get_weights()``.
    eps, momentum, count : optional
        As for `load_torch`; Keras' defaults are 1e-3 and 0.99.

    Raises
    ------
    ArgumentError
        The number of arrays does not fit.
    ShapeError, DTypeError
        An array that does not fit.
    """
    if isinstance(weights, np.ndarray | str) or not isinstance(weights, Sequence):
        raise DTypeError(
            f"weights must be a list of arrays as get_weights() gives it, "
            f"got {type(weights).__name__}"
        )
    arrays = [
        as_array(value, f"weights[{i}]")
        for i, value in enumerate(iterate(weights, "weights", "arrays"))
    ]
    if isinstance(model, Recurrent):
        load_keras_recurrent(model, arrays)
        return
    layers = layers_of(model)
    loader = Loader(model, "keras", eps, momentum, count)
    for segment, found in _segments(layers, arrays):
        given = iter(found)
        spare = len(found) - sum(len(_leaves(layer)) for layer in segment.values())
        first = next(iter(segment.values()))
        if spare and not (spare == 1 and loader.absorbs(first)):
            raise ArgumentError(
                f"the layers {', '.join(segment)} hold {len(found) - spare} arrays, but the Keras "
                f"weights there are {len(found)}, of shapes {[a.shape for a in found]}"
            )
        for name, layer in segment.items():
            leaves = [*_leaves(layer), "bias"] if spare and layer is first else _leaves(layer)
            own = {leaf: next(given) for leaf in leaves}
            if isinstance(layer, Weighted):
                own["weight"] = _from_keras(own["weight"], layer)
            loader.take(layer, own, f"Keras' {name!r}")
    loader.copy()


def to_keras(model: Module, *, count: int | None = None) -> list[np.ndarray]:
    """Return the weights of a model for ``set_weights`` of Keras, convolutions as Conv2D.

    Parameters
    ----------
    model : Module
        Of Dense, Conv2d, ConvTranspose2d and BatchNorm layers, and any that have no parameters.
    count : int, optional
        Values per channel of a training batch, see `BatchNormState.to`: undoes the correction of
        an unbiased running variance.

    Returns
    -------
    list of ndarray
        Copies, C-contiguous.

    Raises
    ------
    ArgumentError
        A BatchNorm without running statistics, which Keras does not have.
    """
    if isinstance(model, Recurrent):
        return to_keras_recurrent(model)
    found: list[np.ndarray] = []
    for name, layer in layers_of(model).items():
        _check_state(layer, name)
        arrays: dict[str, Any] = layer.state_dict()
        if isinstance(layer, Weighted):
            weight = arrays["weight"]
            arrays["weight"] = np.ascontiguousarray(weight.transpose(_BACK[weight.ndim]))
        elif isinstance(layer, BatchNorm):
            arrays["running_var"] = variance(BatchNormState.of(layer), "keras", count)
        found += [arrays[leaf] for leaf in _leaves(layer)]
    return found


def _from_keras(kernel: np.ndarray, layer: Weighted) -> np.ndarray:
    """Put the axes of a kernel in our order."""
    if isinstance(layer, Conv2d) and kernel.ndim == 4 and layer.groups == kernel.shape[2] > 1:
        # Of a DepthwiseConv2D, in whose order each channel's filters are one behind the other.
        return kernel.transpose(2, 3, 0, 1).reshape(-1, 1, *kernel.shape[:2])
    return kernel.transpose(_AXES[kernel.ndim])


def _segments(
    layers: dict[str, Layer], arrays: list[np.ndarray]
) -> Iterator[tuple[dict[str, Layer], list[np.ndarray]]]:
    """Pair each layer with a kernel, and the BatchNorms behind it, with a kernel and vectors."""
    ours: list[dict[str, Layer]] = [{}]
    for name, layer in layers.items():
        if isinstance(layer, Weighted):
            ours.append({})
        else:
            _check_state(layer, name)
        ours[-1][name] = layer
    theirs: list[list[np.ndarray]] = [[]]
    for position, array in enumerate(arrays):
        if array.ndim in _AXES:
            theirs.append([])
        elif array.ndim != 1:
            raise ShapeError(
                f"weights[{position}] has shape {array.shape}: only the kernels and vectors "
                "of Dense, convolution and BatchNormalization layers can be loaded"
            )
        theirs[-1].append(array)
    if len(ours) != len(theirs):
        raise ArgumentError(
            f"the model has {len(ours) - 1} layers with a kernel, but the weights hold "
            f"{len(theirs) - 1} kernels"
        )
    if theirs[0] and not ours[0]:
        raise ArgumentError(
            f"the weights start with a vector of shape {theirs[0][0].shape}, and the model with a "
            "kernel"
        )
    return ((a, b) for a, b in zip(ours, theirs, strict=True) if a)


def _leaves(layer: Layer) -> list[str]:
    """Names in our state of what Keras has for a layer, in its order."""
    own = dict(layer._state())
    return [leaf for leaf in ("weight", "bias", "running_mean", "running_var") if leaf in own]


def _check_state(layer: Layer, name: str) -> None:
    if isinstance(layer, InstanceNorm) and layer.running_mean is not None:
        raise ArgumentError(f"layer {name!r} keeps running statistics, which Keras' does not")
    if isinstance(layer, LayerNorm | RMSNorm) and len(layer.shape) > 1:
        raise ArgumentError(
            f"layer {name!r} normalizes {len(layer.shape)} axes: arrays of Keras are told apart by "
            "their number of axes, and only vectors can be those of a normalization"
        )
    if isinstance(layer, BatchNorm) and layer.running_mean is None:
        raise ArgumentError(
            f"layer {name!r} keeps no running statistics, which Keras always does: build it with "
            "track_running_stats=True"
        )
