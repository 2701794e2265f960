"""What operations share: allocation, broadcasting, axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import backend
from ...errors import ArgumentError, DTypeError, ShapeError
from ...functional import checks
from ...functional.layout import axis_index
from ..op import Op

if TYPE_CHECKING:
    from ..tensor import Tensor as Tensor
else:
    # A floor above; operations name it in annotations alone.
    Tensor = Any

# What a Tensor holds. A set of dtypes holds those of the machine's byte order alone.
FLOATS = frozenset({np.dtype(np.float32), np.dtype(np.float64)})
# What two operands below this size make, even an outer product, is too small for `backend.pool`.
_SMALL = 1 << 11


class RecordableOp(Op):
    """An operation that computes through `backend.run` alone."""

    recordable = True


class LinearMap(RecordableOp):
    """A linear function of an array, with its adjoint, which the gradient goes through."""

    fresh = True

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, function: Any, adjoint: Any) -> np.ndarray:
        ctx.function, ctx.adjoint = function, adjoint
        return function(x)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return ctx.adjoint(dy)

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        return dy._apply(LinearMap, dy, function=ctx.adjoint, adjoint=ctx.function)


def compute(function: Callable[..., Any], *operands: Any) -> np.ndarray:
    """Run a NumPy ufunc into a fresh array."""
    first, last = operands[0], operands[-1]
    like, other = (first, last) if type(first) is np.ndarray else (last, first)
    kind = type(other)
    if type(like) is np.ndarray and (
        other.dtype is like.dtype if kind is np.ndarray else kind is float or kind is int
    ):
        small = like.size < _SMALL and (kind is not np.ndarray or other.size < _SMALL)
        if small and like.dtype in FLOATS and not backend.recorded():
            try:
                # NumPy allocates small results quicker; where there are no axes, it gives a number.
                return np.asarray(function(*operands), order="C")
            except (ValueError, OverflowError):
                pass  # what follows says it in our words
        elif kind is float or (kind is np.ndarray and other.shape == like.shape):
            # One or two operands that leave nothing to find out, as in most calls.
            out = backend.empty(like.shape, like.dtype)
            backend.run(function, *operands, out)
            return out
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
    axes = _stretched(dy, shape)
    total = empty_beside(shape, dy)
    backend.run(np.sum, dy, axes, None, total.reshape(reduced(dy.shape, axes, True)), True)
    return total


def unbroadcast_graph(dy: Tensor, like: Any) -> Tensor:
    """As `unbroadcast`, on tensors."""
    shape = np.shape(like)
    return dy if dy.shape == shape else dy.sum(axis=_stretched(dy, shape)).reshape(shape)


def _stretched(dy: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    extra = dy.ndim - len(shape)
    return (*range(extra), *(extra + d for d, n in enumerate(shape) if n == 1))


def expand(value: np.ndarray, shape: tuple[int, ...], axes: tuple[int, ...]) -> np.ndarray:
    """View a reduced array with its axes back, broadcast to `shape`."""
    return np.broadcast_to(value.reshape(reduced(shape, axes, True)), shape)


def expand_graph(dy: Tensor, shape: tuple[int, ...], axes: tuple[int, ...]) -> Tensor:
    """As `expand`, on tensors, with the values repeated."""
    return dy.reshape(reduced(shape, axes, True)) * backend.ones(shape, dy.dtype, dy.device)


def axes_of(axis: int | tuple[int, ...] | None, x: np.ndarray) -> tuple[int, ...]:
    """Name axes from the front, each once; None means all."""
    if axis is None:
        return tuple(range(x.ndim))
    several = axis if isinstance(axis, tuple) else (axis,)
    found = tuple(axis_index(a, x) for a in several)
    if len(set(found)) < len(found):
        raise ShapeError(f"axis {axis} names an axis of shape {x.shape} twice")
    return found


def reduced(shape: tuple[int, ...], axes: tuple[int, ...], keepdims: bool) -> tuple[int, ...]:
    """Shape after a reduction."""
    if keepdims:
        return tuple(1 if d in axes else n for d, n in enumerate(shape))
    return tuple(n for d, n in enumerate(shape) if d not in axes)
