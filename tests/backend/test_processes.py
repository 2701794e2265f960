"""Threads, forks and nesting: the process survives and the numbers are right.

Each situation of `workload.py` runs in a process of its own, under every threading layer of Numba
that loads here.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 600

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


def execute(code: str, layer: str, threads: int = 4) -> subprocess.CompletedProcess[str]:
    libraries = [str(Path(sys.prefix) / "lib"), os.environ.get("LD_LIBRARY_PATH", "")]
    return subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],
        env={
            **os.environ,
            "NUMBA_THREADING_LAYER": layer,
            "NUMBA_NUM_THREADS": str(threads),
            # Where the wheel of TBB puts its library.
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )


def situation(name: str, layer: str, threads: int = 4) -> list[tuple[str, str]]:
    result = execute(f"from tests.helpers import workload; workload.{name}()", layer, threads)
    assert result.returncode == 0, f"{result.returncode}\n{result.stdout}\n{result.stderr}"
    pairs = [line.partition(" ")[::2] for line in result.stdout.splitlines()]
    return [(name, value) for name, value in pairs]


@functools.cache
def loads(layer: str) -> str:
    """Return why a threading layer does not load, or nothing."""
    result = execute("from tests.helpers import workload; workload.start_pool()", layer)
    return "" if result.returncode == 0 else result.stderr.strip().splitlines()[-1]


@functools.cache
def truth() -> str:
    return dict(situation("serial", "workqueue", threads=1))["digest"]


@pytest.fixture(params=["workqueue", "omp", "tbb"])
def layer(request) -> str:
    reason = loads(request.param)
    # This one needs no library: if it does not load, the test itself is wrong.
    if reason and request.param != "workqueue":
        pytest.skip(f"{request.param} does not load: {reason}")
    return request.param


def assert_all(found: list[tuple[str, str]], names: str) -> None:
    assert found == [(name, truth()) for name in names.split()]


def test_every_kernel_runs_in_parallel(layer):
    found = situation("parallel", layer)
    assert found == [
        ("digest", truth()),
        ("workers", "1" if layer == "workqueue" else "4"),
        ("kernels", "True"),
    ]


@pytest.mark.parametrize(("name", "calls"), [("threads", 24), ("nested", 6)])
def test_calls_at_once(layer, name, calls):
    assert situation(name, layer) == [("calls", str(calls)), ("digest", truth())]


def test_forked_children(layer):
    assert_all(situation("forks", layer), "digest child grandchild thread fork fork fork digest")


def test_spawned_children(layer):
    assert_all(
        situation("other_starts", layer),
        "digest spawn spawn spawn forkserver forkserver forkserver",
    )


def test_child_that_imports_after_the_fork(layer):
    assert_all(situation("late_import", layer), "child grandchild fork fork fork digest")


def test_child_made_during_a_compilation():
    assert_all(situation("fork_while_compiling", "workqueue"), "child")


def test_workers_of_a_data_loader(layer):
    pytest.importorskip("torch")
    assert_all(situation("data_loader", layer), "digest " * 5)


def test_other_threads_go_on_during_a_long_kernel(layer):
    """Hundreds of turns on a quiet machine; one beside a serial kernel that holds the GIL."""
    turns = {name: int(count) for name, count in situation("heartbeat", layer)}
    assert turns.keys() == {"serial", "parallel"}
    assert min(turns.values()) >= 4, turns
