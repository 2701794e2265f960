"""Batch norm regularizes, so that dropout can go; the noise of its statistics is the reason given.

The claim: an example is seen with others that the batch drew by chance, so that a net with batch
norm generalizes better, and dropout can be removed from it or reduced.
Source: Ioffe and Szegedy (2015), arXiv:1502.03167, section 3.4; the noise: Luo et al., "Towards
Understanding Regularization in Batch Normalization" (2018), arXiv:1809.00846.
What would refute it, in the mean over seeds and at every number of examples: a gap between training
and test accuracy that is not smaller with batch norm, or a test accuracy that is not higher;
dropout that adds to the test accuracy beside batch norm; noise that does not fall as 1 / sqrt(m)
with the batch size m (exponents of -0.4 to -0.6 pass).

A perceptron of two hidden layers of 200, SGD with momentum, as many steps at every number of
examples. Dropout is 0.5, L2 is 1e-3 on the weights.
"""

import numpy as np
from common import Experiment, axes, band, curve, forever, judge

import nbbn
from nbbn import data, optim, train

experiment = Experiment(
    "regularization",
    "Batch norm narrows the gap between training and test, and makes dropout superfluous",
)
SIZES = experiment.pick((1000, 10_000, 60_000), (300, 1000))
STEPS = experiment.pick(3000, 100)
BATCHES = experiment.pick((4, 8, 16, 32, 64, 128, 256, 512), (8, 32, 128))
# Batch norm, dropout, L2.
KINDS = {"batch norm": (True, 0.0, 0.0), "dropout": (False, 0.5, 0.0), "both": (True, 0.5, 0.0),
         "L2": (False, 0.0, 1e-3), "none": (False, 0.0, 0.0)}  # fmt: skip


def run(kind, size, seed):
    """Accuracy on (at most 10,000 of) the training examples and on the test set; the model."""
    batch_norm, dropout, decay = KINDS[kind]
    rng = np.random.default_rng(seed)
    model = nbbn.mlp((784, 200, 200, 10), batch_norm=batch_norm, dropout=dropout, rng=rng)
    optimizer = optim.SGD(optim.decay_groups(model, decay), 0.03, momentum=0.9)
    images, labels = experiment.images(size)
    batches = data.Batches(images, labels, 60, drop_last=True, rng=rng)
    seen = data.Batches(images[:10_000], labels[:10_000], 1000, shuffle=False)

    def measure():
        return train.evaluate(model, seen).accuracy, experiment.accuracy(model), model

    return curve(model, optimizer, batches, STEPS, STEPS, measure)[0]


def noise(model, batch_size):
    """Deviation of a batch's means from the data's, in the data's deviations, over its layers.

    Root mean square over channels, mean over 20 batches.
    """
    batches = forever(data.Batches(*experiment.images(), batch_size, drop_last=True, rng=0))
    found = [
        layer.mean_gap
        for _, (x, _) in zip(range(20), batches, strict=False)
        for layer in nbbn.inspect(model, x, warn=False).layers
        if layer.mean_gap is not None
    ]
    return np.mean(found)


gaps, tests, noises = {}, {}, []
for kind in KINDS:
    for size in SIZES:
        found = [run(kind, size, seed) for seed in experiment.seeds]
        tests[kind, size] = np.array([test for _, test, _ in found])
        gaps[kind, size] = np.array([seen - test for seen, test, _ in found])
        if kind == "batch norm" and size == SIZES[-1]:
            for *_, model in found:
                nbbn.nn.recalibrate(model, data.Batches(*experiment.images(), 1000, shuffle=False))
                noises.append([noise(model.eval(), m) for m in BATCHES])
exponent = np.polyfit(np.log(BATCHES), np.log(np.mean(noises, axis=0)), 1)[0]


def everywhere(table, more, less):
    """Whether one kind's mean is above another's at every number of examples."""
    return all(table[more, size].mean() > table[less, size].mean() for size in SIZES)


holds = {
    "a smaller gap than without": everywhere(gaps, "none", "batch norm"),
    "a higher test accuracy than without": everywhere(tests, "batch norm", "none"),
    "no gain from dropout beside it": not any(
        tests["both", size].mean() > tests["batch norm", size].mean() for size in SIZES
    ),
    "noise as 1 / sqrt(m)": -0.6 < exponent < -0.4,
}
holds = {what: bool(true) for what, true in holds.items()}

figure, (left, middle, right) = axes(3)
over_none = {(k, n): values - tests["none", n].mean() for (k, n), values in tests.items()}
for kind in KINDS:
    for axis, table in ((left, over_none), (middle, gaps)):
        curves = 100 * np.array([table[kind, size] for size in SIZES]).T
        band(axis, range(len(SIZES)), curves, kind, marker="o")
for axis in (left, middle):
    axis.set_xticks(range(len(SIZES)), [f"{size:,}" for size in SIZES])
    axis.set_xlabel("training examples")
left.set_ylabel("test accuracy minus none's, points")
middle.set_ylabel("training minus test, points")
middle.legend()
band(right, BATCHES, noises, "measured", marker="o")
right.plot(BATCHES, np.mean(noises, axis=0)[0] * np.sqrt(BATCHES[0] / np.array(BATCHES)), ":",
           color="0.4", label="1 / sqrt(batch size)")  # fmt: skip
right.set(xscale="log", yscale="log", xlabel="batch size", ylabel="noise of a batch's means")
right.legend()

fails = [what for what, true in holds.items() if not true]
least = SIZES[0]
experiment.finish(
    {"examples": SIZES, "holds": holds, "noise_exponent": float(exponent), "batch_sizes": BATCHES,
     "noise": noises, "test": {f"{k}, {n}": v for (k, n), v in tests.items()},
     "gap": {f"{k}, {n}": v for (k, n), v in gaps.items()}},
    figure, judge(holds.values()),
    f"at {least:,} examples " + ", ".join(f"{k} {tests[k, least].mean():.2%}" for k in KINDS)
    + f", at {SIZES[-1]:,} " + ", ".join(f"{k} {tests[k, SIZES[-1]].mean():.2%}" for k in KINDS)
    + f"; noise falls with exponent {exponent:.2f}"
    + (f"; does not hold: {', '.join(fails)}" if fails else ""),
)  # fmt: skip
