"""Several ranks: `nbbn.distributed`, batch norm over all of them, training, and their faults."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nbbn.cli import main
from nbbn.train import checkpoint
from tests.helpers import rank_checks
from tests.helpers.ranks import (
    ROOT,
    command,
    is_open_mpi,
    launch,
    needs_mpi,
    processes,
    start,
    train,
)
from tests.helpers.small_run import call

FLAGS = ("--hidden", 8, "--batch-size", 16, "--seed", 1)
# A run that goes on until something ends it.
ENDLESS = (*FLAGS, "--epochs", 100_000, "--save-every", 20)
# Seconds without an answer that end a run; on a busy machine a rank that is well takes some.
SILENCE = 10


def test_it_says_what_to_install(own, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.setattr("nbbn.distributed._world", None)
    status, lines, error = call(capsys, "train", "--data", own, "--distributed")
    assert (status, lines) == (2, [])
    assert "pip install 'nbbn[mpi]'" in error


@pytest.fixture(scope="module")
def results():
    """What the checks of each number of ranks have found, each run once."""
    found: dict[int, dict[str, str]] = {}

    def of(count):
        if count not in found:
            program = sys.executable, "-m", "tests.helpers.rank_checks"
            status, text = launch("-n", count, *program, timeout=240)
            assert status == 0, text
            found[count] = json.loads(text.splitlines()[-1])
        return found[count]

    return of


@needs_mpi
@pytest.mark.parametrize("name", rank_checks.CHECKS)
@pytest.mark.parametrize("count", [1, 2, 3, pytest.param(4, marks=pytest.mark.slow)])
def test_on_ranks(count, name, results):
    assert results(count)[name] == ""


# ------------------------------------------------------------------------------- command line


def states(folder):
    return checkpoint.load(folder).model


def far(a, b):
    return max(np.abs(array - b[name]).max() for name, array in a.items())


@needs_mpi
def test_a_run_goes_on_with_another_number_of_ranks(own, tmp_path):
    """From two ranks to one process and to three ranks: it ends where one process does."""
    flags = ("--data", own, *FLAGS, "--epochs", 4, "--optimizer", "sgd", "--lr", 0.1, "--quiet")
    assert main([*map(str, ("train", *flags, "--out", tmp_path / "one"))]) == 0
    status, text = train(2, *flags, "--out", tmp_path / "many", "--save-every", 9)
    assert status == 0, text
    # Once: the ranks, and the result.
    assert [line for line in text.splitlines() if "images_per_second" in line] == [
        text.splitlines()[-1]
    ]
    assert len(text.splitlines()) == 2
    expected, result = (
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "many")
    )
    assert result["steps"] == expected["steps"]
    for name in ("test_accuracy", "test_loss", "train_loss"):
        assert result[name] == pytest.approx(expected[name], abs=1e-5)
    assert far(states(tmp_path / "one"), states(tmp_path / "many")) < 1e-5
    for late in sorted((tmp_path / "many").glob("step-*"))[1:]:
        late.unlink()
    shutil.copytree(tmp_path / "many", tmp_path / "again")
    assert main(["train", "--resume", str(tmp_path / "many"), "--quiet"]) == 0
    status, text = train(3, "--resume", tmp_path / "again", "--quiet")
    assert status == 0, text
    for name in ("many", "again"):
        assert far(states(tmp_path / "one"), states(tmp_path / name)) < 1e-5


@needs_mpi
@pytest.mark.slow
def test_the_script_of_the_page(tmp_path):
    text = (ROOT / "docs" / "distributed.md").read_text()
    (script,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "script.py").write_text(script.replace("epochs=5", "epochs=1"))
    status, text = launch("-n", 2, sys.executable, tmp_path / "script.py")
    assert status == 0, text
    assert text.count("epoch 1  loss") == 1


@needs_mpi
def test_ranks_with_other_code_or_settings_are_refused_at_the_start(own, tmp_path):
    flags = ("--data", own, *FLAGS)
    status, text = launch("-n", 1, *command(*flags), ":", "-n", 1, *command(*flags, "--lr", 0.5))
    assert status == 2
    assert text.count("nbbn: error: ") == 1
    assert "must have the same lr: rank 0" in text
    shutil.copytree(
        ROOT / "nbbn", tmp_path / "nbbn", ignore=lambda *_: ["__pycache__"], copy_function=os.link
    )
    changed = tmp_path / "nbbn" / "optim.py"
    text = changed.read_text()
    changed.unlink()
    changed.write_text(f"{text}# Another line.\n")
    other = "env", f"PYTHONPATH={tmp_path}", *command(*flags)
    status, text = launch("-n", 1, *command(*flags), ":", "-n", 1, *other)
    assert status == 2
    assert text.count("nbbn: error: ") == 1
    assert "must have the same code of nbbn" in text
    missing = ("--data", tmp_path / "nothing.npz", *FLAGS)
    status, text = train(2, *missing)
    assert (status, text.count("nbbn: error: ")) == (2, 1)


# ------------------------------------------------------------------------------------- faults


def running(own, out, count=2, wait=100):
    """Start an endless run; return it and its ranks' processes once there is a checkpoint."""
    flags = "--data", own, *ENDLESS, "--out", out, "--distributed", wait
    process = start("-n", count, *command(*flags))
    ranks = processes(process.stdout.readline())
    assert len(ranks) == count
    begin = time.monotonic()
    while not list(Path(out).glob("step-*")):
        time.sleep(0.02)
        if process.poll() is not None or time.monotonic() - begin > 300:
            process.kill()
            pytest.fail(process.communicate()[0])
    return process, ranks


def ended(process, ranks, out):
    """Wait for the end; all ranks are gone and all checkpoints whole. Return the text."""
    begin = time.monotonic()
    text, _ = process.communicate(timeout=100)
    while any(map(alive, ranks.values())) and time.monotonic() - begin < 100:
        time.sleep(0.02)
    assert not any(map(alive, ranks.values()))
    for path in Path(out).glob("step-*"):
        checkpoint.load(path)
    assert int(checkpoint.load(out).optimizer["step_count"]) >= 20, text
    return text


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


@needs_mpi
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
class TestFaults:
    @pytest.mark.parametrize("rank", [0, 1])
    def test_a_stopped_rank_is_named(self, rank, own, tmp_path):
        process, ranks = running(own, tmp_path / "run", wait=SILENCE)
        os.kill(ranks[rank], signal.SIGSTOP)
        text = ended(process, ranks, tmp_path / "run")
        assert f"no answer for {SILENCE} s from rank {rank} (pid {ranks[rank]}" in text
        assert process.returncode != 0

    def test_a_dead_rank_ends_the_run(self, own, tmp_path):
        """The launcher names the process; the run's first line says which rank that is."""
        process, ranks = running(own, tmp_path / "run")
        os.kill(ranks[1], signal.SIGKILL)
        text = ended(process, ranks, tmp_path / "run")
        assert str(ranks[1]) in text or "rank 1" in text
        assert process.returncode != 0

    @pytest.mark.parametrize("rank", [None, 1])
    def test_ctrl_c_ends_all_ranks_cleanly(self, rank, own, tmp_path):
        """Given to all by the launcher, or to one alone."""
        if rank is None and is_open_mpi():
            pytest.skip("Open MPI's launcher kills the ranks on Ctrl-C")
        process, ranks = running(own, tmp_path / "run")
        os.kill(process.pid if rank is None else ranks[rank], signal.SIGINT)
        text = ended(process, ranks, tmp_path / "run")
        assert process.returncode == 130
        assert text.count("nbbn: stopped after step") == 1
        assert "Traceback" not in text
        assert "BAD TERMINATION" not in text

    def test_a_rank_that_raises_is_named(self, tmp_path):
        script = tmp_path / "script.py"
        script.write_text(
            "from nbbn import distributed\n"
            "ranks = distributed.start()\n"
            "with ranks.together():\n"
            "    if ranks.rank == 1:\n"
            "        raise ZeroDivisionError('by 0')\n"
            "    ranks.any(False)\n"
        )
        status, text = launch("-n", 2, sys.executable, script)
        assert status == 1
        assert "Traceback" in text
        assert re.search(r"error: rank 1 .* of 2 has failed: ZeroDivisionError: by 0", text)

    @pytest.mark.slow
    @pytest.mark.parametrize("case", range(40))
    def test_kills_at_any_rank_and_moment(self, case, own, tmp_path):
        """Then the run goes on from its last checkpoint, on another number of ranks."""
        rng = np.random.default_rng(case)
        count, out = 2 + case % 2, tmp_path / "run"
        rank = int(rng.integers(count))
        number = (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT)[case % 4]
        process, ranks = running(own, out, count, SILENCE if number == signal.SIGSTOP else 100)
        time.sleep(rng.uniform(0, 1))
        begin = time.monotonic()
        os.kill(ranks[rank], number)
        text = ended(process, ranks, out)
        assert time.monotonic() - begin < 100
        if number in (signal.SIGKILL, signal.SIGSTOP):
            assert str(ranks[rank]) in text or f"rank {rank}" in text
            assert process.returncode not in (0, None)
        else:
            assert process.returncode == 128 + number
        step = int(checkpoint.load(out).optimizer["step_count"])
        epochs = int(checkpoint.load(out).progress["epoch"]) + 1
        flags = ("--resume", str(out), "--epochs", str(epochs), "--quiet")
        assert main(["train", *flags]) == 0
        assert int(checkpoint.load(out).optimizer["step_count"]) > step
