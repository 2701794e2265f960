"""The code of the page on scientific Python runs, and prints what it should."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "scientific.md").read_text()


def run(section: str, folder: Path) -> None:
    """Run the code of a section from a file: a step is replayed if its source can be read."""
    text = PAGE[PAGE.index(f"## {section}\n") :].split("\n## ")[0]
    script = folder / "section.py"
    script.write_text("".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)))
    runpy.run_path(str(script))


def test_scikit_learn(tmp_path, capsys):
    pytest.importorskip("sklearn")
    run("scikit-learn", tmp_path)
    (accuracy,) = re.findall(r"digits ([\d.]+)%", capsys.readouterr().out)
    assert float(accuracy) > 95


@pytest.mark.filterwarnings("error")
def test_scipy(tmp_path, capsys):
    run("SciPy: training on all examples at once", tmp_path)
    printed = capsys.readouterr().out
    (loss,) = re.findall(r"full batch: ([\d.]+) after", printed)
    assert float(loss) < 0.02
    assert float(re.findall(r"eigenvalue ([\d.e+-]+)", printed)[0]) > 0


def test_arrays_lists_and_tables(tmp_path, capsys):
    pytest.importorskip("pandas")
    run("Arrays, lists and tables", tmp_path)
    printed = capsys.readouterr().out
    assert "226 parameters, 65 statistics" in printed
    assert float(re.findall(r"of sparse rows ([\d.]+)%", printed)[0]) > 75
    (accuracy,) = re.findall(r"of tables ([\d.]+)%", printed)
    assert float(accuracy) > 90


@pytest.mark.filterwarnings("error")
def test_weights(tmp_path, capsys):
    run("Weights: how they begin, how far a step goes, their average", tmp_path)
    (accuracy,) = re.findall(r"of averages ([\d.]+)%", capsys.readouterr().out)
    assert float(accuracy) > 90
