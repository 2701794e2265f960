"""The script of the page on sequences runs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "sequences.md"


def test_the_script_of_the_page():
    pytest.importorskip("torch")
    names: dict = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)), names)
    assert names["y"].shape == (8, 28, 64)
    assert (names["y"].data[1, 5:] == 0).all()
    assert names["head"](names["x"]).shape == (8, 10)
    tokens = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert names["encoder"](tokens).shape == (3, 4, 64)
