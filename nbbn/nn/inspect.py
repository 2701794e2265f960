"""Sanity checks of a model in training: activations, gradients, batch norm, and known mistakes."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .. import backend
from .._validation import function, instance, switch
from ..autograd.tensor import Parameter, Tape, Tensor, as_tensor
from .layers import BatchNorm, Dense, Module, ReLU, Softmax
from .losses import DoubleSoftmaxWarning, cross_entropy
from .observe import observed

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
        rows = [head, *(_row(layer) for layer in self.layers)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = [
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
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
    watch = _Watch(model, evaluating=y is None)
    watch.forward(as_tensor(x).detach())
    value = None if y is None else watch.backward(as_tensor(x).detach(), y, loss)
    found = Inspection(value, watch.layers(), tuple(watch.texts))
    if warn:
        for text in found.warnings:
            warnings.warn(text, InspectionWarning, stacklevel=2)
    return found


class _Watch:
    """A copy of the model, and what is seen of it."""

    def __init__(self, model: Module, *, evaluating: bool) -> None:
        self.twin = copy.deepcopy(model)
        self.evaluating = evaluating
        self.texts: list[str] = []
        self._seen: list[tuple[str, Module, dict[str, Any]]] = []
        self._makers: dict[int, tuple[str, Module, Tensor]] = {}
        self._wanted = [p.requires_grad for p in model.parameters()]
        # The copy's running statistics have moved by the time that they are looked at.
        self._before = dict(model.named_modules())
        for name, layer in self.twin.named_modules():
            if isinstance(layer, BatchNorm):
                self._check_mode(name, layer)

    def _warn(self, text: str) -> None:
        if text not in self.texts:
            self.texts.append(text)

    def _check_mode(self, name: str, layer: BatchNorm) -> None:
        """Find modes that do not fit together."""
        label = _label(name, layer)
        if layer.running_mean is None or layer.running_var is None:
            return
        moves = layer.training and not layer.frozen
        if moves and not self.twin.training:
            self._warn(f"{label} is in training mode inside a model in evaluation mode")
        elif moves and self.evaluating:
            self._warn(
                f"{label} is in training mode, so that evaluation would use the batch's statistics "
                "and move the running ones: call model.eval() before it"
            )
        if not moves and not int(layer.num_batches_tracked or 0) and _untouched(layer):
            self._warn(
                f"{label} normalizes with running statistics that have seen no batch: train first, "
                "or load them"
            )
        parameters = layer.parameters()
        if moves and parameters and not any(p.requires_grad for p in parameters):
            self._warn(
                f"{label} has frozen parameters, but its running statistics still move: set "
                "frozen=True, or call layer.eval()"
            )

    def forward(self, x: Tensor) -> None:
        """Run once without a tape, and look at every layer."""
        for parameter in self.twin.parameters():
            parameter.requires_grad = False
        for _, layer in self.twin.named_modules():
            if isinstance(layer, BatchNorm):
                # Past the attribute hook, which would make recorded steps record themselves again.
                vars(layer)["on_single"] = "skip" if layer.running_mean is None else "eval"
        with observed(self.twin, self._see), np.errstate(all="ignore"):
            self.twin(x)

    def _see(self, name: str, layer: Module, x: Tensor, y: Tensor) -> None:
        if any(True for _ in layer.children()) and not _own(layer):
            return
        label = _label(name, layer)
        output = backend.host(y.data).astype(np.float64)
        seen: dict[str, Any] = {"mean": _mean(output), "std": _std(output), "dead": None}
        if not np.isfinite(output).all() and not any("is not finite" in t for t in self.texts):
            self._warn(f"the output of {label} is not finite")
        fused = isinstance(layer, BatchNorm) and layer.activation == "relu"
        if (fused or isinstance(layer, ReLU)) and output.ndim > 1 and output.size:
            axis = layer.axis if isinstance(layer, BatchNorm) else 1
            others = tuple(d for d in range(output.ndim) if d != axis % output.ndim)
            seen["dead"] = float(np.mean((output <= 0).all(axis=others)))
            enough = output.size // output.shape[axis] >= _ENOUGH
            if seen["dead"] > _MANY_DEAD and enough:
                self._warn(
                    f"{label}: {seen['dead']:.0%} of its ReLUs are dead on this batch; a smaller "
                    "learning rate or another initialization may help"
                )
        maker = self._makers.get(id(x))
        before = self._before[name]
        if isinstance(before, BatchNorm):
            seen |= self._statistics(label, before, backend.host(x.data))
            if maker and isinstance(maker[1], Dense) and maker[1].bias is not None:
                self._warn(
                    f"{_label(*maker[:2])} has a bias that {label} subtracts again: use bias=False"
                )
        if isinstance(layer, Softmax) and x._logits is not None:
            self._warn(f"{label} takes the softmax of a softmax: leave one of them out")
        self._makers[id(y)] = name, layer, y
        self._seen.append((name, layer, seen))

    def _statistics(self, label: str, layer: BatchNorm, x: np.ndarray) -> dict[str, Any]:
        """Compare the batch's statistics with the running ones."""
        axis = layer.axis % x.ndim
        others = tuple(d for d in range(x.ndim) if d != axis)
        count = x.size // x.shape[axis]
        moves = layer.training and not layer.frozen
        if count == 1 and moves and layer.on_single in ("error", "normalize"):
            self._warn(
                f"{label} gets one value per channel, which has no variance: use a larger batch, "
                "model.eval(), or on_single"
            )
        if layer.running_mean is None or layer.running_var is None or count < 2:
            return {}
        wide = x.astype(np.float64)
        mean, std = wide.mean(axis=others), np.sqrt(wide.var(axis=others) + layer.eps)
        own_mean, own_var = (backend.host(a) for a in (layer.running_mean, layer.running_var))
        own_std = np.sqrt(own_var + layer.eps)
        with np.errstate(all="ignore"):
            mean_gap = math.sqrt(float(np.mean(((mean - own_mean) / own_std) ** 2)))
            std_gap = math.exp(math.sqrt(float(np.mean(np.log(std / own_std) ** 2))))
        if mean_gap > _FAR_MEAN or std_gap > _FAR_STD:
            self._warn(
                f"{label}: training and evaluation differ; the batch's mean is {mean_gap:.2g} "
                f"deviations from the running one, its deviation a factor of {std_gap:.2g}: more "
                "steps, larger batches or a faster momentum bring them together"
            )
        return {"mean_gap": mean_gap, "std_gap": std_gap}

    def backward(self, x: Tensor, y: Any, loss: Callable[[Tensor, Any], Tensor]) -> float:
        """Run forward and backward, for the gradients, and return the loss."""
        for parameter, wanted in zip(self.twin.parameters(), self._wanted, strict=True):
            parameter.requires_grad = wanted
            parameter.grad = parameter._buffer = None
        with warnings.catch_warnings(record=True) as caught, np.errstate(all="ignore"):
            warnings.simplefilter("always")
            with Tape() as tape:
                value = loss(self.twin(x), y)
            instance(value, Tensor, "the loss")
            if any(self._wanted):
                tape.backward(value)
        for warning in caught:
            if issubclass(warning.category, DoubleSoftmaxWarning):
                self._warn(f"double softmax: {warning.message}")
            else:
                warnings.warn_explicit(
                    warning.message, warning.category, warning.filename, warning.lineno
                )
        return value.item()

    def layers(self) -> tuple[LayerInspection, ...]:
        """Put together what was seen, and look at the gradients."""
        found = []
        for name, layer, seen in self._seen:
            own = _own(layer)
            gradients = [p.grad for p in own if p.grad is not None]
            grad_norm = _norm(gradients)
            if grad_norm is not None and not math.isfinite(grad_norm):
                self._warn(f"the gradient of {_label(name, layer)} is not finite")
            elif grad_norm == 0:
                self._warn(f"the gradient of {_label(name, layer)} is 0: it cannot learn")
            found.append(
                LayerInspection(
                    name=name,
                    layer=repr(layer).partition("\n")[0],
                    mean=seen["mean"],
                    std=seen["std"],
                    dead=seen["dead"],
                    weight_norm=_norm([p.data for p in own]),
                    grad_norm=grad_norm,
                    mean_gap=seen.get("mean_gap"),
                    std_gap=seen.get("std_gap"),
                )
            )
        return tuple(found)


def _own(module: Module) -> list[Parameter]:
    return [value for value in vars(module).values() if isinstance(value, Parameter)]


def _untouched(layer: BatchNorm) -> bool:
    mean, var = (backend.host(array) for array in (layer.running_mean, layer.running_var))
    return not mean.any() and bool((var == 1).all())


def _label(name: str, layer: Module) -> str:
    return f"layer {name}, {layer!r}" if name else repr(layer)


def _mean(array: np.ndarray) -> float:
    return float(array.mean()) if array.size else math.nan


def _std(array: np.ndarray) -> float:
    return float(array.std()) if array.size else math.nan


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
