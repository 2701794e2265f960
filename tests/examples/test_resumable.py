"""The example of a training that may be interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nbbn.data import load_mnist
from nbbn.errors import DataError

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/resumable.py"


def test_a_signal_ends_the_example_with_its_status(tmp_path):
    try:
        load_mnist()
    except DataError as error:
        pytest.skip(f"MNIST cannot be had here: {error}")
    log = tmp_path / "runs/digits/log.jsonl"
    with subprocess.Popen(
        [sys.executable, EXAMPLE], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(EXAMPLE.parents[1])},
    ) as process:  # fmt: skip
        until = time.monotonic() + 600
        while not log.exists() or not log.stat().st_size:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=600)
    assert process.returncode == 143
    assert "steps; the folder is" not in printed
    assert list(log.parent.glob("step-*"))
