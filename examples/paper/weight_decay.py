"""Weight decay as a learning rate: in front of batch norm it does nothing else.

Claim (van Laarhoven 2017, arXiv:1706.05350; Hoffer et al. 2018, arXiv:1803.01814): such weights
have no scale, so decay cannot restrain the function. (a) It sets their effective learning rate,
rate / |w|^2: without decay, at a rate that is chosen step by step to the same effect, the net
learns the same. (b) The effective rate forgets where the weights began and settles in proportion to
sqrt(rate * decay).

What is tried: 784-100-100-100-10 on MNIST in float64, SGD. Without decay; with decay on the hidden
weights; without, each weight w at rate |w|^2 / (|w'|^2 (1 - rate * decay)), with w' of the net that
decays; with decay from weights twice as large; with four times the decay. eps is 1e-30: it is the
one thing that has a scale.

Refuted: (a) if the first 500 losses differ by a relative 1e-6, or final accuracies by 0.1 points in
the mean; (b) if the exponent of the decay is not 0.5 +- 0.15, or weights twice as large end at an
effective rate that differs by 10 %. Partly if one is.
"""

import numpy as np
from common import Experiment, axes, band, bare_net, forever, judge, spread

from nbbn import data, optim, train
from nbbn.nn import losses

experiment = Experiment(
    "weight_decay", "In front of batch norm weight decay is nothing but a learning rate"
)
RATE, DECAY, BATCH, STEPS = 0.1, 0.01, 60, experiment.pick(5000, 100)
images, labels = experiment.images()


def square(weight):
    """Its squared norm."""
    return float(np.square(weight.numpy()).sum())


def trained(seed, decay=0.0, follow=None, scale=1.0):
    """Losses, squared norms of the weights before each step, and the test accuracy."""
    model, weights = bare_net(seed, 1e-30, scale)

    def schedule(index):
        if follow is None:
            return RATE
        turn = RATE / (1 - RATE * DECAY)
        return lambda step: turn * square(weights[index]) / follow[min(step, STEPS - 1), index]

    groups = [
        {"params": [w], "lr": schedule(i), "weight_decay": decay} for i, w in enumerate(weights)
    ]
    rest = [p for p in model.parameters() if all(p is not w for w in weights)]
    optimizer = optim.SGD([*groups, {"params": rest}], RATE)
    step = train.record_step(model, losses.cross_entropy, optimizer)
    batches = data.Batches(images, labels, BATCH, rng=seed)
    found, norms = [], []
    for _, (x, y) in zip(range(STEPS), forever(batches), strict=False):
        norms.append([square(w) for w in weights])
        found.append(step(x.astype(np.float64), y))
    mnist = experiment.mnist
    x, y = data.Batches(mnist.test_images, mnist.test_labels, 1, shuffle=False).first(10_000)
    right = model.eval()(x.astype(np.float64)).numpy().argmax(axis=1) == y
    return np.array(found), np.array(norms), right.mean()


RUNS = {
    "no decay": {},
    "decay": {"decay": DECAY},
    "no decay, its rates": {},
    "decay, weights x 2": {"decay": DECAY, "scale": 2.0},
    "decay x 4": {"decay": 4 * DECAY},
}
runs = {name: [] for name in RUNS}
for seed in experiment.seeds:
    for name, options in RUNS.items():
        follow = runs["decay"][-1][1] if name == "no decay, its rates" else None
        runs[name].append(trained(seed, follow=follow, **options))

early = min(500, STEPS)
pairs = zip(runs["decay"], runs["no decay, its rates"], strict=True)
apart = max(np.abs(b[0] / a[0] - 1)[:early].max() for a, b in pairs)
accuracy = {name: [a for _, _, a in found] for name, found in runs.items()}
gap = np.mean(accuracy["no decay, its rates"]) - np.mean(accuracy["decay"])
free = [name for name in RUNS if name != "no decay, its rates"]
# Of the second layer; its last fifth has settled.
effective = {name: [RATE / norms[:, 1] for _, norms, _ in runs[name]] for name in free}
settled = {name: np.mean([e[-STEPS // 5 :] for e in found]) for name, found in effective.items()}
exponent = np.log(settled["decay x 4"] / settled["decay"]) / np.log(4)
forgotten = settled["decay, weights x 2"] / settled["decay"] - 1
parts = apart < 1e-6 and abs(gap) < 0.001, abs(exponent - 0.5) < 0.15 and abs(forgotten) < 0.1
reason = (
    f"with decay's rates instead of decay {early} losses agree to {apart:.1g}, accuracies to "
    f"{100 * abs(gap):.2f} points; the effective rate goes with decay^{exponent:.2f}, and from "
    f"weights twice as large it ends {forgotten:+.1%} away; accuracy "
    + ", ".join(f"{spread(accuracy[name])} {name}" for name in ("no decay", "decay"))
)

figure, (left, right) = axes(2)
for name in free:
    band(left, range(STEPS), effective[name], name)
left.set(title="Effective rate of layer 2", xlabel="step", ylabel="rate / |w|^2", yscale="log")
left.legend(fontsize=8)
window = STEPS // 50
for name, style in (("no decay", "C0"), ("decay", "C1"), ("no decay, its rates", "k:")):
    smooth = np.mean([losses for losses, _, _ in runs[name]], axis=0).reshape(-1, window)
    right.plot(np.arange(1, 51) * window, smooth.mean(axis=1), style, label=name)
right.set(title="Training", xlabel="step", ylabel="loss", yscale="log")
right.legend()
experiment.finish(
    {"losses_apart": float(f"{apart:.2g}"), "exponent": exponent, "forgotten": forgotten,
     "effective_rate": {name: float(f"{rate:.4g}") for name, rate in settled.items()},
     "accuracy": accuracy},
    figure, judge(parts), reason,
)  # fmt: skip
