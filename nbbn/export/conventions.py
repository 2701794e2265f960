"""One batch normalization layer in the terms of each framework.

With a the weight of the new value, r the running variance, s the biased variance of a batch of m
values per channel:

- PyTorch: momentum a = 0.1, eps 1e-5, ``r <- (1 - a) r + a s m / (m - 1)``
- Keras: momentum p = 1 - a = 0.99, eps 1e-3, ``r <- p r + (1 - p) s``
- ONNX: momentum p = 1 - a = 0.9, eps 1e-5, ``r <- p r + (1 - p) s``

Sources: the documentation of ``torch.nn.BatchNorm1d`` and ``keras.layers.BatchNormalization``, and
the ONNX operator BatchNormalization-15.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from .. import _validation, backend
from .._validation import choice, fraction, instance, integer
from ..errors import ArgumentError, DTypeError, ShapeError
from ..functional import checks
from ..nn.batchnorm import CONVENTIONS, BatchNorm

__all__ = ["BatchNormState", "options"]

FRAMEWORKS = tuple(CONVENTIONS)
_STATISTICS = {"running mean": "running_mean", "running variance": "running_var"}


class BatchNormState(NamedTuple):
    """All numbers of a batch normalization layer, and what they mean.

    Attributes
    ----------
    mean, var : ndarray, shape (C,), or None
        Running statistics.
    gamma, beta : ndarray, shape (C,), or None
        Scale and shift; None means 1 and 0.
    eps, momentum, momentum_weighs, unbiased
        As in `nbbn.Convention`.
    updates : int or None
        How many batches the running statistics have seen; None if that is not known.
    initial_weight : float
        Weight of the initial variance, 1, in `var`: ``(1 - a)**updates``, and 0 for an average that
        starts from its first batch or has settled.
    """

    mean: np.ndarray | None
    var: np.ndarray | None
    gamma: np.ndarray | None = None
    beta: np.ndarray | None = None
    eps: float = CONVENTIONS["torch"].eps
    momentum: float | None = CONVENTIONS["torch"].momentum
    momentum_weighs: str = CONVENTIONS["torch"].momentum_weighs
    unbiased: bool = CONVENTIONS["torch"].unbiased
    updates: int | None = None
    initial_weight: float = 0.0

    @classmethod
    def of(cls, layer: BatchNorm) -> BatchNormState:
        """Copy the state of a layer."""
        instance(layer, BatchNorm, "layer")
        arrays = layer.state_dict()
        updates = _updates(arrays)
        return cls(
            mean=arrays.get("running_mean"),
            var=arrays.get("running_var"),
            gamma=arrays.get("weight"),
            beta=arrays.get("bias"),
            eps=layer.eps,
            momentum=layer.momentum,
            momentum_weighs=layer.momentum_weighs,
            unbiased=layer.unbiased,
            updates=updates,
            initial_weight=_initial_weight(layer.weight_of_new(1), updates),
        )

    def to(self, framework: str, *, count: int | None = None) -> BatchNormState:
        """Say the same in the terms of a framework.

        eps stays, for it is added to the same variance. The momentum changes from the weight of the
        new value to that of the old one, or back. The running variance stays too unless `count` is
        given: what the layer computes in inference is then the same. With `count`, the result is
        what the framework would have recorded: each batch's variance is scaled by ``m / (m - 1)``,
        or its inverse, while the initial 1 is not.

        Parameters
        ----------
        framework : {"torch", "keras", "onnx"}
        count : int, optional
            Values per channel in each batch, m: the batch size, times the spatial size.

        Returns
        -------
        BatchNormState

        Raises
        ------
        ArgumentError
            An unknown framework, `count` below 2, or an average of all batches (momentum None),
            which only PyTorch has.
        """
        target = CONVENTIONS[choice(framework, FRAMEWORKS, "framework")]
        if self.momentum is None and framework != "torch":
            raise ArgumentError(
                f"momentum=None averages all batches equally, which {framework} cannot: give the "
                "state a momentum first, with state._replace(momentum=...)"
            )
        return converted(self, target.momentum_weighs, target.unbiased, count)

    def assign(self, layer: BatchNorm, *, count: int | None = None) -> None:
        """Put this state into a layer, in the terms that the layer uses; `count` as for `to`.

        Nothing is changed unless everything fits: the layer must have the scale, shift and
        statistics that the state has, and no others.
        """
        assignment(self, layer, count, "the layer")()


def converted(
    state: BatchNormState, momentum_weighs: str, unbiased: bool, count: int | None
) -> BatchNormState:
    """Give a momentum and a running variance of other meanings."""
    if count is not None:
        # The unbiased variance of one value does not exist.
        count = integer(count, "count", least=2)
    momentum, var = state.momentum, state.var
    if momentum is not None and momentum_weighs != state.momentum_weighs:
        momentum = 1.0 - momentum
    if count is not None and var is not None and unbiased != state.unbiased:
        ratio = count / (count - 1) if unbiased else (count - 1) / count
        initial = state.initial_weight
        scaled = initial + (var.astype(np.float64) - initial) * ratio
        var = scaled.astype(np.promote_types(var.dtype, np.float32))
    return state._replace(
        var=var, momentum=momentum, momentum_weighs=momentum_weighs, unbiased=unbiased
    )


def variance(state: BatchNormState, framework: str, count: int | None) -> np.ndarray | None:
    """Give the running variance that a framework would have recorded."""
    return converted(state, state.momentum_weighs, CONVENTIONS[framework].unbiased, count).var


def _initial_weight(first: float, updates: int | None) -> float:
    """Weight of what an average started from, `first` being that of its first batch."""
    return 0.0 if updates is None else (1.0 - first) ** updates


def _updates(arrays: Mapping[str, np.ndarray]) -> int | None:
    if "running_mean" not in arrays:
        return None
    count = int(arrays["num_batches_tracked"]) - int(arrays.get("num_batches_skipped", 0))
    return known_updates(count, arrays["running_mean"], arrays["running_var"])


def known_updates(count: int, mean: np.ndarray, var: np.ndarray) -> int | None:
    """Return a count of updates, or None for 0 beside statistics that come from elsewhere."""
    untouched = not mean.any() and bool((var == 1).all())
    return count if count > 0 or untouched else None


def assignment(
    state: BatchNormState, layer: BatchNorm, count: int | None, name: str
) -> Callable[[], None]:
    """Check that a state fits a layer, and return a function that then only copies."""
    instance(layer, BatchNorm, "layer")
    state = converted(state, layer.momentum_weighs, layer.unbiased, count)
    pairs = (
        ("gamma", state.gamma, None if layer.gamma is None else layer.gamma.data),
        ("beta", state.beta, None if layer.beta is None else layer.beta.data),
        ("running mean", state.mean, layer.running_mean),
        ("running variance", state.var, layer.running_var),
    )
    copies = []
    for what, given, own in pairs:
        array = fitting(given, own, f"{what} of {name}")
        if array is not None and own is not None:
            kind = _STATISTICS.get(what, what)
            checks.running_statistic(array, kind, own.dtype, f"the {what} of {name}")
        copies.append((own, array))
    eps = checks.epsilon(state.eps, zero_allowed=False)
    momentum = None if state.momentum is None else fraction(state.momentum, "momentum")

    def apply() -> None:
        fill(copies)
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked[...] = state.updates or 0
        if layer.num_batches_skipped is not None:
            layer.num_batches_skipped[...] = 0
        layer.eps, layer.momentum = eps, momentum

    return apply


def fill(copies: Iterable[tuple[np.ndarray | None, np.ndarray | None]]) -> None:
    """Copy each second array into the first, where there is one."""
    for own, given in copies:
        if own is not None and given is not None:
            backend.assign(own, given)


def fitting(given: Any, own: np.ndarray | None, name: str) -> np.ndarray | None:
    """Check that an array from elsewhere can be copied into `own`."""
    if (given is None) != (own is None):
        raise ArgumentError(
            f"the {name} is missing: nothing to copy into the model's"
            if given is None
            else f"the model has no place for the {name}"
        )
    if given is None or own is None:
        return None
    array = as_array(given, name)
    if array.shape != own.shape:
        raise ShapeError(f"the {name} must have shape {own.shape}, got {array.shape}")
    return array


def as_array(value: Any, name: str) -> np.ndarray:
    """Return an array, or a tensor of another library on the CPU, as an array of numbers."""
    array = _validation.as_array(value, name)
    if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
        raise DTypeError(f"{name} must hold real numbers, got {array.dtype}")
    return array


def with_settings(
    state: BatchNormState,
    framework: str,
    layer: BatchNorm,
    eps: float | None,
    momentum: float | None,
) -> BatchNormState:
    """Complete a state read from a framework's weights, which lack eps and momentum."""
    convention = CONVENTIONS[framework]
    own_eps: float = convention.eps
    own_momentum: float | None = convention.momentum
    if layer.convention == framework:
        own_eps, own_momentum = layer.eps, layer.momentum
        if own_momentum is not None and layer.momentum_weighs != convention.momentum_weighs:
            own_momentum = 1.0 - own_momentum
    momentum = own_momentum if momentum is None else fraction(momentum, "momentum")
    first = 1.0 if momentum is None else momentum
    if momentum is not None and convention.momentum_weighs == "old":
        first = 1.0 - momentum
    return state._replace(
        eps=own_eps if eps is None else eps,
        momentum=momentum,
        momentum_weighs=convention.momentum_weighs,
        unbiased=convention.unbiased,
        initial_weight=_initial_weight(first, state.updates),
    )


def torch_can_omit_shift() -> bool:
    """Whether PyTorch has a BatchNorm with scale and no shift: ``bias=False``, not in old ones.

    That is the PyTorch that is loaded; without one, the present one.
    """
    torch = sys.modules.get("torch")
    return torch is None or "bias" in inspect.signature(torch.nn.BatchNorm1d).parameters


def options(layer: BatchNorm, framework: str) -> dict[str, Any]:
    """Give the arguments that build the same layer in another framework.

    Parameters
    ----------
    layer : BatchNorm
    framework : {"torch", "keras", "onnx"}
        Whose ``BatchNorm1d`` (2d, 3d), ``BatchNormalization`` layer, or operator.

    Returns
    -------
    dict of str to object
        Keyword arguments, or attributes of the ONNX node, without the number of channels. PyTorch
        and ONNX normalize axis 1; for inputs (N, C) that is axis -1 too.

    Raises
    ------
    ArgumentError
        An unknown framework, or one that cannot express the layer.

    Warns
    -----
    UserWarning
        PyTorch would learn a scale beside the layer's shift, or, where it is too old for
        ``bias=False``, a shift beside its scale; how to freeze that.
    """
    state = BatchNormState.of(layer).to(framework)
    if framework != "keras" and layer.axis not in (1, -1):
        raise ArgumentError(
            f"{framework} normalizes axis 1 and this layer axis {layer.axis}: move the axis"
        )
    if framework == "torch":
        scale, shift = layer.gamma is not None, layer.beta is not None
        found: dict[str, Any] = {
            "eps": state.eps,
            "momentum": state.momentum,
            "affine": scale or shift,
            "track_running_stats": layer.running_mean is not None,
        }
        if scale and not shift and torch_can_omit_shift():
            found["bias"] = False
        elif scale != shift:
            there, absent, leaf = (
                ("scale", "shift", "bias") if scale else ("shift", "scale", "weight")
            )
            warnings.warn(
                f"this layer learns a {there} and no {absent}, which PyTorch cannot: keep the "
                f"{absent} that to_torch fills in with module.{leaf}.requires_grad_(False)",
                UserWarning,
                stacklevel=2,
            )
        return found
    if state.mean is None:
        raise ArgumentError(f"{framework} has no batch normalization without running statistics")
    if framework == "onnx":
        return {"epsilon": state.eps, "momentum": state.momentum}
    return {
        "axis": layer.axis,
        "epsilon": state.eps,
        "momentum": state.momentum,
        "scale": layer.gamma is not None,
        "center": layer.beta is not None,
    }
