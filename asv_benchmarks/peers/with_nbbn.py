"""nbbn: the functional API, and the recorded step of the nbbn command."""

import itertools

import numba
import numpy as np
from benchmarks.common import make_cnn

import nbbn
import nbbn.functional as F  # noqa: N812 - the usual name

from . import inputs

VERSIONS = {"nbbn": nbbn.__version__, "numba": numba.__version__}


def bn(kind, shape, axis, out=False):
    x, dy, gamma, beta, mean, var = inputs.batch_norm(shape, axis)
    _, stats = F.batch_norm_train(x, gamma, beta, axis=axis)
    y = np.empty_like(x) if out else None
    return {
        "forward": lambda: F.batch_norm_train(x, gamma, beta, axis=axis, out=y),
        "inference": lambda: F.batch_norm_infer(x, mean, var, gamma, beta, axis=axis, out=y),
        "backward": lambda: F.batch_norm_backward(dy, x, stats, gamma, axis=axis, out=y),
    }[kind]


def norms(kind, norm, shape, groups, out=False):
    x, dy, gamma, beta, *_ = inputs.batch_norm(tuple(shape), 1)
    affine = (gamma,) if norm == "rms_norm" else (gamma, beta)
    options = {} if groups is None else {"groups": groups}
    forward, backward = getattr(F, norm), getattr(F, f"{norm}_backward")
    _, stats = forward(x, *affine, **options, eps=inputs.EPS)
    y = np.empty_like(x) if out else None
    if kind == "backward":
        return lambda: backward(dy, x, stats, gamma, **options, out=y)
    return lambda: forward(x, *affine, **options, eps=inputs.EPS, out=y)


def step(sizes, batch):
    return _step(nbbn.mlp(sizes, rng=0), inputs.batches(sizes[0], sizes[-1], batch))


def cnn(filters, batch):
    return _step(make_cnn(filters), inputs.images(batch))


def recurrent(cell):
    layer = getattr(nbbn, cell)(28, 128, last=True, rng=0)
    return _step(nbbn.Sequential(layer, nbbn.Dense(128, 10, rng=0)), inputs.sequences())


def _step(model, batches):
    optimizer = nbbn.optim.Adam(model.parameters(), lr=inputs.LEARNING_RATE)
    train = nbbn.train.record_step(model, nbbn.losses.cross_entropy, optimizer)
    data = itertools.cycle(batches)
    return lambda: train(*next(data))
