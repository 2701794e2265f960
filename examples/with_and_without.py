"""What batch normalization buys: the same net with and without it, at two learning rates.

Trains 784-256-128-10 on MNIST with SGD, measures test accuracy every 20 steps, and prints after how
many steps each run first reaches 97 %. With matplotlib installed it also draws the curves.

Run it: python examples/with_and_without.py [picture.png] [--smoke]
"""

import sys

import numpy as np

import nbbn
from nbbn import data, optim, train
from nbbn.nn import losses

SMOKE = "--smoke" in sys.argv
STEPS, EVERY, TARGET = (40, 20, 0.80) if SMOKE else (1400, 20, 0.97)

mnist = data.load_mnist()
test = data.Batches(mnist.test_images, mnist.test_labels, 1000, shuffle=False)


def curve(batch_norm, lr):
    """Test accuracy after every EVERY steps of training from the same seed."""
    rng = np.random.default_rng(0)
    model = nbbn.mlp((784, 256, 128, 10), batch_norm=batch_norm, rng=rng)
    step = train.record_step(model, losses.cross_entropy, optim.SGD(model.parameters(), lr))
    batches = data.Batches(mnist.train_images, mnist.train_labels, 128, rng=rng)
    accuracies, done = [], 0
    while done < STEPS:
        for x, y in batches:
            step(x, y)
            done += 1
            if done % EVERY == 0:
                accuracies.append(train.evaluate(model, test).accuracy)
            if done == STEPS:
                break
    return np.array(accuracies)


steps = np.arange(EVERY, STEPS + 1, EVERY)
curves = {}
for lr in (0.1, 0.5):
    for batch_norm in (True, False):
        accuracy = curves[lr, batch_norm] = curve(batch_norm, lr)
        reached = steps[accuracy >= TARGET]
        when = f"after {reached[0]} steps" if len(reached) else f"not within {STEPS} steps"
        label = "with batch norm   " if batch_norm else "without batch norm"
        print(f"lr {lr}  {label}  {TARGET:.0%} {when}, {accuracy[-1]:.2%} at the end", flush=True)

pictures = [argument for argument in sys.argv[1:] if argument.endswith(".png")]
if pictures:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for (lr, batch_norm), accuracy in curves.items():
        style = "-" if batch_norm else "--"
        label = f"{'with' if batch_norm else 'without'} batch norm, lr {lr}"
        axes.plot(steps, 100 * accuracy, style, color=f"C{int(lr > 0.1)}", label=label)
    axes.axhline(97, color="0.8", zorder=0)
    axes.set(xlabel="steps of 128 images", ylabel="test accuracy, %", ylim=(88, 99))
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(pictures[0], dpi=150)
