"""Batch normalization inside jitted code: compiled functions for the users' own `@njit` functions.

All are serial, release the GIL, keep no state and write nothing but what is named as a result.
They take float32 and float64 arrays of any strides, rows (M, C) or planes (N, C, S), and give the
same bits as `nbbn.functional`, but for one channel and for planes of one position, which that folds
into other shapes. Types that do not fit are Numba's TypingError. Shapes and `eps` that do not fit,
and two results that are one array, raise ValueError. They are called by position, work inside
``@njit``, ``@njit(parallel=True)`` and ``@njit(cache=True)`` functions, from Python, and with
``NUMBA_DISABLE_JIT=1``.
"""

from __future__ import annotations

from ..kernels.embedded import (
    affine,
    batch_norm_backward,
    batch_norm_infer,
    batch_norm_infer_backward,
    batch_norm_train,
    channel_stats,
    mean,
    merge_stats,
    normalize,
    var,
)

__all__ = [
    "affine", "batch_norm_backward", "batch_norm_infer", "batch_norm_infer_backward",
    "batch_norm_train", "channel_stats", "mean", "merge_stats", "normalize", "var",
]  # fmt: skip
