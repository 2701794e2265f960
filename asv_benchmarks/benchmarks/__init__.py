"""The asv suite. Its environment is set here, before NumPy and numba read it."""

import os

# Spinning OpenMP threads would take the cores from the matrix products between kernels.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# An old core type for OpenBLAS, pinned by the environment, would halve the speed of products.
for _name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
    os.environ.pop(_name, None)
