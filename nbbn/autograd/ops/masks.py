"""Masks, which select: where one is 0 nothing passes, not even NaN."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import backend
from ._common import RecordableOp, Tensor


def masked(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Scale by a dense mask >= 0 of x's shape; where it is 0 nothing passes, not even NaN."""
    device = backend.device_of(mask)
    out = backend.empty(mask.shape, mask.dtype, device)
    flat = (a.reshape(-1) for a in (backend.contiguous(x, mask.dtype), mask, out))
    backend.run(backend.kernels("elementwise", device).masked, *flat)
    return out


class Masked(RecordableOp):
    """Scale by a constant mask that is not negative; nothing passes where it is 0, not even NaN."""

    fresh = True

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, mask: np.ndarray) -> np.ndarray:
        ctx.mask = mask
        return masked(x, mask)

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return masked(dy, ctx.mask)

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        return masked_graph(dy, ctx.mask)


def masked_graph(x: Tensor, mask: np.ndarray) -> Tensor:
    """As `masked`, on tensors."""
    return x._apply(Masked, x, mask=mask)


def through_relu(dy: Tensor, y: np.ndarray | None) -> Tensor:
    """Pass a gradient back through a ReLU of output y; None is no ReLU."""
    if y is None:
        return dy
    mask = backend.empty(y.shape, dy.dtype)
    backend.run(np.greater, y, 0, mask)
    return masked_graph(dy, mask)
