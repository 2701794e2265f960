"""Small batches harm batch norm; norms of single examples, and renormalization, bear them.

The claims: batch norm loses accuracy as the batch shrinks, group norm does not (Wu and He, "Group
Normalization", 2018, arXiv:1803.08494, figure 1); batch renormalization loses less than batch norm
(Ioffe, 2017, arXiv:1702.03275).
What would refute them: batch norm that is as accurate as group norm at batches of 2, in one seed,
or that compares no worse with it there than at 128; renormalization that is no better than batch
norm, in the mean over seeds, at 2 or at 4.

A small convolutional net, because instance norm needs an image to average over. Each run sees the
same number of images; the rate of SGD is proportional to the batch size. Ghost batches are of 16,
so that up to 16 they are batch norm, and from 32 on they show what its noise alone does. Limits of
the renormalization rise over the run in the paper's proportions. "Taken again" is the same net as
batch norm, with running statistics of 2,000 images taken after training by `recalibrate`: what of
the loss is the fault of the running averages, not of training.
"""

import numpy as np
from common import Experiment, axes, band, curve, judge

from nbbn import data, nn, optim

experiment = Experiment(
    "small_batches",
    "Batch norm suffers from small batches; group norm does not, and renormalization does less",
)
SIZES = experiment.pick((2, 4, 8, 16, 32, 128), (2, 32))
EXAMPLES, RATE_AT_128 = experiment.pick(12_288, 256), 0.5
images, labels = experiment.images(EXAMPLES)


def renorm(channels, steps):
    """Renormalization whose limits rise as in the paper, of whose 5,000 to 40,000 of 160,000."""
    parts = [max(round(steps * share), 1) for share in (0.03, 0.25, 0.16)]
    r_max = nn.Ramp(1, 3, parts[0], max(parts[1], parts[0] + 1))
    d_max = nn.Ramp(0, 5, parts[0], max(parts[2], parts[0] + 1))
    return nn.BatchRenorm(channels, r_max=r_max, d_max=d_max)


NORMS = {
    "batch": lambda channels, steps: nn.BatchNorm(channels),
    "renorm": renorm,
    "ghost": lambda channels, steps: nn.GhostBatchNorm(channels, 16),
    "layer": lambda channels, steps: nn.GroupNorm(1, channels),  # over channels and positions
    "group": lambda channels, steps: nn.GroupNorm(4, channels),
    "instance": lambda channels, steps: nn.InstanceNorm(channels),
    "none": None,
}


def run(norm, size, seed):
    """Test accuracy after one pass; for batch norm also with statistics that are taken again."""
    rng, norm = np.random.default_rng(seed), NORMS[norm]
    layers, steps = [nn.Unflatten((1, 28, 28))], EXAMPLES // size
    for before, channels in ((1, 8), (8, 16)):
        layers.append(nn.Conv2d(before, channels, 3, stride=2, padding=1, bias=not norm, rng=rng))
        layers += [norm(channels, steps), nn.ReLU()] if norm else [nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Dense(16 * 7 * 7, 10, rng=rng))
    optimizer = optim.SGD(model.parameters(), RATE_AT_128 * size / 128)
    batches = data.Batches(images, labels, size, drop_last=True, rng=rng)
    found = curve(model, optimizer, batches, steps, steps, lambda: experiment.accuracy(model))
    if norm is NORMS["batch"]:
        nn.recalibrate(model, data.Batches(images[:2000], labels[:2000], 500, shuffle=False))
        found.append(experiment.accuracy(model))
    return found


accuracies = {}
for name in NORMS:
    runs = np.array([[run(name, size, seed) for size in SIZES] for seed in experiment.seeds])
    accuracies[name] = runs[..., 0]
    if name == "batch":
        accuracies["batch, taken again"] = runs[..., 1]
mean = {name: found.mean(axis=0) for name, found in accuracies.items()}

figure, axis = axes()
figure.set_size_inches(7, 4)
for number, (name, found) in enumerate(accuracies.items()):
    style = {"batch, taken again": "--", "none": ":"}.get(name, "-")
    colour = "0.3" if name == "none" else f"C{max(number - 1, 0)}"
    band(axis, range(len(SIZES)), 100 * found, name, linestyle=style, color=colour, marker=".")
axis.set_xticks(range(len(SIZES)), SIZES)
axis.set(xlabel="batch size", ylabel=f"test accuracy after {EXAMPLES:,} images, %")
axis.legend(ncols=2, loc="lower right")

over_group = accuracies["batch"] - accuracies["group"]
harmed = over_group[:, 0].max() < 0 and over_group[:, 0].mean() < over_group[:, -1].mean()
helped = all(mean["renorm"][:2] > mean["batch"][:2])
experiment.finish(
    {"batch_sizes": SIZES, "images": EXAMPLES, "accuracy": accuracies},
    figure, judge((harmed, helped)),
    f"from batches of {SIZES[-1]} to {SIZES[0]}, test accuracies go: "
    + ", ".join(f"{name} {m[-1]:.2%} to {m[0]:.2%}" for name, m in mean.items()),
)  # fmt: skip
