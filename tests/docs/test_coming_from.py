"""The scripts for those who come from other libraries run, and both sides learn."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "coming_from.md").read_text()


def run(library: str, tmp_path: Path) -> None:
    """Run a section in a file, since a step is replayed only if its source can be read."""
    section = PAGE.partition(f"## From {library}")[2].partition("\n## ")[0]
    script = tmp_path / "script.py"
    script.write_text("".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL)))
    runpy.run_path(str(script))


def test_from_pytorch(tmp_path, capsys):
    pytest.importorskip("torch")
    run("PyTorch", tmp_path)
    assert float(capsys.readouterr().out) < 1


def test_from_keras(tmp_path, capsys, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    pytest.importorskip("keras")
    run("Keras", tmp_path)
    assert float(capsys.readouterr().out) > 0.85


def test_from_scikit_learn(tmp_path, capsys):
    pytest.importorskip("sklearn")
    run("scikit-learn", tmp_path)
    scores = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert len(scores) == 2
    assert min(scores) > 0.94
