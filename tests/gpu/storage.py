"""Arrays as kernels store them: bfloat16 as uint16, and optional misalignment."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from nbbn.kernels import _cuda

DTYPES = ("float32", "float64", "float16", "bfloat16")
# Relative L2 error that rounding a result to its storage type may cost, with a margin of two.
ROUNDING = {"float32": 2e-6, "float64": 5e-15, "float16": 6e-4, "bfloat16": 5e-3}


def stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round to `dtype` as ml_dtypes does; bfloat16 comes as its bits."""
    if dtype == "bfloat16":
        return values.astype(ml_dtypes.bfloat16).view(np.uint16)
    return values.astype(dtype)


def values(array: np.ndarray) -> np.ndarray:
    """What a stored array holds, in float64."""
    if array.dtype == np.uint16:
        array = array.view(ml_dtypes.bfloat16)
    return array.astype(np.float64)


def statistics_type(dtype: str) -> Any:
    """Type of per-channel numbers."""
    return np.float64 if dtype == "float64" else np.float32


def poisoned(shape: Any, dtype: Any) -> np.ndarray:
    """An array for results, full of NaN bits."""
    array = np.empty(shape, "uint16" if dtype == "bfloat16" else dtype)
    array.reshape(-1).view(np.uint8)[...] = 0xFF
    return array


def poison_scratch() -> None:
    """Fill the partial sums that launches leave for each other with NaN bits."""
    for partials, _ in _cuda._scratch.values():
        partials.view(np.uint8)[...] = 0xFF


def shifted(array: np.ndarray) -> np.ndarray:
    """A copy that begins one element after a multiple of 16 bytes."""
    memory = np.empty(array.size + 32, array.dtype)
    first = next(i for i in range(32) if memory[i:].ctypes.data % 16 == 0) + 1
    copy = memory[first : first + array.size].reshape(array.shape)
    copy[...] = array
    return copy


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """Relative L2 error."""
    difference = np.linalg.norm((found.astype(np.float64) - expected).ravel())
    return float(difference / max(np.linalg.norm(np.ravel(expected)), 1e-300))
