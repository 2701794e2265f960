"""Experiments on batch norm's claims: each leaves a verdict, numbers and a picture."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(
    path for path in (ROOT / "examples/paper").glob("*.py")
    if path.stem not in ("common", "run_all")
)  # fmt: skip
VERDICTS = {"reproduced", "partly", "not reproduced"}
COMMON = {"claim", "seeds", "quick", "verdict", "reason"}


def run(name, *arguments):
    command = [sys.executable, ROOT / "examples/paper" / name, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_an_experiment_leaves_a_verdict_numbers_and_a_picture(script, tmp_path):
    out = run(script.name, "--quick", f"--out={tmp_path}")
    found = json.loads((tmp_path / f"{script.stem}.json").read_text())
    assert found["verdict"] in VERDICTS
    assert out.startswith(f"{script.stem}: {found['verdict']} (quick")
    assert found["seeds"] == 2
    assert found["quick"]
    assert found.keys() > COMMON  # and numbers
    assert (tmp_path / f"{script.stem}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_committed_numbers_are_of_a_full_run(script):
    found = json.loads((ROOT / "docs/science" / f"{script.stem}.json").read_text())
    assert not found["quick"]
    assert found["seeds"] >= 3
    assert found["verdict"] in VERDICTS
    picture = ROOT / "docs/science" / f"{script.stem}.png"
    assert picture.stat().st_size < 100_000


def test_the_page_has_the_table_of_the_committed_verdicts():
    table = run("run_all.py", "--table", f"--out={ROOT / 'docs/science'}").strip()
    assert table.count("\n") == len(SCRIPTS) + 1
    assert table in (ROOT / "docs/science.md").read_text()
