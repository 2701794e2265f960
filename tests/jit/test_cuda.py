"""Building blocks for users' CUDA kernels, in Numba's simulator and compiled without a device."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

KERNEL = """
import numpy as np
from numba import cuda, float64, int64
from nbbn.jit import cuda as jit_cuda

THREADS = 16

@cuda.jit
def stats_of_rows(x, mean, var):
    means = cuda.shared.array(THREADS, float64)
    m2s = cuda.shared.array(THREADS, float64)
    counts = cuda.shared.array(THREADS, int64)
    row, n, m, m2 = cuda.blockIdx.x, 0, 0.0, 0.0
    for i in range(cuda.threadIdx.x, x.shape[1], cuda.blockDim.x):
        n, m, m2 = jit_cuda.push(n, m, m2, x[row, i])
    n, m, m2 = jit_cuda.merge_over_block(means, m2s, counts, n, m, m2)
    n, m, m2 = jit_cuda.merge(n, m, m2, 0, 0.0, 0.0)
    if cuda.threadIdx.x == 0:
        mean[row] = m
        var[row] = m2 / n
"""

# More values than threads, fewer, and one.
SIMULATE = """
x = 1e6 + np.random.default_rng(0).normal(size=(3, 70))
for part in (x, x[:, :5].copy(), x[:, :1].copy()):
    mean, var = np.zeros((2, 3))
    stats_of_rows[3, THREADS](part, mean, var)
    np.testing.assert_allclose(mean, part.mean(axis=1), rtol=1e-14)
    np.testing.assert_allclose(var, part.var(axis=1), rtol=1e-8)
"""

COMPILE = """
from types import SimpleNamespace
from numba.cuda import dispatcher
dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=(9, 0))
signature = (float64[:, ::1], float64[::1], float64[::1])
ptx, result = cuda.compile_ptx(stats_of_rows.py_func, signature, cc=(9, 0))
assert "bar.sync" in ptx and "atom" not in ptx, ptx
"""


@pytest.mark.parametrize(("script", "simulator"), [(SIMULATE, "1"), (COMPILE, "0")])
def test_statistics_of_a_block(script, simulator):
    pytest.importorskip("numba_cuda")
    if script is COMPILE:
        pytest.importorskip("cuda.bindings.nvvm", exc_type=Exception)
    result = subprocess.run(
        [sys.executable, "-c", KERNEL + script],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": simulator},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
