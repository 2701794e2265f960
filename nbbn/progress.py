"""What a person sees while a model trains: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, TextIO

import numpy as np

from .data import Batches
from .train import Epoch

__all__ = ["Bar", "Lines"]


class Lines:
    """One line per epoch.

    Parameters
    ----------
    stream : file, default standard output
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout

    def batches(self, epoch: int, batches: Batches) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the batches of an epoch."""
        yield from batches

    def loss(self, value: float) -> None:
        """Take the running mean loss."""

    def epoch(self, result: Epoch) -> None:
        """Print the result of an epoch."""
        text = f"epoch {result.epoch}  loss {result.loss:.4f}"
        if result.test is not None:
            text += f"  test loss {result.test.loss:.4f}  test accuracy {result.test.accuracy:.2%}"
        text += f"  {result.images_per_second:,.0f} images/s"
        print(text, file=self._stream, flush=True)


class Bar(Lines):
    """A progress bar for the running epoch above the lines of the finished ones.

    Parameters
    ----------
    stream : file, default standard output
    """

    _bar: Any = None

    def batches(self, epoch: int, batches: Batches) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the batches of an epoch and move the bar."""
        from tqdm import tqdm

        total = len(batches) * batches.batch_size
        with tqdm(
            total=total, desc=f"epoch {epoch}", unit=" images", unit_scale=True, leave=False
        ) as bar:
            self._bar = bar
            for x, y in batches:
                yield x, y
                bar.update(len(y))
        self._bar = None

    def loss(self, value: float) -> None:
        """Show the running mean loss beside the bar."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {value:.4f}", refresh=False)
