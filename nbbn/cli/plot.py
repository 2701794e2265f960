"""`nbbn plot`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.own import NAMED
from ..errors import ArgumentError, CheckpointError
from ..train import plots
from ..train.inference import Classifier
from ..train.logs import read_log

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def run(arguments: argparse.Namespace) -> None:
    """Draw what there is to draw, and print the names of the files."""
    runs = {_name(path): read_log(path) for path in arguments.runs}
    if len(runs) < len(arguments.runs):
        raise ArgumentError("two runs have the same name: the last part of their paths")
    first = arguments.runs[0]
    folder = arguments.out or (first if first.is_dir() else first.parent)
    curves = plots.curves(runs)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _save(curves, folder / "curves.png")
    except OSError as error:
        raise ArgumentError(f"cannot write to {folder}: {error.strerror}") from None
    for path in arguments.runs:
        end = f"-{_name(path)}.png" if len(runs) > 1 else ".png"
        for kind, figure in _of_one(path, runs[_name(path)], arguments.data_dir):
            _save(figure, folder / (kind + end))


def _name(path: Path) -> str:
    return path.resolve().name if path.is_dir() else path.stem


def _of_one(path: Path, rows: list[dict[str, Any]], data_dir: Path | None) -> Iterator[Any]:
    if any(key.endswith(".p50") for row in rows for key in row):
        yield "percentiles", plots.percentiles(rows)
    if not path.is_dir() or not list(path.glob("*.safetensors")):
        return
    try:
        classifier = Classifier.load(path)
    except CheckpointError as error:
        print(f"nbbn: no confusion matrix and mistakes: {error}", file=sys.stderr)
        return
    source = classifier.config.data
    found = classifier.held_out(data_dir=data_dir if source[0] in NAMED else None)
    if found is None:
        name = " ".join(source)
        print(f"nbbn: no confusion matrix and mistakes: {name} has no test set", file=sys.stderr)
        return
    images, labels = found.images, found.labels
    if found.rows is not None:
        images, labels = images[found.rows], labels[found.rows]
    probabilities = classifier.probabilities(images)
    yield "confusion", plots.confusion(labels, probabilities.argmax(axis=1))
    if images.ndim == 3:
        yield "mistakes", plots.mistakes(images, labels, probabilities)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=110)
    print(path)
