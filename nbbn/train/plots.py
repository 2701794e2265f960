"""Pictures: curves, confusion matrix, mistakes, percentiles, rates. Needs ``nbbn[plot]``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._validation import as_array, instance, iterate, mapping, positive, real
from ..errors import ArgumentError, DataError, DTypeError, ShapeError
from .metrics import confusion_matrix
from .rates import RateTrial

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["confusion", "curves", "mistakes", "percentiles", "rates"]

Rows = Sequence[Mapping[str, Any]]


def _figure(**options: Any) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ArgumentError("plots need the package matplotlib: pip install 'nbbn[plot]'") from None
    return Figure(layout="constrained", **options)


def _finish(figure: Figure) -> None:
    """Take the frames away and put one legend above all parts."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize="small"
    )


def curves(runs: Mapping[str, Rows]) -> Figure:
    """Draw loss and accuracy of runs over their steps.

    Parameters
    ----------
    runs : mapping of str to list of dict
        The rows of each run's log by its name, see `nbbn.logs.read_log`.

    Returns
    -------
    matplotlib.figure.Figure
        Training: pale lines by step and dotted lines by epoch; solid lines: validation and test.

    Raises
    ------
    DataError
        No run has any rows.
    """
    if not isinstance(runs, Mapping):
        raise DTypeError(
            f"runs must map names to the rows of their logs, got {type(runs).__name__}: pass "
            "{'name': nbbn.logs.read_log(path)}"
        )
    runs = {name: _checked(rows) for name, rows in runs.items()}
    if not any(runs.values()):
        raise DataError("there is nothing to draw: the logs have no rows")
    figure = _figure(figsize=(9, 3.5))
    for axes, measure in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for number, (name, rows) in enumerate(runs.items()):
            color = f"C{number % 10}"
            if measure == "loss":
                axes.plot(*_series(rows, "step", measure), color=color, alpha=0.25, linewidth=0.8)
            axes.plot(*_series(rows, "epoch", measure), ":", color=color, label=f"{name}, training")
            for part, style in (("validation", "--"), ("test", "-")):
                steps, values = _series(rows, "epoch", f"{part}_{measure}")
                if steps:
                    axes.plot(steps, values, style, color=color, label=f"{name}, {part}")
        axes.set(xlabel="steps", ylabel=measure)
    _finish(figure)
    return figure


def _checked(rows: Any) -> list[Mapping[str, Any]]:
    """Check that these are rows of a log."""
    found = list(iterate(rows, "rows", "the rows of a log, see nbbn.logs.read_log"))
    for row in found:
        mapping(row, "a row of a log", "numbers")
        if not isinstance(row.get("kind"), str) or "step" not in row:
            raise ArgumentError(f"a row of a log has a kind and a step, got {row!r:.80}")
        for name, value in row.items():
            if name in ("kind", "watched"):
                continue
            if not isinstance(value, int | float | np.integer | np.floating):
                raise DTypeError(f"{name} of a log must be a number, got {type(value).__name__}")
            if isinstance(value, int) and abs(value) > 2**63:
                raise ArgumentError(f"{name} of a log is beyond 2**63, got {value}")
    return found


def _series(rows: Rows, kind: str, name: str) -> tuple[list[int], list[float]]:
    found = [(row["step"], row[name]) for row in rows if row["kind"] == kind and name in row]
    return [step for step, _ in found], [value for _, value in found]


def percentiles(rows: Rows) -> Figure:
    """Draw the 15th, 50th and 85th percentiles of each BatchNorm's input over training.

    Parameters
    ----------
    rows : list of dict
        A log that was written with percentiles.

    Returns
    -------
    matplotlib.figure.Figure
        One part per BatchNorm, as in figure 1 of Ioffe and Szegedy (2015).

    Raises
    ------
    DataError
        The log has none.
    """
    rows = _checked(rows)
    layers = list(dict.fromkeys(key[: -len(".p50")] for row in rows for key in row if ".p" in key))
    if not layers:
        raise DataError("the log holds no percentiles: train with --percentiles")
    figure = _figure(figsize=(3.5 * len(layers), 3))
    for axes, layer in zip(figure.subplots(1, len(layers), squeeze=False)[0], layers, strict=True):
        for percent, style in ((85, "--"), (50, "-"), (15, ":")):
            steps, values = _series(rows, "step", f"{layer}.p{percent}")
            axes.plot(steps, values, style, color="C0", label=f"{percent}th percentile")
        axes.set(xlabel="steps", title=f"input of layer {layer}")
    _finish(figure)
    return figure


def rates(trial: RateTrial) -> Figure:
    """Draw the losses of a trial of learning rates, and the one that it suggests.

    Parameters
    ----------
    trial : RateTrial
        What `nbbn.train.find_lr` returned.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    DTypeError, ShapeError
        Something else.
    """
    instance(trial, RateTrial, "trial")
    for name, array in zip(trial._fields[:3], trial[:3], strict=True):
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
            raise DTypeError(f"{name} must be an array of floats, got {type(array).__name__}")
        if array.ndim != 1 or array.shape != trial.rates.shape:
            raise ShapeError(f"{name} must have shape (K,) as all have, got {array.shape}")
    if trial.suggestion is not None:
        real(trial.suggestion, "suggestion")
    figure = _figure(figsize=(5.5, 3.5))
    axes = figure.subplots()
    axes.plot(trial.rates, trial.losses, color="C0", alpha=0.25, linewidth=0.8)
    axes.plot(trial.rates, trial.smoothed, color="C0", label="smoothed loss")
    if trial.suggestion is not None:
        axes.axvline(trial.suggestion, color="C1", label=f"suggestion, {trial.suggestion:.2g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
    _finish(figure)
    return figure


def confusion(labels: Any, predicted: Any) -> Figure:
    """Draw how often each class was taken for which: the numbers of a confusion matrix.

    Otherwise as `nbbn.train.metrics.confusion_matrix`.

    Returns
    -------
    matplotlib.figure.Figure
    """
    counts = confusion_matrix(labels, predicted)
    classes = len(counts)
    figure = _figure(figsize=(5.5, 5))
    axes = figure.subplots()
    # Mistakes are rare: colors show them, while right answers would outshine them.
    wrong = np.where(np.eye(classes, dtype=bool), 0, counts)
    axes.imshow(wrong, cmap="Reds", vmin=0, vmax=max(wrong.max(), 1))
    for row, column in np.argwhere(counts):
        dark = wrong[row, column] > 0.6 * max(wrong.max(), 1)
        axes.text(column, row, counts[row, column], ha="center", va="center", fontsize=7,
                  color="white" if dark else "black")  # fmt: skip
    ticks = range(classes)
    right = counts.trace() / counts.sum()
    axes.set(xticks=ticks, yticks=ticks, xlabel="predicted", ylabel="label")
    axes.set_title(f"{right:.2%} of {counts.sum():,} right")
    return figure


def mistakes(images: Any, labels: Any, probabilities: Any, *, most: int = 25) -> Figure:
    """Draw images that were classified wrongly, the most confident mistakes first.

    Parameters
    ----------
    images : array_like, shape (N, height, width)
    labels : array_like of int, shape (N,)
    probabilities : array_like, shape (N, classes)
    most : int, default 25
        How many at most.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ShapeError
        The three do not fit together.
    """
    most = positive(most, "most")
    images, labels, probabilities = (
        as_array(value, name)
        for name, value in (
            ("images", images), ("labels", labels), ("probabilities", probabilities)
        )
    )  # fmt: skip
    if images.ndim != 3:
        raise ShapeError(f"images must have shape (N, height, width), got {images.shape}")
    if labels.shape != images.shape[:1] or probabilities.shape[:-1] != images.shape[:1]:
        raise ShapeError(
            f"labels must have shape (N,) and probabilities (N, classes), one for each of "
            f"{len(images)} images, got {labels.shape} and {probabilities.shape}"
        )
    for name, array, kinds in (
        ("images", images, "buif"), ("labels", labels, "iu"), ("probabilities", probabilities, "f")
    ):  # fmt: skip
        if array.dtype.kind not in kinds:
            raise DTypeError(f"{name} must hold numbers, labels integers, got {array.dtype}")
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    order = np.argsort(-probabilities[wrong, predicted[wrong]], kind="stable")
    shown = wrong[order][:most]
    columns = 5
    rows = max(-(-len(shown) // columns), 1)
    figure = _figure(figsize=(1.4 * columns, 1.6 * rows))
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.axis("off")
    for axes, place in zip(figure.axes, shown, strict=False):
        axes.imshow(images[place], cmap="gray_r")
        axes.set_title(
            f"{labels[place]} taken for {predicted[place]}\n"
            f"{probabilities[place, predicted[place]]:.0%} sure",
            fontsize=7,
        )
    figure.suptitle(f"{len(wrong):,} of {len(labels):,} wrong", fontsize=9)
    return figure
