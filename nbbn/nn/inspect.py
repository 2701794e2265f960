"""Sanity checks of a model in training: activations, gradients, batch norm, and known mistakes."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from .. import backend
from .._validation import function, instance, switch
from ..autograd.tensor import Parameter, Tape, Tensor, as_tensor
from ..functional.layout import all_but
from .activation import ReLU
from .convolution import Conv2d
from .layers import BatchNorm, Module, Softmax, is_linear
from .losses import DoubleSoftmaxWarning, cross_entropy
from .observe import observed
from .summary import table

__all__ = ["Inspection", "InspectionWarning", "LayerInspection", "inspect"]

# Half of the units dead, statistics one deviation or a factor of two apart: worth a word.
_MANY_DEAD = 0.5
# Fewer values than this say nothing of a unit: half of them are negative anyway.
_ENOUGH = 16
_FAR_MEAN, _FAR_STD = 1.0, 2.0


class InspectionWarning(UserWarning):
    """`inspect` has found what is usually a mistake."""


class LayerInspection(NamedTuple):
    """What `inspect` saw of one layer.

    Attributes
    ----------
    name : str
        As in the state dict.
    layer : str
        The layer's repr.
    mean, std : float
        Of its output.
    dead : float or None
        Fraction of units (channels) that a ReLU kept at 0 for the whole batch; None without a ReLU.
    weight_norm, grad_norm : float or None
        Root of the sum of squares of its parameters, and of their gradients; None where there are
        none.
    mean_gap : float or None
        Root mean square over channels of (batch mean - running mean) / running deviation; None for
        layers without running statistics.
    std_gap : float or None
        Typical factor, at least 1, between the batch's deviation and the running one: exp of the
        root mean square over channels of the logarithm of their ratio.
    """

    name: str
    layer: str
    mean: float
    std: float
    dead: float | None
    weight_norm: float | None
    grad_norm: float | None
    mean_gap: float | None
    std_gap: float | None


class Inspection(NamedTuple):
    """What `inspect` saw; `print` shows it as a table.

    Attributes
    ----------
    loss : float or None
        Of the batch; None without labels.
    layers : tuple of LayerInspection
        In the order in which they ran.
    warnings : tuple of str
        Known mistakes that were found.
    """

    loss: float | None
    layers: tuple[LayerInspection, ...]
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        """Lay out a table, and the warnings under it."""
        head = ("layer", "mean", "std", "dead", "|weight|", "|grad|", "mean gap", "std gap")
        lines = table([head, *map(_row, self.layers)], 1)
        if self.loss is not None:
            lines.append(f"loss {self.loss:.4g}")
        return "\n".join([*lines, *(f"warning: {text}" for text in self.warnings)])


def inspect(
    model: Module,
    x: Tensor | np.ndarray,
    y: Any = None,
    *,
    loss: Callable[[Tensor, Any], Tensor] = cross_entropy,
    warn: bool = True,
) -> Inspection:
    """Look at a model at work on one batch, in the mode that it is in, without changing anything.

    It runs a copy: parameters, gradients, running statistics and random states stay as they are,
    so that a line in a training loop changes no result. A recorded step records itself again
    afterwards.

    Parameters
    ----------
    model : Module
    x : Tensor or ndarray
        A batch.
    y : optional
        Its targets, as `loss` takes them. Without them there are no gradients, and the batch counts
        as one to evaluate.
    loss : callable, default `nbbn.losses.cross_entropy`
        Maps (output Tensor, y) to a Tensor of one element.
    warn : bool, default True
        Issue what is found as warnings too.

    Returns
    -------
    Inspection

    Raises
    ------
    DTypeError
        `model` is not a Module.

    Warns
    -----
    InspectionWarning
        Evaluation with batch statistics, or with running ones that have seen no batch; one value
        per channel in training; statistics that move under frozen parameters; a softmax of a
        softmax; a bias in front of a BatchNorm; many dead ReLUs; statistics of the batch far from
        the running ones; outputs or gradients that are not finite, gradients that are 0.

    Examples
    --------
    >>> print(nbbn.inspect(model, x, y))
    """
    instance(model, Module, "model")
    function(loss, "loss")
    warn = switch(warn, "warn")
    backend.not_recordable("nbbn.inspect looks at values")
    x, twin = as_tensor(x).detach(), copy.deepcopy(model)
    texts = [
        text
        for name, layer in twin.named_modules()
        if isinstance(layer, BatchNorm)
        for text in _slips(_label(name, layer), layer, twin.training, evaluating=y is None)
    ]
    seen = _forward(model, twin, x, texts)
    value = None if y is None else _backward(model, twin, x, y, loss, texts)
    layers = []
    for layer, found in seen:
        norm = _norm([p.grad for p in _own(layer) if p.grad is not None])
        if norm is not None and not math.isfinite(norm):
            texts.append(f"the gradient of {_label(found.name, layer)} is not finite")
        elif norm == 0:
            texts.append(f"the gradient of {_label(found.name, layer)} is 0: it cannot learn")
        layers.append(found._replace(grad_norm=norm))
    result = Inspection(value, tuple(layers), tuple(dict.fromkeys(texts)))
    if warn:
        for text in result.warnings:
            warnings.warn(text, InspectionWarning, stacklevel=2)
    return result


def _slips(label: str, layer: BatchNorm, training: bool, *, evaluating: bool) -> Iterator[str]:
    """Find modes that do not fit together."""
    if layer.running_mean is None or layer.running_var is None:
        return
    moves = layer.training and not layer.frozen
    if moves and not training:
        yield f"{label} is in training mode inside a model in evaluation mode"
    elif moves and evaluating:
        yield (
            f"{label} is in training mode, so that evaluation would use the batch's statistics "
            "and move the running ones: call model.eval() before it"
        )
    mean, var = backend.host(layer.running_mean), backend.host(layer.running_var)
    if not (moves or int(layer.num_batches_tracked or 0) or mean.any() or (var != 1).any()):
        yield (
            f"{label} normalizes with running statistics that have seen no batch: train first, "
            "or load them"
        )
    parameters = layer.parameters()
    if moves and parameters and not any(p.requires_grad for p in parameters):
        yield (
            f"{label} has frozen parameters, but its running statistics still move: set "
            "frozen=True; layer.eval() lasts until the next fit or model.train()"
        )


def _forward(
    model: Module, twin: Module, x: Tensor, texts: list[str]
) -> list[tuple[Module, LayerInspection]]:
    """Run the copy once without a tape, look at every layer, and add to `texts`."""
    found: list[tuple[Module, LayerInspection]] = []
    # The Tensors too, or another one could get the same id.
    makers: dict[int, tuple[str, Module, Tensor]] = {}
    # The copy's running statistics have moved by the time that they are looked at.
    before = dict(model.named_modules())

    def see(name: str, layer: Module, x: Tensor, y: Tensor) -> None:
        if any(True for _ in layer.children()) and not _own(layer):
            return
        label, own = _label(name, layer), before[name]
        output = backend.host(y.data).astype(np.float64)
        if not np.isfinite(output).all() and not any("is not finite" in t for t in texts):
            texts.append(f"the output of {label} is not finite")
        dead = _dead(label, layer, output, texts)
        gaps: tuple[float | None, float | None] = None, None
        if isinstance(own, BatchNorm):
            gaps = _gaps(label, own, backend.host(x.data), texts)
            maker = makers.get(id(x))
            if maker and is_linear(maker[1]) and maker[1].bias is not None:
                texts.append(
                    f"{_label(*maker[:2])} has a bias that {label} subtracts again: use bias=False"
                )
        if isinstance(layer, Softmax) and x._logits is not None:
            texts.append(f"{label} takes the softmax of a softmax: leave one of them out")
        makers[id(y)] = name, layer, y
        mean, std = (output.mean(), output.std()) if output.size else (math.nan, math.nan)
        weight_norm = _norm([p.data for p in _own(layer)])
        first_line = repr(layer).partition("\n")[0]
        numbers = float(mean), float(std), dead, weight_norm, None, *gaps
        found.append((layer, LayerInspection(name, first_line, *numbers)))

    for parameter in twin.parameters():
        parameter.requires_grad = False
    for _, layer in twin.named_modules():
        if isinstance(layer, BatchNorm):
            layer.on_single = "skip" if layer.running_mean is None else "eval"
    with observed(twin, see), np.errstate(all="ignore"):
        twin(x)
    return found


def _dead(label: str, layer: Module, output: np.ndarray, texts: list[str]) -> float | None:
    """Return the fraction of units that a ReLU kept at 0, if there is one."""
    fused = isinstance(layer, BatchNorm | Conv2d) and layer.activation == "relu"
    if not (fused or isinstance(layer, ReLU)) or output.ndim < 2 or not output.size:
        return None
    axis = layer.axis if isinstance(layer, BatchNorm | Conv2d) else 1
    dead = float(np.mean((output <= 0).all(axis=all_but(axis, output))))
    if dead > _MANY_DEAD and output.size // output.shape[axis] >= _ENOUGH:
        texts.append(
            f"{label}: {dead:.0%} of its ReLUs are dead on this batch; a smaller "
            "learning rate or another initialization may help"
        )
    return dead


def _gaps(
    label: str, layer: BatchNorm, x: np.ndarray, texts: list[str]
) -> tuple[float | None, float | None]:
    """Compare the batch's statistics with the running ones."""
    count = x.size // x.shape[layer.axis]
    moves = layer.training and not layer.frozen
    if count == 1 and moves and layer.on_single in ("error", "normalize"):
        texts.append(
            f"{label} gets one value per channel, which has no variance: use a larger batch, "
            "model.eval(), or on_single"
        )
    if layer.running_mean is None or layer.running_var is None or count < 2:
        return None, None
    wide, others = x.astype(np.float64), all_but(layer.axis, x)
    mean, std = wide.mean(axis=others), np.sqrt(wide.var(axis=others) + layer.eps)
    running_mean = backend.host(layer.running_mean)
    running_std = np.sqrt(backend.host(layer.running_var) + layer.eps)
    with np.errstate(all="ignore"):
        mean_gap = math.sqrt(float(np.mean(((mean - running_mean) / running_std) ** 2)))
        std_gap = math.exp(math.sqrt(float(np.mean(np.log(std / running_std) ** 2))))
    if mean_gap > _FAR_MEAN or std_gap > _FAR_STD:
        texts.append(
            f"{label}: training and evaluation differ; the batch's mean is {mean_gap:.2g} "
            f"deviations from the running one, its deviation a factor of {std_gap:.2g}: more "
            "steps, larger batches or a faster momentum bring them together"
        )
    return mean_gap, std_gap


def _backward(
    model: Module,
    twin: Module,
    x: Tensor,
    y: Any,
    loss: Callable[[Tensor, Any], Tensor],
    texts: list[str],
) -> float:
    """Run the copy forward and backward, for the gradients, and return the loss."""
    for parameter, original in zip(twin.parameters(), model.parameters(), strict=True):
        parameter.requires_grad = original.requires_grad
        parameter.grad = parameter._buffer = None
    with warnings.catch_warnings(record=True) as caught, np.errstate(all="ignore"):
        warnings.simplefilter("always")
        with Tape() as tape:
            value = loss(twin(x), y)
        instance(value, Tensor, "the loss")
        if any(p.requires_grad for p in twin.parameters()):
            tape.backward(value)
    for warning in caught:
        if issubclass(warning.category, DoubleSoftmaxWarning):
            texts.append(f"double softmax: {warning.message}")
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    return value.item()


def _own(module: Module) -> list[Parameter]:
    return [value for value in vars(module).values() if isinstance(value, Parameter)]


def _label(name: str, layer: Module) -> str:
    return f"layer {name}, {layer!r}" if name else repr(layer)


def _norm(arrays: list[Any]) -> float | None:
    if not arrays:
        return None
    with np.errstate(all="ignore"):
        squares = (np.square(backend.host(array), dtype=np.float64).sum() for array in arrays)
        return math.sqrt(float(sum(squares)))


def _row(layer: LayerInspection) -> tuple[str, ...]:
    numbers = (layer.weight_norm, layer.grad_norm, layer.mean_gap, layer.std_gap)
    return (
        f"{layer.name} {layer.layer}".strip(),
        f"{layer.mean:.3g}",
        f"{layer.std:.3g}",
        "" if layer.dead is None else f"{layer.dead:.1%}",
        *("" if number is None else f"{number:.3g}" for number in numbers),
    )
