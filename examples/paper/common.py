"""What the experiments share: command line, data, a curve of accuracy, and the files that stay.

Every script here tries one claim: `python examples/paper/NAME.py [--quick] [--seeds=3] [--out=.]`
writes NAME.png and NAME.json to the folder and prints one line, the verdict. `--quick` shows in
seconds that a script works; what it prints is no verdict on the claim.
"""

import argparse
import json
import logging
import pathlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image

import nbbn
from nbbn import data, train
from nbbn.nn import losses

Verdict = Literal["reproduced", "partly", "not reproduced"]

# Some of the runs are meant to diverge; that need not be told at every evaluation.
logging.getLogger("nbbn").setLevel(logging.ERROR)


class Experiment:
    """One claim that is tried, from its command line to its verdict."""

    def __init__(self, name: str, claim: str, seeds: int = 3) -> None:
        self.name, self.claim = name, claim
        parser = argparse.ArgumentParser(prog=f"{name}.py", description=claim)
        parser.add_argument("--quick", action="store_true", help="seconds, to see that it works")
        parser.add_argument("--seeds", type=int, default=seeds)
        parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path())
        given = parser.parse_args()
        self.quick, self.out = given.quick, given.out
        self.seeds = range(min(2, given.seeds) if given.quick else given.seeds)
        self.mnist = data.load_mnist()

    def pick(self, full: Any, quick: Any) -> Any:
        """What this run takes of two."""
        return quick if self.quick else full

    def images(self, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The first training images and labels; a quick run has at most 2,000."""
        images, labels = self.mnist.train_images, self.mnist.train_labels
        chosen = slice(min(count or len(images), self.pick(len(images), 2000)))
        return images[chosen], labels[chosen]

    def accuracy(self, model: nbbn.Module) -> float:
        """Accuracy on the test images (of a quick run: on 1,000)."""
        chosen = slice(self.pick(None, 1000))
        images, labels = self.mnist.test_images[chosen], self.mnist.test_labels[chosen]
        return train.evaluate(model, data.Batches(images, labels, 1000, shuffle=False)).accuracy

    def finish(self, numbers: dict[str, Any], figure: Any, verdict: Verdict, reason: str) -> None:
        """Write the picture and the numbers, and print the verdict."""
        self.out.mkdir(parents=True, exist_ok=True)
        record = {"claim": self.claim, "seeds": len(self.seeds), "quick": self.quick,
                  "verdict": verdict, "reason": reason, **numbers}  # fmt: skip
        text = json.dumps(record, indent=1, default=lambda a: np.round(a, 6).tolist())
        (self.out / f"{self.name}.json").write_text(text + "\n", encoding="utf-8")
        picture = self.out / f"{self.name}.png"
        figure.savefig(picture, dpi=120)
        # A palette makes the file a third as large.
        Image.open(picture).convert("RGB").quantize(256).save(picture, optimize=True)
        mode = " (quick, no verdict on the claim)" if self.quick else ""
        print(f"{self.name}: {verdict}{mode}: {reason}")


def axes(columns: int = 1, rows: int = 1, **options: Any) -> tuple[Any, Any]:
    """A figure and its axes, in the style of all pictures here."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False,
                         "legend.frameon": False})  # fmt: skip
    size = 4.2 * columns, 3.2 * rows
    return plt.subplots(rows, columns, figsize=size, layout="constrained", **options)


def band(axis: Any, x: Sequence[float], curves: Sequence[Any], label: str, **style: Any) -> None:
    """Draw the mean of several seeds' curves, and what lies between the least and the largest."""
    values = np.array(curves, float)
    (line,) = axis.plot(x, values.mean(axis=0), label=label, **style)
    low, high = values.min(axis=0), values.max(axis=0)
    axis.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)


def forever(batches: data.Batches) -> Iterator[Any]:
    """Batches without end, one epoch after another."""
    while True:
        yield from batches


def curve(
    model: nbbn.Module, optimizer: nbbn.optim.Optimizer, batches: data.Batches, steps: int,
    every: int, measure: Callable[[], Any], loss: Any = losses.cross_entropy,
) -> list[Any]:  # fmt: skip
    """What `measure()` gives after every `every` steps of training, one epoch after another."""
    step, found = train.record_step(model, loss, optimizer), []
    for done, (x, y) in zip(range(1, steps + 1), forever(batches), strict=False):
        with np.errstate(all="ignore"):
            step(x, y)
        if done % every == 0:
            found.append(measure())
    return found


def first(steps: Sequence[int], accuracies: Sequence[float], target: float) -> int | None:
    """The first step whose accuracy is at least the target."""
    reached = (s for s, accuracy in zip(steps, accuracies, strict=True) if accuracy >= target)
    return next(reached, None)


def judge(parts: Collection[bool]) -> Verdict:
    """The verdict on a claim of several parts, each of which holds or does not."""
    return "reproduced" if all(parts) else "partly" if any(parts) else "not reproduced"


def bare_net(seed: int, eps: float, scale: float) -> tuple[nbbn.Module, list[nbbn.Parameter]]:
    """784-100-100-100-10 in float64, hidden weights times `scale`; and these weights."""
    rng, layers = np.random.default_rng(seed), []
    for inputs in (784, 100, 100):
        dense = nbbn.Dense(inputs, 100, bias=False, rng=rng, dtype=np.float64)
        dense.weight.data *= scale
        norm = nbbn.BatchNorm(100, convention=nbbn.Convention(eps=eps), dtype=np.float64)
        layers += [dense, norm, nbbn.ReLU()]
    logits = nbbn.Dense(100, 10, rng=rng, dtype=np.float64)
    return nbbn.Sequential(*layers, logits), [dense.weight for dense in layers[::3]]


def spread(values: Sequence[float]) -> str:
    """Mean and range of some seeds in per cent, for a verdict."""
    return f"{np.mean(values):.2%} ({min(values):.2%} to {max(values):.2%})"
