"""Shuffled batches of images, gathered and scaled in one pass, and of their targets."""

from __future__ import annotations

import copy
import hashlib
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import backend
from .._validation import generator, instance, mapping, positive, switch
from ..distributed import Ranks, check_ranks
from ..errors import ArgumentError, CheckpointError
from ._checks import check_images, check_rows, check_targets, finite

__all__ = ["Batches"]


class Batches:
    """Batches of images and their targets, in a new order each epoch.

    Each `iter()` starts an epoch and yields pairs `(x, y)`: x (B, F) float32, the flattened images
    gathered and scaled in one pass, and y, labels (B,) int64 or numbers (B, ...). With
    ``flatten=False``, for models of images or sequences, x is (B, ...). Bytes are scaled
    to [0, 1] first; then `x = (value - mean) / std`. One epoch at a time: a new `iter()` ends the
    previous one.

    Parameters
    ----------
    images : ndarray of uint8, float32 or float64, shape (N, ...); or sparse rows, (N, F)
        Used as it is, without a copy, if it is C-contiguous. Floats are not scaled to [0, 1]. A
        DataFrame of numbers and nested lists become arrays, integers other than bytes float64. Of a
        CSR matrix of `scipy.sparse`, x is sparse too: a model that begins with Dense takes it.
    labels : ndarray of an integer type, shape (N,), or of float, shape (N, ...)
        Classes, which become int64; or numbers, which stay as they are, float32 or float64:
        (N, 1) for a model of one output, (N, K) for K of them, several ones in a row for examples
        of several classes. A Series, a DataFrame of numbers and lists become arrays.
    batch_size : int
        Rows per batch; the last batch of an epoch may be shorter.
    shuffle : bool
        Draw a new permutation per epoch; otherwise keep the order of `images`.
    rng : numpy.random.Generator or int, optional
        Source of the permutations, or its seed. Fresh entropy by default.
    drop_last : bool
        Leave out a last batch that would be shorter.
    mean, std : float or ndarray of shape (F,)
        Standardization after the scaling, see `standardization`. None by default. Sparse rows have
        no mean: subtracting it would fill every zero.
    rows : ndarray of an integer type, optional
        Use these examples only, such as one half of `split`. All by default.
    num_classes : int, optional
        If given, labels must be integers in [0, num_classes).
    reuse : bool
        Fill the same pair of buffers for every batch, the last short one as a view of them. Saves
        memory traffic, but a batch is overwritten when the next one is asked for. By default each
        batch has arrays of its own.
    flatten : bool, default True
        Whether an example becomes a row of F numbers. Otherwise it keeps its shape, that of
        ``images[0]``.
    device : {"cpu", "cuda"}
        Where batches are made: images and labels are copied there once.
    ranks : nbbn.distributed.Ranks, optional
        Hand out this rank's part of each batch, which may have no rows. `batch_size` is that of all
        ranks together, and for every number of them the order of the examples is the same: each
        rank must have the same data and an `rng` in the same state.

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
        flatten: bool = True,
        device: str = "cpu",
        ranks: Ranks | None = None,
    ) -> None:
        check_ranks(ranks)
        self._ranks = ranks
        self._images = check_images(images)
        self._labels = check_targets(labels, len(self._images), num_classes)
        self.batch_size = positive(batch_size, "batch_size")
        self.shuffle = switch(shuffle, "shuffle")
        self.drop_last = switch(drop_last, "drop_last")
        self.reuse = switch(reuse, "reuse")
        self.rng = generator(rng)
        self._rows = None if rows is None else check_rows(rows, len(self._images))
        if self.drop_last and self.batch_size > self.count:
            raise ArgumentError(
                f"batch_size {batch_size} with drop_last leaves no batch of {self.count} images: "
                "use a smaller batch_size or drop_last=False"
            )
        instance(device, str, "device")
        self.device = device
        self._sparse = isinstance(self._images, backend.CSR)
        if self._sparse:
            if device != "cpu":
                raise ArgumentError(f"sparse rows stay on the cpu, got device {device!r}")
            # Room for the fullest rows, so that all batches of a size have arrays of one shape.
            own = self._images if self._rows is None else self._images.take(self._rows)
            self._room = own.fullest()
        flat = switch(flatten, "flatten")
        self._example = (self.features,) if flat else np.shape(images)[1:]
        self.fingerprint = self._fingerprint()
        self._standardize(mean, std)
        if device != "cpu":
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
    def ranks(self) -> Ranks | None:
        """The ranks among which each batch is divided, or None."""
        return self._ranks

    @property
    def features(self) -> int:
        """Number of values of an example, F."""
        return int(self._images.shape[1])

    def __len__(self) -> int:
        """Count the batches of a whole epoch."""
        full, rest = divmod(self.count, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def first(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the first `count` examples at most, in order and in arrays of their own."""
        places = self._places(np.arange(min(positive(count, "count"), self.count)))
        x, y = self._allocate(places.size)
        self._gatherer()(places, x, y)
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

        `order` is a copy of the permutation (N,), empty between epochs, and `position` the number
        of images handed out. The generator is not part of it, since it is often shared: save
        `rng.bit_generator.state`.
        """
        place = {"order": self.order.copy(), "position": np.array(self.position)}
        return {**place, "mean": self.mean.copy(), "std": self.std.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next `iter()` go on where `state_dict` returned `state`.

        A CheckpointError if that is not of batches of a data set of the same length.
        """
        count = self.count
        mapping(state, "state", "what state_dict returned")
        try:
            order = np.array(state["order"])
            if order.dtype.kind not in "iu":
                raise TypeError(f"the order holds {order.dtype}")
            order = order.astype(np.int64)
            position = operator.index(state["position"])
            mean, std = state["mean"], state["std"]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"the state of Batches is not readable: {error!r}") from error
        if order.size == 0 and position == 0:
            self._resumed = False
        elif order.ndim != 1 or not np.array_equal(np.sort(order), np.arange(count)):
            raise CheckpointError(
                f"the state of Batches has an order of shape {order.shape} that is not a "
                f"permutation of {count} images: it belongs to another data set"
            )
        elif not 0 <= position <= count:
            raise CheckpointError(
                f"the state of Batches has position {position}, expected 0 to {count}"
            )
        else:
            self._resumed = True
        self._standardize(mean, std)
        self.order, self.position = order, position

    def _twin(self, memo: dict[int, Any]) -> Batches:
        """Return batches of the same data with a copy of the generator, between epochs."""
        twin = copy.copy(self)
        twin.rng = copy.deepcopy(self.rng, memo)
        twin._buffers, twin._resumed = None, False
        twin.order, twin.position = np.empty(0, np.int64), 0
        return twin

    def _fingerprint(self) -> str:
        some = np.linspace(0, self.count - 1, 64).astype(np.int64)
        labels = self._labels
        if self._rows is not None:
            some, labels = self._rows[some], labels[self._rows]
        digest = hashlib.sha256(f"{self._images.dtype.str} {self.features}\n".encode())
        digest.update(labels.data)
        if self._sparse:
            for part in self._images.take(some).parts():
                digest.update(part.data)
        else:
            digest.update(self._images[some].data)
        return digest.hexdigest()

    def _standardize(self, mean: Any, std: Any) -> None:
        features = self._images.shape[1]
        self.mean, self.std = finite(mean, "mean", features), finite(std, "std", features)
        if (self.std <= 0).any():
            raise ArgumentError(f"std must be positive, got {self.std.min()}")
        if self._sparse and self.mean.any():
            raise ArgumentError("a mean would fill every zero of sparse rows: pass std alone")
        top = 255.0 if self._images.dtype == np.uint8 else 1.0
        with np.errstate(over="ignore"):
            scale, offset = 1.0 / (top * self.std), -self.mean / self.std
        if not (np.isfinite(scale).all() and np.isfinite(offset).all()):
            raise ArgumentError(f"std is too small to divide by, got {self.std.min()}")
        if scale.ndim or offset.ndim:
            # One number per feature for both.
            scale, offset = (np.broadcast_to(a, features).copy() for a in (scale, offset))
            if self.device != "cpu":
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
            own = index if self._ranks is None else index[self._ranks.part(index.size)]
            x, y = self._arrays(own.size)
            gather(own, x, y)
            self.position += index.size
            yield x, y

    def _gatherer(self) -> Any:
        if self._sparse:
            return self._gather_sparse
        if self.device == "cpu" and not self._images.flags.writeable:
            # An alias that can be written to, for which no kernel has to be compiled again.
            self._images = backend.contiguous(self._images, self._images.dtype)
        kernels = backend.kernels("gather", self.device)
        features = not isinstance(self._scale, float)
        launcher = kernels.gather_scale_features if features else kernels.gather_scale

        def gather(index: Any, x: Any, y: Any) -> None:
            rows = x.reshape(len(x), self.features)
            launcher(self._images, index, self._scale, self._offset, rows)
            kernels.gather_targets(self._labels, index, y)

        return gather

    def _gather_sparse(self, index: Any, x: Any, y: Any) -> None:
        taken = self._images.take(index)
        count = taken.values.size
        scale: Any = self._scale
        # In float64, rounded once.
        scale = np.float64(scale) if isinstance(scale, float) else scale[taken.indices]
        x.values[:count] = taken.values * scale
        x.indices[:count], x.indptr[:] = taken.indices, taken.indptr
        y[...] = self._labels[index]

    def _places(self, order: np.ndarray) -> Any:
        return backend.to(order if self._rows is None else self._rows[order], self.device)

    def _arrays(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        if not self.reuse or self._sparse:
            return self._allocate(rows)
        if self._buffers is None:
            self._buffers = self._allocate(min(self.batch_size, self.count))
        x, y = self._buffers
        return x[:rows], y[:rows]

    def _allocate(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        x: Any
        if self._sparse:
            x = self._images.room(rows, int(self._room[rows - 1]), np.float32)
        else:
            x = backend.empty((rows, *self._example), np.float32, self.device)
        return x, backend.empty((rows, *self._labels.shape[1:]), self._labels.dtype, self.device)
