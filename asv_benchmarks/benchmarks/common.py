"""What the suites share: the grid, the nets, inputs that are made once per process."""

import functools
import itertools
import os

import numpy as np

# Name -> shape and channel axis, small to large: the grid of docs/performance.md.
SHAPES = {
    "64x100": ((64, 100), 1),
    "128x256": ((128, 256), 1),
    "256x512": ((256, 512), 1),
    "1024x1024": ((1024, 1024), 1),
    "8192x1024": ((8192, 1024), 1),
    "65536x256": ((65536, 256), 1),
    "64x256x14x14": ((64, 256, 14, 14), 1),
    "32x64x56x56": ((32, 64, 56, 56), 1),
    "32x56x56x64 last": ((32, 56, 56, 64), -1),
    "64x14x14x256 last": ((64, 14, 14, 256), -1),
}

# Name -> function, shape, groups: normalization of each example by itself.
NORMS = {
    "layer 512x768": ("layer_norm", (512, 768), None),
    "layer 8192x1024": ("layer_norm", (8192, 1024), None),
    "rms 8192x1024": ("rms_norm", (8192, 1024), None),
    "group 32x64x56x56": ("group_norm", (32, 64, 56, 56), 32),
    "instance 32x64x56x56": ("instance_norm", (32, 64, 56, 56), None),
}

# Name -> widths of the hidden layers and batch size.
NETS = {
    "100-100-100/64": ((100, 100, 100), 64),
    "256-128/128": ((256, 128), 128),
    "512-512/128": ((512, 512), 128),
    "1024-1024/128": ((1024, 1024), 128),
    "1024-1024/512": ((1024, 1024), 512),
}

# Name -> filters of the convolutions, of 3x3 pixels, and batch size; images are 28x28.
CNNS = {
    "8-16/32": ((8, 16), 32),
    "32-64/128": ((32, 64), 128),
}

# A training step of 128 sequences of 28 steps of 28 features, with 128 units and a Dense of 10.
CELLS = ["LSTM", "GRU", "RNN"]

DTYPES = ["float32", "float64"]
THREADS = ["1", "all"]


def use_threads(threads):
    """Give kernels "1" or "all" threads."""
    import numba

    numba.set_num_threads(1 if threads == "1" else numba.config.NUMBA_NUM_THREADS)


def cpu_count():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


# asv calls setup before every sample: inputs are made once and must not be written to.
@functools.cache
def normal(shape, dtype="float32", seed=0):
    """Normal variates of mean 0.5 and standard deviation 2."""
    x = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return (2 * x + 0.5).astype(dtype)


@functools.cache
def batch_norm_inputs(name, dtype="float32"):
    """Everything that the three batch-norm functions take for a shape of the grid."""
    import nbbn.functional as F  # noqa: N812 - the usual name

    shape, axis = SHAPES[name]
    x, dy = normal(shape, dtype), normal(shape, dtype, seed=1)
    gamma, beta = (normal((shape[axis],), dtype, seed=seed) for seed in (2, 3))
    _, stats = F.batch_norm_train(x, gamma, beta, axis=axis)
    return x, dy, gamma, beta, stats, axis


@functools.cache
def norm_inputs(name):
    """x, dy, gamma, beta where there is one, the statistics and options of one of NORMS."""
    import nbbn.functional as F  # noqa: N812 - the usual name

    norm, shape, groups = NORMS[name]
    options = {} if groups is None else {"groups": groups}
    x, dy = normal(shape), normal(shape, seed=1)
    affine = tuple(normal((shape[1],), seed=seed) for seed in (2, 3))[: 1 + (norm != "rms_norm")]
    _, stats = getattr(F, norm)(x, *affine, **options)
    return x, dy, affine, stats, options


@functools.cache
def labels(count, classes=10, seed=4):
    """Class labels."""
    return np.random.default_rng(seed).integers(0, classes, count)


def batches(net):
    """Different batches of one of NETS, without end, as in an epoch."""
    _, count = NETS[net]
    return itertools.cycle(
        [(normal((count, 784), seed=seed), labels(count, seed=seed)) for seed in range(4)]
    )


def make_step(net, recorded=True):
    """Make a training step of one of NETS; return it and its model."""
    import nbbn

    hidden, _ = NETS[net]
    model = nbbn.mlp((784, *hidden, 10), rng=0)
    optimizer = nbbn.optim.Adam(model.parameters(), lr=1e-3)
    if recorded:
        step = nbbn.train.record_step(model, nbbn.losses.cross_entropy, optimizer)
    else:
        step = functools.partial(eager_step, model, optimizer)
    return step, model


def make_cnn(filters, rng=0):
    """Convolutions, each with a batch normalization and a ReLU, and a Dense behind them."""
    import nbbn

    layers, channels = [], 1
    for count in filters:
        layers.append(nbbn.Conv2d(channels, count, 3, padding=1, bias=False, rng=rng))
        layers.append(nbbn.BatchNorm(count, activation="relu"))
        channels = count
    return nbbn.Sequential(*layers, nbbn.Flatten(), nbbn.Dense(784 * channels, 10, rng=rng))


def eager_step(model, optimizer, x, y):
    """The training loop's body as a user would write it, through the tape."""
    import nbbn

    optimizer.zero_grad()
    with nbbn.Tape() as tape:
        loss = nbbn.losses.cross_entropy(model(x), y)
    tape.backward(loss)
    optimizer.step()
    return loss.item()
