"""One rank's share of a training that many do together: of the loss, of the statistics, of a stop.

Rank r has n_r of the N examples of a step. The gradient of the mean loss over all of them is the
sum over the ranks of n_r / N times that of each one's own mean loss. So each rank begins its
backward pass with n_r / N instead of 1, and the gradients add up. An empty rank begins with 0.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from .. import backend
from ..autograd.tensor import Tape, Tensor
from ..distributed import Ranks, digest
from ..nn.batchnorm import BatchNorm
from ..nn.module import Module
from ..optim import Optimizer
from .callbacks import Run

__all__ = ["Share"]


class Share:
    """What the steps of one rank have in common with those of the others.

    `right`, one int64, counts which of this rank's examples of the epoch were classified right;
    `check` is called with the loss over all ranks before anything changes.
    """

    def __init__(
        self,
        ranks: Ranks,
        right: np.ndarray | None = None,
        check: Callable[[np.ndarray], None] | None = None,
    ) -> None:
        self.ranks = ranks
        self._right, self._check = right, check
        # Examples, their summed loss, those that were right, whether to stop: this rank's, all's.
        self._own, self._all = np.zeros(4), np.zeros(4)

    @property
    def arrays(self) -> list[Any]:
        """Return what launches of a step read and write beside its own."""
        right = [] if self._right is None else [self._right]
        return [self._own, self._all, *right]

    def loss(self, loss: Tensor, y: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """Return the loss over all ranks, and what this one's backward pass begins with."""
        rows = len(y) if y.ndim else 1
        seed = backend.empty(loss.shape, loss.dtype, loss.device)
        total = backend.empty((), np.float64)
        backend.run(_weigh, loss.data, rows, self._right, self._own)
        backend.run(self.ranks.total, self._own, self._all)
        backend.run(_spread, self._all, rows, total, seed)
        if self._check is not None:
            backend.run(self._check, total)
        return Tensor(total), seed

    def backward(self, tape: Tape, loss: Tensor, seed: np.ndarray, optimizer: Optimizer) -> None:
        """Run the backward pass, and add up the gradients of all ranks.

        They are one flat array for each arena; of a large one, the part of the last layers is
        summed while the backward pass goes on with those before.
        """
        buckets = _buckets(optimizer, self.ranks.bucket)
        if len(buckets) == len(optimizer.arenas):
            tape.backward(loss, seed)
        else:
            missing = {id(p): bucket for bucket in buckets for p in bucket.missing}

            def ready(x: Tensor) -> None:
                bucket = missing.get(id(x))
                if bucket is not None:
                    bucket.missing.remove(x)
                    if not bucket.missing:
                        backend.run(self.ranks.begin_sum, bucket.gradients)

            tape.backward(loss, seed, ready=ready)
            buckets = [bucket for bucket in buckets if bucket.missing]
        # Those that wait for a parameter which had no part in the loss.
        for bucket in buckets:
            backend.run(self.ranks.begin_sum, bucket.gradients)
        backend.run(self.ranks.end_sums)

    # -------------------------------------------------------------- what `fit` asks

    @property
    def count(self) -> int:
        """Examples of the last step, on all ranks."""
        return int(self._all[0])

    @property
    def right(self) -> int:
        """How many examples of the epoch were right, on all ranks."""
        return int(self._all[2])

    def ask(self, run: Run) -> None:
        """Tell the others, with the next step, whether this rank is to stop."""
        self._own[3] = run.stopped is not None

    def stops(self, run: Run) -> bool:
        """Whether a rank had asked to stop before the last step."""
        return bool(self._all[3]) and _stop(run)

    def stopped(self, run: Run) -> bool:
        """Whether any rank has been asked to stop by now; all ranks call this."""
        return self.ranks.any(run.stopped is not None) and _stop(run)

    def begin(self, model: Module, values: dict[str, Any]) -> None:
        """Refuse to train with models or settings that are not the same on all ranks."""
        self.ranks.agree(values | {"initial weights": _digest(model)})

    @contextlib.contextmanager
    def alone(self, model: Module, x: Any, y: Any) -> Iterator[tuple[Any, Any]]:
        """Give the batch of all ranks, while `model` normalizes without asking them."""
        layers = [layer for layer in _norms(model) if layer.sync]
        if backend.is_array(x):
            x, y = (self._whole(array) for array in (x, y))
        for layer in layers:
            layer.sync = False
        try:
            yield x, y
        finally:
            for layer in layers:
                layer.sync = True

    def _whole(self, part: Any) -> Any:
        parts = self.ranks.exchange(backend.host(part))
        return backend.to(np.concatenate(parts), backend.device_of(part))

    def end_epoch(self, model: Module) -> None:
        """Average running statistics that are each rank's own; check that all is the same."""
        for layer in _norms(model):
            if not layer.sync and not layer.frozen:
                for array in (layer.running_mean, layer.running_var):
                    if array is not None:
                        self.ranks.sum(array)
                        array /= self.ranks.size
        self.ranks.agree({"weights after an epoch": _digest(model)})


def stopped(run: Run, share: Share | None) -> bool:
    """Whether training is to stop, on all ranks alike."""
    return run.stopped is not None if share is None else share.stopped(run)


def _stop(run: Run) -> bool:
    if run.stopped is None:
        run.stop("another rank was to stop")
    return True


class _Bucket(NamedTuple):
    """A part of a flat array of gradients, and the parameters whose are not complete yet."""

    gradients: np.ndarray
    missing: list[Tensor]


def _buckets(optimizer: Optimizer, least: int) -> list[_Bucket]:
    """Cut the gradients from behind, where the backward pass begins, in parts of `least` bytes."""
    found = []
    for arena in optimizer.arenas:
        stop = arena.grad.size
        members: list[Tensor] = []
        for p, end in zip(reversed(arena.parameters), reversed(arena.ends), strict=True):
            start = end - p.size
            members.append(p)
            if (stop - start) * arena.grad.dtype.itemsize >= least or not start:
                found.append(_Bucket(arena.grad[start:stop], members))
                stop, members = start, []
    return found


def _norms(model: Module) -> list[BatchNorm]:
    return [layer for layer in model.modules() if isinstance(layer, BatchNorm)]


def _digest(model: Module) -> str:
    # Not the counters: those of batches that a guard has kept out are each rank's own.
    return digest(*(array for array in model.state_dict().values() if array.dtype.kind == "f"))


def _weigh(loss: Any, rows: int, right: Any, own: np.ndarray) -> None:
    # The mean over no examples is a NaN.
    own[:2] = rows, rows * float(backend.host(loss).reshape(())) if rows else 0.0
    own[2] = 0 if right is None else backend.host(right)[0]


def _spread(every: np.ndarray, rows: int, total: np.ndarray, seed: Any) -> None:
    total[...] = every[1] / every[0]
    backend.fill(seed, rows / every[0])
