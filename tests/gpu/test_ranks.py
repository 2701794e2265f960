"""Several ranks, each with a simulated device of its own."""

from __future__ import annotations

import sys

from tests.helpers.ranks import launch, needs_mpi


@needs_mpi
def test_two_ranks_train_as_one_process():
    status, text = launch("-n", 2, sys.executable, "-m", "tests.gpu.simulated_ranks", timeout=240)
    assert status == 0, text
    assert text.count("done") == 2
