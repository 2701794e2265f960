"""Dropout masks from a counter-based generator, so that any thread or device can draw any element.

Element i of a mask is word i % 4 of Philox4x32-10 for the counter i // 4, and is kept where that
word is at least p * 2^32. The bits depend on the key and on p alone.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011), SC '11.
"""

import numpy as np
from numba import prange

from ._jit import Kernel, device_function, workers

# ---------------------------------------------------------------- kernels

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
_HALF = np.uint64(32)
_ROUNDS = 10


@device_function
def _philox(low, high, k0, k1):
    """Four random words for the counter (low, high, 0, 0) and the key (k0, k1), all uint32."""
    c0, c1, c2, c3 = low, high, np.uint32(0), np.uint32(0)
    for _ in range(_ROUNDS):
        first, second = _M0 * np.uint64(c0), _M1 * np.uint64(c2)
        c0, c1, c2, c3 = (
            np.uint32(np.uint32(second >> _HALF) ^ c1 ^ k0),
            np.uint32(second),
            np.uint32(np.uint32(first >> _HALF) ^ c3 ^ k1),
            np.uint32(first),
        )
        k0, k1 = np.uint32(k0 + _W0), np.uint32(k1 + _W1)
    return c0, c1, c2, c3


@Kernel
def _dropout_mask(key, threshold, scale, mask):
    """mask = 0 or scale; key (1,), mask (size,)."""
    k0, k1 = np.uint32(key[0]), np.uint32(key[0] >> _HALF)
    kept, zero = mask.dtype.type(scale), mask.dtype.type(0)
    for group in prange((mask.size + 3) // 4):
        counter = np.uint64(group)
        words = _philox(np.uint32(counter), np.uint32(counter >> _HALF), k0, k1)
        target = mask[4 * group : 4 * group + 4]
        for j in range(target.size):
            target[j] = kept if words[j] >= threshold else zero


# ---------------------------------------------------------------- launchers


def dropout_mask(key, p, mask):
    """Fill a mask (size,) with 0, with probability p, and 1 / (1 - p); key (1,) of uint64.

    For p = 1, where even the largest word is to be dropped, what is kept is 0 too.
    """
    threshold = np.uint32(min(int(p * 2**32), 2**32 - 1))
    _dropout_mask(workers(mask.size), key, threshold, 1.0 / (1.0 - p) if p < 1 else 0.0, mask)
