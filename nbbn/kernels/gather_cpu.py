"""Gathering a batch on the CPU: pick rows of a data set by index, convert and scale them.

Images are `(M, F)` rows of bytes or floats, x is `(B, F)` float32. Each element is computed as
`value * scale + offset` in float64 and rounded once, so a byte scaled by 1/255 is exactly the
float32 nearest to byte/255. Scale and offset are numbers, or `(F,)`, one per feature. Nothing
accumulates, so any split of the rows gives the same bits.
"""

from numba import prange

from ._jit import Kernel, workers

# ---------------------------------------------------------------- kernels


@Kernel
def _gather_scale(images, index, labels, scale, offset, x, y):
    """Gather images (M, F) and labels (M,) at index (B,) into x (B, F) and y (B,)."""
    for i in prange(index.size):
        k = index[i]
        source = images[k]
        target = x[i]
        for j in range(target.size):
            target[j] = source[j] * scale + offset
        y[i] = labels[k]


@Kernel
def _gather_scale_features(images, index, labels, scale, offset, x, y):
    """Gather images (M, F) and labels (M,) at index (B,); scale and offset are (F,)."""
    for i in prange(index.size):
        k = index[i]
        source = images[k]
        target = x[i]
        for j in range(target.size):
            target[j] = source[j] * scale[j] + offset[j]
        y[i] = labels[k]


# ---------------------------------------------------------------- launchers


def gather_scale(images, index, labels, scale, offset, x, y):
    """Write `images[index] * scale + offset` to x and `labels[index]` to y."""
    _gather_scale(workers(x.size), images, index, labels, scale, offset, x, y)


def gather_scale_features(images, index, labels, scale, offset, x, y):
    """Write `images[index] * scale + offset`, feature by feature, to x and `labels[index]` to y."""
    _gather_scale_features(workers(x.size), images, index, labels, scale, offset, x, y)
