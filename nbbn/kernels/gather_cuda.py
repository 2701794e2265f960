"""Gathering a batch on a CUDA device: pick rows of a data set by index, convert and scale them.

Images are `(M, F)` rows of bytes or floats, x is `(B, F)` float32. Each element is
`value * scale + offset`, computed with twice float32's digits and rounded once, so that a byte
scaled by 1/255 is exactly the float32 nearest to byte/255, as on the CPU. Where scale and offset
are `(F,)`, one per feature in float64, the arithmetic is in float64 too.
"""

import numpy as np

from ._cuda import Elementwise
from ._cuda_lanes import fma, load, load_any, spread, store, widened, width

# ---------------------------------------------------------------- kernels


@Elementwise
def _gather_exact(i, like, operands):
    """Gather images (M, F) at index (B,) into x (B, F); scale and offset in two parts each."""
    images, index, F, scale, scale_rest, offset, offset_rest, x = operands
    row = i // F
    value = load(images, index[row] * F + i % F, like)
    product = value * scale
    rest = fma(value, spread(scale, like), spread(0, like) - product)
    # Knuth's sum: what rounding loses of product + offset is in `lost`.
    total = product + offset
    part = total - product
    lost = (product - (total - part)) + (spread(offset, like) - part)
    store(x, i, total + (lost + (rest + (value * scale_rest + offset_rest))))


@Elementwise
def _gather_wide(i, like, operands):
    """Gather float64 images (M, F) at index (B,) into x (B, F)."""
    images, index, F, scale, offset, x = operands
    value = load(images, index[i // F] * F + i % F, like)
    store(x, i, value * scale + offset)


@Elementwise
def _gather_features(i, like, operands):
    """Gather images (M, F) at index (B,) into x (B, F); scale and offset (F,) in float64."""
    images, index, scale, offset, x = operands
    F = scale.size
    j = i % F
    value = widened(load(images, index[i // F] * F + j, like))
    store(x, i, value * load_any(scale, j, like) + load_any(offset, j, like))


@Elementwise
def _gather_targets(i, like, operands):
    """Gather targets (M, K) at index (B,) into y (B, K)."""
    targets, index, K, y = operands
    for k in range(width(like)):
        j = i + k
        y[j] = targets[index[j // K] * K + j % K]


# ---------------------------------------------------------------- launchers


def _two_parts(value):
    """A number as the sum of two float32."""
    high = np.float32(value)
    return high, np.float32(value - float(high))


def gather_scale(images, index, scale, offset, x):
    """Write `images[index] * scale + offset` to x."""
    F = x.shape[1]
    if images.dtype == np.float64:
        numbers, gather = (np.float64(scale), np.float64(offset)), _gather_wide
    else:
        numbers, gather = (*_two_parts(scale), *_two_parts(offset)), _gather_exact
    gather(images, index, F, *numbers, x, aligned=(images, x), length=F)


def gather_scale_features(images, index, scale, offset, x):
    """Write `images[index] * scale + offset`, feature by feature, to x."""
    _gather_features(images, index, scale, offset, x, aligned=(images, x), length=x.shape[1])


def gather_targets(targets, index, y):
    """Write `targets[index]`, labels (M,) or numbers (M, ...), to y."""
    K = y.size // max(len(y), 1)
    _gather_targets(targets.reshape(-1), index, K, y.reshape(-1), aligned=(y,))
