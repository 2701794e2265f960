"""The code on the pages of the documentation runs."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("page", ["interoperability"])
def test_code_of_the_page_runs_with_torch(page, tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(), re.DOTALL)
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), namespace)
    printed = capsys.readouterr().out
    assert "0.9 False" in printed
    assert "1 BatchNorm(256, convention='keras', activation='relu')" in printed


@pytest.mark.filterwarnings("error")
def test_code_on_convolutions_runs_recorded():
    page = (DOCS / "convolution.md").read_text()
    namespace: dict[str, object] = {}
    exec("".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)), namespace)
    assert namespace["step"].refusal is None
    assert all(p.grad is not None for p in namespace["model"].parameters() if p.ndim == 4)
    kinds = [type(layer).__name__ for layer in namespace["deployed"]]
    assert kinds == ["Conv2d", "Conv2d", "Conv2d", "Flatten", "Dense"]


@pytest.mark.filterwarnings("error")
def test_code_for_other_targets_than_classes_runs_and_learns(tmp_path, capsys):
    page = (DOCS / "training.md").read_text()
    section = page[page.index("## Regression, yes and no") :].split("\n## ")[0]
    # In a file: a step is replayed only if the source of its loss can be read.
    script = tmp_path / "section.py"
    script.write_text("".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL)))
    runpy.run_path(str(script))
    error, *accuracies = (float(n) for n in re.findall(r"[\d.]+", capsys.readouterr().out))
    assert error < 0.1
    assert min(accuracies) > 85
