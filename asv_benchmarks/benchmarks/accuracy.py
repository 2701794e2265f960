"""Error of the training forward against float64, worst channel, for data with |mean| >> std."""

import functools

import numpy as np

import nbbn.functional as F  # noqa: N812 - the usual name

# Name -> shape, channel axis, mean / std.
ROWS = {
    "4096x64, 1e3": ((4096, 64), 1, 1e3),
    "4096x64, 1e4": ((4096, 64), 1, 1e4),
    "4096x64, 1e5": ((4096, 64), 1, 1e5),
    "4096x64, 1e6": ((4096, 64), 1, 1e6),
    "64x8x8x32 last, 1e6": ((64, 8, 8, 32), -1, 1e6),
    "64x32x8x8, 1e6": ((64, 32, 8, 8), 1, 1e6),
}


@functools.cache
def _errors(row):
    """Relative error of the variance and absolute error of y."""
    shape, axis, mean = ROWS[row]
    x = (np.random.default_rng(0).standard_normal(shape) + mean).astype(np.float32)
    y, stats = F.batch_norm_train(x, axis=axis)
    wide = np.moveaxis(x, axis, -1).reshape(-1, shape[axis]).astype(np.float64)
    var = wide.var(axis=0)
    truth = (wide - wide.mean(axis=0)) / np.sqrt(var + 1e-5)
    y = np.moveaxis(y, axis, -1).reshape(truth.shape)
    return float(np.max(np.abs(stats.var - var) / var)), float(np.max(np.abs(y - truth)))


class AccuracyBenchmark:
    params = (list(ROWS),)
    param_names = ("shape, mean / std",)
    unit = "error"

    def track_variance(self, row):
        return _errors(row)[0]

    def track_y(self, row):
        return _errors(row)[1]
