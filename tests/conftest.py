"""Fixtures that several test files share."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nbbn.cli import main
from tests.helpers.small_run import FLAGS, digits

ROOT = Path(__file__).resolve().parents[1]

_DIGESTS = """
import hashlib
import numba
from nbbn.kernels import _jit

def digests():
    return {{
        name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in {function}()
    }}

normal = _jit.PARALLEL_MIN
_jit.PARALLEL_MIN = 10**12
expected = digests()
for threads in (1, 2, 3, 4, 8):
    numba.set_num_threads(threads)
    for _jit.PARALLEL_MIN in (0, normal):
        for name, digest in digests().items():
            if digest != expected[name]:
                print(name, "differs from the serial form, threads:", threads, _jit.PARALLEL_MIN)
_jit.PARALLEL_MIN = 0
print("workers", _jit.workers(10**6))
"""


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20150211)


@pytest.fixture
def check_thread_identity():
    """Return a check that a self-contained generator of (name, array) gives the same bits anyhow.

    The bits of the serial form are compared with those of the parallel form, forced and as it is
    chosen by default, for 1, 2, 3, 4 and 8 threads.
    """

    def check(function) -> None:
        script = inspect.getsource(function) + _DIGESTS.format(function=function.__name__)
        result = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "NUMBA_NUM_THREADS": "8"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr
        *different, workers = result.stdout.splitlines()
        assert not different, "\n".join(different)
        if workers == "workers 1":
            pytest.skip("this threading layer cannot be shared, so that only the serial form runs")
        assert workers == "workers 8"

    return check


@pytest.fixture(scope="session")
def own(tmp_path_factory):
    """The path of a small data set for the command line."""
    path = tmp_path_factory.mktemp("data") / "own.npz"
    parts = (*digits(100, 0), *digits(40, 1))
    np.savez(path, **dict(zip(("x_train", "y_train", "x_test", "y_test"), parts, strict=True)))
    return path


@pytest.fixture(scope="session")
def trained(own, tmp_path_factory):
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("runs") / "trained"
    flags = ("--epochs", "40", "--validation", "0.2", "--standardize", "feature", "--percentiles")
    out_and_log = ("--out", str(out), "--log-every", "3", "--quiet")
    assert main(["train", "--data", str(own), *FLAGS, *flags, *out_and_log]) == 0
    return out
