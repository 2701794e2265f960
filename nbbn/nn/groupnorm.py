"""Layer, RMS, group and instance normalization as layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from .. import backend
from .._validation import float_type, fraction, integer, iterate, positive, possible, switch
from ..autograd import functions as ops
from ..autograd.tensor import Parameter, Tensor, apply_with_stats
from ..errors import ArgumentError, ShapeError
from ..functional import BatchNormStats, GroupStats, checks, update_running_stats
from .module import Module

__all__ = ["GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm"]


class _OfGroups(Module):
    """What the layers share: eps, gamma and beta."""

    state_names: ClassVar[Mapping[str, str]] = {"gamma": "weight", "beta": "bias"}

    def _learn(self, shape: tuple[int, ...], scale: Any, shift: Any, dtype: Any) -> None:
        """Make gamma and beta."""
        dtype = float_type(dtype)
        possible(shape, dtype, f"a {type(self).__name__} with parameters")
        self.gamma = Parameter(np.ones(shape, dtype)) if switch(scale, "scale") else None
        self.beta = Parameter(np.zeros(shape, dtype)) if switch(shift, "shift") else None


def _shape_of(shape: int | Sequence[int]) -> tuple[int, ...]:
    """Return the sizes of the axes that are normalized over."""
    sizes = iterate(shape, "shape", "integers") if isinstance(shape, Sequence) else (shape,)
    found = tuple(positive(size, "shape") for size in sizes)
    if not found:
        raise ArgumentError("shape must have one axis or more, got ()")
    return found


class LayerNorm(_OfGroups):
    """Layer normalization of the last axes, as PyTorch's: see `nbbn.functional.layer_norm`.

    Training and evaluation are the same.

    Parameters
    ----------
    shape : int or sequence of int
        Sizes of the axes that are normalized over, the last of the input.
    eps : float, default 1e-5
        Added to the variance. Keras has 1e-3.
    scale, shift : bool, default True
        Learn gamma, and beta.
    dtype : {float32, float64}

    Attributes
    ----------
    gamma, beta : Parameter of that shape, or None
        "weight" and "bias" in the state dict.
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        *,
        eps: float = 1e-5,
        scale: bool = True,
        shift: bool = True,
        dtype: Any = np.float32,
    ) -> None:
        self.shape = _shape_of(shape)
        self.eps = checks.epsilon(eps, zero_allowed=False)
        self._learn(self.shape, scale, shift, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last axes of `x`."""
        _check_last(self, x)
        return ops.layer_norm(x, self.gamma, self.beta, axis=-len(self.shape), eps=self.eps)

    def __repr__(self) -> str:
        return f"LayerNorm({_sizes(self.shape)})"


class RMSNorm(_OfGroups):
    """RMS normalization of the last axes, as PyTorch's: see `nbbn.functional.rms_norm`.

    Otherwise as `LayerNorm`, without beta.

    Parameters
    ----------
    eps : float, optional
        Added to the mean of the squares; by default what `nbbn.functional.rms_norm` takes. Keras
        has 1e-6, ONNX 1e-5.
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        *,
        eps: float | None = None,
        scale: bool = True,
        dtype: Any = np.float32,
    ) -> None:
        self.shape = _shape_of(shape)
        self.eps = None if eps is None else checks.epsilon(eps, zero_allowed=False)
        self._learn(self.shape, scale, False, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last axes of `x`."""
        _check_last(self, x)
        return ops.rms_norm(x, self.gamma, axis=-len(self.shape), eps=self.eps)

    def __repr__(self) -> str:
        return f"RMSNorm({_sizes(self.shape)})"


def _sizes(shape: tuple[int, ...]) -> str:
    return str(shape[0] if len(shape) == 1 else shape)


def _check_last(layer: LayerNorm | RMSNorm, x: Tensor) -> None:
    if x.shape[-len(layer.shape) :] != layer.shape:
        raise ShapeError(
            f"this {type(layer).__name__} normalizes last axes of shape {layer.shape}, "
            f"got x of shape {x.shape}"
        )


def _check_channels(layer: Module, x: Tensor, channels: int, axis: int) -> None:
    found = x.shape[axis] if -x.ndim <= axis < x.ndim else None
    if found != channels:
        raise ShapeError(
            f"this {type(layer).__name__} has {channels} channels on axis {axis}, "
            f"got x of shape {x.shape}"
        )


class GroupNorm(_OfGroups):
    """Group normalization, as PyTorch's: see `nbbn.functional.group_norm`.

    Otherwise as `LayerNorm`, with gamma and beta of shape (C,).

    Parameters
    ----------
    groups : int
        Divides `channels`. 1 normalizes all channels together.
    channels : int
        Length of the channel axis, C.
    axis : int, default 1
        The channel axis; Keras has -1.
    """

    def __init__(
        self,
        groups: int,
        channels: int,
        *,
        eps: float = 1e-5,
        axis: int = 1,
        scale: bool = True,
        shift: bool = True,
        dtype: Any = np.float32,
    ) -> None:
        self.groups = positive(groups, "groups")
        self.channels = positive(channels, "channels")
        if self.channels % self.groups:
            raise ArgumentError(f"{self.channels} channels do not divide into {self.groups} groups")
        self.eps = checks.epsilon(eps, zero_allowed=False)
        self.axis = integer(axis, "axis")
        self._learn((self.channels,), scale, shift, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize groups of channels of `x`."""
        _check_channels(self, x, self.channels, self.axis)
        return ops.group_norm(
            x, self.gamma, self.beta, groups=self.groups, axis=self.axis, eps=self.eps
        )

    def __repr__(self) -> str:
        return f"GroupNorm({self.groups}, {self.channels})"


class InstanceNorm(_OfGroups):
    """Instance normalization, as PyTorch's: see `nbbn.functional.instance_norm`.

    With running statistics, training moves them towards the mean over the batch of each channel's
    mean and unbiased variance, and evaluation normalizes with them, as a BatchNorm does. Without
    them training and evaluation are the same. Otherwise as `GroupNorm`.

    Parameters
    ----------
    momentum : float, default 0.1
        Weight of the new value in the running statistics.
    scale, shift : bool, default False
        Learn gamma, and beta.
    track_running_stats : bool, default False

    Attributes
    ----------
    running_mean, running_var : ndarray, shape (C,), or None
    """

    buffers = ("running_mean", "running_var")
    takes_rows = False

    def __init__(
        self,
        channels: int,
        *,
        eps: float = 1e-5,
        momentum: float = 0.1,
        axis: int = 1,
        scale: bool = False,
        shift: bool = False,
        track_running_stats: bool = False,
        dtype: Any = np.float32,
    ) -> None:
        self.channels = channels = positive(channels, "channels")
        self.eps = checks.epsilon(eps, zero_allowed=False)
        self.momentum = fraction(momentum, "momentum")
        self.axis = integer(axis, "axis")
        self._learn((channels,), scale, shift, dtype)
        tracked = switch(track_running_stats, "track_running_stats")
        self.running_mean = np.zeros(channels, dtype) if tracked else None
        self.running_var = np.ones(channels, dtype) if tracked else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalize each channel of each example of `x`."""
        _check_channels(self, x, self.channels, self.axis)
        where: dict[str, Any] = {"axis": self.axis, "eps": self.eps}
        if self.running_mean is not None and not self.training:
            if x.ndim < 3:
                raise ShapeError(f"x must have 3 dimensions or more, got shape {x.shape}")
            given = self.running_mean, self.running_var
            return ops.batch_norm_infer(x, *given, self.gamma, self.beta, **where)
        y, stats = apply_with_stats(ops.InstanceNorm, x, self.gamma, self.beta, **where)
        if x.size:
            self._follow(stats)
        return y

    def _follow(self, stats: GroupStats) -> None:
        """Move the running statistics towards the batch's mean statistics."""
        if self.running_mean is None or self.running_var is None:
            return
        place, channels = backend.device_of(stats.mean), self.channels
        mean, var, inv_std = (backend.empty(channels, stats.mean.dtype, place) for _ in range(3))
        for values, result in zip(stats[:3], (mean, var, inv_std), strict=True):
            backend.run(np.mean, values, 0, None, result)
        merged = BatchNormStats(mean, var, inv_std, stats.count)
        update_running_stats(self.running_mean, self.running_var, merged, momentum=self.momentum)

    def __repr__(self) -> str:
        tracked = "" if self.running_mean is None else ", track_running_stats=True"
        return f"InstanceNorm({self.channels}{tracked})"
