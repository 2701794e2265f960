"""Gathering a batch on the CPU: pick rows of a data set by index, convert and scale them.

Images are `(M, F)` rows of bytes or floats, x is `(B, F)` float32. Each element is computed as
`value * scale + offset` in float64 and rounded once, so a byte scaled by 1/255 is exactly the
float32 nearest to byte/255. Scale and offset are numbers, or `(F,)`, one per feature. Nothing
accumulates, so any split of the rows gives the same bits.
"""

import numpy as np
from numba import prange

from ._jit import Kernel, workers

# ---------------------------------------------------------------- kernels


@Kernel
def _gather_scale(images, index, scale, offset, x):
    """Gather images (M, F) at index (B,) into x (B, F)."""
    for i in prange(index.size):
        source = images[index[i]]
        target = x[i]
        for j in range(target.size):
            target[j] = source[j] * scale + offset


@Kernel
def _gather_scale_features(images, index, scale, offset, x):
    """Gather images (M, F) at index (B,) into x (B, F); scale and offset are (F,)."""
    for i in prange(index.size):
        source = images[index[i]]
        target = x[i]
        for j in range(target.size):
            target[j] = source[j] * scale[j] + offset[j]


# ---------------------------------------------------------------- launchers


def gather_scale(images, index, scale, offset, x):
    """Write `images[index] * scale + offset` to x."""
    _gather_scale(workers(x.size), images, index, scale, offset, x)


def gather_scale_features(images, index, scale, offset, x):
    """Write `images[index] * scale + offset`, feature by feature, to x."""
    _gather_scale_features(workers(x.size), images, index, scale, offset, x)


def gather_targets(targets, index, y):
    """Write `targets[index]`, labels (M,) or numbers (M, ...), to y."""
    # Any mode but the default writes to y without a copy in between; no index is out of range.
    np.take(targets, index, axis=0, out=y, mode="clip")
