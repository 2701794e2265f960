"""Statistics of batches, and their exact merge."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from .. import backend
from .._validation import integer, iterate, real
from ..distributed import Ranks
from ..errors import ArgumentError, DTypeError, ShapeError
from . import checks

__all__ = ["BatchNormStats", "GroupStats", "WeightedStats", "merge_stats"]

_FLOAT64 = np.dtype(np.float64)


class BatchNormStats(NamedTuple):
    """Statistics of one batch, per channel.

    Attributes
    ----------
    mean, var, inv_std : ndarray of float64, shape (C,)
        Mean, biased variance and 1 / sqrt(var + eps). float64 whatever the input's type; on a
        device float32, unless the input is float64.
    count : int
        Values per channel.
    """

    mean: np.ndarray
    var: np.ndarray
    inv_std: np.ndarray
    count: int  # type: ignore[assignment]


class WeightedStats(NamedTuple):
    """Statistics of one weighted batch, per channel.

    Attributes
    ----------
    mean, var, inv_std : ndarray of float64, shape (C,)
        Weighted mean, biased variance and 1 / sqrt(var + eps).
    count : ndarray of float64, 0-dimensional
        Kish's effective sample size, sum(w)^2 / sum(w^2): for a mask, how many positions it keeps.
    weight : ndarray of float64, 0-dimensional
        sum(w).
    """

    mean: np.ndarray
    var: np.ndarray
    inv_std: np.ndarray
    count: np.ndarray  # type: ignore[assignment]
    weight: np.ndarray


class GroupStats(NamedTuple):
    """Statistics of each example's groups, from `layer_norm`, `rms_norm`, `group_norm` and others.

    Attributes
    ----------
    mean, var, inv_std : ndarray of float64
        Mean, biased variance and 1 / sqrt(var + eps), of the shape that the function says. Of
        `rms_norm`, 0 and the mean of the squares. float64 whatever the input's type; on a device
        float32, unless the input is float64.
    count : int
        Values per group.
    """

    mean: np.ndarray
    var: np.ndarray
    inv_std: np.ndarray
    count: int  # type: ignore[assignment]


def check_stats(stats: BatchNormStats | WeightedStats) -> str:
    """Check that mean and variance belong together; return the device that they are on."""
    checks.floating(stats.mean, "stats.mean")
    device = backend.device_of(stats.mean)
    checks.channel_array(stats.mean, stats.mean.size, "stats.mean", device)
    checks.channel_array(stats.var, stats.mean.size, "stats.var", device)
    if isinstance(stats, WeightedStats):
        backend.run(not_negative, stats.count, "stats.count")
    else:
        integer(stats.count, "stats.count", least=0, most=2**53)
    return device


def not_negative(value: Any, name: str) -> None:
    """Check a sum or a count of weights; it may be another when a recorded step runs again."""
    real(value, name, least=0)


def merge_stats(parts: Iterable[BatchNormStats], *, eps: float = 1e-5) -> BatchNormStats:
    """Statistics of several batches together, as if they had been one.

    With weights p = count / sum(count): ``mean = sum(p * mean)``,
    ``var = sum(p * (var + (mean_of_part - mean)^2))``.

    Parameters
    ----------
    parts : iterable of BatchNormStats
        Empty batches change nothing.
    eps : float, default 1e-5
        For `inv_std`.

    Returns
    -------
    BatchNormStats

    Raises
    ------
    ArgumentError
        No statistics at all, `eps` not positive.
    DTypeError, ShapeError
        Parts that are not BatchNormStats, or of different numbers of channels.

    References
    ----------
    Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances" (1979).
    """
    eps = checks.epsilon(eps, zero_allowed=False)
    parts = tuple(iterate(parts, "parts", "BatchNormStats"))
    if not parts:
        raise ArgumentError("merge_stats needs the statistics of at least one batch, got none")
    for part in parts:
        if not isinstance(part, BatchNormStats):
            raise DTypeError(f"parts must be BatchNormStats, got {type(part).__name__}")
        checks.host_only(part.mean, "merge_stats")
        check_stats(part)
        if (part.var < 0).any():
            raise ArgumentError(f"stats.var must not be negative, got {part.var.min()}")
        if part.mean.shape != parts[0].mean.shape:
            raise ShapeError(
                f"parts must have the same number of channels, got {parts[0].mean.size} "
                f"and {part.mean.size}"
            )
    channels, counts = parts[0].mean.size, tuple(part.count for part in parts)
    means, variances = (backend.empty((len(parts), channels), _FLOAT64) for _ in range(2))
    for row, part in enumerate(parts):
        backend.run(np.copyto, means[row], part.mean)
        backend.run(np.copyto, variances[row], part.var)
    mean, var, inv_std = (backend.empty(channels, _FLOAT64) for _ in range(3))
    backend.run(_merge, means, variances, counts, eps, mean, var, inv_std)
    return BatchNormStats(mean, var, inv_std, sum(counts))


def merge_ranks(ranks: Ranks, own: BatchNormStats, *, eps: float, single: bool) -> WeightedStats:
    """Statistics of the batches of all ranks together, the same bits as `merge_stats` of them.

    The number of values, `count` and `weight`, is an array: it may change when a recorded step runs
    again. Unless `single`, one value per channel in all is a ShapeError.
    """
    channels, device, dtype = own.mean.size, backend.device_of(own.mean), own.mean.dtype
    packed = backend.empty((2, channels + 1), _FLOAT64)
    every = backend.empty((ranks.size, *packed.shape), _FLOAT64)
    mean, var, inv_std = (backend.empty(channels, _FLOAT64) for _ in range(3))
    count = backend.empty((), _FLOAT64)
    backend.run(_pack, own.mean, own.var, own.count, packed)
    backend.run(ranks.gather, packed, every)
    backend.run(_merge_packed, every, eps, single, mean, var, inv_std, count)
    if device != "cpu":
        backend.not_recordable("ranks speak through the host")
        mean, var, inv_std = (backend.to(a.astype(dtype), device) for a in (mean, var, inv_std))
    return WeightedStats(mean, var, inv_std, count, count)


def _pack(mean: Any, var: Any, count: int, packed: np.ndarray) -> None:
    packed[0, 1:], packed[1, 1:], packed[:, 0] = backend.host(mean), backend.host(var), count


def _merge_packed(
    every: np.ndarray, eps: float, single: bool,
    mean: np.ndarray, var: np.ndarray, inv_std: np.ndarray, count: np.ndarray,
) -> None:  # fmt: skip
    counts = every[:, 0, 0]
    count[...] = counts.sum()
    if count == 1 and not single:
        raise ShapeError(
            "Expected more than 1 value per channel when training, got 1 in the batches of all "
            f"{len(every)} ranks together: use a larger batch"
        )
    _merge(every[:, 0, 1:], every[:, 1, 1:], counts, eps, mean, var, inv_std)


def _merge(
    means: np.ndarray, variances: np.ndarray, counts: Any, eps: float,
    mean: np.ndarray, var: np.ndarray, inv_std: np.ndarray,
) -> None:  # fmt: skip
    used = np.array(counts) > 0
    share = np.array(counts)[used, None] / max(sum(counts), 1)
    # About the first mean, so that a mean far from 0 costs no digits.
    center = means[used][:1].sum(axis=0)
    np.add(center, (share * (means[used] - center)).sum(axis=0), out=mean)
    np.sum(share * (variances[used] + (means[used] - mean) ** 2), axis=0, out=var)
    np.divide(1.0, np.sqrt(var + eps), out=inv_std)
