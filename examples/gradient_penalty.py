"""A gradient penalty through batch normalization: derivatives of derivatives.

Two nets learn noisy XOR from few points. One pays for the squared gradient of its loss with respect
to its input (Drucker and LeCun, "Improving generalization performance using double
backpropagation", 1992), which keeps it flat around the data.

Run it: python examples/gradient_penalty.py [--smoke]
"""

import sys

import numpy as np

import nbbn
from nbbn import optim
from nbbn.nn import losses

STEPS = 5 if "--smoke" in sys.argv else 400


def make_data(rng, count):
    """Points around the corners of a square, labelled by XOR."""
    corners = rng.integers(0, 2, (count, 2))
    x = corners + rng.normal(scale=0.25, size=(count, 2))
    return x.astype(np.float32), corners[:, 0] ^ corners[:, 1]


def train(penalty):
    """Train on 64 points; return accuracy and mean squared slope of the loss on new ones."""
    rng = np.random.default_rng(0)
    x, labels = make_data(rng, 64)
    model = nbbn.mlp((2, 64, 64, 2), rng=rng)
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    for _ in range(STEPS):
        data = nbbn.Tensor(x, requires_grad=True)
        with nbbn.Tape() as tape:
            loss = losses.cross_entropy(model(data), labels, reduction="sum")
            (slope,) = nbbn.grad(loss, [data], create_graph=True)
            total = (loss + penalty * (slope * slope).sum()) / len(x)
        tape.backward(total)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    x, labels = make_data(rng, 10_000)
    data = nbbn.Tensor(x, requires_grad=True)
    with nbbn.Tape():
        logits = model(data)
        (slope,) = nbbn.grad(losses.cross_entropy(logits, labels, reduction="sum"), [data])
    accuracy = float((logits.data.argmax(axis=1) == labels).mean())
    return accuracy, float((slope.data**2).sum(axis=1).mean())


if __name__ == "__main__":
    for penalty in (0.0, 1.0):
        accuracy, slope = train(penalty)
        print(f"penalty {penalty}: accuracy {accuracy:.1%}, mean squared slope {slope:.3f}")
