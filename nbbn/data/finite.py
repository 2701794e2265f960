"""Which examples hold NaN or Inf."""

from __future__ import annotations

import numpy as np

from ..errors import DataError

# Images that are looked at in one go.
_CHUNK = 1000


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
