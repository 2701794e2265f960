"""Batch norm permits higher learning rates, and trains sigmoids that do not train without it.

The claim, of a deep net on ImageNet: at 5 times the rate of the net without batch norm, batch norm
reaches its accuracy in 14 times fewer steps; at 30 times the rate it ends higher than at 5 times;
without batch norm, higher rates make training fail. Sigmoids without it never leave chance.
Source: Ioffe and Szegedy (2015), arXiv:1502.03167, sections 3.3 and 4.2.2, figures 2 and 3.
What would refute it, part by part: at x5 with batch norm more than half of the steps without, or no
fewer than at x1; an end at x30 no better than at x5; a net without batch norm that is as accurate
at x5 or x30 as at x1; sigmoids above 20 % without batch norm, or below 90 % with it.

Here: ten hidden layers of 100, batches of 60, plain SGD. x1 is the best of four rates for the net
without batch norm, by its test accuracy, which favours that net.
"""

import numpy as np
from common import Experiment, axes, band, curve, first, judge, spread

import nbbn
from nbbn import data, optim

experiment = Experiment(
    "learning_rates",
    "Batch norm allows higher learning rates, needs fewer steps at them, and trains deep sigmoids",
)
STEPS, EVERY = experiment.pick((8000, 200), (60, 20))
GRID, FACTORS = experiment.pick((0.01, 0.03, 0.1, 0.3), (0.03, 0.1)), (1, 5, 30)
images, labels = experiment.images()


def run(rate, batch_norm, activation, seed):
    """Test accuracies over the steps."""
    rng = np.random.default_rng(seed)
    sizes = (784, *[100] * 10, 10)
    model = nbbn.mlp(sizes, batch_norm=batch_norm, activation=activation, rng=rng)
    batches = data.Batches(images, labels, 60, rng=rng)
    optimizer = optim.SGD(model.parameters(), rate)
    return curve(model, optimizer, batches, STEPS, EVERY, lambda: experiment.accuracy(model))


steps = list(range(EVERY, STEPS + 1, EVERY))
base = max(GRID, key=lambda rate: max(run(rate, False, "relu", 0)))
kinds = [(k, bn, "relu") for bn in (True, False) for k in FACTORS]
kinds += [(5, True, "sigmoid"), (1, False, "sigmoid"), (5, False, "sigmoid")]
curves = {kind: np.array([run(base * kind[0], *kind[1:], seed) for seed in experiment.seeds])
          for kind in kinds}  # fmt: skip
best = {kind: found.max(axis=1) for kind, found in curves.items()}
target = best[1, False, "relu"]

# Steps to the best accuracy that the same seed has at x1 without batch norm; None if never.
reached = {kind: [first(steps, c, t) for c, t in zip(curves[kind], target, strict=True)]
           for kind in kinds}  # fmt: skip
x1, x5 = ([n or np.inf for n in reached[k, True, "relu"]] for k in (1, 5))
plain = reached[1, False, "relu"]
holds = {
    "fewer steps at x5": all(2 * n <= p for n, p in zip(x5, plain, strict=True))
    and np.mean(x5) < np.mean(x1),
    "a better end at x30": best[30, True, "relu"].mean() > best[5, True, "relu"].mean(),
    "failure without it": all(best[k, False, "relu"].max() < target.min() for k in (5, 30)),
    "sigmoids only with it": best[5, True, "sigmoid"].min() > 0.9
    and max(best[k, False, "sigmoid"].max() for k in (1, 5)) < 0.2,
}

figure, panels = axes(3, sharey=True)
titles = "ReLU, with batch norm", "ReLU, without", "Sigmoids"
for number, (k, bn, activation) in enumerate(kinds):
    panel = 2 if activation == "sigmoid" else 0 if bn else 1
    label = f"x{k}" + (", with" if bn else ", without") * (panel == 2)
    colour = f"C{FACTORS.index(k) if panel < 2 else number % 3}"
    band(panels[panel], steps, 100 - 100 * curves[k, bn, activation], label, color=colour)
for axis, title in zip(panels, titles, strict=True):
    axis.set(xlabel="steps", title=title, yscale="log", ylim=(1.8, 100))
    axis.axhline(100 - 100 * target.mean(), color="0.6", linewidth=1, linestyle=":")
    axis.legend(loc="upper right", bbox_to_anchor=(1, 0.9))
panels[0].set_ylabel("test error, %")
panels[0].set_yticks([2, 5, 10, 20, 50, 90], [2, 5, 10, 20, 50, 90])

fails = [what for what, true in holds.items() if not true]
holds = {what: bool(true) for what, true in holds.items()}
name = {kind: f"x{kind[0]} {kind[2]} {'with' if kind[1] else 'without'}" for kind in kinds}
experiment.finish(
    {"steps": steps, "rate_of_x1": base, "holds": holds,
     "steps_to_baseline": {name[kind]: found for kind, found in reached.items()},
     "best": {name[kind]: found for kind, found in best.items()},
     "mean_curves": {name[kind]: found.mean(axis=0) for kind, found in curves.items()}},
    figure, judge(holds.values()),
    f"x1 is {base:g}; best {spread(target)} without, {spread(best[1, True, 'relu'])} with at x1, "
    f"{spread(best[5, True, 'relu'])} at x5, {spread(best[30, True, 'relu'])} at x30; steps to the "
    f"baseline's best: {np.mean(plain):.0f} without, {np.mean(x1):.0f} with at x1, "
    f"{np.mean(x5):.0f} at x5"
    + (f"; does not hold: {', '.join(fails)}" if fails else ""),
)  # fmt: skip
