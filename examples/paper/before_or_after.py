"""Before or after the activation: where batch normalization belongs.

Claim (Ioffe and Szegedy 2015, section 3.2): normalize Wu + b and not the layer's input u, because
Wu + b is "more Gaussian", symmetric and not sparse, so that a fixed mean and variance say more of
its distribution.

What is tried: 784-100-100-100-10 with the normalization before and after the activation, ReLU and
sigmoid, each at the best of four learning rates; and the skewness and excess kurtosis of what the
two places normalize.

Refuted if Wu + b is not closer to Gaussian, or if a net learns better with the normalization after
its activation. Reproduced if before is ahead by more than two standard errors with both
activations; partly if with one, or if the places do not differ.
"""

import numpy as np
from common import Experiment, axes, band, curve

import nbbn
from nbbn import data, optim

claim = "batch normalization belongs before the activation, where values are more Gaussian"
experiment = Experiment("before_or_after", claim, seeds=5)
images, labels = experiment.images()
STEPS, EVERY = experiment.pick((2000, 200), (40, 20))
# By name: the layer, its initialization, learning rates.
ACTIVATIONS = {
    "ReLU": (nbbn.ReLU, "he", experiment.pick((0.03, 0.1, 0.3, 1.0), (0.1,))),
    "sigmoid": (nbbn.Sigmoid, "glorot", experiment.pick((0.3, 1.0, 3.0, 10.0), (0.3,))),
}


def net(activation, place, rng):
    """Three hidden layers of 100."""
    make, init, _ = ACTIVATIONS[activation]
    layers = []
    for inputs in (784, 100, 100):
        pair = [nbbn.BatchNorm(100), make()]
        dense = nbbn.Dense(inputs, 100, bias=place == "after", init=init, rng=rng)
        layers += [dense, *(pair if place == "before" else reversed(pair))]
    return nbbn.Sequential(*layers, nbbn.Dense(100, 10, rng=rng))


def trained(activation, place, rate, seed):
    """Test accuracies along the training, and the net."""
    rng = np.random.default_rng(seed)
    model = net(activation, place, rng)
    batches = data.Batches(images, labels, 60, rng=rng)
    optimizer = optim.SGD(model.parameters(), rate)
    found = curve(model, optimizer, batches, STEPS, EVERY, lambda: experiment.accuracy(model))
    return found, model


def shape(model):
    """Median over units of |skewness| and |excess kurtosis|: of Wu, and of the activation."""
    x = nbbn.Tensor(data.Batches(images, labels, 1, shuffle=False).first(2000)[0])
    model.eval()
    seen = {nbbn.Dense: [], type(model[2]): []}
    for layer in model.layers[:-1]:
        x = layer(x)
        if type(layer) in seen:
            values = x.numpy().astype(float)
            # A unit that never changes has no shape.
            values = values[:, values.std(axis=0) > 1e-6]
            z = (values - values.mean(axis=0)) / values.std(axis=0)
            moments = (z**3).mean(axis=0), (z**4).mean(axis=0) - 3
            seen[type(layer)].append([np.median(np.abs(m)) for m in moments])
    return [np.mean(found, axis=0) for found in seen.values()]


curves, shapes, best = {}, {}, {}
for activation, (_, _, rates) in ACTIVATIONS.items():
    for place in ("before", "after"):
        tried = {}
        for rate in rates:
            results = [trained(activation, place, rate, seed) for seed in experiment.seeds]
            tried[rate] = [found for found, _ in results]
            if place == "before":
                shapes[activation, rate] = np.mean([shape(model) for _, model in results], axis=0)
        rate = max(tried, key=lambda rate: np.mean([c[-1] for c in tried[rate]]))
        best[f"{activation}, {place}"], curves[f"{activation}, {place}"] = rate, tried[rate]

ahead, gaussian, tables = {}, {}, {}
for activation in ACTIVATIONS:
    ends = [np.array(curves[f"{activation}, {p}"])[:, -1] for p in ("before", "after")]
    error = np.sqrt(sum(np.var(e, ddof=1) / len(e) for e in ends))
    ahead[activation] = ends[0].mean() - ends[1].mean(), 2 * error
    tables[activation] = shapes[activation, best[f"{activation}, before"]]
    gaussian[activation] = bool((tables[activation][0] < tables[activation][1]).all())

wins = sum(gain > error for gain, error in ahead.values())
losses = sum(gain < -error for gain, error in ahead.values())
verdict = "partly"
if wins == 2 and all(gaussian.values()):
    verdict = "reproduced"
elif losses == 2 or (not wins and not any(gaussian.values())):
    verdict = "not reproduced"
said = [
    f"{a}: before is ahead by {100 * gain:+.2f} +- {100 * error:.2f} points, and Wu is "
    f"{'' if gaussian[a] else 'not '}closer to Gaussian"
    for a, (gain, error) in ahead.items()
]

figure, (left, middle, right) = axes(3)
steps = range(EVERY, STEPS + 1, EVERY)
for axis, activation in ((left, "ReLU"), (middle, "sigmoid")):
    for place in ("before", "after"):
        name = f"{activation}, {place}"
        values = 100 * np.array(curves[name])
        band(axis, steps, values, f"{place} (rate {best[name]:g})")
    axis.set(title=activation, xlabel="step", ylabel="test accuracy, %")
    axis.set_ylim(experiment.pick((90, 98), None))
    axis.legend(loc="lower right")
for i, activation in enumerate(ACTIVATIONS):
    for j, (what, color) in enumerate((("Wu", "C0"), ("activation", "C1"))):
        right.bar(
            [i - 0.17 + 0.34 * j, i + 1.83 + 0.34 * j], tables[activation][j], 0.32,
            color=color, label=what if i == 0 else None,
        )  # fmt: skip
right.set_xticks(range(4), ["skewness\nReLU", "sigmoid", "kurtosis\nReLU", "sigmoid"])
right.set(title="Distance from Gaussian", ylabel="median of |.| over units")
right.legend(loc=(0.27, 0.8))
experiment.finish(
    {"best_rate": best, "final_accuracy": {k: [c[-1] for c in v] for k, v in curves.items()},
     "skewness_kurtosis": {a: {"Wu": t[0], "activation": t[1]} for a, t in tables.items()}},
    figure, verdict, "; ".join(said),
)  # fmt: skip
