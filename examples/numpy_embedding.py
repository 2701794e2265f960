"""Batch normalization inside a NumPy program: no tape, no layers, arrays in and arrays out.

A sensor stream arrives in batches whose offset dwarfs its signal. Running statistics follow it, and
later batches are normalized with them, in place.

Run it: python examples/numpy_embedding.py
"""

import numpy as np

import nbbn.functional as F  # noqa: N812

rng = np.random.default_rng(0)
channels = 16
offset = rng.uniform(1e5, 1e6, channels)
scale = rng.uniform(0.5, 2.0, channels)


def next_batch(count):
    """Simulated readings (count, channels), with offsets up to a million times the noise."""
    return (offset + scale * rng.standard_normal((count, channels))).astype(np.float32)


running_mean = np.zeros(channels)
running_var = np.ones(channels)

for step in range(200):
    x = next_batch(256)
    y, stats = F.batch_norm_train(x)
    momentum = 1 / (step + 1)  # an equal weight for every batch so far
    F.update_running_stats(running_mean, running_var, stats, momentum=momentum)

print("largest error of the learned offset:", f"{np.abs(running_mean - offset).max():.3f}")
print("largest error of the learned spread:", f"{np.abs(np.sqrt(running_var) - scale).max():.3f}")

x = next_batch(1000)
F.batch_norm_infer(x, running_mean, running_var, out=x)
print(f"after normalization: mean {x.mean():+.3f}, standard deviation {x.std():.3f}")

# The gradient with respect to the input, should the normalization sit inside a larger model:
x = next_batch(256)
y, stats = F.batch_norm_train(x)
dx, dgamma, dbeta = F.batch_norm_backward(np.cos(y), x, stats)
print("the gradient is orthogonal to a shift of all inputs:", f"{np.abs(dx.sum(axis=0)).max():.1e}")
