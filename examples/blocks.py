"""The blocks that convolutional networks are made of, each trained on MNIST for a few epochs.

Every block takes C channels and returns C. A net is a convolution that halves the image, a block, a
maximum over 2 x 2 pixels, a block, the mean of each channel and a Dense. Prints each net's test
accuracy, and draws it by epoch if matplotlib is installed.

Run it: python examples/blocks.py [picture.png] [--epochs=3] [--limit=20000] [--smoke]
"""

import sys

import numpy as np

import nbbn
from nbbn import (
    BatchNorm,
    Conv2d,
    Dense,
    MaxPool2d,
    ReLU,
    Sequential,
    SiLU,
    data,
    ops,
    optim,
    train,
)

given = dict(word[2:].split("=") for word in sys.argv[1:] if word.startswith("--") and "=" in word)
SMOKE = "--smoke" in sys.argv
EPOCHS, LIMIT = int(given.get("epochs", 1 if SMOKE else 3)), int(given.get("limit", 20_000))
C, BATCH, TRAINING, TESTING = 16, 64, 256 if SMOKE else LIMIT, 100 if SMOKE else 10_000
rng = np.random.default_rng(0)


def conv(before, after, size=3, **options):
    """A convolution; a batch normalization follows, so that it needs no bias."""
    return Conv2d(before, after, size, padding=size // 2, bias=False, rng=rng, **options)


def unit(before, after, size=3, **options):
    """Convolution, BatchNorm and ReLU, the last two in one pass over memory."""
    return Sequential(conv(before, after, size, **options), BatchNorm(after, activation="relu"))


class Sum(nbbn.Module):
    """x + body(x)."""

    def __init__(self, body):
        self.body = body

    def forward(self, x):
        """Add what the body makes of x."""
        return x + self.body(x)


class Gate(nbbn.Module):
    """Squeeze and excitation: scales each channel by what the means of all channels say."""

    def __init__(self, channels):
        few = channels // 4
        self.gate = Sequential(
            nbbn.GlobalAvgPool2d(keepdims=True), Conv2d(channels, few, 1, rng=rng), SiLU(),
            Conv2d(few, channels, 1, rng=rng), nbbn.Sigmoid(),
        )  # fmt: skip

    def forward(self, x):
        """Scale the channels of x."""
        return x * self.gate(x)


class Inception(nbbn.Module):
    """Four branches side by side; 5 x 5 is two 3 x 3, which cost less and see as far."""

    # It does nothing but apply layers and operations, so that its steps can be replayed.
    recordable = True

    def __init__(self):
        q = C // 4
        self.one = unit(C, q, 1)
        self.three = Sequential(unit(C, q, 1), unit(q, q))
        self.five = Sequential(unit(C, q, 1), unit(q, q), unit(q, q))
        self.pool = Sequential(MaxPool2d(3, stride=1, padding=1), unit(C, q, 1))

    def forward(self, x):
        """Join what the branches make of x."""
        return ops.concatenate([self.one(x), self.three(x), self.five(x), self.pool(x)], axis=1)


def residual():
    """relu(x + f(x)): normalizations behind the convolutions."""
    return Sequential(Sum(Sequential(unit(C, C), conv(C, C), BatchNorm(C))), ReLU())


def pre_activation():
    """x + f(x): normalization and ReLU in front, so that nothing is in the way of x."""
    parts = [
        BatchNorm(C, activation="relu"),
        conv(C, C),
        BatchNorm(C, activation="relu"),
        conv(C, C),
    ]
    return Sum(Sequential(*parts))


def mbconv():
    """Wide inside: 1 x 1 to four times the channels, depthwise 3 x 3, a gate, 1 x 1 back."""
    wide = 4 * C
    return Sum(Sequential(
        conv(C, wide, 1), BatchNorm(wide), SiLU(), conv(wide, wide, groups=wide), BatchNorm(wide),
        SiLU(), Gate(wide), conv(wide, C, 1), BatchNorm(C),
    ))  # fmt: skip


BLOCKS = {
    "BatchNorm, then ReLU": lambda: unit(C, C),
    "ReLU, then BatchNorm": lambda: Sequential(conv(C, C), ReLU(), BatchNorm(C)),
    "BatchNorm and dropout": lambda: Sequential(unit(C, C), nbbn.Dropout(0.1, rng=rng)),
    "Inception": Inception,
    "residual": residual,
    "residual, pre-activation": pre_activation,
    "MBConv": mbconv,
}
mnist = data.load_mnist()
test = data.Batches(mnist.test_images[:TESTING], mnist.test_labels[:TESTING], 500, shuffle=False)
curves = {}
for name, block in BLOCKS.items():
    rng = np.random.default_rng(0)
    stem, head = [nbbn.Unflatten((1, 28, 28)), unit(1, C, stride=2)], Dense(C, 10, rng=rng)
    model = Sequential(*stem, block(), MaxPool2d(2), block(), nbbn.GlobalAvgPool2d(), head)
    batches = data.Batches(
        mnist.train_images[:TRAINING], mnist.train_labels[:TRAINING], BATCH, rng=rng
    )
    optimizer = optim.Adam(model.parameters(), optim.OneCycle(0.01, EPOCHS * len(batches)))
    history = train.fit(model, batches, optimizer, epochs=EPOCHS, test=test)
    curves[name] = [100 * epoch.test.accuracy for epoch in history]
    size, speed = sum(p.size for p in model.parameters()), history[-1].images_per_second
    print(
        f"{name:26}{size:7,} parameters {curves[name][-1]:6.2f} %  {speed:6,.0f} images/s",
        flush=True,
    )

pictures = [word for word in sys.argv[1:] if word.endswith(".png")]
if pictures:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, accuracy in curves.items():
        axes.plot(range(1, EPOCHS + 1), accuracy, "o-", label=name)
    axes.set(xlabel="epoch", ylabel="test accuracy, %", xticks=range(1, EPOCHS + 1))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(pictures[0], dpi=150)
