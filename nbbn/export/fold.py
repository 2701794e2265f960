"""Batch normalization folded into the Dense and convolution layers beside it, for inference.

With s = gamma / sqrt(running_var + eps), a BatchNorm behind a Dense or a convolution becomes part
of it as ``W' = s W, b' = (b - running_mean) s + beta``, and one in front of a Dense as
``W' = W s, b' = b + W (beta - running_mean s)``.

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference" (2018), section 3.2, for the Dense in front; the other follows
from linearity.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from .. import nn
from .._validation import instance, real, switch
from ..autograd.tensor import Parameter, Tensor, as_tensor
from ..errors import ArgumentError, NbbnError
from ..nn.layers import is_linear, unnested
from .walk import Convolution, Weighted, dense_of

__all__ = ["fold"]

_TOLERANCE = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-12}
_PROBE_ROWS = 64


class _Step(NamedTuple):
    """Layers of the model, and what computes the same in their place."""

    name: str
    before: list[nn.Module]
    after: list[nn.Module]


def fold(
    model: nn.Module,
    x: np.ndarray | None = None,
    *,
    strict: bool = True,
    tolerance: float | None = None,
) -> nn.Sequential:
    """Make a model for inference whose batch normalization is part of other layers.

    A BatchNorm folds into the Dense or the convolution before it or, without a ReLU, into the Dense
    after it, also across a Flatten. A ReLU behind a Conv2d becomes its ``activation``; other ReLUs
    stay as layers. Dropout disappears.
    Before it returns, every replacement is run beside what it replaces.

    Parameters
    ----------
    model : Module
        A Sequential, nested ones included; not changed.
    x : ndarray, optional
        A batch to verify on, as the model takes it. By default standard normal numbers of the first
        layer's width; a convolution that comes first does not tell the size of its images.
    strict : bool, default True
        Whether a BatchNorm that cannot be folded is an error; with False it stays as it is.
    tolerance : float, optional
        Largest allowed difference, relative to the largest output of the replaced layers; by
        default 1e-5 for float32 and 1e-12 for float64.

    Returns
    -------
    Sequential
        In evaluation mode and on the CPU, sharing no memory with `model`.

    Raises
    ------
    ArgumentError
        A BatchNorm that cannot be folded, with the reason; results that differ, as where a mean is
        so far from 0 that float32 cannot carry it in a bias; a model that needs `x`.

    Examples
    --------
    >>> model = nbbn.mlp((784, 256, 10), rng=0)
    >>> nbbn.fold(model)
    Sequential(
        Dense(784, 256),
        ReLU(),
        Dense(256, 10),
    )
    """
    instance(model, nn.Module, "model")
    strict = switch(strict, "strict")
    if tolerance is not None:
        tolerance = real(tolerance, "tolerance", above=0)
    steps: list[_Step] = []
    for name, layer in unnested(copy.deepcopy(model).to("cpu").eval()):
        if not isinstance(layer, nn.Dropout):
            _add(steps, name, layer)
    refusals = list(_refusals(steps))
    if strict and refusals:
        raise ArgumentError(f"cannot fold {'; '.join(refusals)}: strict=False keeps such layers")
    folded = nn.Sequential(*(layer for step in steps for layer in step.after))
    folded.eval()
    _verify(steps, x, tolerance)
    return folded


# ---------------------------------------------------------------- folding


def _add(steps: list[_Step], name: str, layer: nn.Module) -> None:
    """Append a layer, folded together with the last steps where that can be."""
    steps.append(_Step(name, [layer], [layer]))
    before = steps[-2].after[-1] if len(steps) > 1 else None
    if isinstance(layer, nn.BatchNorm):
        fits = isinstance(before, nn.Dense) or getattr(before, "axis", None) == layer.axis
        if before is not None and is_linear(before) and fits and not _unfit(layer):
            folded = _behind(before, layer)
            after = _rectified(folded) if layer.activation else [folded]
            _join(steps, 2, [*steps[-2].after[:-1], *after])
    elif type(layer) is nn.ReLU and type(before) is nn.Conv2d:
        _join(steps, 2, [*steps[-2].after[:-1], *_rectified(before)])
    elif isinstance(layer, nn.Dense):
        while (found := _in_front(steps)) is not None:
            norm, between, last = found
            kept = [part for step in between for part in step.after]
            after = [*kept, *steps[-1].after[:-1], _ahead(last, norm)]
            _join(steps, 2 + len(between), after)


def _join(steps: list[_Step], count: int, after: list[nn.Module]) -> None:
    """Make one step of the last ones."""
    joined = steps[-count:]
    names = " and ".join(step.name for step in joined)
    steps[-count:] = [_Step(names, [part for step in joined for part in step.before], after)]


def _in_front(steps: list[_Step]) -> tuple[nn.BatchNorm, list[_Step], nn.Dense] | None:
    """Find a BatchNorm that folds into the Dense at the end, with at most a Flatten between."""
    dense = steps[-1].after[-1]
    between = [step for step in steps[-2:-1] if isinstance(step.after[0], nn.Flatten)]
    candidate = steps[: -1 - len(between)][-1:]
    norm = candidate[0].after[-1] if candidate else None
    if not isinstance(norm, nn.BatchNorm) or norm.activation or _unfit(norm):
        return None
    if not isinstance(dense, nn.Dense) or dense.weight.shape[1] % norm._channels:
        return None
    return norm, between, dense


def _behind(layer: Weighted, norm: nn.BatchNorm) -> nn.Module:
    """Fold a BatchNorm into the layer before it."""
    s, _ = _scale_and_shift(norm)
    weight, bias = _wide(layer)
    bias = (bias - norm.running_mean) * s
    if norm.beta is not None:
        bias = bias + norm.beta.data
    if isinstance(layer, nn.Dense):
        return dense_of(s[:, None] * weight, bias, layer.weight.dtype)
    # A transposed convolution has its filters on axis 1, in groups that are on axis 0.
    transposed = isinstance(layer, nn.ConvTranspose2d)
    grouped = weight.reshape(layer.groups, -1, *weight.shape[1:])
    shape = (layer.groups, 1, -1) if transposed else (layer.groups, -1, 1)
    folded = copy.copy(layer)
    folded.weight = Parameter(layer.weight.data.copy())
    folded.weight.data[...] = (grouped * s.reshape(*shape, 1, 1)).reshape(weight.shape)
    folded.bias = Parameter(bias.astype(layer.weight.dtype))
    return folded


def _rectified(layer: nn.Module) -> list[nn.Module]:
    """Put a ReLU behind a layer: into it where it can have one."""
    if type(layer) is not nn.Conv2d:
        return [layer, nn.ReLU()]
    fused = copy.copy(layer)
    fused.activation = "relu"
    return [fused]


def _ahead(layer: nn.Dense, norm: nn.BatchNorm) -> nn.Dense:
    """Fold a BatchNorm into the Dense after it, whose inputs may be several for each channel."""
    weight, bias = _wide(layer)
    spread = weight.shape[1] // norm._channels
    first = norm.axis == 1
    s, t = (np.repeat(v, spread) if first else np.tile(v, spread) for v in _scale_and_shift(norm))
    return dense_of(weight * s, bias + weight @ t, layer.weight.dtype)


def _scale_and_shift(norm: nn.BatchNorm) -> tuple[np.ndarray, np.ndarray]:
    """Return s and t of inference as ``s * x + t``, in float64."""
    mean, var = (np.asarray(array, np.float64) for array in (norm.running_mean, norm.running_var))
    with np.errstate(divide="ignore", invalid="ignore"):
        s = 1.0 / np.sqrt(var + norm.eps)
        if norm.gamma is not None:
            s = s * norm.gamma.data
        t = -mean * s
    return s, t if norm.beta is None else t + norm.beta.data


def _wide(layer: Weighted) -> tuple[np.ndarray, np.ndarray]:
    weight = layer.weight.data.astype(np.float64)
    if layer.bias is None:
        return weight, np.zeros(1)
    return weight, layer.bias.data.astype(np.float64)


# ---------------------------------------------------------------- refusing


def _unfit(norm: nn.BatchNorm) -> str | None:
    """Say why a BatchNorm folds into no layer at all."""
    if norm.running_mean is None:
        return "it keeps no running statistics"
    if norm.axis not in (1, -1):
        return f"it normalizes axis {norm.axis}"
    if isinstance(norm, nn.InPlaceBatchNorm):
        return "its leaky ReLU has no layer to stay behind in"
    if not all(np.isfinite(vector).all() for vector in _scale_and_shift(norm)):
        return "its statistics or parameters are not finite numbers"
    return None


def _refusals(steps: list[_Step]) -> Iterator[str]:
    """Give the reason for every BatchNorm that is left."""
    for position, step in enumerate(steps):
        for layer in step.after:
            if isinstance(layer, nn.BatchNorm):
                yield f"{step.name!r}, {layer!r}: {_unfit(layer) or _neighbours(steps, position)}"
            elif any(isinstance(inner, nn.BatchNorm) for inner in layer.modules()):
                kind = type(layer).__name__
                yield f"{step.name!r}: the forward of {kind} says how its BatchNorm is used"


def _neighbours(steps: list[_Step], position: int) -> str:
    before = repr(steps[position - 1].after[-1]) if position else "the input"
    after = repr(steps[position + 1].after[0]) if position + 1 < len(steps) else "the output"
    layer, maker = steps[position].after[0], steps[position - 1].after[-1]
    if position and isinstance(maker, Convolution) and isinstance(layer, nn.BatchNorm):
        return f"its axis is {layer.axis}, and that of {before} {maker.axis}"
    if isinstance(layer, nn.BatchNorm) and layer.activation:
        return f"it follows {before}, and its {layer.activation} comes before {after}"
    return f"it is between {before} and {after}"


# ---------------------------------------------------------------- verifying


_OF_ANY_SHAPE = (
    nn.Flatten, nn.GELU, nn.LeakyReLU, nn.ReLU, nn.SiLU, nn.Sigmoid, nn.Softmax, nn.Tanh,
)  # fmt: skip


def _probe(layers: list[nn.Module]) -> np.ndarray:
    """Draw standard normal numbers that layers can take."""
    rng = np.random.default_rng(0)
    for position, first in enumerate(layers):
        if isinstance(first, nn.Unflatten):
            return rng.standard_normal((_PROBE_ROWS, math.prod(first.shape)))
        if isinstance(first, nn.Dense):
            return rng.standard_normal((_PROBE_ROWS, first.weight.shape[1]))
        if isinstance(first, nn.BatchNorm):
            channels, rest = first._channels, layers[position:]
            dense = next((i for i, layer in enumerate(rest) if isinstance(layer, nn.Dense)), 0)
            spread = 1
            if any(isinstance(layer, nn.Flatten) for layer in rest[:dense]):
                spread = rest[dense].weight.shape[1] // channels  # type: ignore[attr-defined]
            shape = (spread, channels) if first.axis == -1 else (channels, spread)
            return rng.standard_normal((_PROBE_ROWS, *(shape if spread > 1 else (channels,))))
        if not isinstance(first, _OF_ANY_SHAPE):
            break
    raise ArgumentError("the layers do not show what the model takes: pass a batch x to verify on")


def _verify(steps: list[_Step], x: np.ndarray | None, tolerance: float | None) -> None:
    """Run every replacement beside what it replaces, on what reaches it."""
    changed = [position for position, step in enumerate(steps) if step.before != step.after]
    if not changed:
        return
    before = [layer for step in steps for layer in step.before]
    value = as_tensor(_probe(before) if x is None else x).to("cpu")
    if not value.size:
        raise ArgumentError(f"x has no elements to verify on: its shape is {value.shape}")
    dtypes = [parameter.dtype for layer in before for parameter in layer.parameters()]
    value = Tensor(value.data.astype(np.result_type(*dtypes)))
    for step in steps[: changed[-1] + 1]:
        try:
            expected, found = _run(step.before, value), _run(step.after, value)
        except NbbnError as error:
            raise ArgumentError(
                f"layer {step.name!r} does not take a batch of shape {value.shape} ({error}): "
                "pass a batch x to verify on"
            ) from error
        allowed = _TOLERANCE[expected.dtype] if tolerance is None else tolerance
        scale = float(np.max(np.abs(expected.data), initial=0.0)) or 1.0
        change = float(np.max(np.abs(found.data - expected.data), initial=0.0)) / scale
        if step.before != step.after and not change <= allowed:
            raise ArgumentError(
                f"folding {step.name} would change its output by {change:.1e} of the largest, "
                f"{allowed:.0e} is allowed: keep it, use float64, or pass a larger tolerance"
            )
        value = expected


def _run(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x
