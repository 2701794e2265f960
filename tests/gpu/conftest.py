"""Tests of the CUDA side that need no device; run from here, `pytest tests/gpu`, in two ways.

With NUMBA_ENABLE_CUDASIM=1 the kernels run in numba-cuda's simulator. Without it they are compiled
to machine code, and the compiled PTX runs in an interpreter. The packages for both are in the extra
`cuda-test`; without them there are no tests here.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")
HERE = Path(__file__).parent
COMPILED = ["test_cuda_compile.py", "test_cuda_launch.py", "test_ptx.py", "test_ptx_kernels.py"]
# The same tests in the simulator and in the interpreter.
KERNELS = (
    "batchnorm", "convolution", "elementwise", "groupnorm", "localresponse", "pooling", "recurrent",
)  # fmt: skip
BOTH = [f"test_cuda_{name}.py" for name in KERNELS]


def compiler_found() -> bool:
    """Whether NVIDIA's compiler and linker can be loaded, which needs no device."""
    try:
        from cuda.bindings import nvjitlink, nvvm

        return bool(nvjitlink.version() and nvvm.version())
    except Exception:  # each of them reports what it lacks in its own way
        return False


if importlib.util.find_spec("numba_cuda") is None:
    collect_ignore_glob = ["*"]
elif not SIMULATED and not compiler_found():
    collect_ignore_glob = ["test_*.py"]
else:
    from nbbn.kernels import _cuda, _cuda_reduction, batchnorm_cuda, groupnorm_cuda
    from tests.gpu.order import schedule as schedule_of

    # A small machine, so that small arrays take every path: several tiles, runs and parts.
    SMALL = [
        (_cuda, "BLOCKS", 24),
        (_cuda_reduction, "_STEPS", 1),
        (_cuda_reduction, "_FEW_ROWS", 4),
    ]
    if SIMULATED:
        from tests.gpu import engine, simulated

        collect_ignore = COMPILED
        engine.install()
        simulated.install()
        SMALL += [
            (_cuda, "THREADS", 16),
            (_cuda_reduction, "RUN", 4),
            (batchnorm_cuda, "RUN", 4),
            (groupnorm_cuda, "RUN", 4),
            (_cuda_reduction, "_TILE", 4),
            (_cuda_reduction, "_NARROW_TILE", 2),
        ]
    else:
        from tests.gpu import ptx_engine

        collect_ignore = [path.name for path in HERE.glob("test_*.py")
                          if path.name not in COMPILED + BOTH]  # fmt: skip
    AS_IT_IS = [(module, name, getattr(module, name)) for module, name, _ in SMALL]
    if SIMULATED:
        for setting in SMALL:
            setattr(*setting)


@pytest.fixture
def interpreter(monkeypatch):
    """Launches run their compiled PTX, on a small machine as far as launchers can make it one."""
    ptx_engine.install(monkeypatch)
    for setting in SMALL:
        monkeypatch.setattr(*setting)


@pytest.fixture(autouse=True)
def kernels_run_somewhere(request):
    """Without the simulator, tests of both engines need the interpreter."""
    if not SIMULATED and request.path.name in BOTH:
        request.getfixturevalue("interpreter")


@pytest.fixture(params=["forward", "reversed", 7])
def schedule(request):
    """Run the test with the threads of each block in another order."""
    with schedule_of(request.param):
        yield request.param


@pytest.fixture
def scratch(kernels_run_somewhere):
    """Poison the partial sums before each test, and look for tickets that were left after it."""
    from tests.gpu.storage import poison_scratch

    poison_scratch()
    yield
    for _, tickets in _cuda._scratch.values():
        assert not tickets.any()


@pytest.fixture
def machine_as_it_is(monkeypatch):
    """Blocks and runs as on a device."""
    for setting in AS_IT_IS:
        monkeypatch.setattr(*setting)
    monkeypatch.setattr(_cuda, "_scratch", {})
