"""Vanishing and exploding gradients: the gradient of each of 55 layers, with and without batch norm.

Claims at initialization. (1) In a residual net batch norm keeps gradients small and light-tailed;
without it they are large and heavy-tailed (Bjorck et al. 2018, arXiv:1806.02375, section 3). (2) In
a net without shortcuts it makes them explode: their squares grow by a factor a layer that depends
on the batch size B and tends to pi / (pi - 1) = 1.467 with ReLU (Yang et al. 2019,
arXiv:1902.08129).

What is tried: 55 Dense layers on MNIST, plain and in residual blocks of two; Glorot's weights, as
Bjorck et al. have them, and He's. `nbbn.inspect` gives the gradients. `theory` derives the factor
for every B.

Refuted: (1) if without batch norm the residual net's middle layer has no larger gradient, or no
larger kurtosis of its elements; (2) if a growth is 5 % from theory, or that of the largest batch 5 %
from 1.467.
"""

import math

import numpy as np
from common import Experiment, axes, band

import nbbn
from nbbn import data, optim, train
from nbbn.nn import losses

experiment = Experiment(
    "gradients",
    "At initialization batch norm tames a residual net's gradients, and makes a plain one's grow"
    " by pi / (pi - 1) a layer",
)
DEPTH, WIDTH = 55, experiment.pick(512, 32)
SIZES = experiment.pick((8, 16, 32, 64, 128, 256, 512, 1024), (8, 32))
images, labels = data.Batches(*experiment.images(), 1, shuffle=False).first(max(SIZES))


class Block(nbbn.Module):
    """relu(x + body(x))."""

    def __init__(self, *layers):
        self.body = nbbn.Sequential(*layers)

    def forward(self, x):
        """Add, then rectify."""
        return nbbn.ops.relu(x + self.body(x))


def unit(inputs, norm, init, rng, activation=True):
    """A Dense, a normalization if there is one, and a ReLU."""
    parts = [nbbn.Dense(inputs, WIDTH, bias=False, init=init, rng=rng)]
    parts += [nbbn.BatchNorm(WIDTH)] if norm else []
    return [*parts, nbbn.ReLU()] if activation else parts


def net(seed, residual, norm, init):
    """55 Dense layers, the last of which gives the logits."""
    rng = np.random.default_rng(seed)
    layers = unit(784, norm, init, rng)
    for _ in range((DEPTH - 2) // 2):
        first = unit(WIDTH, norm, init, rng)
        second = unit(WIDTH, norm, init, rng, activation=not residual)
        layers += [Block(*first, *second)] if residual else [*first, *second]
    layers += unit(WIDTH, norm, init, rng)
    return nbbn.Sequential(*layers, nbbn.Dense(WIDTH, 10, init=init, rng=rng))


def norms(model, batch=128, **options):
    """The norm of the gradient of each Dense but the last."""
    found = nbbn.inspect(model, images[:batch], warn=False, **options)
    return [f.grad_norm for f in found.layers if f.layer.startswith("Dense")][:-1]


def kurtosis(model):
    """Excess kurtosis of the elements of the middle layer's gradient."""
    with nbbn.Tape() as tape:
        loss = losses.cross_entropy(model(images[:128]), labels[:128])
    tape.backward(loss)
    weights = [p for p in model.parameters() if p.ndim == 2]
    gradient = weights[DEPTH // 2].grad.astype(float)
    model.zero_grad()
    z = (gradient - gradient.mean()) / gradient.std()
    return float((z**4).mean() - 3)


def theory(batch):
    """Growth of squared gradients a layer, for a wide net; pi / (pi - 1) for large batches.

    Deep in the net the batch's B values of a channel are, after the normalization, uniform on a
    sphere, and correlate by c = -1 / (B - 1). The weights' variance cancels; 1 / variance of B
    normal values has the mean B / (B - 3); the backward pass of the normalization projects a
    gradient that the ReLU has masked, which keeps the share `kept` of it.
    """
    c = -1 / (batch - 1)
    both = (math.pi - math.acos(c)) / (2 * math.pi)  # that two values are positive
    product = (math.sqrt(1 - c * c) + (math.pi - math.acos(c)) * c) / (2 * math.pi)
    kept = (batch - 2) / 2 * (1 - 1 / batch) / (batch - 1) + (both + product) / batch
    return batch / (batch - 3) * kept / (1 / 2 - product)


def growth(seed, batch):
    """Measured growth of squared gradients a layer, away from both ends, of a random output."""
    target = np.random.default_rng(seed + 1000).standard_normal((batch, 10)).astype(np.float32)
    model = net(seed, False, True, "he")
    found = norms(model, batch, y=target, loss=lambda output, y: (output * y).sum())
    logs = 2 * np.log(found[10:-5])
    return float(np.exp(-np.polyfit(range(len(logs)), logs, 1)[0]))


KINDS = {
    "plain, no batch norm, Glorot": (False, False, "glorot"),
    "plain, no batch norm, He": (False, False, "he"),
    "plain, batch norm": (False, True, "glorot"),
    "residual, no batch norm": (True, False, "glorot"),
    "residual, batch norm": (True, True, "glorot"),
}
gradients, tails = {}, {}
for kind, options in KINDS.items():
    nets = [net(seed, *options) for seed in experiment.seeds]
    gradients[kind] = [norms(model, y=labels[:128]) for model in nets]
    tails[kind] = [kurtosis(model) for model in nets]
    if kind == "plain, batch norm":
        for model in nets:
            optimizer = optim.SGD(model.parameters(), 0.01)
            train.record_step(model, losses.cross_entropy, optimizer)(images[:128], labels[:128])
        gradients["... after a step"] = [norms(model, y=labels[:128]) for model in nets]
measured = {batch: [growth(seed, batch) for seed in experiment.seeds] for batch in SIZES}

middle = {kind: np.mean(found, axis=0)[DEPTH // 2] for kind, found in gradients.items()}
larger = middle["residual, no batch norm"] / middle["residual, batch norm"]
heavier = np.mean(tails["residual, no batch norm"]), np.mean(tails["residual, batch norm"])
errors = {batch: np.mean(m) / theory(batch) - 1 for batch, m in measured.items()}
worst = max(errors.values(), key=abs)
limit = np.mean(measured[max(SIZES)]) * (math.pi - 1) / math.pi - 1
parts = [larger > 1 and heavier[0] > heavier[1], abs(worst) < 0.05 and abs(limit) < 0.05]
verdict = ("not reproduced", "partly", "reproduced")[sum(parts)]
reason = (
    f"residual net: gradients {larger:.3g} times as large without batch norm, kurtosis "
    f"{heavier[0]:.1f} against {heavier[1]:.1f}; plain net: growth a layer {worst:+.1%} from theory "
    f"at worst, {np.mean(measured[max(SIZES)]):.3f} at a batch of {max(SIZES)}"
)

figure, (left, right) = axes(2)
layers = range(1, DEPTH)
for kind, found in gradients.items():
    band(left, layers, found, kind, linestyle="--" if kind.startswith("...") else "-")
left.set(title="At initialization", xlabel="layer", ylabel="norm of its gradient", yscale="log")
left.legend(fontsize=7)
line = np.geomspace(min(SIZES), max(SIZES))
right.plot(line, [theory(batch) for batch in line], "k", label="theory", linewidth=1)
right.axhline(math.pi / (math.pi - 1), color="gray", linestyle=":", label="pi / (pi - 1)")
for seed in experiment.seeds:
    points = [measured[batch][seed] for batch in SIZES]
    right.plot(SIZES, points, "C2o", alpha=0.6, label="measured" if seed == 0 else None)
right.set(title="Plain net with batch norm", xlabel="batch", xscale="log")
right.set(ylabel="growth of squared gradients a layer")
right.legend()
experiment.finish(
    {"depth": DEPTH, "width": WIDTH, "growth": {b: np.array(m) for b, m in measured.items()},
     "theory": {batch: theory(batch) for batch in SIZES}, "kurtosis": tails,
     "first_over_last": {k: np.mean(g, axis=0)[0] / np.mean(g, axis=0)[-1]
                         for k, g in gradients.items()}},
    figure, verdict, reason,
)  # fmt: skip
