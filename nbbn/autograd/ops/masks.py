"""Masks, which select: where one is 0 nothing passes, not even NaN."""

from __future__ import annotations

import numpy as np

from ... import backend


def masked(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Scale by a dense mask >= 0 of x's shape; where it is 0 nothing passes, not even NaN."""
    device = backend.device_of(mask)
    out = backend.empty(mask.shape, mask.dtype, device)
    flat = (a.reshape(-1) for a in (backend.contiguous(x, mask.dtype), mask, out))
    backend.run(backend.kernels("elementwise", device).masked, *flat)
    return out
