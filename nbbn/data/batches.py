"""Shuffled batches of images and labels, gathered and scaled in one pass."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import ArgumentError, CheckpointError, DTypeError, ShapeError
from .finite import check_finite

__all__ = ["Batches", "split", "standardization"]

# Images whose moments are measured at once.
_CHUNK = 4096


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
    mean, std : float or ndarray of shape (F,)
        Standardization after the scaling, see `standardization`. None by default.
    rows : ndarray of an integer type, optional
        Use these examples only, such as one half of `split`. All by default.
    num_classes : int, optional
        If given, labels must lie in [0, num_classes).
    reuse : bool
        Fill the same pair of buffers for every batch, the last short one as a view of them. Saves
        memory traffic, but a batch is overwritten when the next one is asked for. By default each
        batch has arrays of its own.
    device : {"cpu", "cuda"}
        Where batches are made: images and labels are copied there once.

    Attributes
    ----------
    order : ndarray of int64
        Permutation of the epoch under way, empty between epochs.
    position : int
        Number of images of this epoch that were handed out.
    fingerprint : str
        SHA-256 of all labels and of 64 images spread over the data, as they were at first: tells
        one data set from another, so that a run does not go on with other data unnoticed.

    Raises
    ------
    ShapeError
        If images and labels are empty or do not match.
    DTypeError
        If an argument has a type that cannot be taken.
    ArgumentError
        If an argument is out of range.
    DeviceError
        If the device cannot be used here.
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
        mean: float | np.ndarray = 0.0,
        std: float | np.ndarray = 1.0,
        rows: np.ndarray | None = None,
        num_classes: int | None = None,
        reuse: bool = False,
        device: str = "cpu",
    ) -> None:
        self._images = _check_images(images)
        self._labels = _check_labels(labels, len(images), num_classes)
        self.batch_size = _positive(batch_size, "batch_size")
        self.shuffle = bool(shuffle)
        self.drop_last = bool(drop_last)
        self.reuse = bool(reuse)
        self.rng = _generator(rng)
        self._rows = None if rows is None else _check_rows(rows, len(images))
        if self.drop_last and self.batch_size > self.count:
            raise ArgumentError(
                f"batch_size {batch_size} with drop_last leaves no batch of {self.count} images: "
                "use a smaller batch_size or drop_last=False"
            )
        self.fingerprint = self._fingerprint()
        self.device = device
        self._standardize(mean, std)
        if device != "cpu":
            from .. import backend  # for batches on a device only

            self._images = backend.to(self._images, device)
            self._labels = backend.to(self._labels, device)
        self._buffers: tuple[np.ndarray, np.ndarray] | None = None
        self._resumed = False
        self.order = np.empty(0, np.int64)
        self.position = 0

    @property
    def count(self) -> int:
        """Number of examples, N."""
        return len(self._images) if self._rows is None else len(self._rows)

    @property
    def features(self) -> int:
        """Number of values of an example, F."""
        return int(self._images.shape[1])

    def __len__(self) -> int:
        """Count the batches of a whole epoch."""
        full, rest = divmod(self.count, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def first(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the first examples, in the order of the data and in arrays of their own.

        Parameters
        ----------
        count : int
            How many at most.

        Returns
        -------
        (ndarray of float32, ndarray of int64)
        """
        places = self._places(np.arange(min(_positive(count, "count"), self.count)))
        x, y = self._allocate(places.size)
        self._gatherer()(self._images, places, self._labels, self._scale, self._offset, x, y)
        return x, y

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Start an epoch, or go on with the one that `load_state_dict` restored."""
        if not self._resumed:
            count = self.count
            self.order = self.rng.permutation(count) if self.shuffle else np.arange(count)
            self.position = 0
        self._resumed = False
        return self._epoch(self.order)

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the epoch under way and the standardization, for a resume.

        The generator is not part of it, since it is often shared: save `rng.bit_generator.state`.

        Returns
        -------
        dict
            `order`, a copy of the permutation (N,) or an empty array between epochs; `position`,
            the number of images handed out; `mean` and `std`.
        """
        place = {"order": self.order.copy(), "position": np.array(self.position)}
        return {**place, "mean": self.mean.copy(), "std": self.std.copy()}

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
        count = self.count
        try:
            order = np.array(state["order"], np.int64)
            position = operator.index(state["position"])
            mean, std = state["mean"], state["std"]
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
        self._standardize(mean, std)
        self.order, self.position = order, position

    def _fingerprint(self) -> str:
        some = np.linspace(0, self.count - 1, 64).astype(np.int64)
        labels = self._labels
        if self._rows is not None:
            some, labels = self._rows[some], labels[self._rows]
        digest = hashlib.sha256(f"{self._images.dtype.str} {self.features}\n".encode())
        digest.update(labels.data)
        digest.update(self._images[some].data)
        return digest.hexdigest()

    def _standardize(self, mean: Any, std: Any) -> None:
        features = self._images.shape[1]
        self.mean, self.std = _finite(mean, "mean", features), _finite(std, "std", features)
        if (self.std <= 0).any():
            raise ArgumentError(f"std must be positive, got {self.std.min()}")
        top = 255.0 if self._images.dtype == np.uint8 else 1.0
        scale, offset = 1.0 / (top * self.std), -self.mean / self.std
        if scale.ndim or offset.ndim:
            # One number per feature for both.
            scale, offset = (np.broadcast_to(a, features).copy() for a in (scale, offset))
            if self.device != "cpu":
                from .. import backend

                # A device computes in the type of the batches.
                scale, offset = (
                    backend.to(a.astype(np.float32), self.device) for a in (scale, offset)
                )
        self._scale, self._offset = (a if a.ndim else float(a) for a in (scale, offset))

    def _epoch(self, order: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        gather, places = self._gatherer(), self._places(order)
        while True:
            if self.order is not order:
                raise ArgumentError(
                    "this epoch has ended because a new one was started: use one Batches per loop"
                )
            index = places[self.position : self.position + self.batch_size]
            if index.size == 0 or (self.drop_last and index.size < self.batch_size):
                self.order, self.position = np.empty(0, np.int64), 0
                return
            x, y = self._arrays(index.size)
            gather(self._images, index, self._labels, self._scale, self._offset, x, y)
            self.position += index.size
            yield x, y

    def _gatherer(self) -> Any:
        from .. import backend  # its kernels load numba: not before they are needed

        if self.device == "cpu" and not self._images.flags.writeable:
            # An alias that can be written to, for which no kernel has to be compiled anew.
            self._images = backend.contiguous(self._images, self._images.dtype)
        kernels = backend.kernels("gather", self.device)
        features = not isinstance(self._scale, float)
        return kernels.gather_scale_features if features else kernels.gather_scale

    def _places(self, order: np.ndarray) -> Any:
        from .. import backend

        return backend.to(order if self._rows is None else self._rows[order], self.device)

    def _arrays(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        if not self.reuse:
            return self._allocate(rows)
        if self._buffers is None:
            self._buffers = self._allocate(min(self.batch_size, self.count))
        x, y = self._buffers
        return x[:rows], y[:rows]

    def _allocate(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        from .. import backend

        shape = rows, self._images.shape[1]
        x = backend.empty(shape, np.float32, self.device)
        return x, backend.empty(rows, np.int64, self.device)


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
    if _positive(count, "count") < 2:
        raise ArgumentError(f"a split needs at least 2 examples, got {count}")
    if not isinstance(fraction, int | float | np.floating) or not 0 < fraction < 1:
        raise ArgumentError(f"fraction must lie between 0 and 1, got {fraction!r}")
    held = min(max(round(count * fraction), 1), count - 1)
    order = _generator(rng).permutation(count)
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
    flat = _check_images(images)
    rows = None if rows is None else _check_rows(rows, len(flat))
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


def _check_images(images: Any) -> np.ndarray:
    """Return the images as C-contiguous rows (N, F)."""
    _unmasked(images, "images")
    if not isinstance(images, np.ndarray):
        raise DTypeError(
            f"images must be a numpy.ndarray, got {type(images).__name__}: convert them with "
            "numpy.asarray(images, numpy.float32)"
        )
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


def _unmasked(array: Any, name: str) -> None:
    if type(array) is not np.ndarray and isinstance(array, np.ma.MaskedArray):
        raise DTypeError(
            f"{name} must have no mask, which would be lost: leave masked examples out with "
            f"rows=numpy.flatnonzero(...), or pass {name}.filled(value)"
        )


def _check_labels(labels: Any, count: int, num_classes: int | None) -> np.ndarray:
    """Return a copy of the labels (N,) as int64."""
    _unmasked(labels, "labels")
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu":
        found = labels.dtype if isinstance(labels, np.ndarray) else type(labels).__name__
        raise DTypeError(
            f"labels must be an integer numpy.ndarray, got {found}: convert them with "
            "numpy.asarray(labels, numpy.int64)"
        )
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


def _check_rows(rows: Any, count: int) -> np.ndarray:
    """Return a copy of the rows (K,) as int64."""
    _unmasked(rows, "rows")
    if not isinstance(rows, np.ndarray) or rows.dtype.kind not in "iu":
        found = rows.dtype if isinstance(rows, np.ndarray) else type(rows).__name__
        raise DTypeError(f"rows must be an integer numpy.ndarray, got {found}")
    if rows.ndim != 1 or rows.size == 0:
        raise ShapeError(f"rows must have shape (K,) with K at least 1, got {rows.shape}")
    if rows.min() < 0 or rows.max() >= count:
        raise ArgumentError(f"rows must lie in [0, {count}), got {rows.min()} to {rows.max()}")
    return rows.astype(np.int64)


def _finite(value: Any, name: str, features: int) -> np.ndarray:
    """Return a copy of one number, or of one per feature, as float64."""
    try:
        array = np.array(value, np.float64)
    except (TypeError, ValueError):
        raise DTypeError(f"{name} must be a number, got {type(value).__name__}") from None
    except OverflowError:
        array = np.array(np.inf)
    if array.ndim and array.shape != (features,):
        raise ShapeError(f"{name} must be a number or have shape ({features},), got {array.shape}")
    if not np.isfinite(array).all():
        raise ArgumentError(f"{name} must be finite, got {value}")
    return array


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
