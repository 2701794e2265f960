"""Several ranks: `nbbn.distributed`, batch norm over all of them, training, and their faults."""

from __future__ import annotations

import json

import pytest

from tests.helpers import rank_checks
from tests.helpers.ranks import launch, needs_mpi

pytestmark = needs_mpi


@pytest.fixture(scope="module")
def results():
    """What the checks of each number of ranks have found, each run once."""
    found: dict[int, dict[str, str]] = {}

    def of(count):
        if count not in found:
            import sys

            status, text = launch(
                "-n", count, sys.executable, "-m", "tests.helpers.rank_checks", timeout=240
            )
            assert status == 0, text
            found[count] = json.loads(text.splitlines()[-1])
        return found[count]

    return of


@pytest.mark.parametrize("name", rank_checks.CHECKS)
@pytest.mark.parametrize(
    "count",
    [1, 2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)],
)
def test_on_ranks(count, name, results):
    assert results(count)[name] == ""
