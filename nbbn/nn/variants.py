"""Layers that normalize batches in other ways, and statistics taken anew over a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from .. import backend
from .._validation import instance, integer, iterate, positive, real
from ..autograd import functions as ops
from ..autograd.tensor import Tensor
from ..errors import ArgumentError
from ..functional import checks, merge_stats
from .batchnorm import BatchNorm, Stats
from .module import Module, evaluating

__all__ = ["BatchRenorm", "GhostBatchNorm", "InPlaceBatchNorm", "Ramp", "recalibrate"]

Schedule = float | Callable[[int], float]


class GhostBatchNorm(BatchNorm):
    """Batch normalization of virtual batches: groups of examples, each with its own statistics.

    The running statistics move towards those of the whole batch, the groups' merged exactly, so
    that in evaluation this is the layer that a `BatchNorm` over whole batches would be. Otherwise
    as `BatchNorm`.

    Parameters
    ----------
    size : int
        Examples in a virtual batch. N examples make ``max(1, N // size)`` groups of as equal a
        length as can be, so that none is smaller.
    **options
        As for `BatchNorm`.

    References
    ----------
    Hoffer, Hubara and Soudry, "Train longer, generalize better" (2017), arXiv:1705.08741.
    """

    def __init__(self, channels: int, size: int, **options: Any) -> None:
        super().__init__(channels, **options)
        self.size = positive(size, "size")

    def _with_batch_stats(
        self, x: Tensor, residual: Any, weights: np.ndarray | None, single: bool
    ) -> tuple[Tensor, Stats]:
        _refuse_weights(self, weights)
        return ops.ghost_batch_norm(
            x, self.gamma, self.beta, residual, size=self.size,
            eps=self.eps, axis=self.axis, activation=self.activation, single=single,
        )  # fmt: skip


class Ramp:
    """A limit that is constant, then rises in a straight line, then is constant again.

    Parameters
    ----------
    start, end : float
        Values before `first` and after `last`.
    first, last : int
        Batches between which it rises.
    """

    def __init__(self, start: float, end: float, first: int, last: int) -> None:
        self.start, self.end = real(start, "start"), real(end, "end")
        self.first, self.last = integer(first, "first"), integer(last, "last")
        if not 0 <= self.first < self.last:
            raise ArgumentError(f"a Ramp needs 0 <= first < last, got {first} and {last}")

    def __call__(self, k: int) -> float:
        """Return the limit for the batch after the k-th."""
        share = min(max((k - self.first) / (self.last - self.first), 0.0), 1.0)
        return self.start + share * (self.end - self.start)


# Those of the paper, section 4.
_R_MAX, _D_MAX = Ramp(1.0, 3.0, 5_000, 40_000), Ramp(0.0, 5.0, 5_000, 25_000)


class BatchRenorm(BatchNorm):
    """Batch renormalization: training sees nearly what evaluation will, for small batches.

    ``y = gamma * (x_hat * r + d) + beta`` with ``r = sigma_batch / sigma_running`` clipped to
    [1 / r_max, r_max] and ``d = (mean_batch - mean_running) / sigma_running`` clipped to
    [-d_max, d_max], sigma = sqrt(var + eps); no gradient passes r and d. With r_max = 1 and
    d_max = 0 it is `BatchNorm`; without limits it is what evaluation computes. Otherwise as
    `BatchNorm`.

    Parameters
    ----------
    r_max, d_max : float or callable, optional
        Limits, >= 1 and >= 0, or functions that give them from the number of batches seen so far.
        By default the paper's: 1 and 0 for 5,000 batches, then rising to 3 at 40,000 and 5 at
        25,000.
    **options
        As for `BatchNorm`; `track_running_stats` must be on.

    References
    ----------
    Ioffe, "Batch Renormalization" (2017), arXiv:1702.03275.
    """

    def __init__(
        self, channels: int, *, r_max: Schedule = _R_MAX, d_max: Schedule = _D_MAX, **options: Any
    ) -> None:
        super().__init__(channels, **options)
        if self.running_mean is None:
            raise ArgumentError("BatchRenorm corrects towards running statistics: track them")
        self.r_max = _schedule(r_max, "r_max", 1.0)
        self.d_max = _schedule(d_max, "d_max", 0.0)

    def _with_batch_stats(
        self, x: Tensor, residual: Any, weights: np.ndarray | None, single: bool
    ) -> tuple[Tensor, Stats]:
        _refuse_weights(self, weights)
        assert self.running_mean is not None
        assert self.running_var is not None
        limits = backend.empty(2, np.float64)
        backend.run(_limits, self.r_max, self.d_max, self.num_batches_tracked, limits)
        return ops.batch_renorm(
            x, self.running_mean, self.running_var, limits, self.gamma, self.beta, residual,
            eps=self.eps, axis=self.axis, activation=self.activation, single=single,
        )  # fmt: skip


def _schedule(value: Schedule, name: str, least: float) -> Schedule:
    if callable(value):
        return value
    return real(value, name, least=least)


def _limits(r_max: Schedule, d_max: Schedule, counter: np.ndarray, limits: np.ndarray) -> None:
    for place, (limit, name, least) in enumerate(((r_max, "r_max", 1.0), (d_max, "d_max", 0.0))):
        limits[place] = limit(int(counter)) if callable(limit) else limit
        if not limits[place] >= least:
            raise ArgumentError(
                f"{name} must be at least {least:g}, its schedule gave {limits[place]} "
                f"after {int(counter)} batches"
            )


class InPlaceBatchNorm(BatchNorm):
    """Batch normalization and leaky ReLU in one, keeping the output alone for the backward pass.

    A `BatchNorm` keeps its input and its output until the backward pass; this layer keeps its
    output, which also serves the next layer, and computes what entered from it. On a tape its input
    gives up its array, so that nothing else may use that input afterwards. Otherwise as
    `BatchNorm`.

    Parameters
    ----------
    slope : float, default 0.01
        Of the leaky ReLU below 0, in (0, 1]; 1 is no activation.
    **options
        As for `BatchNorm`, without `activation`. The scale is |gamma| + eps, as in the paper's
        code, because a scale of 0 cannot be undone.

    References
    ----------
    Rota Bulò, Porzi and Kontschieder, "In-Place Activated BatchNorm for Memory-Optimized Training
    of DNNs" (2018), arXiv:1712.02616.
    """

    def __init__(self, channels: int, *, slope: float = 0.01, **options: Any) -> None:
        super().__init__(channels, **options)
        if self.activation is not None:
            raise ArgumentError(
                "InPlaceBatchNorm has a leaky ReLU, which can be undone: set slope, not activation"
            )
        if self.on_single == "skip":
            raise ArgumentError('on_single="skip" would leave out the activation: use "eval"')
        self.slope = real(slope, "slope", above=0, most=1)

    def _with_running_stats(self, x: Tensor, residual: Any) -> Tensor:
        y, _ = self._in_place(x, residual, self.running_mean, self.running_var, False)
        return y

    def _with_batch_stats(
        self, x: Tensor, residual: Any, weights: np.ndarray | None, single: bool
    ) -> tuple[Tensor, Stats]:
        _refuse_weights(self, weights)
        y, stats = self._in_place(x, residual, None, None, single)
        return y, stats

    def _in_place(
        self, x: Tensor, residual: Any, mean: Any, var: Any, single: bool
    ) -> tuple[Tensor, Any]:
        if residual is not None:
            raise ArgumentError("InPlaceBatchNorm cannot undo a residual: add it outside")
        return ops.in_place_batch_norm(
            x, self.gamma, self.beta, mean, var,
            slope=self.slope, eps=self.eps, axis=self.axis, single=single,
        )  # fmt: skip


def _refuse_weights(layer: Module, weights: np.ndarray | None) -> None:
    if weights is not None:
        raise ArgumentError(f"{type(layer).__name__} takes no weights: use BatchNorm for those")


_KEPT_STATS = 64


def recalibrate(model: Module, batches: Iterable[Any]) -> None:
    """Replace running statistics by the exact ones of a data set ("precise BN").

    The model runs over all batches, its BatchNorm layers normalizing each with its own statistics
    and everything else, such as Dropout, as in evaluation. Each layer's running mean and variance
    then become those of all that it saw, merged exactly. Parameters do not change, nor does the
    count of batches; layers that are frozen or track nothing are left alone.

    Parameters
    ----------
    model : Module
        Its modes are as before when this returns. Where it raises, nothing has changed.
    batches : iterable of ndarray or of (ndarray, anything)
        The data; batches of any sizes. What follows an array in a pair is ignored.

    Raises
    ------
    DTypeError
        `model` is not a Module, or a batch holds no array.
    ArgumentError
        There is no layer to recalibrate, no data, or some that is not finite.

    References
    ----------
    Wu and Johnson, "Rethinking 'Batch' in BatchNorm" (2021), arXiv:2105.07576, section 3.
    """
    instance(model, Module, "model")
    layers = [
        module
        for module in model.modules()
        if isinstance(module, BatchNorm) and module.running_mean is not None and not module.frozen
    ]
    examples = iterate(batches, "batches", "arrays or of pairs")
    if not layers:
        raise ArgumentError("the model has no BatchNorm with running statistics to recalibrate")
    seen: list[list[Any]] = [[] for _ in layers]
    try:
        with evaluating(model):
            for layer, found in zip(layers, seen, strict=True):
                layer.training, layer._observed = True, found
            for batch in examples:
                model(batch[0] if isinstance(batch, tuple | list) and batch else batch)
                for found in seen:
                    # However many batches there are, a few statistics are kept.
                    if len(found) >= _KEPT_STATS:
                        found[:] = [merge_stats(found)]
    finally:
        for layer in layers:
            layer._observed = None
    # Merge all before the first is replaced.
    merged = [
        None if not found else found[0] if len(found) == 1 else merge_stats(found) for found in seen
    ]
    if all(stats is None or stats.count == 0 for stats in merged):
        raise ArgumentError("recalibrate saw no data: pass batches of examples")
    found = []
    for layer, stats in zip(layers, merged, strict=True):
        if stats is None or not stats.count:
            continue
        factor = stats.count / (stats.count - 1) if layer.unbiased else 1.0
        pairs = (layer.running_mean, stats.mean), (layer.running_var, stats.var * factor)
        found += [(own, array) for own, array in pairs if own is not None]
    for own, array in found:
        if not np.abs(array).max() <= checks.largest(own.dtype):
            raise ArgumentError(
                f"recalibrate saw statistics that are not finite in {own.dtype}: look for NaN, "
                "Inf and huge numbers in the batches and in the parameters"
            )
    for own, array in found:
        own[...] = array
