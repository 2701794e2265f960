"""Batch normalization inside users' CUDA kernels: device functions for `@cuda.jit` code.

Each takes and returns plain numbers: a count and the mean and M2 (sum of squared deviations) of so
many values. A thread starts at (0, 0.0, 0.0), takes its values in with `push`, and the block merges
what its threads have with `merge_over_block`. Merging follows a fixed tree and uses no atomics, so
the bits are the same every time. With ``NUMBA_ENABLE_CUDASIM=1`` they run in Numba's simulator.
"""

from __future__ import annotations

try:
    from ..kernels._embedded_cuda import merge, merge_over_block, push
except ImportError as error:
    raise ImportError(
        f"nbbn.jit.cuda needs numba-cuda ({error}): pip install 'nbbn[cuda13]' (or cuda12)"
    ) from error

__all__ = ["merge", "merge_over_block", "push"]
