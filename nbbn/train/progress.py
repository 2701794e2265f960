"""What a person sees while a model trains: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TextIO

from .. import backend
from .callbacks import Callback, Run
from .loop import Epoch

__all__ = ["Bar", "Lines"]


class Lines(Callback):
    """One line per epoch; and one on standard error when kernels have to be compiled first.

    Parameters
    ----------
    stream : file, default standard output
    """

    _forget: Callable[[], None] | None = None

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream

    def start(self, run: Run) -> None:
        """Say so if kernels compile, which takes longer than many a step."""
        self._forget = backend.on_compilation(_say_that_kernels_compile)

    def epoch(self, run: Run, result: Epoch) -> None:
        """Print the result of an epoch."""
        text = f"epoch {result.epoch}  loss {result.loss:.4f}"
        for name in ("validation", "test"):
            if (found := getattr(result, name)) is not None:
                text += f"  {name} loss {found.loss:.4f}  {name} accuracy {found.accuracy:.2%}"
        text += f"  {result.images_per_second:,.0f} images/s"
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Say nothing of what others compile."""
        if self._forget is not None:
            self._forget()


class Bar(Lines):
    """A progress bar for the running epoch above the lines of the finished ones.

    Otherwise as `Lines`.
    """

    _bar: Any = None

    def step(self, run: Run) -> None:
        """Move the bar and show the running mean loss beside it."""
        if self._bar is None:
            from tqdm import tqdm

            total = getattr(run.batches, "count", None)
            self._bar = tqdm(
                total=total, desc=f"epoch {run.epoch}", unit=" images", unit_scale=True, leave=False
            )
        self._bar.set_postfix_str(f"loss {run.total / run.count:.4f}", refresh=False)
        self._bar.update(run.count - self._bar.n)

    def epoch(self, run: Run, result: Epoch) -> None:
        """Take the bar away and print the result of the epoch."""
        self._take_away()
        super().epoch(run, result)

    def close(self) -> None:
        """Take the bar away, and say nothing of what others compile."""
        self._take_away()
        super().close()

    def _take_away(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _say_that_kernels_compile() -> None:
    print("compiling kernels for the first time; the next run finds them in the cache",
          file=sys.stderr, flush=True)  # fmt: skip
