"""Train a batch-normalized MLP on MNIST, by hand: about 98.4 % after five epochs.

The weights go into mnist_mlp.npz.

Run it: python examples/train_mnist.py [--smoke]
"""

import sys

import numpy as np

import nbbn
from nbbn import data, optim, train
from nbbn.nn import losses

EPOCHS = 1 if "--smoke" in sys.argv else 5

rng = np.random.default_rng(0)
mnist = data.load_mnist()
batches = data.Batches(mnist.train_images, mnist.train_labels, 128, rng=rng)
test = data.Batches(mnist.test_images, mnist.test_labels, 1000, shuffle=False)

model = nbbn.Sequential(
    nbbn.Dense(784, 256, bias=False, rng=rng),
    nbbn.BatchNorm(256, activation="relu"),
    nbbn.Dense(256, 128, bias=False, rng=rng),
    nbbn.BatchNorm(128, activation="relu"),
    nbbn.Dense(128, 10, rng=rng),
)
schedule = optim.OneCycle(4e-3, total=EPOCHS * len(batches))
optimizer = optim.Adam(model.parameters(), lr=schedule)

for epoch in range(EPOCHS):
    for x, y in batches:
        with nbbn.Tape() as tape:
            loss = losses.cross_entropy(model(x), y)
        tape.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    result = train.evaluate(model, test)
    print(f"epoch {epoch + 1}  loss {loss.item():.4f}  test accuracy {result.accuracy:.2%}")

# The loop above in one call, and faster, since steps are recorded and replayed:
#     train.fit(model, batches, optimizer, epochs=EPOCHS, test=test)
np.savez("mnist_mlp.npz", **model.state_dict())
