"""Checks of images, labels, rows and numbers, shared by batches and all that prepares them."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import backend
from .._validation import positive, real
from ..errors import ArgumentError, DataError, DTypeError, ShapeError, label_advice
from .tables import as_numbers, exact

# Images that are looked at for NaN and Inf in one go.
_CHUNK = 1000


def check_images(images: Any) -> Any:
    """Return the images as C-contiguous rows (N, F), or as sparse ones."""
    rows = backend.as_csr(images, "images")
    if rows is not None:
        if 0 in rows.shape:
            raise ShapeError(f"images must have rows and columns, got {rows.shape}")
        return rows
    check_unmasked(images, "images")
    if not isinstance(images, np.ndarray):
        images = as_numbers(images, "images")
        # Those of arrays may be meant as bytes; here they are numbers.
        if isinstance(images, np.ndarray) and images.dtype.kind in "biu":
            images = images if images.dtype == np.uint8 else exact(images, "images")
    if not isinstance(images, np.ndarray):
        raise DTypeError(
            f"images must be a numpy.ndarray, got {type(images).__name__}: convert them with "
            "numpy.asarray(images, numpy.float32)"
        )
    if images.dtype not in (np.uint8, np.float32, np.float64):
        raise DTypeError(
            f"images must hold uint8, float32 or float64, got {images.dtype}: convert them first"
        )
    if images.ndim < 2 or images.size == 0:
        raise ShapeError(
            f"images must have shape (N, ...) with at least one image and one value each, "
            f"got {images.shape}"
        )
    return np.ascontiguousarray(images).reshape(len(images), -1)


def check_unmasked(array: Any, name: str) -> None:
    if type(array) is not np.ndarray and isinstance(array, np.ma.MaskedArray):
        raise DTypeError(
            f"{name} must have no mask, which would be lost: leave masked examples out with "
            f"rows=numpy.flatnonzero(...), or pass {name}.filled(value)"
        )


def check_targets(targets: Any, count: int, num_classes: int | None) -> np.ndarray:
    """Return a copy of labels (N,) as int64, or of numbers (N, ...) as they are."""
    check_unmasked(targets, "labels")
    if not isinstance(targets, np.ndarray):
        plain = as_numbers(targets, "labels")
        if isinstance(plain, np.ndarray) and plain.dtype.kind in "iuf":
            # The one column of a table of classes.
            single = hasattr(targets, "columns") and plain.shape[1] == 1 and plain.dtype.kind != "f"
            targets = plain[:, 0] if single else plain
    kind = targets.dtype.kind if isinstance(targets, np.ndarray) else ""
    if kind == "f" and num_classes is None:
        return _check_numbers(targets, count)
    if kind not in ("i", "u"):
        found = targets.dtype if kind else type(targets).__name__
        numbers = ", or leave num_classes out for regression" if kind == "f" else ""
        raise DTypeError(
            f"labels must be a numpy.ndarray of integers, or of floats for regression, got "
            f"{found}: convert them with {label_advice(targets)}{numbers}"
        )
    if targets.shape != (count,):
        raise ShapeError(
            f"labels must have shape ({count},), one per image, got {targets.shape}: "
            + (
                "flatten them with labels.reshape(-1)"
                if targets.size == count
                else "several targets per image are floats, labels.astype(numpy.float32)"
            )
        )
    if num_classes is not None:
        classes = positive(num_classes, "num_classes")
        bad = np.flatnonzero((targets < 0) | (targets >= classes))
        if bad.size:
            raise ArgumentError(
                f"labels must lie in [0, {classes}), got {targets[bad[0]]} at position {bad[0]}"
            )
    return np.array(targets, np.int64)


def _check_numbers(targets: np.ndarray, count: int) -> np.ndarray:
    if targets.shape[:1] != (count,) or targets.size == 0:
        raise ShapeError(
            f"targets must have shape ({count}, ...), one row per image, got {targets.shape}"
        )
    # A batch is float32 or float64, as tensors are.
    dtype = np.float64 if targets.dtype.itemsize >= 8 else np.float32
    return np.array(targets, dtype, order="C")


def check_rows(rows: Any, count: int) -> np.ndarray:
    """Return a copy of the rows (K,) as int64."""
    check_unmasked(rows, "rows")
    if not isinstance(rows, np.ndarray) or rows.dtype.kind not in "iu":
        found = rows.dtype if isinstance(rows, np.ndarray) else type(rows).__name__
        raise DTypeError(f"rows must be an integer numpy.ndarray, got {found}")
    if rows.ndim != 1 or rows.size == 0:
        raise ShapeError(f"rows must have shape (K,) with K at least 1, got {rows.shape}")
    if rows.min() < 0 or rows.max() >= count:
        raise ArgumentError(f"rows must lie in [0, {count}), got {rows.min()} to {rows.max()}")
    return rows.astype(np.int64)


def finite(value: Any, name: str, features: int) -> np.ndarray:
    """Return a copy of one number, or of one per feature, as float64."""
    if not isinstance(value, np.ndarray) or value.ndim == 0:
        return np.array(real(value, name))
    if value.dtype.kind not in "iuf":
        raise DTypeError(f"{name} must hold real numbers, got {value.dtype}")
    check_unmasked(value, name)
    array = value.astype(np.float64)
    if array.shape != (features,):
        raise ShapeError(f"{name} must be a number or have shape ({features},), got {array.shape}")
    if not np.isfinite(array).all():
        raise ArgumentError(f"{name} must be finite, got {value}")
    return array


def check_finite(images: np.ndarray, rows: np.ndarray | None = None) -> None:
    """Refuse images, of `rows` only if given, with NaN or Inf, naming them in a DataError."""
    if images.dtype.kind != "f":
        return
    count = len(images) if rows is None else len(rows)
    bad: list[int] = []
    for start in range(0, count, _CHUNK):
        stop = min(start + _CHUNK, count)
        numbers = np.arange(start, stop) if rows is None else rows[start:stop]
        part = images[start:stop] if rows is None else images[numbers]
        finite = np.isfinite(part.reshape(stop - start, -1)).all(axis=1)
        bad += numbers[~finite].tolist()
    if bad:
        named = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        raise DataError(
            f"{len(bad)} of {count} images hold NaN or Inf (number {named}, counted from 0): "
            "repair them or leave them out"
        )
