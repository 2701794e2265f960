"""An Inception-like CNN with and without batch norm: steps to accuracy at rates x1, x5 and x30.

Claim (Ioffe and Szegedy 2015, section 4.2, figures 2 and 3): to the accuracy that Inception reaches
at its best, batch norm needs less than half as many steps at the same learning rate, and less than
a tenth at five times the rate; at thirty times it is a little slower than that but ends higher.
Without batch norm five times the rate fails.

What is tried, in the place of ImageNet and millions of steps: MNIST at half its size, 14 x 14; a
convolution and three Inception blocks of 32 channels, 10 convolutions deep; 500 steps of SGD with
momentum at a rate that falls to 0 as a cosine, so that a net is at its best at the end. The base
rate is the best of 0.003, 0.01, 0.03 and 0.1 without batch norm. Accuracy is that on the first 1000
test images.

Refuted, each: (a) if batch norm needs more than half of the steps at the same rate; (b) at x5 not
fewer than at x1; (c) if x30 does not end highest; (d) if the net without batch norm reaches its
accuracy at x5 too. Reproduced if none is; not if (a) is.
"""

import numpy as np
from common import Experiment, axes, band, curve, first, spread

import nbbn
from nbbn import data, ops, optim, train

experiment = Experiment(
    "inception", "Batch norm lets an Inception-like net reach its accuracy in a fraction of steps"
)
RATE, BATCH, C = 0.03, 32, experiment.pick(32, 8)
STEPS, EVERY = experiment.pick((500, 20), (16, 8))
KINDS = {
    "without, x1": (False, 1),
    "without, x5": (False, 5),
    "batch norm, x1": (True, 1),
    "batch norm, x5": (True, 5),
    "batch norm, x30": (True, 30),
}
images, labels = experiment.images()
mnist = experiment.mnist
some = data.Batches(mnist.test_images[:1000], mnist.test_labels[:1000], 500, shuffle=False)


class Inception(nbbn.Module):
    """Four branches side by side; 5 x 5 is two 3 x 3."""

    recordable = True

    def __init__(self, unit, before):
        q = C // 4
        self.one = unit(before, q, 1)
        self.three = nbbn.Sequential(unit(before, q, 1), unit(q, q, 3))
        self.five = nbbn.Sequential(unit(before, q, 1), unit(q, q, 3), unit(q, q, 3))
        pool = nbbn.MaxPool2d(3, stride=1, padding=1)
        self.pool = nbbn.Sequential(pool, unit(before, q, 1))

    def forward(self, x):
        """Join what the branches make of x."""
        return ops.concatenate([self.one(x), self.three(x), self.five(x), self.pool(x)], axis=1)


def net(batch_norm, rng):
    """A convolution, three blocks, the mean of each channel, and the logits."""

    def unit(before, after, size):
        own = {"padding": size // 2, "bias": not batch_norm, "rng": rng}
        norm = nbbn.BatchNorm(after, activation="relu") if batch_norm else nbbn.ReLU()
        return nbbn.Sequential(nbbn.Conv2d(before, after, size, **own), norm)

    return nbbn.Sequential(
        nbbn.Unflatten((1, 28, 28)), nbbn.AvgPool2d(2), unit(1, C // 2, 3),
        Inception(unit, C // 2), nbbn.MaxPool2d(2), Inception(unit, C), Inception(unit, C),
        nbbn.GlobalAvgPool2d(), nbbn.Dense(C, 10, rng=rng),
    )  # fmt: skip


def trained(batch_norm, factor, seed):
    """Test accuracies along the training."""
    rng = np.random.default_rng(seed)
    model = net(batch_norm, rng)
    rate = optim.Cosine(factor * RATE, STEPS)
    optimizer = optim.SGD(model.parameters(), rate, momentum=0.9)
    batches = data.Batches(images, labels, BATCH, rng=rng)
    return curve(model, optimizer, batches, STEPS, EVERY, lambda: accuracy(model))


def accuracy(model):
    """Accuracy on 1000 test images."""
    return train.evaluate(model, some).accuracy


steps = range(EVERY, STEPS + 1, EVERY)
curves = {kind: [trained(*own, seed) for seed in experiment.seeds] for kind, own in KINDS.items()}

targets = [max(c) for c in curves["without, x1"]]
needed = {
    kind: [first(steps, c, target) for c, target in zip(found, targets, strict=True)]
    for kind, found in curves.items()
}
mean = {kind: np.mean([n or np.inf for n in found]) for kind, found in needed.items()}
final = {kind: [c[-1] for c in found] for kind, found in curves.items()}
highest = max(final, key=lambda kind: np.mean(final[kind]))
parts = {
    "half the steps at x1": bool(mean["batch norm, x1"] <= mean["without, x1"] / 2),
    "fewer at x5": bool(mean["batch norm, x5"] < mean["batch norm, x1"]),
    "x30 ends highest": highest == "batch norm, x30",
    "x5 fails without": None in needed["without, x5"],
}
verdict = "reproduced" if all(parts.values()) else "partly"
if not parts["half the steps at x1"]:
    verdict = "not reproduced"
reason = "; ".join(f"{part}: {'yes' if holds else 'no'}" for part, holds in parts.items()) + (
    f"; to {np.mean(targets):.1%} without batch norm {mean['without, x1']:.0f} steps, with it "
    f"{mean['batch norm, x1']:.0f}, x5 {mean['batch norm, x5']:.0f}, x30 "
    f"{mean['batch norm, x30']:.0f}; final {spread(final['without, x1'])} without, "
    f"{spread(final[highest])} at best ({highest})"
)

figure, (left, right) = axes(2)
for kind, found in curves.items():
    band(left, steps, 100 * np.array(found), kind)
left.axhline(100 * np.mean(targets), color="gray", linestyle=":")
left.set(title="Inception-like net", xlabel="step", ylabel="test accuracy, %")
left.set_ylim(*experiment.pick((70, 100), (None, None)))
left.legend(fontsize=8)
for position, found in enumerate(needed.values()):
    reached = [n for n in found if n]
    right.bar(position, np.mean(reached) if len(reached) == len(found) else 0)
    right.plot([position] * len(reached), reached, "k.")
    if not reached:
        right.text(position, 0, "never", ha="center", va="bottom")
right.set_xticks(range(len(needed)), [kind.replace(", ", "\n") for kind in needed], fontsize=7)
right.set(title=f"Steps to {np.mean(targets):.1%}", ylabel="steps")
experiment.finish(
    {"target": targets, "steps": needed, "final": final, "parts": parts}, figure, verdict, reason
)
