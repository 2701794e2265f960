"""Scale invariance: weights in front of batch norm have no scale, and weight decay is their rate.

Claims. (1) BN((aW)u) = BN(Wu), and the gradient with respect to aW is 1 / a times as large (Ioffe
and Szegedy 2015, section 3.3). (2) So weight decay does not restrain such weights: it only sets
their effective learning rate, rate / |w|^2; the same net learns without decay if its rate is chosen
step by step to the same effect (van Laarhoven 2017, arXiv:1706.05350; Hoffer et al. 2018,
arXiv:1803.01814). (3) The effective rate forgets where the weights began, and settles in proportion
to sqrt(rate * decay).

What is tried: 784-100-100-100-10 on MNIST in float64, SGD. Without decay and with two strengths of
it on the hidden weights; without decay at the rates that (2) prescribes,
rate |w|^2 / (|w'|^2 (1 - rate * decay)) with w' of the net that decays; with decay from weights
twice as large. eps is 1e-30, which only the first part varies: it is the one thing with a scale.

Refuted: (1) if an error is above 1e-12; (2) if the first 500 losses differ by a relative 1e-6, or
final accuracies by 0.1 points in the mean; (3) if the exponent of the decay is not 0.5 +- 0.15, or
weights twice as large end at an effective rate that differs by 10 %. Partly if one or two fail.
"""

import numpy as np
from common import Experiment, axes, band, forever, spread

import nbbn
from nbbn import data, optim, train
from nbbn.nn import losses

experiment = Experiment(
    "scale_invariance",
    "Weights in front of batch norm have no scale; decay is nothing but their learning rate",
)
RATE, DECAY, BATCH = 0.1, 0.01, 60
STEPS, EVERY = experiment.pick((5000, 50), (100, 20))
SCALES = np.geomspace(0.01, 100, 9)
images, labels = experiment.images()


def net(seed, eps=1e-30, scale=1.0):
    """Three hidden layers; the weights before a normalization times `scale`."""
    rng, layers = np.random.default_rng(seed), []
    for inputs in (784, 100, 100):
        dense = nbbn.Dense(inputs, 100, bias=False, rng=rng, dtype=np.float64)
        dense.weight.data *= scale
        norm = nbbn.BatchNorm(100, convention=nbbn.Convention(eps=eps), dtype=np.float64)
        layers += [dense, norm, nbbn.ReLU()]
    return nbbn.Sequential(*layers, nbbn.Dense(100, 10, rng=rng, dtype=np.float64))


def hidden(model):
    """Weights in front of a normalization."""
    return [layer.weight for layer in model.layers[:-1] if isinstance(layer, nbbn.Dense)]


def squares(model):
    """Square of the norm of each."""
    return np.array([np.square(weight.numpy()).sum() for weight in hidden(model)])


def errors(eps):
    """Relative errors of output and of a times the gradient for every scale a."""
    x, y = data.Batches(images, labels, 1, shuffle=False).first(256)
    truth, found = None, []
    for scale in (1.0, *SCALES):
        model = net(0, eps, scale)
        with nbbn.Tape() as tape:
            output = model(x.astype(np.float64))
            loss = losses.cross_entropy(output, y)
        tape.backward(loss)
        gradient = np.concatenate([scale * weight.grad.ravel() for weight in hidden(model)])
        if truth is None:
            truth = output.numpy(), gradient
        pairs = zip(truth, (output.numpy(), gradient), strict=True)
        found.append([np.linalg.norm(b - a) / np.linalg.norm(a) for a, b in pairs])
    return np.array(found[1:])


def trained(seed, decay=0.0, follow=None, scale=1.0):
    """Losses, squared norms before each step, and test accuracies."""
    model, rng = net(seed, scale=scale), np.random.default_rng(seed)
    weights = hidden(model)

    def schedule(index):
        if follow is None:
            return RATE
        # The rate by which this weight turns as the one that decays.
        return lambda step: float(
            RATE * np.square(weights[index].numpy()).sum()
            / follow[min(step, len(follow) - 1)][index] / (1 - RATE * DECAY)
        )  # fmt: skip

    own = [
        {"params": [w], "lr": schedule(i), "weight_decay": decay} for i, w in enumerate(weights)
    ]
    rest = [p for p in model.parameters() if all(p is not w for w in weights)]
    optimizer = optim.SGD([*own, {"params": rest}], RATE)
    step = train.record_step(model, losses.cross_entropy, optimizer)
    batches = data.Batches(images, labels, BATCH, rng=rng)
    found, norms, accuracies = [], [], []
    for done, (x, y) in zip(range(1, STEPS + 1), forever(batches), strict=False):
        norms.append(squares(model))
        found.append(step(x.astype(np.float64), y))
        if done % EVERY == 0:
            accuracies.append(test(model))
    return np.array(found), np.array(norms), accuracies


def test(model):
    """Accuracy on the test images."""
    some, mnist = slice(experiment.pick(None, 1000)), experiment.mnist
    batches = data.Batches(mnist.test_images[some], mnist.test_labels[some], 1000, shuffle=False)
    model.eval()
    right = [model(x.astype(np.float64)).numpy().argmax(axis=1) == y for x, y in batches]
    model.train()
    return np.concatenate(right).mean()


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
        follow = {"follow": runs["decay"][-1][1]} if name == "no decay, its rates" else {}
        runs[name].append(trained(seed, **options, **follow))

table = {eps: errors(eps) for eps in (1e-30, 1e-5)}
early = min(500, STEPS)
pairs = list(zip(runs["decay"], runs["no decay, its rates"], strict=True))
apart = max(np.max(np.abs(b[0] / a[0] - 1)[:early]) for a, b in pairs)
final = {name: [accuracies[-1] for _, _, accuracies in found] for name, found in runs.items()}
gap = np.mean(final["no decay, its rates"]) - np.mean(final["decay"])
effective = {
    name: [RATE / norms[:, 1] for _, norms, _ in found] for name, found in runs.items()
}  # of the second layer
effective["no decay, its rates"] = effective["decay"]
settled = {name: np.mean([e[-STEPS // 5 :].mean() for e in found])
           for name, found in effective.items()}  # fmt: skip
exponent = np.log(settled["decay x 4"] / settled["decay"]) / np.log(4)
forgotten = settled["decay, weights x 2"] / settled["decay"] - 1
parts = [
    table[1e-30].max() < 1e-12,
    apart < 1e-6 and abs(gap) < 0.001,
    abs(exponent - 0.5) < 0.15 and abs(forgotten) < 0.1,
]
verdict = {3: "reproduced", 0: "not reproduced"}.get(sum(parts), "partly")
reason = (
    f"invariant to {table[1e-30].max():.1g}; with decay's rates instead of decay the first {early} "
    f"losses agree to {apart:.1g} and accuracies to {100 * abs(gap):.2f} points; the effective "
    f"rate goes with decay^{exponent:.2f}, and weights twice as large end {forgotten:+.1%} from it; "
    + "accuracy " + ", ".join(f"{spread(final[name])} ({name})" for name in list(RUNS)[:3])
)  # fmt: skip

figure, (left, middle, right) = axes(3)
for (eps, found), style in zip(table.items(), ("-", "--"), strict=True):
    for column, what in enumerate(("output", "gradient")):
        label = f"{what}, eps {eps:.0e}"
        left.plot(SCALES, found[:, column] + 1e-17, style, color=f"C{column}", label=label)
left.set(title="Weights times a", xlabel="a", ylabel="relative error", xscale="log", yscale="log")
left.legend(fontsize=7)
for name in RUNS:
    if name != "no decay, its rates":
        band(middle, range(STEPS), effective[name], name)
middle.set(title="Effective rate of layer 2", xlabel="step", ylabel="rate / |w|^2", yscale="log")
middle.legend(fontsize=7)
window = max(STEPS // 50, 1)
for name, style in (("no decay", "-"), ("decay", "-"), ("no decay, its rates", "k:")):
    smooth = [found[: STEPS // window * window].reshape(-1, window).mean(axis=1)
              for found, _, _ in runs[name]]  # fmt: skip
    at = np.arange(1, len(smooth[0]) + 1) * window
    right.plot(at, np.mean(smooth, axis=0), style, label=name)
right.set(title="Training", xlabel="step", ylabel="loss", yscale="log")
right.legend(fontsize=7)
experiment.finish(
    {"errors": {f"{eps:g}": found for eps, found in table.items()}, "scales": SCALES,
     "losses_apart": apart, "exponent": exponent, "forgotten": forgotten,
     "effective_rate": settled, "accuracy": final},
    figure, verdict, reason,
)  # fmt: skip
