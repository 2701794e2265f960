"""MNIST row by row: an LSTM that reads 28 rows of 28 pixels, with and without normalization.

Trains three nets of 128 units: plain, with batch normalization in the recurrence (Cooijmans et al.,
arXiv:1603.09025) and with layer normalization in the same places. Prints the test accuracy of each
after every epoch. With matplotlib installed it also draws the curves.

Run it: python examples/rows_of_digits.py [picture.png] [--smoke]
"""

import sys

import numpy as np

import nbbn
from nbbn import data, optim, train
from nbbn.nn import losses
from nbbn.nn.recurrent import StepBatchNorm

SMOKE = "--smoke" in sys.argv
# Test accuracy is measured once in EVERY steps.
EPOCHS, EVERY = (1, 10) if SMOKE else (6, 134)

mnist = data.load_mnist()
images, labels = mnist.train_images, mnist.train_labels
if SMOKE:
    images, labels = images[:2560], labels[:2560]
tested = slice(1000 if SMOKE else None)
many, _ = next(iter(data.Batches(images, labels, min(4000, len(images)), rng=1)))
test = data.Batches(mnist.test_images[tested], mnist.test_labels[tested], 1000, shuffle=False)


class Reader(nbbn.Module):
    """Reads an image from top to bottom, and then says which digit it was."""

    def __init__(self, normalization, rng):
        self.lstm = nbbn.LSTM(
            28, 128, last=True, normalization=normalization, max_steps=28, rng=rng
        )
        self.head = nbbn.Dense(128, 10, rng=rng)

    def forward(self, x):
        """Map images (N, 784) to logits (N, 10)."""
        return self.head(self.lstm(x.reshape(-1, 28, 28)))


def accuracy(model):
    """Test accuracy, with the statistics of one large batch where there are any.

    Running ones lag behind weights that move fast, and those of small batches are not quite those
    of all images: here what they are off by adds up over 28 steps.
    """
    norms = [module for module in model.modules() if isinstance(module, StepBatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    if norms:
        model(many)
    for norm in norms:
        norm.momentum = 0.1
    return train.evaluate(model, test).accuracy


def curve(normalization):
    """Test accuracies while training from the same seed."""
    rng = np.random.default_rng(0)
    model = Reader(normalization, rng)
    batches = data.Batches(images, labels, 128, rng=rng)
    schedule = optim.OneCycle(4e-3, total=EPOCHS * len(batches))
    step = train.record_step(model, losses.cross_entropy, optim.Adam(model.parameters(), schedule))
    accuracies, done = [], 0
    for epoch in range(EPOCHS):
        for x, y in batches:
            loss = step(x, y)
            done += 1
            if done % EVERY == 0:
                accuracies.append(accuracy(model))
        print(f"{normalization or 'no':>5} normalization  epoch {epoch + 1:2}  loss {loss:.4f}  "
              f"test accuracy {accuracy(model):.2%}", flush=True)  # fmt: skip
    return accuracies


curves = {name: curve(name) for name in (None, "batch", "layer")}

pictures = [argument for argument in sys.argv[1:] if argument.endswith(".png")]
if pictures:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for name, accuracies in curves.items():
        steps = EVERY * np.arange(1, len(accuracies) + 1)
        label = f"{name or 'no'} normalization"
        axes.plot(steps, 100 * np.array(accuracies), label=label)
    axes.set(xlabel="steps of 128 images", ylabel="test accuracy, %", ylim=(90, 100))
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(pictures[0], dpi=150)
