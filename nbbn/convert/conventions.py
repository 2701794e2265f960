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

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from .. import checks
from ..errors import ArgumentError, DTypeError, ShapeError
from ..layers import BatchNorm

__all__ = ["BatchNormState", "options"]


class Convention(NamedTuple):
    """What a framework means by its numbers, and the ones it starts from."""

    eps: float
    momentum: float
    of_old: bool
    unbiased: bool


CONVENTIONS = {
    "torch": Convention(eps=1e-5, momentum=0.1, of_old=False, unbiased=True),
    "keras": Convention(eps=1e-3, momentum=0.99, of_old=True, unbiased=False),
    "onnx": Convention(eps=1e-5, momentum=0.9, of_old=True, unbiased=False),
}


class BatchNormState(NamedTuple):
    """All numbers of a batch normalization layer, as one framework understands them.

    Attributes
    ----------
    convention : {"torch", "keras", "onnx"}
    mean, var : ndarray, shape (C,), or None
        Running statistics; the variance is unbiased for "torch" and biased for the others.
    gamma, beta : ndarray, shape (C,), or None
        Scale and shift; None means 1 and 0.
    eps : float
    momentum : float or None
        Weight of the new value for "torch", where None averages all batches equally; weight of the
        old value for the others.
    updates : int or None
        How many batches the running statistics have seen; None if that is not known.
    """

    convention: str
    mean: np.ndarray | None
    var: np.ndarray | None
    gamma: np.ndarray | None
    beta: np.ndarray | None
    eps: float
    momentum: float | None
    updates: int | None

    @classmethod
    def of(cls, layer: BatchNorm) -> BatchNormState:
        """Copy the state of a layer, in the layer's own convention."""
        if not isinstance(layer, BatchNorm):
            raise DTypeError(f"layer must be a BatchNorm, got {type(layer).__name__}")
        mean, var, tracked = layer.running_mean, layer.running_var, layer.num_batches_tracked
        return cls(
            convention_of(layer),
            mean=None if mean is None else mean.copy(),
            var=None if var is None else var.copy(),
            gamma=None if layer.gamma is None else layer.gamma.data.copy(),
            beta=None if layer.beta is None else layer.beta.data.copy(),
            eps=layer.eps,
            momentum=layer.momentum,
            updates=_updates(mean, var, tracked),
        )

    def to(self, convention: str, *, count: int | None = None) -> BatchNormState:
        """Say the same in the terms of another framework.

        eps stays, for it is added to the same variance. The momentum changes from the weight of the
        new value to that of the old one, or back. The running variance stays too unless `count` is
        given: what the layer computes in inference is then the same. With `count`, the result is
        what the other framework would have recorded: each batch's variance is scaled by
        ``m / (m - 1)``, or its inverse, while the initial 1 is not, whose weight after k updates is
        ``(1 - a)**k``. Without `updates` that weight is taken to have vanished.

        Parameters
        ----------
        convention : {"torch", "keras", "onnx"}
        count : int, optional
            Values per channel in each batch, m: the batch size, times the spatial size.

        Returns
        -------
        BatchNormState

        Raises
        ------
        ArgumentError
            An unknown convention, `count` below 2, or a cumulative average (momentum None), which
            only PyTorch has.
        """
        checks.choice(convention, tuple(CONVENTIONS), "convention")
        var = self.variance(convention, count=count)
        momentum = self.momentum
        if CONVENTIONS[self.convention].of_old != CONVENTIONS[convention].of_old:
            if momentum is None:
                raise ArgumentError(
                    f"momentum=None averages all batches equally, which {convention} cannot: "
                    "give the state a momentum first, with state._replace(momentum=...)"
                )
            momentum = 1.0 - momentum
        return self._replace(convention=convention, momentum=momentum, var=var)

    def variance(self, convention: str, *, count: int | None = None) -> np.ndarray | None:
        """Give the running variance that another framework would have recorded, as in `to`.

        Parameters
        ----------
        convention : {"torch", "keras", "onnx"}
        count : int, optional
            Values per channel in each batch; None leaves the variance as it is.

        Returns
        -------
        ndarray, shape (C,), or None
        """
        checks.choice(convention, tuple(CONVENTIONS), "convention")
        checks.choice(self.convention, tuple(CONVENTIONS), "the convention of the state")
        source, target = CONVENTIONS[self.convention], CONVENTIONS[convention]
        if count is not None and checks.integer(count, "count") < 2:
            raise ArgumentError(
                f"count must be at least 2 for an unbiased variance to exist, got {count}"
            )
        if self.var is None or count is None or source.unbiased == target.unbiased:
            return self.var
        ratio = count / (count - 1) if target.unbiased else (count - 1) / count
        initial = self._initial_weight(source)
        wide = self.var.astype(np.float64)
        return (initial + (wide - initial) * ratio).astype(self.var.dtype)

    def _initial_weight(self, convention: Convention) -> float:
        """Weight of the initial variance, 1, in the running one."""
        if self.updates is None:
            return 0.0
        if self.momentum is None:
            return float(self.updates == 0)
        old = self.momentum if convention.of_old else 1.0 - self.momentum
        return float(old**self.updates)

    def assign(self, layer: BatchNorm, *, count: int | None = None) -> None:
        """Put this state into a layer, converted to the layer's convention.

        Nothing is changed unless everything fits.

        Parameters
        ----------
        layer : BatchNorm
            Its learned scale, shift and statistics must be those that the state has.
        count : int, optional
            As for `to`.

        Raises
        ------
        ShapeError, DTypeError, ArgumentError
            An array that is missing, not expected, or of another shape.
        """
        assignment(self, layer, count, "the layer")()


def _updates(
    mean: np.ndarray | None, var: np.ndarray | None, tracked: np.ndarray | None
) -> int | None:
    """Count of a layer's updates; 0 beside statistics from elsewhere means that it is not known."""
    if mean is None or var is None or tracked is None:
        return None
    untouched = not mean.any() and bool((var == 1).all())
    return int(tracked) if tracked > 0 or untouched else None


def assignment(
    state: BatchNormState, layer: BatchNorm, count: int | None, name: str
) -> Callable[[], None]:
    """Check that a state fits a layer, and return a function that then only copies."""
    if not isinstance(layer, BatchNorm):
        raise DTypeError(f"layer must be a BatchNorm, got {type(layer).__name__}")
    state = state.to(convention_of(layer), count=count)
    pairs = (
        ("gamma", state.gamma, None if layer.gamma is None else layer.gamma.data),
        ("beta", state.beta, None if layer.beta is None else layer.beta.data),
        ("running mean", state.mean, layer.running_mean),
        ("running variance", state.var, layer.running_var),
    )
    copies = [(own, fitting(given, own, f"{what} of {name}")) for what, given, own in pairs]
    eps = checks.epsilon(state.eps, zero_allowed=False)
    momentum = None if state.momentum is None else checks.fraction(state.momentum, "momentum")

    def apply() -> None:
        fill(copies)
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked[...] = state.updates or 0
        layer.eps, layer.momentum = eps, momentum

    return apply


def fill(copies: Iterable[tuple[np.ndarray | None, np.ndarray | None]]) -> None:
    """Copy each second array into the first, where there is one."""
    for own, given in copies:
        if own is not None:
            own[...] = given


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
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DTypeError(f"{name} is not an array: {error}") from None
    if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
        raise DTypeError(f"{name} must hold real numbers, got {array.dtype}")
    return array


def convention_of(layer: BatchNorm) -> str:
    """Name the convention that a layer's momentum and running variance follow."""
    return "torch"


def with_settings(
    state: BatchNormState, layer: BatchNorm, eps: float | None, momentum: float | None
) -> BatchNormState:
    """Fill in eps and momentum, which files of weights lack."""
    own = BatchNormState.of(layer)
    if own.convention == state.convention:
        default_eps, default_momentum = own.eps, own.momentum
    else:
        convention = CONVENTIONS[state.convention]
        default_eps, default_momentum = convention.eps, convention.momentum
    return state._replace(
        eps=default_eps if eps is None else eps,
        momentum=default_momentum if momentum is None else momentum,
    )


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
        Keyword arguments, or attributes of the ONNX node, without the number of channels.

    Raises
    ------
    ArgumentError
        An unknown framework, or one that cannot express the layer.
    """
    checks.choice(framework, tuple(CONVENTIONS), "framework")
    state = BatchNormState.of(layer).to(framework)
    if framework == "torch":
        if layer.axis != 1:
            raise ArgumentError(
                f"PyTorch normalizes axis 1 and this layer axis {layer.axis}: move the axis"
            )
        affine = layer.gamma is not None or layer.beta is not None
        tracked = layer.running_mean is not None
        return {
            "eps": state.eps,
            "momentum": state.momentum,
            "affine": affine,
            "track_running_stats": tracked,
        }
    if state.mean is None:
        raise ArgumentError(f"{framework} has no batch normalization without running statistics")
    if framework == "onnx":
        if layer.axis != 1:
            raise ArgumentError(
                f"ONNX normalizes axis 1 and this layer axis {layer.axis}: move the axis"
            )
        return {"epsilon": state.eps, "momentum": state.momentum}
    return {
        "axis": layer.axis,
        "epsilon": state.eps,
        "momentum": state.momentum,
        "scale": layer.gamma is not None,
        "center": layer.beta is not None,
    }
