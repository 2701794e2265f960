"""How work is cut, and in which order memory is walked, changes no bit and misses no element."""

from __future__ import annotations

import numpy as np
import pytest

import nbbn.functional as F  # noqa: N812 - the usual name
from nbbn.kernels import batchnorm_cpu

# Rows, planes by channels in cache and planes in parts, in several pieces of 256 kB; cuts inside
# of a plane; one channel; more parts than rows.
SHAPES = [(3001, 301), (6, 5, 30_011), (3, 4, 150_001), (1, 1, 300_007), (2, 700)]


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("shape", SHAPES)
def test_any_number_of_parts_gives_the_same_bits(shape, activation, rng, monkeypatch):
    x, dy, residual = rng.normal(2.0, 3.0, size=(3, *shape)).astype(np.float32)
    gamma, beta = rng.normal(size=(2, shape[1])).astype(np.float32)

    def everything(parts):
        monkeypatch.setattr(batchnorm_cpu, "workers", lambda work: parts)
        y, stats = F.batch_norm_train(x, gamma, beta, activation=activation)
        mask = None if activation is None else y
        added = F.batch_norm_infer(
            x, stats.mean, stats.var, gamma, beta, activation=activation, residual=residual
        )
        inferred = F.batch_norm_infer(x, stats.mean, stats.var, gamma, beta, activation=activation)
        fixed = F.batch_norm_infer_backward(dy, x, stats.mean, stats.var, gamma, y=mask)
        trained = F.batch_norm_backward(dy, x, stats, gamma, y=mask)
        return y, *stats[:3], inferred, added, *fixed, *trained

    expected = everything(1)
    np.testing.assert_array_equal(expected[0], expected[4])
    for parts in (2, 3, 7):
        for one, other in zip(expected, everything(parts), strict=True):
            np.testing.assert_array_equal(one, other)

    wide, per_channel = x.astype(np.float64), (1, -1, *(1,) * (x.ndim - 2))
    axes = (0, *range(2, x.ndim))
    mean, var = wide.mean(axes, keepdims=True), wide.var(axes, keepdims=True)
    scale = gamma.reshape(per_channel) / np.sqrt(var + 1e-5)
    normalized = (wide - mean) * scale + beta.reshape(per_channel)
    outputs = [normalized, normalized + residual]
    if activation:
        outputs = [np.maximum(y, 0.0) for y in outputs]
    for found, truth in zip((expected[4], expected[5]), outputs, strict=True):
        np.testing.assert_allclose(found, truth, rtol=2e-5, atol=2e-5)
    g = dy if activation is None else np.where(expected[0] > 0, dy, 0)
    np.testing.assert_allclose(expected[6], g * scale, rtol=2e-5, atol=2e-5)
