"""Dropout masks from a counter-based generator, on a CUDA device: the same bits as on the CPU.

Element i of a mask is word i % 4 of Philox4x32-10 for the counter i // 4, and is kept where that
word is at least p * 2^32.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011), SC '11.
"""

from numba import uint64

from ._cuda import Elementwise, accumulator, device_function, scalar
from ._cuda_lanes import spread, store, width, with_lane

# ---------------------------------------------------------------- kernels

_M0, _M1 = uint64(0xD2511F53), uint64(0xCD9E8D57)
_W0, _W1 = uint64(0x9E3779B9), uint64(0xBB67AE85)
_LOW, _HALF = uint64(0xFFFFFFFF), uint64(32)
_ROUNDS = 10


@device_function
def _philox(counter, key):
    """Four random words, in uint64, for the counter (low, high, 0, 0) and a key of uint64."""
    k0, k1 = key & _LOW, key >> _HALF
    c0, c1, c2, c3 = counter & _LOW, counter >> _HALF, uint64(0), uint64(0)
    for _ in range(_ROUNDS):
        first, second = _M0 * c0, _M1 * c2
        c0, c1 = (second >> _HALF) ^ c1 ^ k0, second & _LOW
        c2, c3 = (first >> _HALF) ^ c3 ^ k1, first & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return c0, c1, c2, c3


@Elementwise
def _dropout_mask(i, like, operands):
    """mask = 0 or scale; key (1,), mask (size,)."""
    key, threshold, scale, mask = operands
    # Lanes are a whole group of four, or part of one.
    words = _philox(uint64(i // 4), uint64(key[0]))
    out = spread(0, like)
    for k in range(width(like)):
        place = i % 4 + k
        low = words[0] if place == 0 else words[1]
        high = words[2] if place == 2 else words[3]
        if (low if place < 2 else high) >= uint64(threshold):
            out = with_lane(out, k, scale)
    store(mask, i, out)


# ---------------------------------------------------------------- launchers


def dropout_mask(key, p, mask):
    """Fill a mask (size,) with 0, with probability p, and 1 / (1 - p); key (1,) of uint64."""
    scale = scalar(1.0 / (1.0 - p) if p < 1 else 0.0, accumulator(mask.dtype))
    _dropout_mask(key, int(p * 2**32), scale, mask, aligned=(mask,))
