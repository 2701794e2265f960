"""The script for a real device, tried in the simulator: it has one chance to run there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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
    assert statuses == {name: sanitizers.get(name, "passed") for name in statuses}
    assert len(statuses) == 11
    assert "11 of 11" in done.stdout


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
