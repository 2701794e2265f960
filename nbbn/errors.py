"""The errors nbbn raises. Every message says what came, what was expected and what to do."""

from __future__ import annotations

from typing import Any

__all__ = [
    "ArgumentError", "CheckpointError", "DTypeError", "DataError", "DeviceError", "DivergenceError",
    "NbbnError", "ShapeError", "TapeError",
]  # fmt: skip


class NbbnError(Exception):
    """Base class of every error that nbbn raises on purpose."""


class ArgumentError(NbbnError, ValueError):
    """A value is outside the range that the operation accepts."""


class ShapeError(NbbnError, ValueError):
    """An array has the wrong rank, length or number of channels."""


class DTypeError(NbbnError, TypeError):
    """An array or scalar has a type that the operation cannot take."""


class DeviceError(NbbnError, RuntimeError):
    """Arrays of different devices were mixed, or a device is not available."""


class DivergenceError(NbbnError, ArithmeticError):
    """Training has diverged: the loss is infinite or not a number."""


class TapeError(NbbnError, RuntimeError):
    """A tape was used twice, outside its thread, or for a tensor that it did not record."""


class DataError(NbbnError, RuntimeError):
    """A data set is missing, damaged or not what it claims to be."""


class CheckpointError(NbbnError, RuntimeError):
    """A checkpoint is missing, damaged, or belongs to another model."""


def label_advice(labels: Any) -> str:
    """Say what turns `labels` into classes numbered from 0: code that works when typed."""
    import numpy as np

    try:
        # Objects by what they are: a column of a table may hold integers as such.
        kind = np.asarray(getattr(labels, "tolist", lambda: labels)()).dtype.kind
    except (TypeError, ValueError):  # a class, or rows of several lengths
        kind = "O"
    if kind in "biuf":
        return "numpy.asarray(labels, numpy.int64)"
    return "numpy.unique(labels, return_inverse=True)[1]"
