"""What whoever debugs under NUMBA_DISABLE_JIT=1 meets: all runs in plain Python, to rounding."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from nbbn import checkpoint
from tests.helpers.small_run import FLAGS, call

PROGRAM = """
import sys
import numpy as np
import nbbn.functional as F
from nbbn.cli import main

far = np.array([[-1e30], [1e30]], np.float32)
assert F.tanh(far).tolist() == F.batch_norm_train(far)[0].tolist() == [[-1.0], [1.0]]
main(["info"])
sys.exit(main(sys.argv[1:]))
"""


def test_a_cnn_trains_without_compilation(own, tmp_path, capsys):
    """To what compiled code gives: convolutions, products, batch norm, dropout, the optimizer."""
    command = ["train", "--data", own, "--model", "cnn", "--channels", "3", *FLAGS]
    command += ["--epochs", "2", "--quiet", "--out"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, *command, tmp_path / "plain"],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "NUMBA_DISABLE_JIT": "1",
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "NUMBA_DISABLE_JIT is set: kernels run in plain Python, hundreds of times slower" in (
        done.stdout
    )
    status, lines, _ = call(capsys, *command, tmp_path / "compiled")
    assert status == 0
    plain, compiled = (checkpoint.load(tmp_path / name).model for name in ("plain", "compiled"))
    assert plain.keys() == compiled.keys()
    for name, array in compiled.items():
        np.testing.assert_allclose(plain[name], array, rtol=0, atol=1e-5, err_msg=name)
    status, lines, _ = call(capsys, "info")
    assert status == 0
    assert not any("NUMBA_DISABLE_JIT" in line for line in lines)
