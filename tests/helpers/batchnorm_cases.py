"""Inputs of batch normalization, and the truth about them."""

from __future__ import annotations

import numpy as np

from nbbn import functional as fn
from tests.helpers import reference

DTYPES = [np.float32, np.float64]

SHAPES = [
    # rank 2
    ((2, 1), 1),
    ((2, 100), 1),
    ((7, 5), 1),
    ((64, 100), 1),
    ((50, 1), -1),
    ((257, 3), -1),
    ((33, 17), 0),
    ((1, 40), 0),
    ((5, 2048), 0),
    ((4096, 5), 1),
    # rank 3
    ((1, 3, 2), 1),
    ((4, 5, 7), 1),
    ((3, 17, 50), -2),
    ((2, 9, 64), -1),
    ((5, 3, 11), 0),
    ((1, 64, 33), 1),
    # rank 4
    ((2, 3, 5, 7), 1),
    ((4, 1, 6, 6), 1),
    ((8, 64, 4, 4), 1),
    ((3, 100, 1, 1), 1),
    ((2, 8, 8, 17), -1),
    ((3, 4, 5, 2), 2),
    ((16, 17, 20, 10), 1),
    # rank 5
    ((2, 3, 4, 3, 2), 1),
    ((2, 2, 3, 4, 5), -1),
    ((5, 2, 3, 2, 2), 0),
    ((2, 3, 2, 5, 3), 2),
    # more than one block and more than one thread: rows, planes, one long plane per channel
    ((1024, 100), 1),
    ((16, 64, 10, 11), 1),
    ((3, 40_001), 0),
    ((16_400, 64), 1),
    ((16, 64, 32, 33), 1),
    # channels too long, or too scattered, to stay in cache between the two passes
    ((130, 2, 60, 61), 1),
    ((2, 2, 200_001), 1),
    ((900, 40, 5, 5), 1),
]

TRAIN_SHAPES = [(shape, axis) for shape, axis in SHAPES if np.prod(shape) > shape[axis]]


class Case:
    """Inputs whose channels have different means (up to 3) and spreads (0.5 to 2).

    The values of a channel are a shuffled grid with noise, so that its spread cannot be tiny by
    accident: rounding then explains an error of a few units in the last place and no more.
    """

    def __init__(self, rng, shape, axis, dtype=np.float64):
        channels = shape[axis]
        count = int(np.prod(shape)) // channels
        grid = np.tile(np.linspace(-1.7, 1.7, count), (channels, 1))
        values = rng.permuted(grid, axis=1) + 0.1 * rng.normal(size=grid.shape)
        values = values * rng.uniform(0.5, 2, (channels, 1)) + rng.uniform(-3, 3, (channels, 1))
        others = [n for d, n in enumerate(shape) if d != axis % len(shape)]
        self.axis = axis
        self.shape = shape
        self.channels = channels
        self.x = _from_channels(values, others, axis, dtype)
        self.dy = _from_channels(rng.normal(size=values.shape) + 0.3, others, axis, dtype)
        self.residual = _from_channels(rng.normal(size=values.shape), others, axis, dtype)
        self.gamma = (rng.uniform(0.5, 1.5, channels) * rng.choice([-1, 1], channels)).astype(dtype)
        self.beta = rng.normal(size=channels).astype(dtype)
        self.mean = rng.normal(size=channels).astype(dtype)
        self.var = rng.uniform(0.5, 2, channels).astype(dtype)


def _from_channels(values, others, axis, dtype):
    array = np.moveaxis(values.reshape(len(values), *others), 0, axis)
    return np.ascontiguousarray(array, dtype)


def tolerance(dtype) -> float:
    return 2e-6 if np.dtype(dtype).itemsize == 4 else 1e-12


def assert_close(got, want, scale, dtype):
    """Check `|got - want| <= tolerance * scale`, give or take the rounding of `want` itself."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape
    assert np.array_equal(np.isnan(got), np.isnan(want))
    error = np.nan_to_num(np.abs(got.astype(np.float64) - want))
    bound = tolerance(dtype) * np.broadcast_to(scale, want.shape)
    bound = bound + 0.5 * np.spacing(np.abs(np.nan_to_num(want)).astype(got.dtype))
    worst = np.argmax(error - bound) if error.size else 0
    assert np.all(error <= bound), (
        f"off by {error.flat[worst]:.3g}, allowed {bound.flat[worst]:.3g}, worst of {error.size}"
    )


def peak(array) -> float:
    return max(float(np.max(np.abs(array), initial=0)), 1e-30)


def assert_stats(stats, want, dtype):
    channels = want.mean.shape
    for array in (stats.mean, stats.var, stats.inv_std):
        assert array.dtype == np.float64
        assert array.shape == channels
    assert isinstance(stats.count, int)
    assert stats.count == want.count
    assert_close(stats.mean, want.mean, np.sqrt(want.var) + 0.01 * np.abs(want.mean), dtype)
    assert_close(stats.var, want.var, want.var, dtype)
    assert_close(stats.inv_std, want.inv_std, want.inv_std, dtype)


def assert_forward(y, want, dtype):
    assert y.dtype == dtype
    assert_close(y, want, max(peak(want), 1), dtype)


def assert_gradients(got, want, terms, axis, dtype):
    """Check (dx, dgamma, dbeta).

    `terms` are the summands (dy, dy * x_hat, gamma * inv_std * dy): a sum may be off by rounding
    in proportion to the norm of its summands, dx in proportion to its own largest summand.
    """
    assert got[0].dtype == dtype
    assert got[1].dtype == got[2].dtype == np.dtype(dtype).newbyteorder("=")
    g, g_x_hat, scaled = terms
    others = tuple(d for d in range(g.ndim) if d != axis % g.ndim)
    assert_close(got[0], want[0], 2 * np.max(np.abs(scaled), axis=others, keepdims=True), dtype)
    assert_close(got[1], want[1], 2 * np.sqrt((g_x_hat**2).sum(axis=others)), dtype)
    assert_close(got[2], want[2], 2 * np.sqrt((g**2).sum(axis=others)), dtype)


def terms(dy, x, mean, var, gamma, axis, y=None, eps=1e-5):
    g = np.asarray(reference.masked(dy, y), np.float64)
    x_hat = np.asarray(reference.normalized(x, mean, var, eps, axis), np.float64)
    scaled = reference.batch_norm_infer_backward(dy, x, mean, var, gamma, eps=eps, axis=axis, y=y)
    return g, g * x_hat, scaled[0]


def check_train(case, dtype, gamma=None, beta=None, **fused):
    """Forward and backward with batch statistics, against the reference."""
    options = {"axis": case.axis}
    y, stats = fn.batch_norm_train(case.x, gamma, beta, **options, **fused)
    want, want_stats = reference.batch_norm_train(case.x, gamma, beta, **options, **fused)
    assert_stats(stats, want_stats, dtype)
    assert_forward(y, want, dtype)

    if fused.get("activation"):
        options["y"] = y
    got = fn.batch_norm_backward(case.dy, case.x, stats, gamma, **options)
    truth = reference.batch_norm_backward(case.dy, case.x, gamma, **options)
    scales = terms(case.dy, case.x, want_stats.mean, want_stats.var, gamma, **options)
    assert_gradients(got, truth, scales, case.axis, dtype)


def check_infer(case, dtype, gamma=None, beta=None, **fused):
    """Forward and backward with given statistics, against the reference."""
    options = {"axis": case.axis}
    given = (case.mean, case.var)
    y = fn.batch_norm_infer(case.x, *given, gamma, beta, **options, **fused)
    want = reference.batch_norm_infer(case.x, *given, gamma, beta, **options, **fused)
    assert_forward(y, want, dtype)

    if fused.get("activation"):
        options["y"] = y
    got = fn.batch_norm_infer_backward(case.dy, case.x, *given, gamma, **options)
    truth = reference.batch_norm_infer_backward(case.dy, case.x, *given, gamma, **options)
    scales = terms(case.dy, case.x, *given, gamma, **options)
    assert_gradients(got, truth, scales, case.axis, dtype)
