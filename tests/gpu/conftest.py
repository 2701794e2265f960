"""Tests of the CUDA side that need no device; run from here, `pytest tests/gpu`, in two ways.

With NUMBA_ENABLE_CUDASIM=1 the kernels run in numba-cuda's simulator. Without it they are compiled
to machine code. The packages for both are in the extra `cuda-test`; without them there are no tests
here.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")
HERE = Path(__file__).parent
COMPILED = ["test_cuda_compile.py", "test_cuda_launch.py"]


def compiler_found() -> bool:
    """Whether NVIDIA's compiler and linker can be loaded, which needs no device."""
    try:
        from cuda.bindings import nvjitlink, nvvm

        return bool(nvjitlink.version() and nvvm.version())
    except Exception:  # each of them reports what it lacks in its own way
        return False


if importlib.util.find_spec("numba_cuda") is None:
    collect_ignore_glob = ["*"]
elif SIMULATED:
    collect_ignore = COMPILED
    import engine

    from nbbn.kernels import _cuda, _cuda_reduction, batchnorm_cuda

    engine.install()
    # A small machine, so that small arrays take every path: several tiles, runs and parts.
    SMALL = [
        (_cuda, "THREADS", 16),
        (_cuda, "BLOCKS", 24),
        (_cuda_reduction, "RUN", 4),
        (batchnorm_cuda, "RUN", 4),
        (_cuda_reduction, "_TILE", 4),
        (_cuda_reduction, "_NARROW_TILE", 2),
        (_cuda_reduction, "_STEPS", 1),
        (_cuda_reduction, "_FEW_ROWS", 4),
    ]
    AS_IT_IS = [(module, name, getattr(module, name)) for module, name, _ in SMALL]
    for setting in SMALL:
        setattr(*setting)
else:
    kept = COMPILED if compiler_found() else []
    collect_ignore = [path.name for path in HERE.glob("test_*.py") if path.name not in kept]


@pytest.fixture(params=["forward", "reversed", 7])
def schedule(request):
    """Run the test with the threads of each block in another order."""
    with engine.schedule(request.param):
        yield request.param


@pytest.fixture
def machine_as_it_is(monkeypatch):
    """Blocks and runs as on a device."""
    for setting in AS_IT_IS:
        monkeypatch.setattr(*setting)
    monkeypatch.setattr(_cuda, "_scratch", {})
