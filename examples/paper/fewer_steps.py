"""At the same learning rate, batch norm needs less than half of the steps to the same accuracy.

The claim: a net with batch norm reaches the best accuracy of the net without it, which is the same
otherwise, in less than half of the steps (on ImageNet: 13.3 instead of 31 million).
Source: Ioffe and Szegedy (2015), arXiv:1502.03167, section 4.2.2, figures 2 and 3.
What would refute it: a net and a seed whose steps with batch norm are more than half of those
without, or that never gets there.

Here a perceptron and a small convolutional net, on MNIST, plain SGD. The net without batch norm
chooses the rate of both: the best of four by its test accuracy, which favours it. Steps are not
time: the processor time of a step with batch norm is measured beside them.
"""

import time
from functools import partial

import numpy as np
from common import Experiment, axes, band, curve, first, judge

import nbbn
from nbbn import data, optim

experiment = Experiment(
    "fewer_steps",
    "At the same rate, batch norm halves the steps to the best accuracy of the net without it",
)
GRID = experiment.pick((0.03, 0.1, 0.3, 1.0), (0.1, 0.3))
images, labels = experiment.images()
# Of each net: how it is made, steps, and steps between two measurements.
NETS = {
    "perceptron": (partial(nbbn.mlp, (784, 200, 200, 10)),
                   *experiment.pick((8000, 200), (80, 20))),
    "convolutions": (partial(nbbn.cnn, (28, 28), 10, channels=(4, 8), hidden=()),
                     *experiment.pick((2500, 125), (40, 20))),
}  # fmt: skip


def run(net, rate, batch_norm, seed):
    """Test accuracies over the steps, and milliseconds of processor time a step."""
    make, steps, every = NETS[net]
    rng = np.random.default_rng(seed)
    model = make(batch_norm=batch_norm, rng=rng)
    batches = data.Batches(images, labels, 60, rng=rng)
    measuring, start = 0.0, time.process_time()

    def measure():
        nonlocal measuring
        before = time.process_time()
        accuracy = experiment.accuracy(model)
        measuring += time.process_time() - before
        return accuracy

    accuracies = curve(model, optim.SGD(model.parameters(), rate), batches, steps, every, measure)
    return accuracies, 1000 * (time.process_time() - start - measuring) / steps


figure, panels = axes(len(NETS))
numbers, reasons, halved = {}, [], []
for axis, (net, (_, last, every)) in zip(panels, NETS.items(), strict=True):
    steps = list(range(every, last + 1, every))
    tried = {(rate, 0): run(net, rate, False, 0) for rate in GRID}
    rate = max(GRID, key=lambda rate, tried=tried: max(tried[rate, 0][0]))
    plain = [tried.get((rate, seed)) or run(net, rate, False, seed) for seed in experiment.seeds]
    normed = [run(net, rate, True, seed) for seed in experiment.seeds]
    targets = [max(accuracies) for accuracies, _ in plain]
    without = [first(steps, a, t) for (a, _), t in zip(plain, targets, strict=True)]
    with_it = [first(steps, a, t) for (a, _), t in zip(normed, targets, strict=True)]
    share = [n / w if n else None for n, w in zip(with_it, without, strict=True)]
    cost = np.median([ms for _, ms in normed]) / np.median([ms for _, ms in plain])
    halved += [s is not None and s < 0.5 for s in share]
    shares = ", ".join("never" if s is None else f"{s:.2f}" for s in share)
    reasons.append(f"{net} at {rate:g}: {shares} of the steps, each {cost:.2f} times as long")
    numbers[net] = {
        "rate": rate, "steps_without": without, "steps_with": with_it, "share": share,
        "time_of_a_step": cost, "steps": steps, "accuracy_without": [a for a, _ in plain],
        "accuracy_with": [a for a, _ in normed],
    }  # fmt: skip
    for label, found in (("with batch norm", normed), ("without", plain)):
        band(axis, steps, [100 * np.array(a) for a, _ in found], label)
    axis.axhline(100 * np.mean(targets), color="0.6", linewidth=1, linestyle=":")
    low = experiment.pick(100 * np.mean(targets) - 4, 0)
    axis.set(xlabel="steps", title=f"{net}, rate {rate:g}", ylim=(low, 100 * np.mean(targets) + 1))
    axis.legend(loc="lower right")
panels[0].set_ylabel("test accuracy, %")

experiment.finish(numbers, figure, judge(halved), "; ".join(reasons))
