"""The pages on embedding are true: their code runs, and the tests that they name exist."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "embedding.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def execute(blocks: list[str]) -> None:
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/embedding.md", "exec"), namespace)


def test_code_of_the_page_runs():
    execute([block for block in BLOCKS if "sklearn" not in block and "cuda" not in block])


def test_the_transformer_is_one_to_scikit_learn(tmp_path, monkeypatch):
    checks = pytest.importorskip("sklearn.utils.estimator_checks")
    (block,) = [block for block in BLOCKS if "sklearn" in block]
    # It must be in a module to be pickled.
    (tmp_path / "embedded_transformer.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("embedded_transformer")
    checks.check_estimator(module.BatchNormTransformer(), on_skip=None)


def test_the_tests_that_the_tables_name_exist():
    files = list((ROOT / "tests").rglob("test_*.py"))
    page = (ROOT / "docs" / "reliability.md").read_text()
    assert set(re.findall(r"\btest_\w+\.py", page)) <= {path.name for path in files}
    named = set(re.findall(r"\btest_\w+\b(?!\.py)", page))
    assert len(named) > 30
    defined = set(
        re.findall(r"^def (test_\w+)", "\n".join(path.read_text() for path in files), re.MULTILINE)
    )
    assert named <= defined
