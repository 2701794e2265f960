"""Weights of Keras models, as ``model.get_weights()`` lists them.

A Keras Dense has a kernel (in, out), the transpose of ours, and a bias. A BatchNormalization has
gamma (if it scales), beta (if it centers), moving_mean, moving_variance. An LSTM, a GRU or an RNN
goes by itself: the module `recurrent` says how.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .._validation import iterate
from ..errors import ArgumentError, DTypeError, ShapeError
from ..nn.layers import BatchNorm, Dense, Module
from ..nn.recurrent import Recurrent
from .conventions import BatchNormState, as_array, variance
from .recurrent import load_keras_recurrent, to_keras_recurrent
from .walk import Layer, Loader, layers_of

__all__ = ["load_keras", "to_keras"]


def load_keras(
    model: Module,
    weights: Sequence[Any],
    *,
    eps: float | None = None,
    momentum: float | None = None,
    count: int | None = None,
) -> None:
    """Copy the weights of a Keras model of Dense and BatchNormalization layers into a model.

    The bias of a Keras Dense in front of a batch normalization whose Dense has none here goes into
    the running mean, which changes no output. Nothing is changed unless everything fits.

    Parameters
    ----------
    model : Module
        Of Dense and BatchNorm layers in the order of the Keras model, and any without parameters.
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
        spare = len(found) - sum(_count(layer) for layer in segment.values())
        first = next(iter(segment.values()))
        if spare and not (spare == 1 and loader.absorbs(first)):
            raise ArgumentError(
                f"the layers {', '.join(segment)} hold {len(found) - spare} arrays, but the Keras "
                f"weights there are {len(found)}, of shapes {[a.shape for a in found]}"
            )
        for name, layer in segment.items():
            if isinstance(layer, Dense):
                kernel = next(given)
                bias = next(given) if spare or layer.bias is not None else None
                loader.dense(layer, kernel.T, bias, f"Keras' {name!r}")
                continue
            state = BatchNormState(
                gamma=None if layer.gamma is None else next(given),
                beta=None if layer.beta is None else next(given),
                mean=next(given),
                var=next(given),
            )
            loader.batch_norm(layer, state, f"Keras' {name!r}")
    loader.copy()


def to_keras(model: Module, *, count: int | None = None) -> list[np.ndarray]:
    """Return the weights of a model of Dense and BatchNorm layers for ``set_weights`` of Keras.

    Parameters
    ----------
    model : Module
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
        if isinstance(layer, Dense):
            found.append(np.array(layer.weight.numpy().T, order="C"))
            if layer.bias is not None:
                found.append(np.array(layer.bias.numpy()))
            continue
        _check_tracked(layer, name)
        state = BatchNormState.of(layer)
        arrays = (state.gamma, state.beta, state.mean, variance(state, "keras", count))
        found.extend(array for array in arrays if array is not None)
    return found


def _segments(
    layers: dict[str, Layer], arrays: list[np.ndarray]
) -> Iterator[tuple[dict[str, Layer], list[np.ndarray]]]:
    """Pair each Dense and the BatchNorms behind it with a kernel and the vectors behind it."""
    ours: list[dict[str, Layer]] = [{}]
    for name, layer in layers.items():
        if isinstance(layer, Dense):
            ours.append({})
        else:
            _check_tracked(layer, name)
        ours[-1][name] = layer
    theirs: list[list[np.ndarray]] = [[]]
    for position, array in enumerate(arrays):
        if array.ndim == 2:
            theirs.append([])
        elif array.ndim != 1:
            raise ShapeError(
                f"weights[{position}] has shape {array.shape}: only the kernels (in, out) and "
                "vectors of Dense and BatchNormalization layers can be loaded"
            )
        theirs[-1].append(array)
    if len(ours) != len(theirs):
        raise ArgumentError(
            f"the model has {len(ours) - 1} Dense layers, but the weights hold "
            f"{len(theirs) - 1} kernels"
        )
    if theirs[0] and not ours[0]:
        raise ArgumentError(
            f"the weights start with a vector of shape {theirs[0][0].shape}, the model with a Dense"
        )
    return ((a, b) for a, b in zip(ours, theirs, strict=True) if a)


def _count(layer: Layer) -> int:
    """How many arrays Keras has for a layer."""
    if isinstance(layer, Dense):
        return 1 + (layer.bias is not None)
    return 2 + (layer.gamma is not None) + (layer.beta is not None)


def _check_tracked(layer: Layer, name: str) -> None:
    if isinstance(layer, BatchNorm) and layer.running_mean is None:
        raise ArgumentError(
            f"layer {name!r} keeps no running statistics, which Keras always does: build it with "
            "track_running_stats=True"
        )
