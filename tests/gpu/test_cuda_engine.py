"""The engine that the other tests rely on: it must find what it is there to find."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba import cuda, float32

from tests.gpu import engine
from tests.gpu.order import schedule as schedule_of

ORDERS = ("forward", "reversed", 7)


@cuda.jit
def _reverse(x, y):
    memory = cuda.shared.array(16, float32)
    i = cuda.threadIdx.x
    memory[i] = x[i]
    cuda.syncthreads()
    y[i] = memory[15 - i]


@cuda.jit
def _reverse_without_a_barrier(x, y):
    memory = cuda.shared.array(16, float32)
    i = cuda.threadIdx.x
    memory[i] = x[i]
    y[i] = memory[15 - i]


@cuda.jit
def _half_a_barrier(x):
    if cuda.threadIdx.x < 8:
        cuda.syncthreads()
    x[cuda.threadIdx.x] = 0


@cuda.jit
def _last_block_wins(x):
    x[0] = cuda.blockIdx.x


def test_barriers(schedule):
    x, y = np.arange(16, dtype=np.float32), np.zeros(16, np.float32)
    _reverse[1, 16](x, y)
    np.testing.assert_array_equal(y, x[::-1])


def test_a_missing_barrier_is_seen(schedule):
    """What was read too early is the poison that shared memory starts with."""
    x, y = np.arange(16, dtype=np.float32), np.zeros(16, np.float32)
    _reverse_without_a_barrier[1, 16](x, y)
    assert np.isnan(y).any()


def test_a_divergent_barrier_is_an_error(schedule):
    with pytest.raises(engine.DivergentBarrierError, match="8 of 16 threads"):
        _half_a_barrier[1, 16](np.zeros(16, np.float32))


def test_blocks_run_in_different_orders():
    found = set()
    for order in ORDERS:
        with schedule_of(order):
            x = np.zeros(1, np.float32)
            _last_block_wins[8, 1](x)
            found.add(float(x[0]))
    assert {0.0, 7.0} < found


@cuda.jit
def _last_block_adds(parts, ticket, total):
    """Without a barrier, the ticket does not vouch for the second thread's part."""
    i = cuda.threadIdx.x
    parts[2 * cuda.blockIdx.x + i] = 1
    if i == 0 and cuda.atomic.inc(ticket, 0, cuda.gridDim.x - 1) == cuda.gridDim.x - 1:
        for k in range(2 * cuda.gridDim.x):
            total[0] += parts[k]


def test_a_race_between_blocks_is_seen():
    sums = set()
    for order in range(10):
        with schedule_of(order):
            parts, ticket, total = np.zeros(8), np.zeros(1, np.uint32), np.zeros(1)
            _last_block_adds[4, 2](parts, ticket, total)
            sums.add(float(total[0]))
    assert min(sums) < 8


def test_stock_engine():
    """One kernel of each kind under the simulator as it comes, whose threads are real ones."""
    script = """
import numpy as np
from nbbn.kernels import _cuda, batchnorm_cuda, elementwise_cuda

_cuda.THREADS, _cuda.BLOCKS = 8, 8
x = np.random.default_rng(0).standard_normal((600, 4)).astype(np.float32)
y, nothing = np.empty_like(x), np.empty(0, np.float32)
mean, var, inv_std = np.empty((3, 4), np.float32)
batchnorm_cuda.train(x, nothing, nothing, nothing, 1e-5, True, y, mean, var, inv_std)
np.testing.assert_allclose(mean, x.mean(axis=0), atol=1e-6)
np.testing.assert_allclose(var, x.var(axis=0), rtol=1e-5)
expected = np.maximum((x - mean) / np.sqrt(var + 1e-5), 0)
np.testing.assert_allclose(y, expected, atol=1e-5)
elementwise_cuda.relu(x, y)
np.testing.assert_array_equal(y, np.maximum(x, 0))
"""
    subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
        cwd=Path(__file__).parents[2],
        check=True,
        timeout=600,
    )
