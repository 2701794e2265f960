"""Batch normalization as a layer, in the conventions of PyTorch, Keras and ONNX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from .. import backend, distributed
from .._validation import choice, float_type, fraction, integer, positive, possible, switch
from ..autograd import functions as ops
from ..autograd.tensor import Parameter, Tensor, as_tensor
from ..errors import ArgumentError, ShapeError
from ..functional import BatchNormStats, WeightedStats, checks, update_running_stats
from ..functional.batchnorm import ON_SINGLE
from ..functional.layout import channel_layout, rank_hint
from .module import Module

__all__ = ["CONVENTIONS", "BatchNorm", "Convention", "SyncBatchNorm"]


class Convention(NamedTuple):
    """What is meant by batch normalization: PyTorch's meaning, unless told otherwise.

    ``Convention(eps=1e-3)`` is PyTorch's with another eps, and
    ``Convention.of("keras", momentum=0.9)`` Keras' with another momentum.

    ======================= ========= ============ ============
    field                   "torch"   "keras"      "onnx"
    ======================= ========= ============ ============
    `eps`                   1e-5      1e-3         1e-5
    `momentum`              0.1       0.99         0.9
    `momentum_weighs`       "new"     "old"        "old"
    `axis`                  1         -1           1
    `unbiased`              True      False        False
    `on_single`             "error"   "normalize"  "normalize"
    ======================= ========= ============ ============

    Attributes
    ----------
    eps : float
        Added to the variance.
    momentum : float or None
        Speed of the running statistics; None averages all batches equally (a = 1 / k for the k-th).
    momentum_weighs : {"new", "old"}
        Whether a, the weight of a batch in the running statistics, is `momentum` or one minus it.
    axis : int
        The channel axis.
    unbiased : bool
        Whether the running variance takes the batch's variance times m / (m - 1).
    on_single : {"error", "normalize", "eval", "skip"}
        What to do in training with one value per channel, whose variance is 0 and whose unbiased
        variance does not exist: raise, normalize it like any other batch, which gives beta (and
        raises where `unbiased`), normalize with the running statistics, or pass `x` on without
        gamma and beta (residual and activation apply). The last two leave the running statistics
        and the batch counter alone.
    zero_debias : bool
        Start the running averages from nothing instead of from 0 and 1, with
        a / (1 - (1 - a)^k) in place of a for the k-th batch.
    framework : {"torch", "keras", "onnx"}
        The framework that the convention is of. A layer that loads weights from it keeps its own
        eps and momentum. With "onnx" and one channel, `x` may have one dimension.
    """

    eps: float = 1e-5
    momentum: float | None = 0.1
    momentum_weighs: str = "new"
    axis: int = 1
    unbiased: bool = True
    on_single: str = "error"
    zero_debias: bool = False
    framework: str = "torch"

    @classmethod
    def of(cls, framework: str, **fields: Any) -> Convention:
        """Return a framework's convention, with other values in some of its fields."""
        return CONVENTIONS[choice(framework, tuple(CONVENTIONS), "framework")]._replace(**fields)


CONVENTIONS = {
    "torch": Convention(),
    "keras": Convention(1e-3, 0.99, "old", -1, False, "normalize", framework="keras"),
    "onnx": Convention(1e-5, 0.9, "old", 1, False, "normalize", framework="onnx"),
}


Stats = BatchNormStats | WeightedStats


class BatchNorm(Module):
    """Batch normalization for inputs of any rank from 2 to 5.

    In training the batch's statistics normalize and the running ones move towards them:
    ``running = (1 - a) * running + a * batch``. In evaluation the running ones normalize.
    `convention` says what frameworks differ in: with a framework's, this layer does what that
    framework's does.

    Parameters
    ----------
    channels : int
        Length of the channel axis, C.
    convention : {"torch", "keras", "onnx"} or Convention, default "torch"
        Its values become attributes of their names, to be changed at any time; `convention` is then
        the name of its framework.
    scale, shift : bool, default True
        Learn gamma, and beta.
    track_running_stats : bool, default True
        Without running statistics the batch's are used in evaluation too.
    frozen : bool, default False
        Normalize with the running statistics in training too and leave them alone; gamma and beta
        still learn. An attribute, to be changed at any time.
    activation : {None, "relu"}, default None
        Applied in the same pass over memory.
    skip_nonfinite : bool, default False
        Guard the running statistics: a batch with a NaN or Inf leaves them alone and is counted.
    sync : bool, default False
        In training, normalize with the statistics of the batches of all ranks of a distributed run,
        see `nbbn.distributed`: the layer is then what it would be in one process with all of them.
        Ranks may have different numbers of examples, and none. An attribute, to be changed at any
        time; without other ranks it changes nothing.
    dtype : {float32, float64}

    Attributes
    ----------
    gamma, beta : Parameter, shape (C,), or None
        "weight" and "bias" in the state dict.
    running_mean, running_var : ndarray, shape (C,), or None
    num_batches_tracked : ndarray of int64, 0-dimensional, or None
        Training batches seen, skipped ones included.
    num_batches_skipped : ndarray of int64, 0-dimensional, or None
        Batches that the guard kept out; None without it.

    References
    ----------
    Ioffe and Szegedy, "Batch Normalization" (2015), arXiv:1502.03167. Zero debiasing: Kingma and
    Ba, "Adam" (2015), section 3.
    """

    buffers = ("running_mean", "running_var", "num_batches_tracked", "num_batches_skipped")
    host_buffers = ("num_batches_tracked",)
    state_names: ClassVar[Mapping[str, str]] = {"gamma": "weight", "beta": "bias"}

    def __init__(
        self,
        channels: int,
        *,
        convention: str | Convention = "torch",
        scale: bool = True,
        shift: bool = True,
        track_running_stats: bool = True,
        frozen: bool = False,
        activation: str | None = None,
        skip_nonfinite: bool = False,
        sync: bool = False,
        dtype: Any = np.float32,
    ) -> None:
        channels = positive(channels, "channels")
        dtype = float_type(dtype)
        possible((channels,), dtype, "a BatchNorm with parameters")
        if not isinstance(convention, Convention):
            convention = CONVENTIONS[choice(convention, tuple(CONVENTIONS), "convention")]
        self.convention = choice(convention.framework, tuple(CONVENTIONS), "framework")
        self.eps = checks.epsilon(convention.eps, zero_allowed=False)
        momentum = convention.momentum
        self.momentum = None if momentum is None else fraction(momentum, "momentum")
        self.momentum_weighs = choice(convention.momentum_weighs, ("new", "old"), "momentum_weighs")
        self.axis = integer(convention.axis, "axis")
        self.unbiased = switch(convention.unbiased, "unbiased")
        self.on_single = choice(convention.on_single, (*ON_SINGLE, "normalize"), "on_single")
        self.zero_debias = switch(convention.zero_debias, "zero_debias")
        if self.zero_debias and not self.weight_of_new(1):
            raise ArgumentError(
                "zero_debias needs running statistics that move: momentum gives new values weight 0"
            )
        track_running_stats = switch(track_running_stats, "track_running_stats")
        self.frozen = switch(frozen, "frozen")
        if frozen and not track_running_stats:
            raise ArgumentError("frozen=True normalizes with running statistics: track them")
        self.activation = choice(activation, (None, "relu"), "activation")
        self.sync = switch(sync, "sync")
        self.gamma = Parameter(np.ones(channels, dtype)) if switch(scale, "scale") else None
        self.beta = Parameter(np.zeros(channels, dtype)) if switch(shift, "shift") else None
        self.running_mean = np.zeros(channels, dtype) if track_running_stats else None
        self.running_var = np.ones(channels, dtype) if track_running_stats else None
        self.num_batches_tracked = np.zeros((), np.int64) if track_running_stats else None
        self.num_batches_skipped = (
            np.zeros((), np.int64) if switch(skip_nonfinite, "skip_nonfinite") else None
        )
        if not track_running_stats and (self.on_single == "eval" or skip_nonfinite):
            option = 'on_single="eval"' if self.on_single == "eval" else "skip_nonfinite"
            raise ArgumentError(f"{option} needs running statistics: set track_running_stats=True")
        self._channels = channels
        # Where `recalibrate` collects statistics instead of moving the running ones.
        self._observed: list[Stats] | None = None

    @property
    def _takes_single(self) -> bool:
        # The running variance of one value per channel exists if it is the biased one.
        return self.on_single == "normalize" and not self.unbiased

    @property
    def refuses_single(self) -> bool:
        """Whether one value per channel is an error in training."""
        if self.frozen and self.running_mean is not None:
            return False
        return self.on_single in ("error", "normalize") and not self._takes_single

    def forward(
        self,
        x: Tensor,
        residual: Tensor | np.ndarray | None = None,
        weights: np.ndarray | None = None,
    ) -> Tensor:
        """Normalize `x`.

        A `residual` of the same shape is added before the activation. `weights`, a mask or sample
        weights as for `nbbn.functional.weighted_batch_norm_train`, weigh positions in the batch's
        statistics; where running statistics normalize they change nothing.
        """
        if x.ndim == 1 and self._channels == 1 and self.convention == "onnx":
            return self.forward(x.reshape(-1, 1), residual, weights).reshape(-1)
        found = x.shape[self.axis] if -x.ndim <= self.axis < x.ndim else None
        if found != self._channels:
            hint = f": {rank_hint(x.shape, self.axis)}" if x.ndim == 1 else ""
            raise ShapeError(
                f"this BatchNorm has {self._channels} channels on axis {self.axis}, "
                f"got x of shape {x.shape}{hint}"
            )
        ranks = self._ranks()
        policy = self.on_single if x.size == found and ranks is None else None
        fixed = self.frozen or not self.training or policy == "eval"
        if self.running_mean is not None and fixed:
            return self._with_running_stats(x, residual)
        if policy == "skip":
            return self._pass_on(x, residual)
        if ranks is None:
            y, stats = self._with_batch_stats(x, residual, weights, self._takes_single)
        else:
            y, stats = self._with_all_stats(ranks, x, residual, weights)
        if self.training:
            self._follow(stats)
        return y

    def _ranks(self) -> distributed.Ranks | None:
        """Return the ranks whose batches count too, if there are any."""
        # What `recalibrate` observes is of the batches that it is given.
        if not (self.sync and self.training) or self._observed is not None:
            return None
        ranks = distributed.world()
        return None if ranks is None or ranks.size == 1 else ranks

    def _with_all_stats(
        self, ranks: distributed.Ranks, x: Tensor, residual: Any, weights: np.ndarray | None
    ) -> tuple[Tensor, Stats]:
        if type(self)._with_batch_stats is not BatchNorm._with_batch_stats or weights is not None:
            what = type(self).__name__ if weights is None else "BatchNorm with weights"
            raise ArgumentError(f"{what} has no statistics of all ranks: set sync=False")
        if self.on_single in ("eval", "skip"):
            raise ArgumentError(
                f"on_single={self.on_single!r} is for one rank: with sync=True use 'error', or "
                "'normalize' in Keras' convention"
            )
        return ops.sync_batch_norm(
            x, self.gamma, self.beta, residual, ranks=ranks,
            eps=self.eps, axis=self.axis, activation=self.activation, single=self._takes_single,
        )  # fmt: skip

    def _with_running_stats(self, x: Tensor, residual: Tensor | np.ndarray | None) -> Tensor:
        return ops.batch_norm_infer(
            x, self.running_mean, self.running_var, self.gamma, self.beta, residual,
            eps=self.eps, axis=self.axis, activation=self.activation,
        )  # fmt: skip

    def _with_batch_stats(
        self,
        x: Tensor,
        residual: Tensor | np.ndarray | None,
        weights: np.ndarray | None,
        single: bool,
    ) -> tuple[Tensor, Stats]:
        options: Any = {
            "eps": self.eps, "axis": self.axis, "activation": self.activation, "single": single
        }  # fmt: skip
        if weights is None:
            return ops.batch_norm_train(x, self.gamma, self.beta, residual, **options)
        return ops.weighted_batch_norm(x, weights, self.gamma, self.beta, residual, **options)

    def weight_of_new(self, k: int) -> float:
        """Weight a of the k-th batch, counted from 1, in the running statistics."""
        if self.momentum is None:
            return 1.0 / k
        # An attribute, which may have been set to anything since the layer was made.
        momentum = fraction(self.momentum, "momentum")
        a = momentum if self.momentum_weighs == "new" else 1.0 - momentum
        # Rounding must not carry the first weight, which is 1, beyond it.
        return min(a / (1.0 - (1.0 - a) ** k), 1.0) if self.zero_debias and a else a

    def _follow(self, stats: Stats) -> None:
        """Move the running statistics towards a batch's."""
        if self.running_mean is None or self.running_var is None:
            return
        if self._observed is not None:
            self._observed.append(stats)
            return
        weight: Any = self.weight_of_new(1)
        backend.run(_increment, self.num_batches_tracked)
        if self.momentum is None or self.zero_debias:
            # An array, read when the update runs: a replayed step counts on.
            weight = backend.empty((), np.float64)
            counters = self.num_batches_tracked, self.num_batches_skipped
            backend.run(_next_weight, self.weight_of_new, *counters, weight)
        update_running_stats(
            self.running_mean, self.running_var, stats,
            momentum=weight, unbiased=self.unbiased, skipped=self.num_batches_skipped,
        )  # fmt: skip

    def _pass_on(self, x: Tensor, residual: Tensor | np.ndarray | None) -> Tensor:
        """Leave out the normalization, but neither the checks nor what is fused with it."""
        channel_layout(x.data, self.axis)
        if residual is not None:
            residual = as_tensor(residual)
            checks.same_shape(residual.data, x.data, "residual")
            x = x + residual
        return ops.relu(x) if self.activation else x

    def __call__(
        self,
        x: Tensor | np.ndarray,
        residual: Tensor | np.ndarray | None = None,
        weights: np.ndarray | None = None,
    ) -> Tensor:
        """Apply `forward` to a Tensor or an array."""
        return self.forward(as_tensor(x), residual, weights)

    def __repr__(self) -> str:
        kind = f", convention={self.convention!r}" if self.convention != "torch" else ""
        fused = f", activation={self.activation!r}" if self.activation else ""
        return f"{type(self).__name__}({self._channels}{kind}{fused})"


class SyncBatchNorm(BatchNorm):
    """`BatchNorm` with `sync` on: batch normalization over all ranks of a distributed run.

    Otherwise as `BatchNorm`.

    Parameters
    ----------
    **options
        Those of `BatchNorm`.
    """

    def __init__(self, channels: int, **options: Any) -> None:
        super().__init__(channels, **{"sync": True, **options})


def _increment(counter: np.ndarray) -> None:
    # Ten times as quick as an in-place sum of an array.
    counter[()] += 1


def _next_weight(rule: Any, seen: np.ndarray, skipped: Any, weight: np.ndarray) -> None:
    taken_in = int(seen) - (0 if skipped is None else int(skipped))
    weight[...] = rule(max(taken_in, 1))
