"""Smoothness: with batch norm the loss and its gradient change less along a step.

Claim (Santurkar et al. 2018, arXiv:1805.11604, section 3 and figure 4): walk from where a training
stands along its gradient, half to four times as far as its step goes. With batch norm (a) the loss
varies less, (b) the gradient changes less, (c) the effective smoothness, the largest change of the
gradient over the distance walked, is lower.

What is tried: a ReLU net with 8 hidden layers of 100 on MNIST, learning rate 0.1 with and without,
walks at every 40th of 2000 steps, on the batch's loss. MNIST and a small net stand for
the paper's VGG on CIFAR-10, for the sake of time. The paper's measures have a scale: a net with
larger weights and smaller gradients looks smoother. So the change of the gradient is shown in its
own norms as well.

Refuted, each of (a), (b), (c), if the median over the training is not lower with batch norm for
every seed. Reproduced if all three are.
"""

import numpy as np
from common import Experiment, axes, band, curve, judge

import nbbn
from nbbn import data, optim, train
from nbbn.nn import losses

experiment = Experiment(
    "smoothness", "With batch norm loss and gradient change less along a step", seeds=5
)
RATE, BATCH = 0.1, 128
STEPS, EVERY = experiment.pick((2000, 40), (40, 20))
WALK = np.geomspace(0.5, 4, 7)
KINDS = "without", "batch norm"
MEASURES = {
    "loss": "range of the loss",
    "gradient": "largest change of the gradient",
    "smoothness": "effective smoothness",
    "relative": "change of the gradient, in its norms",
}
images, labels = experiment.images()


def measured(kind, seed):
    """The measures of every walk of a training, (walks, measures)."""
    rng = np.random.default_rng(seed)
    model = nbbn.mlp((784, *[100] * 8, 10), batch_norm=kind == "batch norm", rng=rng)
    own = iter(data.Batches(images, labels, BATCH, rng=rng, drop_last=True))

    def walk():
        objective = train.Objective(model, losses.cross_entropy, *next(own))
        start = objective.vector()
        _, slope = objective.value_and_gradient(start)
        values, changes = [], []
        for multiple in WALK:
            value, other = objective.value_and_gradient(start - multiple * RATE * slope)
            values.append(value)
            changes.append(np.linalg.norm(other - slope))
        objective.assign(start)
        steps = WALK * RATE * np.linalg.norm(slope)
        return (
            max(values) - min(values), max(changes), max(changes / steps),
            max(changes) / np.linalg.norm(slope),
        )  # fmt: skip

    batches = data.Batches(images, labels, BATCH, rng=rng)
    optimizer = optim.SGD(model.parameters(), RATE)
    return np.array(curve(model, optimizer, batches, STEPS, EVERY, walk))


found = {kind: np.array([measured(kind, s) for s in experiment.seeds]) for kind in KINDS}
medians = {kind: np.median(values, axis=1) for kind, values in found.items()}
lower = (medians["batch norm"] < medians["without"]).all(axis=0)
factors = medians["without"].mean(axis=0) / medians["batch norm"].mean(axis=0)
reason = "without batch norm, " + ", ".join(
    f"{name} {factor:.2g} times as large{'' if is_lower else ' (not for every seed)'}"
    for (name, factor, is_lower) in zip(MEASURES.values(), factors, lower, strict=True)
)

figure, panels = axes(4)
steps = range(EVERY, STEPS + 1, EVERY)
for i, (axis, title) in enumerate(zip(panels, MEASURES.values(), strict=True)):
    for kind in KINDS:
        band(axis, steps, found[kind][:, :, i], kind)
    axis.set(title=title, xlabel="step", yscale="log")
panels[0].legend()
experiment.finish(
    {"medians": {kind: dict(zip(MEASURES, values.T, strict=True))
                 for kind, values in medians.items()}},
    figure, judge(lower[:3]), reason,
)  # fmt: skip
