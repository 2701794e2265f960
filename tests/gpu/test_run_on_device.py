"""The script for a real device, tried in the simulator: it has one chance to run there."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.gpu import device_targets, run_on_device

SCRIPT = Path(__file__).with_name("run_on_device.py")


def run(tmp_path, *flags):
    out = tmp_path / "device.json"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(out), *flags],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return done, json.loads(out.read_text()) if out.exists() else None


def test_every_section_runs_in_the_simulator(tmp_path):
    done, report = run(tmp_path, "--simulate", "--seed", "5")
    assert done.returncode == 0, done.stdout + done.stderr
    assert report["simulated"]
    assert report["seed"] == 5
    statuses = {name: found["status"] for name, found in report["sections"].items()}
    sanitizers = {"memcheck": "skipped", "racecheck": "skipped"}
    assert statuses == {name: sanitizers.get(name, "passed") for name in run_on_device.SECTIONS}
    assert "12 of 12" in done.stdout
    assert "not measured share of the floor" in done.stdout


def test_a_section_that_fails_leaves_its_error_and_the_others_run(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"no images")
    flags = ["--simulate", "--only", "mnist,versions", "--data-dir", str(tmp_path)]
    done, report = run(tmp_path, *flags)
    assert done.returncode == 1
    assert report["sections"]["mnist"]["status"] == "failed"
    assert "train-images" in report["sections"]["mnist"]["error"]
    assert report["sections"]["versions"]["status"] == "passed"


def test_no_time_left_and_unknown_sections(tmp_path):
    done, report = run(tmp_path, "--simulate", "--only", "graph", "--budget", "0")
    assert report["sections"]["graph"] == {"status": "skipped", "reason": "no time left"}
    done, report = run(tmp_path / "none", "--only", "all")
    assert done.returncode == 2
    assert "unknown: all" in done.stderr


NOTED = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(sys.argv[2]); "
ENDS = {
    "versions": ("os.kill(os.getpid(), 11)", "ended by SIGSEGV"),
    # With a process of its own, which must not stay behind.
    "graph": ("os.fork(); time.sleep(300)", "no end after 8 s: killed"),
    "step": ("print('out of luck'); sys.exit(3)", "ended with 3"),
}


def test_a_section_that_dies_or_hangs_leaves_what_it_had_measured(tmp_path, monkeypatch, capsys):
    noted = {"graph, us": 80.0, "torch eager, us": 200.0, "torch graph, us": 100.0}
    text = json.dumps({"status": "failed", "found": noted})

    def worker(name, options, out, seconds):
        code = NOTED + ENDS[name][0]
        return [sys.executable, "-c", code, str(out), text]

    out = tmp_path / "device.json"
    flags = ["--out", str(out), "--only", ",".join(ENDS)]
    monkeypatch.setattr(sys, "argv", ["run_on_device.py", *flags])
    monkeypatch.setattr(run_on_device, "worker", worker)
    monkeypatch.setitem(run_on_device.SECTIONS, "graph", 8)
    start = time.monotonic()
    assert run_on_device.main() == 1
    # Before it would have ended by itself.
    assert time.monotonic() - start < 300
    report = json.loads(out.read_text())
    for name, (_, error) in ENDS.items():
        found = report["sections"][name]
        assert (found["status"], found["error"], found["found"]) == ("failed", error, noted)
    assert report["sections"]["step"]["last lines"] == ["out of luck"]
    shown = capsys.readouterr().out
    assert "0 of 3" in shown
    assert "met          step by graph, microseconds, at most 100: 80" in shown
    assert "MISSED       step: torch eager over our graph, at least 3: 2.5" in shown
    assert "met          step: torch graph over our graph, at least 1: 1.25" in shown


@pytest.mark.parametrize("status", [0, 7])
def test_compute_sanitizer(tmp_path, monkeypatch, status):
    program = tmp_path / "compute-sanitizer"
    program.write_text(f'#!/bin/sh\necho "$@"\necho "ERROR SUMMARY"\nexit {status}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    options = argparse.Namespace(simulate=False, seed=1)
    found = run_on_device.run("racecheck", options, time.monotonic() + 60)
    assert found["status"] == ("failed" if status else "passed")
    command, summary = found["found"]["last lines"]
    assert "--tool racecheck --error-exitcode 7" in command
    assert command.endswith("sanitized.py 1")
    assert summary == "ERROR SUMMARY"
    assert found.get("error") == ("ended with 7" if status else None)


def test_targets():
    share, ratio = {"us": 1.0, "share of floor": 0.9}, {"us": 1.0, "ratio": 1.21}
    low, row = {"us": 1.0, "share of floor": 0.7}, {"shape": [65536, 1024], "dtype": "bfloat16"}
    found = {
        "bandwidth": {"rows": [{**row, "forward": share, "backward": low}]},
        "torch": {"rows": [{**row, "forward": ratio, "backward": {**ratio, "ratio": 1.0}}]},
        "mnist": {"epochs": [{"test accuracy": 0.981}, {"test accuracy": 0.97}]},
    }
    sections = {name: {"status": "passed", "found": notes} for name, notes in found.items()}
    lines = [target.line for target in device_targets.targets(sections)]
    assert lines == [
        "met          65536x1024 bfloat16 forward, share of the floor, at least 0.85: 0.9",
        "MISSED       65536x1024 bfloat16 backward, share of the floor, at least 0.85: 0.7",
        "not measured 65536x1024 bfloat16 inference, PyTorch's time over ours, at least 1",
        "met          65536x1024 bfloat16 forward, PyTorch's time over ours, at least 1: 1.21",
        "met          65536x1024 bfloat16 backward, PyTorch's time over ours, at least 1: 1",
        "met          PyTorch's time over ours, geometric mean, at least 1: 1.1",
        "not measured step by graph, microseconds, at most 100",
        "not measured step: torch eager over our graph, at least 3",
        "not measured step: torch graph over our graph, at least 1",
        "met          MNIST test accuracy, at least 0.98: 0.981",
    ]


def test_a_nan_is_no_small_error(monkeypatch):
    from tests.gpu import device_checks

    monkeypatch.setattr(device_checks, "batch_norm_errors", lambda *_: [float("nan"), 0.0, 0.0])
    notes = {}
    setting = device_checks.Setting(1, True, None, time.monotonic() + 60, notes, lambda: None)
    with pytest.raises(AssertionError, match="nan"):
        device_checks.correctness(setting)
    assert str(notes["worst relative error: y, dx, sums"]["float32"][0]) == "nan"
