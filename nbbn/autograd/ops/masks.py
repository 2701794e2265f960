"""Masks, which select: where one is 0 nothing passes, not even NaN."""

from __future__ import annotations

from functools import partial

import numpy as np

from ... import backend
from ._common import LinearMap, Tensor


def masked(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Scale by a dense mask >= 0 of x's shape; where it is 0 nothing passes, not even NaN."""
    device = backend.device_of(mask)
    out = backend.empty(mask.shape, mask.dtype, device)
    flat = (a.reshape(-1) for a in (backend.contiguous(x, mask.dtype), mask, out))
    backend.run(backend.kernels("elementwise", device).masked, *flat)
    return out


def masked_graph(x: Tensor, mask: np.ndarray) -> Tensor:
    """As `masked`, on tensors."""
    scaled = partial(masked, mask=mask)
    return x._apply(LinearMap, x, function=scaled, adjoint=scaled)


def through_relu(dy: Tensor, y: np.ndarray | None) -> Tensor:
    """Pass a gradient back through a ReLU of output y; None is no ReLU."""
    if y is None:
        return dy
    mask = backend.empty(y.shape, dy.dtype)
    backend.run(np.greater, y, 0, mask)
    return masked_graph(dy, mask)
