"""Tests of the CUDA side that need no device; run from here, `pytest tests/gpu`, in two ways.

With NUMBA_ENABLE_CUDASIM=1 the kernels run in numba-cuda's simulator. Without it they are compiled
to machine code, where numba-cuda and the CUDA toolkit's packages are installed.
"""

from __future__ import annotations

import importlib.util
import os

import pytest

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")
COMPILED = ["test_cuda_compile.py", "test_cuda_launch.py"]

if importlib.util.find_spec("numba_cuda") is None:
    collect_ignore_glob = ["*"]
elif SIMULATED:
    collect_ignore = COMPILED
    import engine

    from nbbn.kernels import _cuda, _cuda_reduction, batchnorm_cuda

    engine.install()
    # A small machine, so that small arrays take every path: several tiles, runs and parts.
    _cuda.THREADS, _cuda.BLOCKS = 16, 24
    _cuda_reduction.RUN = batchnorm_cuda.RUN = 4
    _cuda_reduction._TILE, _cuda_reduction._NARROW_TILE = 4, 2
    _cuda_reduction._STEPS, _cuda_reduction._FEW_ROWS = 1, 4
else:
    found = importlib.util.find_spec("cuda.bindings") is not None
    collect_ignore_glob = ["test_[!c]*.py", "test_cuda_[!cl]*.py"] if found else ["*"]


@pytest.fixture(params=["forward", "reversed", 7])
def schedule(request):
    """Run the test with the threads of each block in another order."""
    with engine.schedule(request.param):
        yield request.param


@pytest.fixture
def machine_as_it_is(monkeypatch):
    """Blocks and runs as on a device."""
    monkeypatch.setattr(_cuda, "THREADS", 256)
    monkeypatch.setattr(_cuda, "BLOCKS", 528)
    monkeypatch.setattr(_cuda_reduction, "RUN", 128)
    monkeypatch.setattr(batchnorm_cuda, "RUN", 128)
    for name, value in (("_TILE", 16), ("_NARROW_TILE", 8), ("_STEPS", 4), ("_FEW_ROWS", 512)):
        monkeypatch.setattr(_cuda_reduction, name, value)
    monkeypatch.setattr(_cuda, "_scratch", {})
