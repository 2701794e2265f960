"""Numbers of a training, written down as it goes: JSON lines, CSV, TensorBoard."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from .._validation import as_path, positive, switch, write_atomically
from ..autograd.tensor import Tensor
from ..data import Batches
from ..errors import ArgumentError, DataError
from ..nn.batchnorm import BatchNorm
from ..nn.module import Module, evaluating
from ..nn.observe import observed
from .callbacks import Callback, Run

__all__ = ["LogFile", "TensorBoard", "read_log"]

_log = logging.getLogger(__name__)
_STEP = ("kind", "step", "epoch", "loss", "accuracy", "lr", "images_per_second", "gradient_norm")
_EPOCH = ("validation_loss", "validation_accuracy", "test_loss", "test_accuracy", "watched",
          "best_epoch")  # fmt: skip
# Columns that hold words.
_WORDS = ("kind", "watched")
# Where half a standard deviation of a Gaussian, and a little more, lies to both sides.
_PERCENTILES = (15, 50, 85)
_PROBE = 1000


class _Rows(Callback):
    """Makes a row of numbers every few steps and after every epoch."""

    counts_right = True

    def __init__(self, every: int, percentiles: bool) -> None:
        self.every = positive(every, "every")
        self.percentiles = switch(percentiles, "percentiles")
        self._probe: np.ndarray | None = None
        # The file or the writer, while it is open.
        self._output: Any = None

    def start(self, run: Run) -> None:
        """Take the examples whose percentiles are watched."""
        if self.percentiles:
            if not isinstance(run.batches, Batches):
                raise ArgumentError("percentiles need Batches to take examples from")
            self._probe = run.batches.first(_PROBE)[0]

    def step(self, run: Run) -> None:
        """Write a row if it is time."""
        if run.step % self.every:
            return
        # What overflows is for `fit` to tell of.
        with np.errstate(all="ignore"):
            self._write(self._numbers(run))

    def _numbers(self, run: Run) -> dict[str, Any]:
        row = {
            "kind": "step",
            "step": run.step,
            "epoch": run.epoch,
            "loss": run.loss,
            "accuracy": None if run.right is None else run.right / run.count,
            "lr": run.optimizer.param_groups[0].schedule(run.step - 1),
            "images_per_second": run.count / run.seconds,
            "gradient_norm": run.optimizer.gradient_norm(),
        }
        if self._probe is not None:
            row |= _input_percentiles(run.model, self._probe)
        return {name: value for name, value in row.items() if value is not None}

    def epoch(self, run: Run, result: Any) -> None:
        """Write the row of the epoch."""
        row: dict[str, Any] = {
            "kind": "epoch",
            "step": run.step,
            "epoch": result.epoch,
            "loss": result.loss,
            "accuracy": result.accuracy,
            "images_per_second": result.images_per_second,
        }
        for name in ("validation", "test"):
            if (found := getattr(result, name)) is not None:
                row |= {f"{name}_loss": found.loss, f"{name}_accuracy": found.accuracy}
        row |= {"watched": run.watched, "best_epoch": None if run.best is None else run.best.epoch}
        self._write({name: value for name, value in row.items() if value is not None})

    def close(self) -> None:
        """Write what is left."""
        if self._output is not None:
            self._output.close()
            self._output = None

    def _write(self, row: dict[str, Any]) -> None:
        raise NotImplementedError


class LogFile(_Rows):
    """Write a row every few steps and one per epoch into a file.

    Rows have a kind, "step" or "epoch". Those of steps hold the loss of the step, the accuracy of
    the epoch so far, each before the update, the learning rate (of the first group), images per
    second in this epoch and the norm of the gradient; those of epochs what `nbbn.train.Epoch`
    holds, the name of what is watched, such as "validation_loss", and the best epoch by it so far.
    A resumed run drops the rows of steps that were lost, and goes on.

    Parameters
    ----------
    path : path
        ``.jsonl`` for JSON lines or ``.csv``. A new run replaces the file.
    every : int, default 50
        Steps between two rows.
    percentiles : bool, default False
        Whether step rows also hold the 15th, 50th and 85th percentiles of the input of every
        BatchNorm, over all channels of the first 1,000 training examples, in evaluation mode.

    Raises
    ------
    ArgumentError
        Another ending, or a file that cannot be written.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, every: int = 50, percentiles: bool = False
    ) -> None:
        super().__init__(every, percentiles)
        self.path = as_path(path, "path")
        if self.path.suffix not in (".jsonl", ".csv"):
            raise ArgumentError(f"a log file must end in .jsonl or .csv, got {self.path}")
        self._failing = False
        self._columns: list[str] = []

    def start(self, run: Run) -> None:
        """Open the file, with the rows before a resume."""
        super().start(run)
        self._columns = [*_STEP, *_EPOCH]
        if self._probe is not None:
            self._columns += _input_percentiles(run.model, self._probe)
        kept: list[dict[str, Any]] = []
        if run.step and self.path.is_file():
            kept = [row for row in self._rows_before() if _belongs(row, run)]
            # Columns of the run before that this one does not have.
            self._columns = list(
                dict.fromkeys([*self._columns, *(key for row in kept for key in row)])
            )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            head = ",".join(self._columns) + "\n" if self.path.suffix == ".csv" else ""
            content = head + "".join(self._line(row) for row in kept)
            write_atomically(self.path, content.encode())
            self._output = open(self.path, "ab", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise ArgumentError(f"cannot write to {self.path}: {error.strerror}") from None

    def _rows_before(self) -> list[dict[str, Any]]:
        try:
            return read_log(self.path)
        except DataError as error:
            # A damaged log, say after a power cut, must not keep a run from going on.
            aside = self.path.with_name(f"{self.path.name}.damaged")
            os.replace(self.path, aside)
            _log.warning("%s; it is now %s, and a new log begins", error, aside)
            return []

    def _line(self, row: dict[str, Any]) -> str:
        if self.path.suffix == ".jsonl":
            return json.dumps(row) + "\n"
        line = io.StringIO()
        csv.DictWriter(line, self._columns, lineterminator="\n").writerow(row)
        return line.getvalue()

    def _write(self, row: dict[str, Any]) -> None:
        line = self._line(row).encode()
        end = self._output.seek(0, os.SEEK_END)
        try:
            written, reason = self._output.write(line), "no room for a row"
        except OSError as error:
            written, reason = 0, error.strerror or str(error)
        if written < len(line):
            self._output.truncate(end)
            if not self._failing:
                _log.warning("%s lacks rows from here on: %s; training goes on", self.path, reason)
        self._failing = written < len(line)


class TensorBoard(_Rows):
    """Write the numbers of `LogFile` for TensorBoard; needs the extra ``nbbn[tensorboard]``.

    Otherwise as `LogFile`. From `fit`, an ArgumentError for a folder that cannot be written to.

    Parameters
    ----------
    folder : path
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, every: int = 50, percentiles: bool = False
    ) -> None:
        super().__init__(every, percentiles)
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise ArgumentError(
                "TensorBoard needs the package tensorboardX: pip install 'nbbn[tensorboard]'"
            ) from None
        self.folder = as_path(folder, "folder")
        self._new_writer = SummaryWriter

    def start(self, run: Run) -> None:
        """Open the folder; TensorBoard drops points of steps that were lost."""
        super().start(run)
        try:
            self._output = self._new_writer(str(self.folder), purge_step=run.step + 1)
        except OSError as error:
            raise ArgumentError(f"cannot write to {self.folder}: {error.strerror}") from None

    def _write(self, row: dict[str, Any]) -> None:
        kind, step = row.pop("kind"), row.pop("step")
        for name, value in row.items():
            if name not in _WORDS:
                self._output.add_scalar(f"{kind}/{name}", value, step)


def read_log(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read what a `LogFile` has written; a last line that was cut off is left out.

    Parameters
    ----------
    path : path
        A ``.jsonl`` or ``.csv`` file, or the folder of a run, whose log it is.

    Returns
    -------
    list of dict
        A row each, without what it does not have.

    Raises
    ------
    DataError
        It is missing or no such log.
    """
    path = as_path(path, "path")
    if path.is_dir():
        found = [file for file in (path / "log.jsonl", path / "log.csv") if file.exists()]
        if not found:
            raise DataError(f"there is no log.jsonl or log.csv in {path}")
        path = found[0]
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a log of nbbn: {error}") from error
    lines = text[: text.rfind("\n") + 1].splitlines()
    try:
        rows = list(_csv_rows(lines) if path.suffix == ".csv" else map(json.loads, lines))
    except ValueError as error:
        raise DataError(f"{path} is not a log of nbbn: {error}") from error
    if not all(isinstance(row, dict) and {"kind", "step"} <= row.keys() for row in rows):
        raise DataError(f"{path} is not a log of nbbn: its rows have no kind and step")
    return rows


def _csv_rows(lines: list[str]) -> Iterator[dict[str, Any]]:
    for row in csv.DictReader(lines):
        filled = {name: value for name, value in row.items() if value}
        yield {k: v if k in _WORDS else _number(v) for k, v in filled.items()}


def _number(text: str) -> float:
    return int(text) if text.isdecimal() else float(text)


def _belongs(row: dict[str, Any], run: Run) -> bool:
    """Whether a row was written before the checkpoint that `run` goes on from."""
    return bool(row["step"] <= run.step and (row["kind"] == "step" or row["epoch"] < run.epoch))


def _input_percentiles(model: Module, x: np.ndarray) -> dict[str, float]:
    """Percentiles of what goes into each BatchNorm, by names such as ``1.p15``."""
    found: dict[str, float] = {}

    def see(name: str, module: Module, inner: Tensor, y: Tensor) -> None:
        if isinstance(module, BatchNorm):
            values = np.percentile(inner.numpy(), _PERCENTILES)
            for percent, value in zip(_PERCENTILES, values, strict=True):
                found[f"{name}.p{percent}"] = float(value) if math.isfinite(value) else math.nan

    with evaluating(model), observed(model, see):
        model(x)
    return found
