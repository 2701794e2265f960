"""Without CUDA everything on the CPU works, and asking for a device says in one line what to do."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import nbbn
from nbbn import backend
from nbbn.errors import DeviceError, DTypeError

BLOCKED = "import sys\nfor name in ('cupy', 'numba_cuda', 'cuda'): sys.modules[name] = None\n"


def python(script: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_ENABLE_CUDASIM"}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", BLOCKED + script],
        env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


def test_the_cpu_needs_no_cuda_package():
    done = python(
        "import numpy as np, nbbn\n"
        "from nbbn import losses, optim, train\n"
        "model = nbbn.mlp((4, 3, 2), rng=0).to('cpu')\n"
        "step = train.record_step(model, losses.cross_entropy, optim.Adam(model.parameters()))\n"
        "rng = np.random.default_rng(0)\n"
        "for _ in range(3):\n"
        "    step(rng.normal(size=(6, 4)).astype(np.float32), rng.integers(0, 2, 6))\n"
        "print(step.refusal, nbbn.Tensor([1.0]).device)\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "None cpu\n"


@pytest.mark.parametrize("command", [["train", "--device", "cuda"]])
def test_the_command_line_says_what_is_missing(command):
    done = python(f"from nbbn.cli import main\nsys.exit(main({command!r}))")
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("nbbn: error: ")
    assert "cupy" in line
    assert "pip install 'nbbn[cuda13]'" in line


def test_the_simulator_has_no_device_outside_of_these_tests():
    script = "import os; os.environ['NUMBA_ENABLE_CUDASIM'] = '1'\nfrom nbbn.cli import main\n"
    done = python(script + "sys.exit(main(['train', '--device', 'cuda']))")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("nbbn: error: NUMBA_ENABLE_CUDASIM is set: in Numba's simulator")
    assert done.stderr.endswith("unset it to use a device\n")
    done = python(script + "from nbbn import backend; print(backend.choose('auto'))")
    assert done.stdout == "cpu\n"


def test_info_lists_what_is_missing():
    done = python("from nbbn.cli import main\nsys.exit(main(['info']))")
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if "cuda:" in line)
    assert "none" in line
    assert "nbbn[cuda13]" in line


@pytest.mark.parametrize(("load", "busy"), [(2.9, False), (3.1, True), (7.6, True)])
def test_info_says_when_the_machine_is_busy(load, busy):
    done = python(
        "import os\nos.environ['NUMBA_NUM_THREADS'] = '2'\nos.cpu_count = lambda: 4\n"
        f"os.getloadavg = lambda: ({load}, 0, 0)\n"
        "from nbbn.cli import main\nsys.exit(main(['info']))"
    )
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("load"))
    assert f"{load} on 4 cores" in line
    assert ("--threads 1 may train faster" in line) is busy


def test_auto_falls_back_to_the_cpu():
    done = python("from nbbn import backend\nprint(backend.choose('auto'))")
    assert done.stdout == "cpu\n", done.stderr


class OnDevice:
    """An array that another library keeps on a device, as far as nbbn may look on the host."""

    def __dlpack_device__(self):
        return 2, 0


class OnHost:
    def __dlpack_device__(self):
        return 1, 0


def test_device_arrays_among_those_of_the_host_are_refused():
    x = np.ones((4, 3), np.float32)
    with pytest.raises(DeviceError, match=r"gamma.*on a device"):
        nbbn.functional.batch_norm_train(x, OnDevice())
    with pytest.raises(DTypeError, match=r"gamma.*numpy\.asarray"):
        nbbn.functional.batch_norm_train(x, OnHost())


def test_moving_to_the_same_device_is_nothing():
    x = nbbn.Tensor([1.0, 2.0])
    assert x.to("cpu") is x
    model = nbbn.mlp((3, 2), rng=0)
    assert model.to("cpu") is model
    with pytest.raises(DeviceError, match="'gpu'"):
        model.to("gpu")
    assert backend.host(x.data) is x.data
