"""Finding a learning rate by a short trial over many of them."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .._validation import integer, positive, real
from ..data import Batches
from ..errors import ArgumentError
from ..nn.losses import cross_entropy
from ..nn.module import Module
from ..optim import Optimizer
from .loop import as_batches, check_batches, pairs
from .step import Loss, check_step, record_step

__all__ = ["RateTrial", "find_lr"]


class RateTrial(NamedTuple):
    """What `find_lr` saw; `nbbn.plots.rates` draws it.

    Attributes
    ----------
    rates : ndarray of float64, shape (K,)
        The learning rates that were tried, rising.
    losses : ndarray of float64, shape (K,)
        The loss of each step before its update.
    smoothed : ndarray of float64, shape (K,)
        Means of neighbouring losses.
    suggestion : float or None
        A tenth of the rate at which the smoothed loss is lowest; None where it never falls.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    suggestion: float | None


def find_lr(
    model: Module,
    batches: Batches | tuple[Any, Any],
    optimizer: Optimizer,
    *,
    loss: Loss = cross_entropy,
    lowest: float = 1e-6,
    highest: float = 10.0,
    steps: int = 100,
    batch_size: int = 128,
) -> RateTrial:
    """Train a copy for some steps whose learning rate rises evenly on a logarithmic scale.

    The trial ends early once the loss has risen above the first one by as much as it had fallen
    below. All groups of the optimizer have the same rate in it. Model, optimizer, batches and their
    random generators stay as they are.

    Parameters
    ----------
    model : Module
    batches : Batches or (x, y)
        Training data; any list of pairs (x, y) will do, which is gone through as often as needed.
    optimizer : Optimizer
        Of the model's parameters, in the state in which training would begin.
    loss : callable, default `nbbn.losses.cross_entropy`
    lowest, highest : float, default 1e-6 and 10
        The first rate and the last.
    steps : int, default 100
        At least 2.
    batch_size : int, default 128
        Rows per step of a pair (x, y).

    Returns
    -------
    RateTrial

    Raises
    ------
    ArgumentError
        `lowest` is not above 0 or `highest` not above it; no batches, or an iterator, which would
        be used up.
    DTypeError
        An argument of another type.

    References
    ----------
    Smith, "Cyclical Learning Rates for Training Neural Networks" (2017), arXiv:1506.01186, section
    3.3.

    Examples
    --------
    >>> trial = nbbn.train.find_lr(model, batches, optimizer)
    >>> optimizer.lr = optim.OneCycle(trial.suggestion, total)
    """
    check_step(model, loss, optimizer)
    lowest = real(lowest, "lowest", above=0)
    highest = real(highest, "highest", above=lowest)
    steps = integer(steps, "steps", least=2)
    if isinstance(batches, Iterator):
        raise ArgumentError("these batches would be used up: pass a list of them")
    size, device = positive(batch_size, "batch_size"), optimizer.parameters[0].device
    batches = as_batches(model, batches, size, device, np.random.default_rng(0))
    check_batches(batches)
    # One copy of all that is copied: what shares a generator goes on sharing it.
    memo: dict[int, Any] = {}
    twin, own = copy.deepcopy((model, optimizer), memo)
    data = batches._twin(memo) if isinstance(batches, Batches) else batches
    twin.train()
    factor = (highest / lowest) ** (1 / (steps - 1))
    own.lr = _Sweep(own.step_count, lowest, factor)
    step = record_step(twin, loss, own)
    losses: list[float] = []
    for x, y in itertools.islice(_again(data), steps):
        with np.errstate(all="ignore"):
            value = step(x, y)
        if not math.isfinite(value):
            break
        losses.append(value)
        if value > losses[0] + max(losses[0] - min(losses), abs(losses[0])):
            break
    if not losses:
        raise ArgumentError(f"the first loss is {value}: look at the data and the loss")
    rates = lowest * factor ** np.arange(len(losses))
    smoothed = _smoothed(np.array(losses), max(steps // 20, 1))
    lowest_loss = int(smoothed.argmin())
    suggestion = float(rates[lowest_loss]) / 10 if lowest_loss else None
    return RateTrial(rates, np.array(losses), smoothed, suggestion)


def _again(batches: Any) -> Iterator[tuple[Any, Any]]:
    """Yield batches without end."""
    while True:
        empty = True
        for pair in pairs(batches):
            empty = False
            yield pair
        if empty:
            raise ArgumentError("there are no batches: pass Batches, or a list")


def _smoothed(losses: np.ndarray, reach: int) -> np.ndarray:
    """Return means over neighbours on both sides, as many as there are."""
    window = np.ones(2 * reach + 1)
    count = np.convolve(np.ones_like(losses), window)[reach:-reach]
    return np.asarray(np.convolve(losses, window)[reach:-reach] / count)


class _Sweep:
    """Rates that rise by the same factor from step to step."""

    def __init__(self, start: int, lowest: float, factor: float) -> None:
        self.start, self.lowest, self.factor = start, lowest, factor

    def __call__(self, step: int) -> float:
        return self.lowest * self.factor ** (step - self.start)
