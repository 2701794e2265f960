"""Batches of sparse rows: what a `scipy.sparse` CSR matrix holds, in arrays that kernels take."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import ArgumentError, DTypeError

__all__ = ["CSR", "as_csr"]


class CSR:
    """Sparse rows of shape (N, F), as SciPy's CSR matrices have them.

    Row i has ``values[indptr[i] : indptr[i + 1]]`` in the columns ``indices`` of the same places. A
    column that occurs twice in a row counts with the sum. What lies beyond ``indptr[-1]`` is room
    that is not used, so that batches of different fillings have arrays of one shape.

    Parameters
    ----------
    values : ndarray of float32 or float64
    indices, indptr : ndarray of int32 or int64
    features : int
        Number of columns, F.
    """

    __slots__ = ("features", "indices", "indptr", "values")

    ndim = 2

    def __init__(
        self, values: np.ndarray, indices: np.ndarray, indptr: np.ndarray, features: int
    ) -> None:
        self.values, self.indices, self.indptr = values, indices, indptr
        self.features = features

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self), self.features

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return self.values.dtype

    def __len__(self) -> int:
        return self.indptr.size - 1

    def __repr__(self) -> str:
        return f"CSR(shape={self.shape}, {int(self.indptr[-1])} values of {self.dtype})"

    def parts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return values, indices and indptr."""
        return self.values, self.indices, self.indptr

    def lengths(self) -> np.ndarray:
        """Count the values of each row."""
        return np.diff(self.indptr)

    def take(self, rows: np.ndarray) -> CSR:
        """Copy some rows."""
        lengths = self.lengths()[rows]
        indptr = np.zeros(len(rows) + 1, self.indptr.dtype)
        np.cumsum(lengths, out=indptr[1:])
        source = np.arange(int(indptr[-1])) + np.repeat(self.indptr[rows] - indptr[:-1], lengths)
        return CSR(self.values[source], self.indices[source], indptr, self.features)

    def room(self, rows: int, values: int, dtype: Any) -> CSR:
        """Allocate arrays for some rows of a like matrix, with room for so many values."""
        indptr = np.zeros(rows + 1, self.indptr.dtype)
        indices = np.zeros(values, self.indices.dtype)
        return CSR(np.zeros(values, dtype), indices, indptr, self.features)

    def within(self, values: int) -> CSR:
        """Return these rows in arrays with room for so many values."""
        wide = self.room(len(self), values, self.dtype)
        count = int(self.indptr[-1])
        wide.values[:count], wide.indices[:count] = self.values[:count], self.indices[:count]
        wide.indptr[:] = self.indptr
        return wide

    def fullest(self) -> np.ndarray:
        """Return how many values 1, 2, ... rows have at most, whichever they are."""
        return np.cumsum(np.sort(self.lengths())[::-1])

    def toarray(self) -> np.ndarray:
        """Return the rows as an array (N, F)."""
        found = np.zeros(self.shape, self.dtype)
        rows = np.repeat(np.arange(len(self)), self.lengths())
        count = int(self.indptr[-1])
        np.add.at(found, (rows, self.indices[:count]), self.values[:count])
        return found


def as_csr(value: Any, name: str = "x") -> CSR | None:
    """Return a CSR matrix of SciPy's, checked, as `CSR` without a copy; None for anything dense.

    A DTypeError for another sparse format, and for values that are no floats; an ArgumentError
    for one whose indices lie outside of it.
    """
    if isinstance(value, CSR):
        return value
    # SciPy need not be loaded to tell.
    if not type(value).__module__.startswith("scipy.sparse"):
        return None
    form = getattr(value, "format", None)
    if form != "csr" or value.ndim != 2:
        raise DTypeError(f"{name} is sparse in the format {form}: pass {name}.tocsr()")
    if value.dtype not in (np.float32, np.float64) or not value.dtype.isnative:
        raise DTypeError(
            f"{name} must hold float32 or float64, got {value.dtype}: convert it with "
            f"{name}.astype(numpy.float32)"
        )
    rows, features = value.shape
    indices, indptr = value.indices, value.indptr
    inside = not indices.size or (indices.min() >= 0 and indices.max() < features)
    rising = indptr.size == rows + 1 and indptr[0] == 0 and (np.diff(indptr) >= 0).all()
    if not (inside and rising and indptr[-1] <= min(indices.size, value.data.size)):
        raise ArgumentError(f"{name} is not a valid CSR matrix: {name}.check_format() says why")
    values, indices, indptr = map(np.ascontiguousarray, (value.data, indices, indptr))
    return CSR(values, indices, indptr, features)
