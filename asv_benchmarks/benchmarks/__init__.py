"""The asv suite. Its environment is set here, before NumPy and numba read it."""

import os

# An old core type for OpenBLAS, pinned by the environment, would halve the speed of products.
for _name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
    os.environ.pop(_name, None)

import nbbn  # noqa: E402

# As the nbbn command does: idle OpenMP threads must not spin while matrix products run.
if not nbbn.threads.can_share():
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
