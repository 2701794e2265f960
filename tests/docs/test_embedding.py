"""The transformer on the page on embedding is one to scikit-learn."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "embedding.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_transformer_is_one_to_scikit_learn(tmp_path, monkeypatch):
    checks = pytest.importorskip("sklearn.utils.estimator_checks")
    (block,) = [block for block in BLOCKS if "sklearn" in block]
    # It must be in a module to be pickled.
    (tmp_path / "embedded_transformer.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("embedded_transformer")
    checks.check_estimator(module.BatchNormTransformer(), on_skip=None)
