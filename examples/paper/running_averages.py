"""Training against inference: how far running averages are from the statistics they stand for.

Claim: inference normalizes with the statistics of the whole training set, which moving averages
follow during training (Ioffe and Szegedy 2015, section 3.1). Wu and Johnson (2021,
arXiv:2105.07576, section 3) add when they do not: averaging few batches is noisy, averaging many
is late while weights move; recalibration ("precise BN") mends both.

What is tried: 784-100-100-100-10 on MNIST, SGD, batches of 8 to 512, weights a of the newest batch
of 0.001 to 0.3. The error is the root mean square over channels of (running mean - mean of the
training set) / deviation. It is measured after 500 steps, and again after 500 random batches more
with the weights at rest: independent batches of B leave sqrt(a / ((2 - a) B)) in the first layer
(in later ones less: what comes out of a batch normalization has the same mean in each batch). And
the test accuracy with the running averages, and after `nbbn.recalibrate`.

Refuted if recalibration is less accurate than running averages by more than 0.2 points in the mean
anywhere, or mends no setting by more than 1 point. Partly if it mends, but errors at rest differ by
more than 20 % from the formula where the start is forgotten: where (1 - a)^500 of the error in
training is less than a tenth of it.
"""

import copy
import itertools

import numpy as np
from common import Experiment, axes, band, curve

import nbbn
from nbbn import data, optim

experiment = Experiment(
    "running_averages",
    "Few batches make running averages noisy, many make them late, and recalibration mends both",
)
SIZES = experiment.pick((8, 32, 128, 512), (8, 128))
WEIGHTS = experiment.pick((0.001, 0.003, 0.01, 0.03, 0.1, 0.3), (0.01, 0.1))
STEPS = experiment.pick(500, 100)
RATE_AT_128 = 0.5
images, labels = experiment.images()
everything = data.Batches(images, labels, 1000, shuffle=False)


def norms(model):
    """Its batch normalizations."""
    return [layer for layer in model if isinstance(layer, nbbn.BatchNorm)]


def error(model, exact, layers):
    """How far the running means of some layers are from the exact ones, in deviations."""
    pairs = list(zip(norms(model), norms(exact), strict=True))[:layers]
    gaps = [(a.running_mean - b.running_mean) / np.sqrt(b.running_var) for a, b in pairs]
    return np.sqrt(np.mean(np.square(gaps)))


def recalibrated(model):
    """A copy with the exact statistics."""
    exact = copy.deepcopy(model)
    nbbn.recalibrate(exact, everything)
    return exact


def tried(size, weight, seed):
    """Errors in training, and of layer 1 at rest; accuracies with running and exact statistics."""
    rng = np.random.default_rng(seed)
    model = nbbn.mlp((784, 100, 100, 100, 10), rng=rng)
    for norm in norms(model):
        norm.momentum = weight
    batches = data.Batches(images, labels, size, rng=rng, drop_last=True)
    optimizer = optim.SGD(model.parameters(), RATE_AT_128 * size / 128)
    (exact,) = curve(model, optimizer, batches, STEPS, STEPS, lambda: recalibrated(model))
    moving = error(model, exact, 3)
    accuracies = experiment.accuracy(model), experiment.accuracy(exact)
    rows = rng.integers(len(images), size=STEPS * size)
    for x, _ in data.Batches(images, labels, size, rows=rows, shuffle=False):
        model(x)
    return moving, error(model, exact, 1), *accuracies


cells = list(itertools.product(SIZES, WEIGHTS))
# (cells, seeds, what `tried` gives)
found = np.array([[tried(*cell, seed) for seed in experiment.seeds] for cell in cells])
found = found.reshape(len(SIZES), len(WEIGHTS), len(experiment.seeds), 4)
moving, resting, running, exact = found.mean(axis=2).transpose(2, 0, 1)

a, b = np.array(WEIGHTS), np.array(SIZES)[:, None]
formula = np.sqrt(a / ((2 - a) * b))
settled = moving * (1 - a) ** STEPS < 0.1 * formula
off = np.abs(resting / formula - 1)[settled].max()
gain = exact - running
verdict = "reproduced" if off < 0.2 else "partly"
if gain.min() < -0.002 or gain.max() < 0.01:
    verdict = "not reproduced"
worst = np.unravel_index(gain.argmax(), gain.shape)
best = [WEIGHTS[i] for i in moving.argmin(axis=1)]
reason = (
    f"recalibration adds {100 * gain.min():+.2f} to {100 * gain.max():+.2f} points (most at batches"
    f" of {SIZES[worst[0]]}, weight {WEIGHTS[worst[1]]:g}); at rest the first layer's error is "
    f"within {off:.0%} of sqrt(a / ((2 - a) B)); in training a weight of "
    + ", ".join(f"{weight:g}" for weight in best) + " is best for batches of "
    + ", ".join(map(str, SIZES))
)  # fmt: skip

figure, (left, middle, right) = axes(3)
for i, size in enumerate(SIZES):
    middle.plot(a[settled[i]], resting[i][settled[i]], f"C{i}o")
    middle.plot(WEIGHTS, formula[i], f"C{i}", linewidth=1)
    mended = 100 * (found[i, :, :, 3] - found[i, :, :, 2])
    band(left, WEIGHTS, found[i, :, :, 0].T, f"batches of {size}", marker="o")
    band(right, WEIGHTS, mended.T, f"to {exact[i].mean():.1%}", marker="o")
left.set(title="All layers, weights move", yscale="log")
left.set(ylabel="error of running means, deviations")
left.legend(fontsize=8)
middle.set(title="Layer 1, weights at rest (line: formula)", yscale="log")
right.set(title="What recalibration adds", ylabel="points of test accuracy")
right.set_yscale("symlog", linthresh=1)
right.legend(fontsize=8)
for axis in (left, middle, right):
    axis.set(xscale="log", xlabel="weight a of the newest batch")
experiment.finish(
    {"batches": SIZES, "weights": WEIGHTS, "error_moving": moving,
     "error_at_rest": resting, "start_is_forgotten": settled.tolist(), "formula": formula,
     "accuracy_running": running, "accuracy_recalibrated": exact},
    figure, verdict, reason,
)  # fmt: skip
