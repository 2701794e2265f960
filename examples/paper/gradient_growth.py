"""Exploding gradients: a plain deep net with batch norm makes them grow by the same factor a layer.

Claim (Yang et al. 2019, arXiv:1902.08129): at initialization, in a wide net of fully connected
layers, batch norm and ReLU, squared gradients grow from layer to layer, backwards, by a factor that
depends on the batch size alone and tends to pi / (pi - 1) = 1.467 for large batches. No choice of
the weights' scale prevents it; only shortcuts do.

What is tried: 55 layers of 512 on MNIST, batches of 8 to 1024, the gradient of a random direction
in the output. `nbbn.inspect` gives each layer's gradient, a straight line through their logarithms
the factor. `theory` derives it for every batch size. It takes all examples of a batch for alike;
the last picture shows by how much their norms differ.

Refuted if a factor in the mean over seeds is 5 % from theory, or that of the largest batch 5 % from
pi / (pi - 1), or if weights ten times as large change it by 1 %. Partly if only some of that fails.
"""

import math

import numpy as np
from common import Experiment, axes, band, judge

import nbbn
from nbbn import data

experiment = Experiment(
    "gradient_growth",
    "In a plain net batch norm makes squared gradients grow by pi / (pi - 1) a layer",
)
DEPTH, WIDTH = 55, experiment.pick(512, 32)
SIZES = experiment.pick((8, 16, 32, 64, 128, 256, 512, 1024), (8, 32))
LIMIT = math.pi / (math.pi - 1)
images, _ = data.Batches(*experiment.images(), 1, shuffle=False).first(max(SIZES))


def theory(batch):
    """Growth of squared gradients a layer, for a wide net.

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


def growth(seed, batch, init="he"):
    """Norms of the layers' gradients, and the factor by which their squares grow."""
    model = nbbn.mlp((784, *[WIDTH] * (DEPTH - 1), 10), init=init, rng=seed)
    direction = np.random.default_rng(seed + 1000).standard_normal((batch, 10)).astype(np.float32)
    found = nbbn.inspect(
        model, images[:batch], direction, loss=lambda output, y: (output * y).sum(), warn=False
    )
    norms = [f.grad_norm for f in found.layers if f.layer.startswith("Dense")][:-1]
    logs = 2 * np.log(norms[10:-5])  # away from both ends
    return norms, float(np.exp(-np.polyfit(range(len(logs)), logs, 1)[0]))


def unevenness(seed, batch):
    """Deviation over examples of the squared norms, 1 in the mean, of normalized Wu, by layer."""
    x, found = nbbn.Tensor(images[:batch]), []
    for layer in nbbn.mlp((784, *[WIDTH] * (DEPTH - 1)), rng=seed):
        x = layer(x)
        if isinstance(layer, nbbn.Dense):
            h = x.numpy()
            z = (h - h.mean(axis=0)) / h.std(axis=0)
            found.append(float(np.square(z).mean(axis=1).std()))
    return found


found = {batch: [growth(seed, batch) for seed in experiment.seeds] for batch in SIZES}
factors = {batch: [factor for _, factor in results] for batch, results in found.items()}
largest, typical, shown = max(SIZES), SIZES[len(SIZES) // 2], sorted({8, 32, max(SIZES)})
uneven = {batch: [unevenness(seed, batch) for seed in experiment.seeds] for batch in shown}
tenfold = [growth(seed, typical, 10 * (2 / WIDTH) ** 0.5)[1] for seed in experiment.seeds]

errors = [np.mean(values) / theory(batch) - 1 for batch, values in factors.items()]
worst, limit = max(errors, key=abs), np.mean(factors[largest])
larger = np.mean(tenfold) / np.mean(factors[typical]) - 1
parts = [abs(worst) < 0.05, abs(limit / LIMIT - 1) < 0.05, abs(larger) < 0.01]
reason = (
    f"{limit:.3f} a layer at a batch of {largest} (pi / (pi - 1) is {LIMIT:.3f}), {worst:+.1%} from"
    f" theory at worst; weights ten times as large change it by {larger:+.1%}"
)

figure, (left, middle, right) = axes(3)
for i, batch in enumerate(shown):
    norms = np.array(found[batch][0][0]) / found[batch][0][0][-1]
    left.plot(range(1, DEPTH), norms**2, f"C{i}", label=f"batch of {batch}")
    line = theory(batch) ** np.arange(DEPTH - 2, -1, -1)
    left.plot(range(1, DEPTH), line, f"C{i}:", linewidth=1)
left.set(title="Growth towards the input (dotted: theory)", xlabel="layer", yscale="log")
left.set(ylabel="squared gradient, last = 1")
left.legend()
line = np.geomspace(min(SIZES), largest)
middle.plot(line, [theory(batch) for batch in line], "k", label="theory", linewidth=1)
middle.axhline(LIMIT, color="gray", linestyle=":", label="pi / (pi - 1)")
for seed in experiment.seeds:
    points = [factors[batch][seed] for batch in SIZES]
    middle.plot(SIZES, points, "C2o", alpha=0.6, label="measured" if seed == 0 else None)
middle.set(title="Factor a layer", xlabel="batch", ylabel="growth of squared gradients")
middle.set_xscale("log", base=2)
middle.legend()
for batch in shown:
    band(right, range(1, DEPTH), uneven[batch], f"batch of {batch}")
right.set(title="How examples of a batch differ", xlabel="layer", yscale="log")
right.set(ylabel="spread of their squared norms")
right.legend()
experiment.finish(
    {"depth": DEPTH, "width": WIDTH, "growth": factors,
     "theory": {batch: theory(batch) for batch in SIZES}, "weights_x10": larger,
     "unevenness": {batch: np.mean(values, axis=0) for batch, values in uneven.items()}},
    figure, judge(parts), reason,
)  # fmt: skip
