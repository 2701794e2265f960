"""The same random inputs for all contenders."""

import itertools

import numpy as np

EPS = 1e-5
LEARNING_RATE = 1e-3


def batch_norm(shape, axis):
    """x, dy, gamma, beta, running mean and running variance."""
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal(shape, np.float32) for _ in range(2))
    gamma, beta, mean = (rng.standard_normal(shape[axis], np.float32) for _ in range(3))
    return x, dy, gamma, beta, mean, mean**2 + 1


def batches(features, classes, batch):
    """Eight ready pairs (x, labels), to be used in turn."""
    rng = np.random.default_rng(0)
    return [
        (rng.standard_normal((batch, features), np.float32), rng.integers(0, classes, batch))
        for _ in range(8)
    ]


def images(batch):
    """As `batches`, of images with one channel and 28x28 pixels."""
    return [(x.reshape(batch, 1, 28, 28), y) for x, y in batches(784, 10, batch)]


def sequences():
    """As `batches`, of 28 steps with 28 features, as the rows of an image."""
    return [(x.reshape(128, 28, 28), y) for x, y in batches(784, 10, 128)]


def weights(sizes):
    """He-initialized weight matrices (out, in)."""
    rng = np.random.default_rng(1)
    return [
        rng.standard_normal((n_out, n_in), np.float32) * np.float32((2 / n_in) ** 0.5)
        for n_in, n_out in itertools.pairwise(sizes)
    ]
