"""Noise behind batch norm: shifting distributions do not hurt, so stability is not the reason.

Claim (Santurkar et al. 2018, arXiv:1805.11604, section 2.1): give every activation behind batch
norm its own shift and scale, drawn again at every step from distributions that themselves move. The
net trains about as well as with plain batch norm, better than without any, though its layers'
inputs are less stable than in the net without.

What is tried: a ReLU net with 8 hidden layers of 100, bare, with batch norm, and with noise in the
manner of the paper's appendix: shifts from U(m - 0.1, m + 0.1) with m from U(-0.5, 0.5), scales
from N(s, 0.1) with s from U(1, 1.25), m and s drawn for each unit and step. Each kind of net at the
best of three learning rates. MNIST and a small net stand for the paper's VGG on CIFAR-10, for the
sake of time.

Refuted if noise costs half of what batch norm gains in the mean loss over training, or more, or if
the inputs of the noisy net are as stable as those of the bare one. Reproduced if it costs less than
a quarter.
"""

import numpy as np
from common import Experiment, axes, band, forever, spread

import nbbn
from nbbn import data, optim, train
from nbbn.nn import losses

experiment = Experiment(
    "noise", "Noise behind batch norm makes distributions unstable, and training hardly worse"
)
DEPTH, WIDTH, BATCH = 8, 100, 128
STEPS, EVERY = experiment.pick((1500, 50), (40, 10))
RATES = experiment.pick((0.03, 0.1, 0.3), (0.1,))
KINDS = "bare", "batch norm", "noisy batch norm"
images, labels = experiment.images()
probe, _ = data.Batches(images, labels, 1, shuffle=False).first(BATCH)


class Noise(nbbn.Module):
    """scale * x + shift in training, with arrays that `draw` fills."""

    buffers = "scale", "shift"
    recordable = True

    def __init__(self):
        self.scale = np.ones((BATCH, WIDTH), np.float32)
        self.shift = np.zeros((BATCH, WIDTH), np.float32)

    def draw(self, rng):
        """Give every unit new distributions, and every activation new noise from them."""
        center, scale = rng.uniform(-0.5, 0.5, WIDTH), rng.uniform(1, 1.25, WIDTH)
        self.shift[...] = rng.uniform(center - 0.1, center + 0.1, (BATCH, WIDTH))
        self.scale[...] = rng.normal(scale, 0.1, (BATCH, WIDTH))

    def forward(self, x):
        """Disturb what goes through in training; the noise's mean else."""
        return x * self.scale + self.shift if self.training else 1.125 * x


def net(kind, rng):
    """Eight hidden layers."""
    layers = []
    for inputs in (784, *[WIDTH] * (DEPTH - 1)):
        layers.append(nbbn.Dense(inputs, WIDTH, bias=kind == "bare", rng=rng))
        layers += [] if kind == "bare" else [nbbn.BatchNorm(WIDTH)]
        layers += [Noise()] if kind == "noisy batch norm" else []
        layers.append(nbbn.ReLU())
    return nbbn.Sequential(*layers, nbbn.Dense(WIDTH, 10, rng=rng))


def trained(kind, rate, seed):
    """Loss over training, test accuracy, and by how much layers' inputs move in a step."""
    rng, disturbing = np.random.default_rng(seed), np.random.default_rng(seed + 1000)
    model = net(kind, rng)
    noises = [layer for layer in model if isinstance(layer, Noise)]
    batches = data.Batches(images, labels, BATCH, rng=rng, drop_last=True)
    step = train.record_step(model, losses.cross_entropy, optim.SGD(model.parameters(), rate))
    found, recent, moved = [], [], []
    for done, (x, y) in zip(range(1, STEPS + 1), forever(batches), strict=False):
        if done % EVERY == 0:
            before = means(model)
        for noise in noises:
            noise.draw(disturbing)
        recent.append(step(x, y))
        if done % EVERY == 0:
            moved.append(np.abs(means(model) - before).mean())
            found.append(min(np.mean(recent), 10.0) if np.isfinite(recent).all() else 10.0)
            recent.clear()
    return found, experiment.accuracy(model), np.median(moved)


def means(model):
    """Mean over a fixed batch of what enters each unit's ReLU, in its deviations."""
    x, found = nbbn.Tensor(probe), []
    running = {name: array.copy() for name, array in model.state_dict().items()}
    for layer in model:
        if isinstance(layer, nbbn.ReLU):
            found.append(x.numpy().mean(axis=0) / (x.numpy().std(axis=0) + 1e-6))
        x = layer(x)
    model.load_state_dict(running)
    return np.array(found)


curves, accuracies, moves, best = {}, {}, {}, {}
for kind in KINDS:
    tried = {rate: [trained(kind, rate, s) for s in experiment.seeds] for rate in RATES}
    best[kind] = min(tried, key=lambda rate: np.mean([np.mean(f) for f, _, _ in tried[rate]]))
    curves[kind], accuracies[kind], moves[kind] = zip(*tried[best[kind]], strict=True)

bare, normed, noisy = (np.mean(curves[kind]) for kind in KINDS)
cost = (noisy - normed) / (bare - normed) if bare > normed else np.inf
unstable = np.mean(moves["noisy batch norm"]) > np.mean(moves["bare"])
verdict = "partly"
if cost < 0.25 and unstable:
    verdict = "reproduced"
elif cost >= 0.5 or not unstable:
    verdict = "not reproduced"
reason = (
    f"noise costs {cost:.0%} of what batch norm gains in loss; a step moves inputs by "
    + ", ".join(f"{np.mean(moves[k]):.2g} deviations ({k})" for k in KINDS)
    + "; accuracy " + ", ".join(f"{spread(accuracies[k])} ({k})" for k in KINDS)
)  # fmt: skip

figure, (left, right) = axes(2)
for kind in KINDS:
    label = f"{kind} (rate {best[kind]:g})"
    band(left, range(EVERY, STEPS + 1, EVERY), curves[kind], label)
left.set(title="Training", xlabel="step", ylabel="loss", yscale="log")
left.legend(fontsize=8)
for position, kind in enumerate(KINDS):
    right.bar(position, np.mean(moves[kind]), color=f"C{position}")
    right.plot([position] * len(moves[kind]), moves[kind], "k.")
right.set_xticks(range(3), KINDS, fontsize=8)
right.set(title="Instability of the layers' inputs", yscale="log")
right.set(ylabel="change of means in one step, deviations")
experiment.finish(
    {"best_rate": best, "mean_loss": {k: np.mean(c, axis=1) for k, c in curves.items()},
     "accuracy": accuracies, "moved": moves, "cost": cost},
    figure, verdict, reason,
)  # fmt: skip
