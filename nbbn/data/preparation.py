"""Before training: a validation split, and the mean and standard deviation of the images."""

from __future__ import annotations

import numpy as np

from .._validation import generator, integer, possible, real, switch
from ._checks import check_finite, check_images, check_rows

__all__ = ["split", "standardization"]

# Images that are measured in one go.
_CHUNK = 4096


def split(
    count: int, fraction: float, rng: np.random.Generator | int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Split examples at random into those to train on and those to validate with.

    Parameters
    ----------
    count : int
        Number of examples.
    fraction : float
        Fraction for validation, above 0 and below 1; each part gets at least one example.
    rng : numpy.random.Generator or int, optional
        Source of the split, or its seed.

    Returns
    -------
    (ndarray of int64, ndarray of int64)
        The rows of both parts, each sorted: the `rows` of `Batches`.

    Raises
    ------
    ArgumentError
        Fewer than two examples, or a fraction outside (0, 1).
    """
    count = integer(count, "count", least=2)
    possible((count,), np.dtype(np.int64), "a split")
    fraction = real(fraction, "fraction", above=0, below=1)
    held = min(max(round(count * fraction), 1), count - 1)
    order = generator(rng).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])


def standardization(
    images: np.ndarray, rows: np.ndarray | None = None, *, per_feature: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Measure the mean and standard deviation that `Batches` standardizes with.

    Reads a few thousand images at a time, so that they may lie in a file larger than memory, and
    merges their moments in float64 (Chan, Golub and LeVeque, 1979).

    Parameters
    ----------
    images : ndarray of uint8, float32 or float64, shape (N, ...)
        Bytes are scaled to [0, 1] first.
    rows : ndarray of an integer type, optional
        Measure these images only, those that are trained on. All by default.
    per_feature : bool
        Measure every feature by itself instead of all together.

    Returns
    -------
    (ndarray of float64, ndarray of float64)
        Mean and standard deviation, each of shape () or (F,). A standard deviation of 0 is
        returned as 1.

    Raises
    ------
    DataError
        Images with NaN or Inf, by number.
    """
    flat, per_feature = check_images(images), switch(per_feature, "per_feature")
    rows = None if rows is None else check_rows(rows, len(flat))
    count, mean, moment = 0, np.zeros(()), np.zeros(())
    total = len(flat) if rows is None else len(rows)
    for start in range(0, total, _CHUNK):
        stop = min(start + _CHUNK, total)
        part = (flat[start:stop] if rows is None else flat[rows[start:stop]]).astype(np.float64)
        part = part if per_feature else part.reshape(-1, 1)
        with np.errstate(invalid="ignore", over="ignore"):
            more, more_mean = len(part), part.mean(axis=0)
        if not np.isfinite(more_mean).all():
            check_finite(flat, rows)
        delta = more_mean - mean
        moment = moment + np.square(part - more_mean).sum(axis=0)
        moment = moment + delta**2 * (count * more / (count + more))
        mean = mean + delta * (more / (count + more))
        count += more
    std = np.sqrt(moment / count)
    std = np.where(std > 0, std, 1.0)
    if flat.dtype == np.uint8:
        mean, std = mean / 255, np.where(moment > 0, std / 255, 1.0)
    return (mean, std) if per_feature else (mean.reshape(()), std.reshape(()))
