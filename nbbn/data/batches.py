"""Shuffled batches of images and labels, gathered and scaled in one pass."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import ArgumentError, CheckpointError, DTypeError, ShapeError

__all__ = ["Batches"]


class Batches:
    """Batches of images and labels, in a new order each epoch.

    Each `iter()` starts an epoch and yields pairs `(x, y)`: x (B, F) float32, the flattened images
    gathered and scaled in one pass, and y (B,) int64. Bytes are scaled to [0, 1] first; then
    `x = (value - mean) / std`. One epoch at a time: a new `iter()` ends the previous one.

    Parameters
    ----------
    images : ndarray of uint8, float32 or float64, shape (N, ...)
        Used as it is, without a copy, if it is C-contiguous. Floats are not scaled to [0, 1].
    labels : ndarray of an integer type, shape (N,)
    batch_size : int
        Rows per batch; the last batch of an epoch may be shorter.
    shuffle : bool
        Draw a new permutation per epoch; otherwise keep the order of `images`.
    rng : numpy.random.Generator or int, optional
        Source of the permutations, or its seed. Fresh entropy by default.
    drop_last : bool
        Leave out a last batch that would be shorter.
    mean, std : float
        Standardization after the scaling. None by default.
    num_classes : int, optional
        If given, labels must lie in [0, num_classes).
    reuse : bool
        Fill the same pair of buffers for every batch, the last short one as a view of them. Saves
        memory traffic, but a batch is overwritten when the next one is asked for. By default each
        batch has arrays of its own.

    Attributes
    ----------
    order : ndarray of int64
        Permutation of the epoch under way, empty between epochs.
    position : int
        Number of images of this epoch that were handed out.

    Raises
    ------
    ShapeError
        If images and labels are empty or do not match.
    DTypeError
        If an argument has a type that cannot be taken.
    ArgumentError
        If an argument is out of range.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        batch_size: int,
        *,
        shuffle: bool = True,
        rng: np.random.Generator | int | None = None,
        drop_last: bool = False,
        mean: float = 0.0,
        std: float = 1.0,
        num_classes: int | None = None,
        reuse: bool = False,
    ) -> None:
        self._images = _check_images(images)
        self._labels = _check_labels(labels, len(images), num_classes)
        self.batch_size = _positive(batch_size, "batch_size")
        self.shuffle = bool(shuffle)
        self.drop_last = bool(drop_last)
        self.reuse = bool(reuse)
        self.rng = _generator(rng)
        if self.drop_last and self.batch_size > len(images):
            raise ArgumentError(
                f"batch_size {batch_size} with drop_last leaves no batch of {len(images)} images: "
                "use a smaller batch_size or drop_last=False"
            )
        mean, std = _finite(mean, "mean"), _finite(std, "std")
        if std <= 0:
            raise ArgumentError(f"std must be positive, got {std}")
        top = 255.0 if self._images.dtype == np.uint8 else 1.0
        self._scale, self._offset = 1.0 / (top * std), -mean / std
        self._buffers: tuple[np.ndarray, np.ndarray] | None = None
        self._resumed = False
        self.order = np.empty(0, np.int64)
        self.position = 0

    @property
    def count(self) -> int:
        """Number of examples, N."""
        return len(self._images)

    def __len__(self) -> int:
        """Count the batches of a whole epoch."""
        full, rest = divmod(len(self._images), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Start an epoch, or go on with the one that `load_state_dict` restored."""
        if not self._resumed:
            count = len(self._images)
            self.order = self.rng.permutation(count) if self.shuffle else np.arange(count)
            self.position = 0
        self._resumed = False
        return self._epoch(self.order)

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the epoch under way, for a resume.

        The generator is not part of it, since it is often shared: save `rng.bit_generator.state`.

        Returns
        -------
        dict
            `order`, a copy of the permutation (N,) or an empty array between epochs, and
            `position`, the number of images handed out.
        """
        return {"order": self.order.copy(), "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next `iter()` go on where `state` was taken.

        Parameters
        ----------
        state : dict
            What `state_dict` returned for a data set of the same length.

        Raises
        ------
        CheckpointError
            If it is not the state of such batches.
        """
        count = len(self._images)
        try:
            order = np.array(state["order"], np.int64)
            position = operator.index(state["position"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"the state of Batches is not readable: {error!r}") from error
        if order.size == 0 and position == 0:
            self._resumed = False
        elif order.ndim != 1 or not np.array_equal(np.sort(order), np.arange(count)):
            raise CheckpointError(
                f"the state of Batches has an order of shape {order.shape} that is no permutation "
                f"of {count} images: it belongs to another data set"
            )
        elif not 0 <= position <= count:
            raise CheckpointError(
                f"the state of Batches has position {position}, expected 0 to {count}"
            )
        else:
            self._resumed = True
        self.order, self.position = order, position

    def _epoch(self, order: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        from ..kernels.gather_cpu import gather_scale  # loads numba: not before it is needed

        while True:
            if self.order is not order:
                raise ArgumentError(
                    "this epoch has ended because a new one was started: use one Batches per loop"
                )
            index = order[self.position : self.position + self.batch_size]
            if index.size == 0 or (self.drop_last and index.size < self.batch_size):
                self.order, self.position = np.empty(0, np.int64), 0
                return
            x, y = self._arrays(index.size)
            gather_scale(self._images, index, self._labels, self._scale, self._offset, x, y)
            self.position += index.size
            yield x, y

    def _arrays(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        features = self._images.shape[1]
        if not self.reuse:
            return np.empty((rows, features), np.float32), np.empty(rows, np.int64)
        if self._buffers is None:
            size = min(self.batch_size, len(self._images))
            self._buffers = np.empty((size, features), np.float32), np.empty(size, np.int64)
        x, y = self._buffers
        return x[:rows], y[:rows]


def _check_images(images: Any) -> np.ndarray:
    """Return the images as C-contiguous rows (N, F)."""
    if not isinstance(images, np.ndarray):
        raise DTypeError(f"images must be a numpy.ndarray, got {type(images).__name__}")
    if images.dtype not in (np.uint8, np.float32, np.float64):
        raise DTypeError(
            f"images must hold uint8, float32 or float64, got {images.dtype}: convert them first"
        )
    if images.ndim < 2 or images.size == 0:
        raise ShapeError(
            f"images must have shape (N, ...) with at least one image and one value each, "
            f"got {images.shape}"
        )
    return np.ascontiguousarray(images).reshape(len(images), -1)


def _check_labels(labels: Any, count: int, num_classes: int | None) -> np.ndarray:
    """Return a copy of the labels (N,) as int64."""
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu":
        found = labels.dtype if isinstance(labels, np.ndarray) else type(labels).__name__
        raise DTypeError(f"labels must be an integer numpy.ndarray, got {found}")
    if labels.shape != (count,):
        raise ShapeError(f"labels must have shape ({count},), one per image, got {labels.shape}")
    if num_classes is not None:
        classes = _positive(num_classes, "num_classes")
        bad = np.flatnonzero((labels < 0) | (labels >= classes))
        if bad.size:
            raise ArgumentError(
                f"labels must lie in [0, {classes}), got {labels[bad[0]]} at position {bad[0]}"
            )
    return labels.astype(np.int64)


def _positive(value: Any, name: str) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise DTypeError(f"{name} must be an integer, got {type(value).__name__}")
    if number < 1:
        raise ArgumentError(f"{name} must be at least 1, got {number}")
    return number


def _finite(value: Any, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise DTypeError(f"{name} must be a number, got {type(value).__name__}") from None
    if not math.isfinite(number):
        raise ArgumentError(f"{name} must be finite, got {number}")
    return number


def _generator(rng: Any) -> np.random.Generator:
    if isinstance(rng, np.random.Generator):
        return rng
    try:
        return np.random.default_rng(None if rng is None else operator.index(rng))
    except TypeError:
        raise DTypeError(
            f"rng must be a numpy.random.Generator or an integer seed, got {type(rng).__name__}"
        ) from None
    except ValueError:
        raise ArgumentError(f"rng must be a seed of at least 0, got {rng}") from None
