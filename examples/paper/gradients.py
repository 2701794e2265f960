"""Vanishing and exploding gradients: those of 55 layers, with and without batch norm.

Claims at initialization. (1) In a deep residual net gradients are large and heavy-tailed without
batch norm, and smaller and light-tailed with it (Bjorck et al. 2018, arXiv:1806.02375, section 3,
on a ResNet of 110 layers, of which they show the 55th). (2) Batch norm preserves gradients from
layer to layer, as a conjecture (Ioffe and Szegedy 2015, section 3.3).

What is tried: 55 hidden layers of 256 on MNIST, plain and in residual blocks of two. Weights are
Glorot's, as those of Bjorck et al., and He's in one net more. `nbbn.inspect` gives the gradients;
the plain net with batch norm is also looked at after one step of SGD.

Refuted: (1) if without batch norm the residual net's middle layer has no larger gradient, or its
elements no larger kurtosis, for any seed; (2) if in the plain net with batch norm the largest layer
gradient is more than ten times the least. Partly if one is.
"""

import numpy as np
from common import Experiment, axes, band, judge

import nbbn
from nbbn import data, optim, train
from nbbn.nn import losses

experiment = Experiment("gradients", "At initialization batch norm keeps gradients in bounds")
HIDDEN, WIDTH, BATCH = 55, experiment.pick(256, 32), 128
images, labels = data.Batches(*experiment.images(), 1, shuffle=False).first(BATCH)


class Block(nbbn.Module):
    """relu(x + body(x)); the body ends without a ReLU."""

    def __init__(self, body):
        self.body = body

    def forward(self, x):
        """Add, then rectify."""
        return nbbn.ops.relu(x + self.body(x))


def plain(init, batch_norm, rng):
    """55 Dense layers with ReLU, and the one that gives logits."""
    sizes = 784, *[WIDTH] * HIDDEN, 10
    return nbbn.mlp(sizes, batch_norm=batch_norm, init=init, rng=rng)


def residual(init, batch_norm, rng):
    """As many layers, 54 of them in blocks of two."""
    options = {"batch_norm": batch_norm, "init": init, "rng": rng}
    layers = list(nbbn.mlp((784, WIDTH, 10), **options))
    blocks = []
    for _ in range(HIDDEN // 2):
        body = list(nbbn.mlp((WIDTH, WIDTH, WIDTH), **options))
        blocks.append(Block(nbbn.Sequential(*body, *([nbbn.BatchNorm(WIDTH)] * batch_norm))))
    return nbbn.Sequential(*layers[:-1], *blocks, layers[-1])


def norms(model):
    """The norm of the gradient of each Dense but the last."""
    found = nbbn.inspect(model, images, labels, warn=False)
    return [f.grad_norm for f in found.layers if f.layer.startswith("Dense")][:-1]


def middle(model):
    """The elements of the middle layer's gradient, in their deviations."""
    with nbbn.Tape() as tape:
        loss = losses.cross_entropy(model(images), labels)
    tape.backward(loss)
    weights = [p for p in model.parameters() if p.ndim == 2]
    gradient = weights[HIDDEN // 2].grad.astype(float).ravel()
    model.zero_grad()
    return (gradient - gradient.mean()) / gradient.std()


def kurtosis(z):
    """Excess kurtosis: 0 for normal values."""
    return float((z**4).mean() - 3)


KINDS = {
    "plain, Glorot": (plain, "glorot", False),
    "plain, He": (plain, "he", False),
    "plain, batch norm": (plain, "glorot", True),
    "residual": (residual, "glorot", False),
    "residual, batch norm": (residual, "glorot", True),
}
gradients, elements = {}, {}
for kind, (make, *options) in KINDS.items():
    nets = [make(*options, np.random.default_rng(seed)) for seed in experiment.seeds]
    gradients[kind] = np.array([norms(model) for model in nets])
    elements[kind] = [middle(model) for model in nets]
    if kind == "plain, batch norm":
        for model in nets:
            optimizer = optim.SGD(model.parameters(), 0.01)
            train.record_step(model, losses.cross_entropy, optimizer)(images, labels)
        gradients[f"{kind}, a step later"] = np.array([norms(model) for model in nets])

tails = {kind: [kurtosis(z) for z in found] for kind, found in elements.items()}
ranges = {kind: (g.max(axis=1) / g.min(axis=1)).mean() for kind, g in gradients.items()}
ratio = (gradients["residual"] / gradients["residual, batch norm"])[:, HIDDEN // 2]
heavier = np.array(tails["residual"]) > tails["residual, batch norm"]
parts = [(ratio > 1).all() and heavier.all(), ranges["plain, batch norm"] <= 10]
reason = (
    f"residual net: without batch norm gradients {ratio.mean():.3g} times as large, kurtosis "
    f"{np.mean(tails['residual']):.1f} instead of {np.mean(tails['residual, batch norm']):.1f}; "
    f"plain net: with batch norm they range over a factor of {ranges['plain, batch norm']:,.0f}, "
    f"without over {ranges['plain, He']:.1f} (He)"
)

figure, (left, right) = axes(2)
for kind, found in gradients.items():
    style = {"linestyle": "--", "color": "C2"} if kind.endswith("later") else {}
    band(left, range(1, HIDDEN + 1), found, kind, **style)
left.set(title="55 layers at initialization", xlabel="layer", ylabel="norm of its gradient")
left.set_yscale("log")
left.legend(fontsize=6.5, loc=(0.02, 0.19))
for kind, color in (("residual", "C3"), ("residual, batch norm", "C4")):
    values = np.concatenate(elements[kind])
    style = {"histtype": "step", "color": color, "label": kind}
    right.hist(values, np.linspace(-12, 12, 97), density=True, **style)
x = np.linspace(-5, 5)
right.plot(x, np.exp(-x * x / 2) / np.sqrt(2 * np.pi), "k:", label="normal")
right.set(title="Elements of the middle layer's gradient", xlabel="deviations", ylabel="density")
right.set(yscale="log", ylim=(1e-6, 2))
right.legend(fontsize=7)
experiment.finish(
    {"depth": HIDDEN, "width": WIDTH, "kurtosis": tails, "largest_over_least": ranges,
     "mean_norms": {kind: found.mean(axis=0) for kind, found in gradients.items()}},
    figure, judge(parts), reason,
)  # fmt: skip
