"""What operations share: allocation, broadcasting, axes, matrix products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ... import backend
from ...errors import ArgumentError, DTypeError, ShapeError
from ...functional import checks
from ...functional.layout import axis_index
from ..tensor import Op


class RecordableOp(Op):
    """An operation that computes through `backend.run` alone."""

    recordable = True


def compute(function: Callable[..., Any], *operands: Any) -> np.ndarray:
    """Run a NumPy ufunc into a fresh array."""
    device = "cpu"
    for x in operands:
        if isinstance(x, np.ndarray | int | float | np.number):
            continue
        if not backend.is_array(x):
            raise DTypeError(
                f"a Tensor combines with Tensors, arrays and numbers, got {type(x).__name__}"
            )
        device = "cuda"
    if device != "cpu":
        for x in operands:
            if backend.is_array(x):
                checks.on_device(x, device, "one operand")
    try:
        shape = np.broadcast_shapes(*(np.shape(x) for x in operands))
    except ValueError:
        shapes = " and ".join(str(np.shape(x)) for x in operands)
        raise ShapeError(f"shapes {shapes} do not broadcast together") from None
    types = [x.dtype if backend.is_array(x) else x for x in operands]
    try:
        out = backend.empty(shape, np.result_type(*types), device)
        backend.run(function, *operands, out)
    except TypeError:
        kinds = " and ".join(str(kind) for kind in types)
        raise DTypeError(f"a Tensor combines with real numbers, got {kinds}") from None
    except OverflowError:
        raise ArgumentError("a Tensor combines with numbers that a float can hold") from None
    return out


def masked(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Scale by a dense mask >= 0 of x's shape; where it is 0 nothing passes, not even NaN."""
    device = backend.device_of(mask)
    out = backend.empty(mask.shape, mask.dtype, device)
    flat = (a.reshape(-1) for a in (backend.contiguous(x, mask.dtype), mask, out))
    backend.run(backend.kernels("elementwise", device).masked, *flat)
    return out


def empty_beside(shape: tuple[int, ...], like: Any) -> np.ndarray:
    """Allocate beside an array, in its type."""
    return backend.empty(shape, like.dtype, backend.device_of(like))


def zeros_beside(like: Any) -> np.ndarray:
    """Make zeros of an array's shape and type."""
    out = empty_beside(like.shape, like)
    backend.run(np.copyto, out, 0)
    return out


def unbroadcast(dy: np.ndarray, like: Any) -> np.ndarray:
    """Sum a gradient over the axes along which `like` was broadcast."""
    shape = np.shape(like)
    if dy.shape == shape:
        return dy
    extra = dy.ndim - len(shape)
    axes = (*range(extra), *(extra + d for d, n in enumerate(shape) if n == 1))
    total = empty_beside(shape, dy)
    kept = tuple(1 if d in axes else n for d, n in enumerate(dy.shape))
    backend.run(np.sum, dy, axes, None, total.reshape(kept), True)
    return total


def expand(value: np.ndarray, shape: tuple[int, ...], axes: tuple[int, ...]) -> np.ndarray:
    """View a reduced array with its axes back, broadcast to `shape`."""
    kept = tuple(1 if d in axes else n for d, n in enumerate(shape))
    return np.broadcast_to(value.reshape(kept), shape)


def axes_of(axis: int | tuple[int, ...] | None, x: np.ndarray) -> tuple[int, ...]:
    """Name axes from the front, each once; None means all."""
    if axis is None:
        return tuple(range(x.ndim))
    several = axis if isinstance(axis, tuple) else (axis,)
    found = tuple(axis_index(a, x, "x") for a in several)
    if len(set(found)) < len(found):
        raise ShapeError(f"axis {axis} names an axis of shape {x.shape} twice")
    return found


def reduced(x: np.ndarray, axes: tuple[int, ...], keepdims: bool) -> tuple[int, ...]:
    """Shape of `x` after a reduction."""
    if keepdims:
        return tuple(1 if d in axes else n for d, n in enumerate(x.shape))
    return tuple(n for d, n in enumerate(x.shape) if d not in axes)


def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Multiply matrices, into a fresh array unless `out` is given."""
    if out is None:
        try:
            leading = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        except ValueError:
            raise ShapeError(
                f"cannot multiply {a.shape} @ {b.shape}: leading axes differ"
            ) from None
        device = backend.device_of(a)
        checks.on_device(b, device, "the right operand of @")
        shape = (*leading, a.shape[-2], b.shape[-1])
        out = backend.empty(shape, np.result_type(a.dtype, b.dtype), device)
    backend.matmul(a, b, out)
    return out
