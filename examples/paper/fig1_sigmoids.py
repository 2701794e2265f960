"""Figure 1 of the paper: three layers of sigmoids learn MNIST better with batch norm.

The claim: with batch norm the net's test accuracy is higher, all along and at the end, and the
distribution of what enters a typical sigmoid of the last hidden layer moves less over training.
Source: Ioffe and Szegedy, "Batch Normalization" (2015), arXiv:1502.03167, section 4.1, figure 1.
What would refute it: a seed whose net without batch norm is as accurate at the end, or in the mean
over training; or a layer whose inputs drift as much with batch norm as without it.

Sizes are the paper's: 784-100-100-100-10, batches of 60, 50,000 steps, small Gaussian weights. It
does not give the weights' deviation and the learning rate of SGD; here both are 0.1.
"""

import numpy as np
from common import Experiment, axes, band, curve, judge, spread

import nbbn
from nbbn import data, optim

experiment = Experiment(
    "fig1_sigmoids",
    "On MNIST, batch norm makes a net of sigmoids more accurate and the inputs of its last sigmoids"
    " stable",
)
STEPS, EVERY = experiment.pick((50_000, 500), (300, 50))
images, labels = experiment.images()
probe, _ = data.Batches(images, labels, 60).first(1000)


def run(batch_norm, seed):
    """Test accuracies, and percentiles (times, 3, 100) of the inputs of the last sigmoids."""
    rng = np.random.default_rng(seed)
    sizes = (784, 100, 100, 100, 10)
    model = nbbn.mlp(sizes, activation="sigmoid", batch_norm=batch_norm, init=0.1, rng=rng)
    before = nbbn.Sequential(*list(model)[:-2])  # all but the last sigmoid and the output

    def measure():
        inputs = before.eval()(probe).numpy()
        before.train()
        return experiment.accuracy(model), np.percentile(inputs, (15, 50, 85), axis=0)

    batches = data.Batches(images, labels, 60, rng=rng)
    found = curve(model, optim.SGD(model.parameters(), 0.1), batches, STEPS, EVERY, measure)
    accuracies, percentiles = zip(*found, strict=True)
    return np.array(accuracies), np.array(percentiles)


def drift(percentiles):
    """How far a sigmoid's percentiles are from their last values, in the mean over training.

    In units of the last distance between the 15th and the 85th.
    """
    width = percentiles[-1, 2] - percentiles[-1, 0]
    return np.abs(percentiles - percentiles[-1]).mean(axis=(0, 1)) / width


steps = np.arange(EVERY, STEPS + 1, EVERY)
runs = {kind: [run(kind, seed) for seed in experiment.seeds] for kind in (True, False)}
accuracy = {kind: np.array([a for a, _ in found]) for kind, found in runs.items()}
drifts = {kind: [drift(p) for _, p in found] for kind, found in runs.items()}
typical = {kind: [float(np.median(d)) for d in found] for kind, found in drifts.items()}

figure, (left, *others) = axes(3)
for kind, name in ((True, "with batch norm"), (False, "without")):
    band(left, steps, 100 * accuracy[kind], name)
left.set(xlabel="steps", ylabel="test accuracy, %", ylim=(experiment.pick(90, 0), 100))
left.legend(loc="lower right")
for axis, (kind, name) in zip(others, ((False, "without"), (True, "with batch norm")), strict=True):
    # The sigmoid of the first seed whose drift is the median of its layer.
    unit = np.argsort(drifts[kind][0])[len(drifts[kind][0]) // 2]
    low, middle, high = runs[kind][0][1][:, :, unit].T
    axis.fill_between(steps, low, high, alpha=0.25, color="C0" if kind else "C1", linewidth=0)
    axis.plot(steps, middle, color="C0" if kind else "C1")
    axis.set(xlabel="steps", title=f"Input of a typical sigmoid, {name}", ylim=(-6, 6))
    axis.title.set_fontsize("medium")
others[0].set_ylabel("15th, 50th and 85th percentile")

final = {kind: found[:, -1] for kind, found in accuracy.items()}
better = all(final[True] > final[False]) and all(
    accuracy[True].mean(axis=1) > accuracy[False].mean(axis=1)
)
# Clearly more stable is at least a factor of two, in every seed.
stable = all(2 * a < b for a, b in zip(typical[True], typical[False], strict=True))
experiment.finish(
    {"steps": steps, "accuracy_with": accuracy[True], "accuracy_without": accuracy[False],
     "drift_with": typical[True], "drift_without": typical[False]},
    figure, judge((better, stable)),
    f"{spread(final[True])} with, {spread(final[False])} without after {STEPS:,} steps; a typical "
    f"sigmoid's percentiles drift {np.mean(typical[True]):.2f} of their width with, "
    f"{np.mean(typical[False]):.2f} without",
)  # fmt: skip
