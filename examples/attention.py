"""MNIST by attention: a small Transformer that reads an image as 49 patches of 4 x 4 pixels.

Each patch becomes a vector, to which that of its place is added. Two encoder layers let every patch
look at all others; all of them together say which digit it is. Prints the test accuracy after every
epoch.

Run it: python examples/attention.py [--smoke]
"""

import sys
import time

import numpy as np

import nbbn
from nbbn import data, optim, train
from nbbn.nn import losses

SMOKE = "--smoke" in sys.argv
EPOCHS, BATCH = (1, 64) if SMOKE else (4, 64)
SIDE, PATCH, FEATURES = 28 // 4, 4, 64


class Patches(nbbn.Module):
    """Images (N, 784) as 49 patches (N, 49, 16), row by row."""

    def forward(self, x):
        """Cut both sides of each image into pieces of 4 pixels."""
        x = x.reshape(-1, SIDE, PATCH, SIDE, PATCH).transpose(0, 1, 3, 2, 4)
        return x.reshape(-1, SIDE * SIDE, PATCH * PATCH)


def transformer(rng):
    """Patches, their places, two encoder layers, and a decision."""

    def encoder():
        return nbbn.TransformerEncoderLayer(
            FEATURES, 4, dim_feedforward=2 * FEATURES, dropout=0.0, norm_first=True, rng=rng
        )

    return nbbn.Sequential(
        Patches(),
        nbbn.Dense(PATCH * PATCH, FEATURES, rng=rng),
        nbbn.PositionalEmbedding(SIDE * SIDE, FEATURES, rng=rng),
        encoder(),
        encoder(),
        nbbn.LayerNorm(FEATURES),
        nbbn.Flatten(),
        nbbn.Dense(SIDE * SIDE * FEATURES, 10, rng=rng),
    )


mnist = data.load_mnist()
some = slice(1280 if SMOKE else None)
rng = np.random.default_rng(0)
batches = data.Batches(mnist.train_images[some], mnist.train_labels[some], BATCH, rng=rng)
test = data.Batches(mnist.test_images[some], mnist.test_labels[some], 500, shuffle=False)

model = transformer(rng)
optimizer = optim.Adam(model.parameters(), optim.OneCycle(2e-3, total=EPOCHS * len(batches)))
step = train.record_step(model, losses.cross_entropy, optimizer)
print(f"{sum(p.data.size for p in model.parameters()):,} parameters", flush=True)
for epoch in range(EPOCHS):
    start = time.perf_counter()
    for x, y in batches:
        loss = step(x, y)
    seconds = time.perf_counter() - start
    accuracy = train.evaluate(model, test).accuracy
    print(f"epoch {epoch + 1}  loss {loss:.4f}  test accuracy {accuracy:.2%}  {seconds:.0f} s",
          flush=True)  # fmt: skip
