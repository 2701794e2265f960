"""Dropout."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import backend, distributed
from ...functional import checks
from ._common import RecordableOp, Tensor
from .masks import masked, masked_graph


class Dropout(RecordableOp):
    """Zero each element with probability p and scale the rest by 1 / (1 - p)."""

    fresh = True

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, p: float, rng: np.random.Generator) -> np.ndarray:
        dtype = checks.floating(x, "x")
        device = backend.device_of(x)
        ctx.mask = backend.empty(x.shape, dtype, device)
        key = backend.empty(1, np.uint64, device, lasting=True)
        backend.run_ahead(_draw_key, rng, key)
        backend.run(backend.kernels("dropout", device).dropout_mask, key, p, ctx.mask.reshape(-1))
        return masked(x, ctx.mask)

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return masked(dy, ctx.mask)

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        return masked_graph(dy, ctx.mask)


def _draw_key(rng: np.random.Generator, key: np.ndarray) -> None:
    # All ranks draw the same number, so that one checkpoint serves them all.
    backend.fill(key, rng.integers(2**64, dtype=np.uint64) ^ np.uint64(distributed.salt()))
