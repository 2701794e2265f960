"""The asv suite. Its environment is set here, before NumPy and numba read it."""

import os

# An old core type for OpenBLAS, pinned by the environment, would halve the speed of products.
for _name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
    os.environ.pop(_name, None)
