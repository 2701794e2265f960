"""How normalizations bear small batches: test accuracy on MNIST at batches of 2 to 128.

Trains 784-256-128-10 on one pass over the training set for each normalization and batch size, with
SGD at a learning rate proportional to the batch size, and prints a table of test accuracies. Only
batch normalization depends on the other examples of a batch.

Run it: python examples/batch_sizes.py [--smoke]
"""

import sys

import numpy as np

import nbbn
from nbbn import data, optim, train
from nbbn.nn import losses

SMOKE = "--smoke" in sys.argv
SIZES, EXAMPLES = ((2, 128), 512) if SMOKE else ((2, 4, 8, 16, 32, 64, 128), 60_000)
RATE_AT_128 = 0.5

NORMS = {
    "BatchNorm": nbbn.BatchNorm,
    "LayerNorm": nbbn.LayerNorm,
    "RMSNorm": nbbn.RMSNorm,
    "GroupNorm, 16 groups": lambda width: nbbn.GroupNorm(16, width),
    "GroupNorm, standardized weights": lambda width: nbbn.GroupNorm(16, width),
    "none": None,
}

mnist = data.load_mnist()
images, labels = mnist.train_images[:EXAMPLES], mnist.train_labels[:EXAMPLES]
test = data.Batches(mnist.test_images, mnist.test_labels, 1000, shuffle=False)


def net(name, rng):
    """Two hidden layers with a normalization."""
    layers = []
    for inputs, width in ((784, 256), (256, 128)):
        dense = nbbn.Dense(inputs, width, bias=NORMS[name] is None, rng=rng)
        layers.append(nbbn.WeightStandardization(dense) if "standardized" in name else dense)
        if NORMS[name] is not None:
            layers.append(NORMS[name](width))
        layers.append(nbbn.ReLU())
    return nbbn.Sequential(*layers, nbbn.Dense(128, 10, rng=rng))


def accuracy(name, size):
    """Test accuracy after one pass; the same initial weights and order for every normalization."""
    rng = np.random.default_rng(0)
    model = net(name, rng)
    rate = RATE_AT_128 * size / 128
    optimizer = optim.SGD(model.parameters(), rate)
    step = train.record_step(model, losses.cross_entropy, optimizer)
    for x, y in data.Batches(images, labels, size, rng=rng):
        step(x, y)
    return train.evaluate(model, test).accuracy


print("| normalization | " + " | ".join(map(str, SIZES)) + " |")
print("|---|" + "---|" * len(SIZES))
for name in NORMS:
    found = (f"{accuracy(name, size):.2%}" for size in SIZES)
    print(f"| {name} | " + " | ".join(found) + " |", flush=True)
