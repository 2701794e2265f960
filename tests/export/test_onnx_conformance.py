"""ONNX's own tests, on nbbn's backend; docs/conformance.md lists them."""

from __future__ import annotations

import re

import pytest

onnx = pytest.importorskip("onnx")
from tests.helpers import conformance  # noqa: E402 - needs onnx

_TEXT = conformance.PAGE.read_text()
_VERSION = re.search(r"ONNX (\d+\.\d+\.\d+)", _TEXT).group(1)
_PASSED = re.findall(r"`(test_\w+)`", _TEXT.split("## Run and passed")[1].split("## Excluded")[0])


@pytest.mark.parametrize("name", _PASSED)
def test_onnx_case(name):
    if name not in conformance.cases()[0]:
        assert onnx.__version__ != _VERSION, "the page lists a case that does not exist"
        pytest.skip(f"ONNX {onnx.__version__} does not have this case")
    conformance.check(name)


def test_the_page_lists_all_there_is():
    """Every case of the listed operators either runs or has its reason."""
    if onnx.__version__ != _VERSION:
        pytest.skip(f"the page is of ONNX {_VERSION}, installed is {onnx.__version__}")
    assert conformance.page() == _TEXT, "run python -m tests.helpers.conformance"
    run, excluded = conformance.cases()
    assert set(_PASSED) == set(run)
    assert not set(run) & set(excluded)
    operators = {op for _, names in run.values() for op in names.split(", ")}
    # All of GRU's own cases have linear_before_reset=0.
    assert operators | {"GRU"} == set(conformance.LISTED)


def test_a_failing_case_is_noticed(monkeypatch):
    """A skip, a wrong number and a missing operator are failures, not silence."""
    operators = conformance.OPERATORS
    count, relu = operators["Relu"]
    monkeypatch.setitem(operators, "Relu", (count, lambda *given: (relu(*given)[0] + 1e-3,)))
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        conformance.check("test_relu")
    monkeypatch.delitem(operators, "Relu")
    with pytest.raises(ValueError, match=r"cannot take the operator Relu"):
        conformance.check("test_relu")
