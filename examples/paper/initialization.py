"""Batch norm makes training insensitive to the scale of the initial weights, in deep nets too.

The claim: a layer followed by batch norm computes the same for weights W and aW, so that training
bears a wide range of initial scales, which a net without batch norm does not.
Source: Ioffe and Szegedy (2015), arXiv:1502.03167, section 3.3, BN(Wu) = BN((aW)u).
What would refute it: a depth at which the range of deviations that train is not wider with batch
norm than without (by a factor of 10 for "reproduced"). A deviation trains if the net is above 80 %
after a fixed number of steps, in the mean over seeds, at one rate at least.

Hidden layers of 100 ReLUs, weights drawn with deviations of 1e-4 to 10, at three rates of SGD: the
gradient of scaled weights is 1/a of the other, so that a large deviation wants a large rate.
"""

import numpy as np
from common import Experiment, axes, curve

import nbbn
from nbbn import data, optim

experiment = Experiment(
    "initialization",
    "Batch norm trains at initial scales of the weights at which a net without it does not",
)
DEPTHS = experiment.pick((3, 10, 30), (3, 10))
RATES = experiment.pick((0.01, 0.1, 1.0), (0.1, 1.0))
DEVIATIONS = experiment.pick(np.logspace(-4, 1, 11), np.logspace(-2, 0, 3))
STEPS, TRAINS = experiment.pick((300, 0.8), (30, 0.3))
images, labels = experiment.images()


def accuracy(depth, batch_norm, rate, deviation, seed):
    """Test accuracy after the steps."""
    rng = np.random.default_rng(seed)
    sizes = (784, *[100] * depth, 10)
    model = nbbn.mlp(sizes, batch_norm=batch_norm, init=float(deviation), rng=rng)
    batches = data.Batches(images, labels, 60, rng=rng)
    optimizer = optim.SGD(model.parameters(), rate)
    return curve(model, optimizer, batches, STEPS, STEPS, lambda: experiment.accuracy(model))[0]


def decades(trains):
    """Decades from the least to the largest deviation of the longest row that trains."""
    longest = max(map(len, "".join("x" if t else " " for t in trains).split()), default=0)
    return max(longest - 1, 0) * np.log10(DEVIATIONS[1] / DEVIATIONS[0])


kinds = [(depth, batch_norm) for batch_norm in (True, False) for depth in DEPTHS]
maps = {
    kind: np.array([[[accuracy(*kind, rate, deviation, seed) for seed in experiment.seeds]
                     for deviation in DEVIATIONS] for rate in RATES])
    for kind in kinds
}  # fmt: skip
ranges = {kind: decades((found.mean(axis=2) > TRAINS).any(axis=0)) for kind, found in maps.items()}
gains = [ranges[depth, True] - ranges[depth, False] for depth in DEPTHS]

figure, panels = axes(len(DEPTHS), 2, sharex=True, sharey=True)
for axis, (depth, batch_norm) in zip(panels.flat, kinds, strict=True):
    shown = axis.imshow(100 * maps[depth, batch_norm].mean(axis=2), vmin=10, vmax=100,
                        aspect="auto", origin="lower")  # fmt: skip
    name = "with batch norm" if batch_norm else "without"
    axis.set_title(f"{depth} hidden layers, {name}", fontsize="medium")
    places = range(0, len(DEVIATIONS), experiment.pick(2, 1))
    axis.set_xticks(places, [f"{DEVIATIONS[i]:g}" for i in places])
    axis.set_yticks(range(len(RATES)), [f"{rate:g}" for rate in RATES])
for axis in panels[:, 0]:
    axis.set_ylabel("learning rate")
for axis in panels[-1]:
    axis.set_xlabel("deviation of the initial weights")
figure.colorbar(shown, ax=panels, label=f"test accuracy after {STEPS} steps, %")

verdict = "reproduced" if min(gains) > 0.99 else "partly" if max(gains) > 0 else "not reproduced"
spans = "; ".join(
    f"depth {depth}: {ranges[depth, True]:g} decades with, {ranges[depth, False]:g} without"
    for depth in DEPTHS
)
experiment.finish(
    {"deviations": DEVIATIONS, "rates": RATES, "steps": STEPS,
     "accuracy": {f"depth {depth}, {'with' if bn else 'without'}": found
                  for (depth, bn), found in maps.items()},
     "largest_spread_of_seeds": max(float(np.ptp(m, axis=2).max()) for m in maps.values())},
    figure, verdict, f"weights train over {spans}",
)  # fmt: skip
