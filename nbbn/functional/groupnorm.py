"""Layer, RMS, group and instance normalization of arrays, forward and backward.

All normalize each example by itself, in training and in evaluation alike. They differ in the values
that share a mean and a variance, a group of m:

- `layer_norm`: all axes from `axis` on; gamma and beta have an element for each of them.
- `rms_norm`: the same, about 0 instead of the mean, and without beta.
- `group_norm`: one of `groups` groups of channels with all positions; gamma and beta have one
  element a channel.
- `instance_norm`: one channel with all positions; gamma and beta likewise.

With x_hat = (x - mean) * inv_std, inv_std = 1 / sqrt(var + eps) and var = sum((x - mean)^2) / m:
y = gamma * x_hat + beta; and with h = gamma * dy:
dx = inv_std * (h - sum(h) / m - x_hat * sum(h * x_hat) / m), without the term sum(h) / m in
`rms_norm`; dgamma = sum(dy * x_hat) and dbeta = sum(dy) over everything that shares an element.

What the functions have in common:

- `x` may have any strides. float16 and bfloat16 compute in float32. `dy` has the shape of `x`.
- `gamma` and `beta` scale and shift; None means 1 and 0. `eps` must be positive.
- `out` receives the result, dx in gradients. It may be `x` itself, or `dy`; any other overlap costs
  a temporary. `out_dgamma` and `out_dbeta` receive those two, whose dtype is that of `x` (float32
  for the half types).
- An empty batch gives an empty result, and gradients of 0 for gamma and beta.
- They raise ShapeError for a wrong rank, axis or shape, and where there is nothing to normalize,
  DTypeError for an operand that is not an array of real floating numbers, and ArgumentError for a
  bad `eps`, and for an array that is read-only or overlaps itself where a result goes.

Sources: Ba, Kiros and Hinton, "Layer Normalization" (2016), arXiv:1607.06450; Zhang and Sennrich,
"Root Mean Square Layer Normalization" (2019), arXiv:1910.07467; Wu and He, "Group Normalization"
(2018), arXiv:1803.08494; Ulyanov, Vedaldi and Lempitsky, "Instance Normalization" (2016),
arXiv:1607.08022.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import backend
from .._validation import integer, positive
from ..errors import DTypeError, ShapeError
from . import checks
from ._kind import in_kind
from ._out import Target, gradient, hand_over, unchanged_by
from .layout import Layout, axis_index, fold, group_layout, trailing_layout
from .stats import GroupStats

__all__ = [
    "group_norm", "group_norm_backward", "instance_norm", "instance_norm_backward", "layer_norm",
    "layer_norm_backward", "rms_norm", "rms_norm_backward",
]  # fmt: skip


@in_kind
def layer_norm(
    x: np.ndarray,
    gamma: np.ndarray | None = None,
    beta: np.ndarray | None = None,
    *,
    axis: int = -1,
    eps: float = 1e-5,
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, GroupStats]:
    """Normalize over the last axes of `x`, as PyTorch's and ONNX's layer normalization.

    Parameters
    ----------
    x : ndarray of float, 1 dimension or more
    gamma, beta : ndarray of float, shape ``x.shape[axis:]``, optional
    axis : int, default -1
        The first axis that is normalized over; all behind it are too.
    eps : float, default 1e-5
    out : ndarray, shape and dtype of `x`, optional

    Returns
    -------
    y : ndarray, shape and dtype of `x`
    stats : GroupStats
        Of shape ``x.shape[:axis]``.
    """
    return _Trailing(x, axis).forward(x, gamma, beta, eps, True, out)


@in_kind
def layer_norm_backward(
    dy: np.ndarray,
    x: np.ndarray,
    stats: GroupStats,
    gamma: np.ndarray | None = None,
    *,
    axis: int = -1,
    out: np.ndarray | None = None,
    out_dgamma: np.ndarray | None = None,
    out_dbeta: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of `layer_norm`.

    Parameters
    ----------
    dy : ndarray of float, shape of `x`
        Gradient of the loss with respect to the output.
    x : ndarray of float
        The forward's input.
    stats : GroupStats
        What the forward returned.
    gamma : ndarray of float, shape ``x.shape[axis:]``, optional
    axis : int, default -1
        The forward's axis.
    out : ndarray, shape and dtype of `x`, optional
    out_dgamma, out_dbeta : ndarray, shape ``x.shape[axis:]``, optional

    Returns
    -------
    dx : ndarray, shape and dtype of `x`
    dgamma, dbeta : ndarray, shape ``x.shape[axis:]``
    """
    return _Trailing(x, axis).backward(dy, x, stats, gamma, True, out, out_dgamma, out_dbeta)


@in_kind
def rms_norm(
    x: np.ndarray,
    gamma: np.ndarray | None = None,
    *,
    axis: int = -1,
    eps: float | None = None,
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, GroupStats]:
    """Divide by the root of the mean of the squares over the last axes of `x`.

    Otherwise as `layer_norm`.

    Parameters
    ----------
    eps : float, optional
        As in PyTorch, by default the distance from 1 to the next number of the type to compute in:
        1.19e-7 in float32 and the half types, 2.22e-16 in float64.
    """
    plan = _Trailing(x, axis)
    eps = float(np.finfo(plan.layout.dtype).eps) if eps is None else eps
    return plan.forward(x, gamma, None, eps, False, out)


@in_kind
def rms_norm_backward(
    dy: np.ndarray,
    x: np.ndarray,
    stats: GroupStats,
    gamma: np.ndarray | None = None,
    *,
    axis: int = -1,
    out: np.ndarray | None = None,
    out_dgamma: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of `rms_norm`, dx and dgamma. Otherwise as `layer_norm_backward`."""
    return _Trailing(x, axis).backward(dy, x, stats, gamma, False, out, out_dgamma, None)[:2]


@in_kind
def group_norm(
    x: np.ndarray,
    gamma: np.ndarray | None = None,
    beta: np.ndarray | None = None,
    *,
    groups: int,
    axis: int = 1,
    eps: float = 1e-5,
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, GroupStats]:
    """Normalize groups of consecutive channels of each example, as PyTorch's group normalization.

    Otherwise as `layer_norm`; the statistics are of shape (N, groups).

    Parameters
    ----------
    x : ndarray of float, 2 dimensions or more
        The first axis that is not the channels' is the batch.
    gamma, beta : ndarray of float, shape (C,), optional
    groups : int
        Divides the number of channels C. As in PyTorch, a batch of one example with a single value
        a group is a ShapeError.
    axis : int, default 1
        The channel axis.
    """
    plan = _Groups(x, groups, axis)
    if plan.layout.shape[0] * plan.count == 1:
        raise ShapeError(
            f"Expected more than 1 value per group, got x of shape {x.shape} in "
            f"{groups} groups: use fewer groups or a larger input"
        )
    return plan.forward(x, gamma, beta, eps, True, out)


@in_kind
def group_norm_backward(
    dy: np.ndarray,
    x: np.ndarray,
    stats: GroupStats,
    gamma: np.ndarray | None = None,
    *,
    groups: int,
    axis: int = 1,
    out: np.ndarray | None = None,
    out_dgamma: np.ndarray | None = None,
    out_dbeta: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of `group_norm`, two of shape (C,). Otherwise as `layer_norm_backward`.

    Parameters
    ----------
    groups : int
        The forward's groups.
    axis : int, default 1
        The forward's channel axis.
    """
    plan = _Groups(x, groups, axis)
    return plan.backward(dy, x, stats, gamma, True, out, out_dgamma, out_dbeta)


@in_kind
def instance_norm(
    x: np.ndarray,
    gamma: np.ndarray | None = None,
    beta: np.ndarray | None = None,
    *,
    axis: int = 1,
    eps: float = 1e-5,
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, GroupStats]:
    """Normalize each channel of each example over all positions.

    Otherwise as `group_norm`; the statistics are of shape (N, C).

    Parameters
    ----------
    x : ndarray of float, 3 dimensions or more
        As in PyTorch, a single position is a ShapeError.
    """
    plan = _Groups(x, None, axis)
    if plan.count == 1:
        raise ShapeError(f"Expected more than 1 position, got x of shape {x.shape}")
    return plan.forward(x, gamma, beta, eps, True, out)


@in_kind
def instance_norm_backward(
    dy: np.ndarray,
    x: np.ndarray,
    stats: GroupStats,
    gamma: np.ndarray | None = None,
    *,
    axis: int = 1,
    out: np.ndarray | None = None,
    out_dgamma: np.ndarray | None = None,
    out_dbeta: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of `instance_norm`. Otherwise as `group_norm_backward`."""
    plan = _Groups(x, None, axis)
    return plan.backward(dy, x, stats, gamma, True, out, out_dgamma, out_dbeta)


class _Plan:
    """How an input folds, and the shapes of the statistics and of gamma and beta."""

    layout: Layout
    of_stats: tuple[int, ...]
    affine: tuple[int, ...]

    @property
    def count(self) -> int:
        """Values per group."""
        return math.prod(self.layout.shape[2:])

    def forward(
        self, x: Any, gamma: Any, beta: Any, eps: Any, centered: bool, out: np.ndarray | None
    ) -> tuple[np.ndarray, GroupStats]:
        """Check, allocate and launch."""
        layout = self.layout
        eps = checks.epsilon(eps, zero_allowed=False)
        gamma, beta = self._vector(gamma, "gamma"), self._vector(beta, "beta")
        target = Target(out, x, layout, x)
        gamma, beta = unchanged_by(out, layout, gamma, beta)
        stats = backend.empty((3, *self.of_stats), layout.statistics, layout.device)
        # With the dots, what has no axes is an array all the same.
        mean, var, inv_std = (stats[row, ...] for row in range(3))
        if x.size:
            backend.run(
                backend.kernels("groupnorm", layout.device).normalize,
                fold(x, layout), gamma, beta, eps, centered,
                target.folded, mean.reshape(-1), var.reshape(-1), inv_std.reshape(-1),
            )  # fmt: skip
        else:
            backend.run(_without_values, eps, mean, var, inv_std)
        return target.finish(), GroupStats(mean, var, inv_std, self.count)

    def backward(
        self, dy: Any, x: Any, stats: Any, gamma: Any, centered: bool,
        out: np.ndarray | None, out_dgamma: np.ndarray | None, out_dbeta: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
        """Check, allocate and launch."""
        layout = self.layout
        checks.same_shape(dy, x, "dy")
        mean, inv_std = self._given(stats)
        gamma = self._vector(gamma, "gamma")
        target = Target(out, x, layout, dy, x)
        read = x, dy, gamma, mean, inv_std
        dgamma = gradient(out_dgamma, self.affine, layout, "out_dgamma", *read)
        dbeta = gradient(out_dbeta, self.affine, layout, "out_dbeta", *read)
        if out_dgamma is not None or out_dbeta is not None:
            checks.separate(out_dgamma, out_dbeta, "out_dgamma and out_dbeta")
            checks.separate(out, out_dgamma, "out and out_dgamma")
            checks.separate(out, out_dbeta, "out and out_dbeta")
        gamma, mean, inv_std = unchanged_by(out, layout, gamma, mean, inv_std)
        if x.size:
            backend.run(
                backend.kernels("groupnorm", layout.device).normalize_backward,
                fold(dy, layout), fold(x, layout), gamma, mean, inv_std, centered,
                target.folded, dgamma.reshape(-1), dbeta.reshape(-1),
            )  # fmt: skip
        else:
            backend.run(np.copyto, dgamma, 0)
            backend.run(np.copyto, dbeta, 0)
        return target.finish(), hand_over(dgamma, out_dgamma), hand_over(dbeta, out_dbeta)

    def _vector(self, array: Any, name: str) -> np.ndarray:
        """Return gamma or beta flat, in the type to compute in; empty for None."""
        layout = self.layout
        if array is None or len(self.affine) == 1:
            size = math.prod(self.affine)
            return checks.channel_vector(array, size, layout.dtype, name, layout.device)
        checks.floating(array, name)
        checks.on_device(array, layout.device, name)
        if array.shape != self.affine:
            raise ShapeError(f"{name} must have shape {self.affine}, got {array.shape}")
        return backend.contiguous(array, layout.dtype).reshape(-1)

    def _given(self, stats: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and inv_std of a forward, flat."""
        if not isinstance(stats, GroupStats):
            raise DTypeError(
                f"stats must be the GroupStats of the forward, got {type(stats).__name__}"
            )
        if integer(stats.count, "stats.count") != self.count:
            raise ShapeError(
                f"stats are of {stats.count} values per group, but x has {self.count}: pass the x "
                "and the stats of one forward"
            )
        found = []
        for name in ("mean", "inv_std"):
            array = getattr(stats, name)
            checks.floating(array, f"stats.{name}")
            checks.on_device(array, self.layout.device, f"stats.{name}")
            if array.shape != self.of_stats:
                raise ShapeError(f"stats.{name} must have shape {self.of_stats}, got {array.shape}")
            found.append(backend.contiguous(array, self.layout.statistics).reshape(-1))
        return found[0], found[1]


class _Trailing(_Plan):
    def __init__(self, x: Any, axis: int) -> None:
        self.layout = trailing_layout(x, axis)
        first = axis_index(axis, x)
        self.of_stats, self.affine = x.shape[:first], x.shape[first:]


class _Groups(_Plan):
    def __init__(self, x: Any, groups: int | None, axis: int) -> None:
        groups = None if groups is None else positive(groups, "groups")
        self.layout = group_layout(x, groups, axis)
        N, G, D, _ = self.layout.shape
        self.of_stats, self.affine = (N, G), (G * D,)


def _without_values(eps: float, mean: np.ndarray, var: np.ndarray, inv_std: np.ndarray) -> None:
    mean[...] = 0.0
    var[...] = 0.0
    inv_std[...] = eps**-0.5
