"""Lists and the tables of pandas as arrays, where that loses nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import DTypeError

__all__ = ["as_numbers"]

# Integers up to here are numbers of float64.
_EXACT = 2**53


def as_numbers(value: Any, name: str) -> Any:
    """Turn nested lists, a DataFrame or a Series into an array of numbers that are all the same.

    Integers and floats of one type stay what they are; float64 where columns differ. What is
    neither a list nor a table is returned as it is.
    """
    if isinstance(value, list | tuple):
        try:
            return np.asarray(value)
        except ValueError:
            raise DTypeError(
                f"{name} must be rows of one length, got lists of several: cut or fill them"
            ) from None
    if isinstance(value, np.ndarray) or not hasattr(value, "to_numpy"):
        return value
    if not hasattr(value, "columns"):
        return value.to_numpy()
    columns = [_column(column, label, name) for label, column in value.items()]
    if not columns:
        return np.empty((len(value), 0))
    types = {column.dtype for column in columns}
    if len(types) > 1:
        columns = [exact(column, name) for column in columns]
    return np.column_stack(columns)


def exact(array: np.ndarray, name: str) -> np.ndarray:
    """Return numbers as float64, or refuse integers that it does not have."""
    integers = array.dtype.kind in "iu" and array.size > 0
    if integers and max(int(array.max()), -int(array.min())) > _EXACT:
        raise DTypeError(
            f"{name} holds integers beyond 2**53, which float64 would round: scale them, or take "
            f"the loss with numpy.asarray({name}, numpy.float64)"
        )
    return array.astype(np.float64)


def _column(column: Any, label: Any, name: str) -> np.ndarray:
    array: np.ndarray = column.to_numpy()
    if array.dtype.kind not in "biuf":
        raise DTypeError(
            f"column {label!r} of {name} holds {column.dtype}: make numbers of it, as with "
            f"pandas.get_dummies({name}) for categories and {name}.fillna(0) for missing values"
        )
    return array
