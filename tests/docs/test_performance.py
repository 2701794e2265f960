"""The summary of the page on performance is that of its raw numbers."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "asv_benchmarks"))
    return importlib.import_module("report")


def test_the_page_shows_the_summary_of_the_raw_numbers(report):
    measured = report.read(ROOT / "docs" / "performance.csv")
    assert report.summary(measured) in (ROOT / "docs" / "performance.md").read_text()


def test_results_become_rows_and_means(report, tmp_path):
    bn = [
        {"kind": "forward", "shape": shape, "seconds": {"nbbn": 2, "PyTorch": torch, "copyto": 1}}
        for shape, torch in (("64x100", 2), ("32x4x4x64 last", 8))
    ]
    step = [{"net": "9/4", "seconds": {"nbbn": 4.0, "JAX": 2.0, "matrix products": 1.0}}]
    result = tmp_path / "result.json"
    result.write_text(json.dumps({"bn": bn, "step": step}))
    report.write(report.read(result), tmp_path / "result.csv")
    measured = report.read(tmp_path / "result.csv")
    assert measured[0] == ("forward", "64x100", "nbbn", 2.0)
    # Three passes are one and a half copies, 0.75 of nbbn; PyTorch takes 1 and 4 times as long.
    assert report.summary(measured).splitlines()[2:] == [
        "| batch norm forward, up to 4 MiB | 0.75 | - | 2.00 | - | - |",
        "| training step, 9/4 | 0.25 | - | - | - | 0.50 |",
    ]
