"""Scale invariance: weights in front of batch norm have a direction, but no scale.

Claim (Ioffe and Szegedy 2015, section 3.3): BN((aW)u) = BN(Wu) for any scale a; the gradient with
respect to u is the same, and that with respect to aW is 1 / a times as large. So larger weights
have smaller gradients, which stabilizes their growth. From the first follows that a gradient is
orthogonal to its weight.

What is tried: 784-100-100-100-10 on MNIST in float64 with its hidden weights times 0.01 to 100, and
with a single layer's. eps, which is added to the variance, has a scale: it is 1e-30 for the claim,
and 1e-5, the usual one, to show what it does.

Refuted if with eps = 1e-30 output, gradients or the cosine of weight and gradient are off by a
relative 1e-12 for any seed.
"""

import numpy as np
from common import Experiment, axes, band, bare_net

import nbbn
from nbbn import data
from nbbn.nn import losses

experiment = Experiment(
    "scale_invariance", "A weight in front of batch norm times a: same output, gradient over a"
)
SCALES = np.geomspace(0.01, 100, experiment.pick(17, 5))
x, y = data.Batches(*experiment.images(), 1, shuffle=False).first(256)
x = x.astype(np.float64)


def computed(seed, eps, scale):
    """Output, a times the weights' gradients, and the cosines of weights and gradients."""
    model, weights = bare_net(seed, eps, scale)
    with nbbn.Tape() as tape:
        output = model(x)
        loss = losses.cross_entropy(output, y)
    tape.backward(loss)
    cosines = [
        np.vdot(w.data, w.grad) / np.linalg.norm(w.data) / np.linalg.norm(w.grad) for w in weights
    ]
    return output.numpy(), np.concatenate([scale * w.grad.ravel() for w in weights]), cosines


def errors(seed, eps):
    """Relative errors of output and gradient, and the largest cosine, (scales, 3)."""
    truth, found = computed(seed, eps, 1.0)[:2], []
    for scale in SCALES:
        *pair, cosines = computed(seed, eps, scale)
        off = [np.linalg.norm(b - a) / np.linalg.norm(a) for a, b in zip(truth, pair, strict=True)]
        found.append([*off, np.abs(cosines).max()])
    return np.array(found)


table = {eps: np.array([errors(seed, eps) for seed in experiment.seeds]) for eps in (1e-30, 1e-5)}
worst = {eps: found.max(axis=(0, 1)) for eps, found in table.items()}
verdict = "reproduced" if worst[1e-30].max() < 1e-12 else "not reproduced"
named = list(zip(("output", "gradient", "cosine"), worst[1e-30], worst[1e-5], strict=True))
reason = "largest errors " + ", ".join(
    f"{what} {without:.1g} (with eps = 1e-5: {usual:.1g})" for what, without, usual in named
)

figure, axis = axes()
for eps, style in ((1e-30, "-"), (1e-5, "--")):
    for column, (what, *_) in enumerate(named):
        values = table[eps][:, :, column] + 1e-17
        band(axis, SCALES, values, f"{what}, eps {eps:.0e}", linestyle=style, color=f"C{column}")
axis.set(title="Hidden weights times a", xlabel="a", ylabel="relative error")
axis.set(xscale="log", yscale="log")
axis.legend(fontsize=7)
experiment.finish(
    {"scales": SCALES, "worst": {f"{eps:g}": [float(f"{v:.2g}") for v in values]
                                 for eps, values in worst.items()}},
    figure, verdict, reason,
)  # fmt: skip
