"""Batch normalization as a layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from . import backend, checks, ops
from .autograd import Parameter, Tensor, as_tensor
from .errors import ShapeError
from .functional import update_running_stats
from .modules import Module, float_type

__all__ = ["BatchNorm"]


class BatchNorm(Module):
    """Batch normalization for inputs of any rank from 2 to 5.

    In training the batch's statistics normalize and the running ones move towards them:
    ``running = (1 - momentum) * running + momentum * batch``, with the unbiased variance. In
    evaluation the running ones normalize. These are PyTorch's conventions.

    Parameters
    ----------
    channels : int
        Length of the channel axis, C.
    eps : float, default 1e-5
        Added to the variance.
    momentum : float or None, default 0.1
        Weight of the new value; None averages all batches equally.
    affine : bool, default True
        Learn gamma and beta.
    track_running_stats : bool, default True
        Without running statistics the batch's are used in evaluation too.
    axis : int, default 1
        The channel axis.
    activation : {None, "relu"}, default None
        Applied in the same pass over memory.
    dtype : {float32, float64}

    Attributes
    ----------
    gamma, beta : Parameter, shape (C,), or None
        "weight" and "bias" in the state dict.
    running_mean, running_var : ndarray, shape (C,), or None
    num_batches_tracked : ndarray of int64, 0-dimensional, or None
    """

    buffers = ("running_mean", "running_var", "num_batches_tracked")
    state_names: ClassVar[Mapping[str, str]] = {"gamma": "weight", "beta": "bias"}

    def __init__(
        self,
        channels: int,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        axis: int = 1,
        activation: str | None = None,
        dtype: Any = np.float32,
    ) -> None:
        channels = checks.positive(channels, "channels")
        dtype = float_type(dtype)
        self.eps = checks.epsilon(eps, zero_allowed=False)
        self.momentum = None if momentum is None else checks.fraction(momentum, "momentum")
        self.axis = checks.integer(axis, "axis")
        self.activation = checks.choice(activation, (None, "relu"), "activation")
        self.gamma = Parameter(np.ones(channels, dtype)) if affine else None
        self.beta = Parameter(np.zeros(channels, dtype)) if affine else None
        self.running_mean = np.zeros(channels, dtype) if track_running_stats else None
        self.running_var = np.ones(channels, dtype) if track_running_stats else None
        self.num_batches_tracked = np.zeros((), np.int64) if track_running_stats else None
        self._channels = channels

    def forward(self, x: Tensor, residual: Tensor | np.ndarray | None = None) -> Tensor:
        """Normalize `x`; a `residual` of the same shape is added before the activation."""
        found = x.shape[self.axis] if -x.ndim <= self.axis < x.ndim else None
        if found != self._channels:
            raise ShapeError(
                f"this BatchNorm has {self._channels} channels on axis {self.axis}, "
                f"got x of shape {x.shape}"
            )
        if self.running_mean is not None and not self.training:
            return ops.batch_norm_infer(
                x, self.running_mean, self.running_var, self.gamma, self.beta, residual,
                eps=self.eps, axis=self.axis, activation=self.activation,
            )  # fmt: skip
        y, stats = ops.batch_norm_train(
            x, self.gamma, self.beta, residual,
            eps=self.eps, axis=self.axis, activation=self.activation,
        )  # fmt: skip
        if self.training and self.running_mean is not None and self.running_var is not None:
            backend.run(_increment, self.num_batches_tracked)
            momentum = self.momentum
            if momentum is None:
                backend.not_recordable("BatchNorm(momentum=None) weighs every batch differently")
                momentum = 1.0 / float(self.num_batches_tracked)  # type: ignore[arg-type]
            update_running_stats(self.running_mean, self.running_var, stats, momentum=momentum)
        return y

    def __call__(
        self, x: Tensor | np.ndarray, residual: Tensor | np.ndarray | None = None
    ) -> Tensor:
        """Apply `forward` to a Tensor or an array."""
        return self.forward(as_tensor(x), residual)

    def __repr__(self) -> str:
        fused = f", activation={self.activation!r}" if self.activation else ""
        return f"BatchNorm({self._channels}{fused})"


def _increment(counter: np.ndarray) -> None:
    counter += 1
