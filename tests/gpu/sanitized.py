"""A little of everything, for `run_on_device.py` to run under compute-sanitizer."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

import numpy as np  # noqa: E402

from nbbn import backend  # noqa: E402
from tests.gpu import device_checks  # noqa: E402

# CuPy's pool would hide an access behind the end of an array.
backend.device_module().xp.cuda.set_allocator(None)
rng = np.random.default_rng(int(sys.argv[1]))
for shape in ((300, 72), (13, 7), (6, 12, 9, 9)):
    for name in ("float32", "bfloat16"):
        dtype = device_checks.dtype_of(name)
        device_checks.batch_norm_errors(rng, shape, 1, dtype, True)
for _ in device_checks.other_kernels(rng):
    pass
