"""Several ranks on this machine: `mpiexec` as its users call it, in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MPIEXEC = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")

needs_mpi = pytest.mark.skipif(
    importlib.util.find_spec("mpi4py") is None or MPIEXEC is None,
    reason="needs mpi4py and an MPI: pip install 'nbbn[mpi]'",
)


def is_open_mpi() -> bool:
    """Whether `mpiexec` is Open MPI's."""
    found = subprocess.run([str(MPIEXEC), "--version"], capture_output=True, text=True, timeout=60)
    return "Open MPI" in found.stdout


def environment(**more: str) -> dict[str, str]:
    """One thread a rank; Open MPI wants to be told that ranks may share cores, and of root."""
    return {
        **os.environ, "NUMBA_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
        "PYTHONSAFEPATH": "1",
        "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe", **more,
    }  # fmt: skip


def start(*command: object, **more: str) -> subprocess.Popen[str]:
    """Start `mpiexec` with arguments; its output and errors come as one."""
    return subprocess.Popen(
        [str(MPIEXEC), *map(str, command)],
        env=environment(**more), cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def launch(*command: object, timeout: float = 300, **more: str) -> tuple[int, str]:
    """Run `mpiexec` with arguments; return its status and all that it printed."""
    process = start(*command, **more)
    try:
        text, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, text


def train(count: int, *flags: object, **more: object) -> tuple[int, str]:
    """Run ``nbbn train --distributed`` on `count` ranks."""
    return launch("-n", count, *command(*flags), **more)


def command(*flags: object) -> list[object]:
    """Return the command of one rank."""
    return [sys.executable, "-m", "nbbn", "train", "--distributed", *flags]


def processes(text: str) -> dict[int, int]:
    """Read which rank is which process from the first line of a run."""
    return {int(rank): int(pid) for rank, pid in re.findall(r"(\d+) \(pid (\d+)\)", text)}
