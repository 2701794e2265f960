"""Every check of an array."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import backend
from .._validation import real
from ..errors import ArgumentError, DeviceError, DTypeError, ShapeError, label_advice

_FLOAT32, _FLOAT64 = _NATIVE = np.dtype(np.float32), np.dtype(np.float64)
# The type to compute in, for every type and byte order that is accepted.
_COMPUTE: dict[np.dtype[Any], np.dtype[Any]] = {
    np.dtype(order + code): compute
    for order in "<>"
    for code, compute in (("f2", _FLOAT32), ("f4", _FLOAT32), ("f8", _FLOAT64))
}
# The label that is ignored where none is: no label that passes for a class is below 0.
NO_LABEL = -(2**63)
COUNTERS = ("num_batches_tracked", "num_batches_skipped")


def floating(array: Any, name: str) -> np.dtype[Any]:
    """Check that `array` holds real floating numbers; return the type to compute in."""
    if type(array) is not np.ndarray:
        _check_kind(array, name)
    found = _COMPUTE.get(array.dtype)
    if found is not None:
        return found
    if backend.is_bfloat16(array.dtype):
        return _FLOAT32
    raise DTypeError(
        f"{name} must hold float32 or float64 (float16 and bfloat16 compute in float32), "
        f"got {array.dtype}: convert it with {name}.astype(numpy.float32)"
    )


def _check_kind(array: Any, name: str) -> None:
    """Check that something other than a plain ndarray can be used as one."""
    kind = type(array).__name__
    unmasked(array, name)
    if isinstance(array, np.matrix) or not backend.is_array(array):
        if backend.is_foreign(array):
            raise DeviceError(f"{name}, a {kind}, is on a device but other operands are on the cpu")
        raise DTypeError(
            f"{name} must be a numpy.ndarray, got {kind}: convert it with numpy.asarray"
        )


def unmasked(array: Any, name: str) -> None:
    """Check that `array` has no mask, which kernels would not see."""
    if type(array) is not np.ndarray and isinstance(array, np.ma.MaskedArray):
        raise DTypeError(
            f"{name} is a masked array, whose mask would be lost: give the mask as weights "
            f"(weighted_batch_norm_train), or convert it with {name}.filled(value)"
        )


def integers(array: Any, name: str) -> None:
    """Check that `array` holds integers."""
    if not backend.is_array(array) or array.dtype.kind not in "iu":
        found = getattr(array, "dtype", type(array).__name__)
        raise DTypeError(f"{name} must be an array of integers, got {found}")


def same_shape(array: Any, x: np.ndarray, name: str, like: str = "x") -> None:
    """Check that `array` is floating and has the shape of `x`."""
    floating(array, name)
    if type(array) is not type(x):
        on_device(array, backend.device_of(x), name)
    shape_of(array, x.shape, name, like)


def shape_of(array: Any, shape: tuple[int, ...], name: str, like: str) -> None:
    """Check that `array` has the shape that `like` has."""
    if array.shape != shape:
        raise ShapeError(f"{name} must have {like}'s shape {shape}, got {array.shape}")


def on_device(array: Any, device: str, name: str) -> None:
    """Check that `array` is where the other operands are."""
    found = backend.device_of(array)
    if found != device:
        raise DeviceError(
            f"{name} is on {found} but the other operands are on {device}: copy it there first"
        )


def host_only(array: Any, what: str) -> None:
    """Refuse a device array for what has kernels for the host alone."""
    if not isinstance(array, np.ndarray) and backend.is_array(array):
        raise DeviceError(f"{what} has no CUDA kernels: move its operands to the cpu")


def channel_vector(
    array: Any, channels: int, dtype: Any, name: str, device: str = "cpu"
) -> np.ndarray:
    """Return a per-channel array (C,) in `dtype`, or an empty one for None."""
    if array is None:
        return _EMPTY[dtype]
    usual = type(array) is np.ndarray and array.dtype is dtype and device == "cpu"
    if usual and array.shape == (channels,):
        # Without looking at what cannot be wrong.
        return array if array.flags.carray else backend.contiguous(array, dtype)
    channel_array(array, channels, name, device)
    return backend.contiguous(array, dtype)


def statistic(
    array: np.ndarray | None, channels: int, name: str, dtype: np.dtype[Any], device: str
) -> np.ndarray:
    """Return a per-channel array that must be given, in `dtype`."""
    if array is None:
        raise DTypeError(f"{name} must be a numpy.ndarray of shape ({channels},), got None")
    return channel_vector(array, channels, dtype, name, device)


def channel_array(array: Any, channels: int, name: str, device: str = "cpu") -> None:
    """Check that `array` holds one floating number per channel."""
    floating(array, name)
    on_device(array, device, name)
    if array.shape != (channels,):
        raise ShapeError(
            f"{name} must have shape ({channels},), one value per channel, got {array.shape}"
        )


def running_statistic(array: np.ndarray, kind: str, dtype: Any, name: str) -> None:
    """Check an array that is to become a layer's, by the `kind` of running statistic that it is.

    Any other kind of array passes, whatever it holds.
    """
    if kind not in ("running_mean", "running_var", *COUNTERS):
        return
    values = array.astype(np.float64).reshape(-1)
    if kind in COUNTERS:
        good = (values >= 0) & (values < 2.0**63) & (values == np.floor(values))
        expected = "a whole number of at least 0"
    else:
        low, expected = -largest(dtype), f"finite in {dtype}"
        if kind == "running_var":
            low, expected = 0.0, f"{expected} and at least 0"
        good = (low <= values) & (values <= largest(dtype))
    if not good.all():
        place = int(np.argmin(good))
        channel = f" for channel {place}" if array.ndim else ""
        raise ArgumentError(
            f"{name} must be {expected}, got {values[place]:g}{channel}: its model has diverged or "
            "its file is damaged, so take an earlier one"
        )


def epsilon(eps: Any, *, zero_allowed: bool) -> float:
    """Check eps, which keeps 1 / sqrt(var + eps) finite."""
    if type(eps) is float and 0.0 < eps < math.inf:
        return eps
    value = real(eps, "eps")
    if value < 0 or (value == 0 and not zero_allowed):
        bound = ">= 0" if zero_allowed else "> 0 in training"
        raise ArgumentError(f"eps must be {bound}, got {value}")
    return value


def mapping(value: Any, name: str) -> None:
    """Check that `value` maps names to things."""
    if not isinstance(value, Mapping):
        raise DTypeError(
            f"{name} must be a mapping of names to arrays, got {type(value).__name__}: "
            "pass what state_dict() returned"
        )


def output(
    out: Any, shape: tuple[int, ...], dtype: Any, name: str = "out", device: str = "cpu"
) -> None:
    """Check that `out` can take a result of this shape and type."""
    if type(out) is not np.ndarray or device != "cpu":
        _check_kind(out, name)
        on_device(out, device, name)
    if out.shape != shape:
        raise ShapeError(f"{name} must have the result's shape {shape}, got {out.shape}")
    if out.dtype != dtype:
        raise DTypeError(f"{name} must have the result's dtype {dtype}, got {out.dtype}")
    writeable(out, name)
    no_overlap_within(out, name)


def no_overlap_within(out: Any, name: str) -> None:
    """Check that no element of `out` is another one too, as after broadcasting."""
    if out.size == 0 or out.flags.c_contiguous:
        return
    # From the shortest step to the longest, each must pass what lies between.
    reach = out.dtype.itemsize
    for step, n in sorted((abs(step), n) for step, n in zip(out.strides, out.shape, strict=True)):
        if n > 1 and step < reach:
            raise ArgumentError(
                f"{name} repeats its memory (shape {out.shape}, strides {out.strides}), so that it "
                "cannot hold the result: pass an array with an element for each value"
            )
        reach += step * (n - 1)


def separate(first: Any, second: Any, names: str) -> None:
    """Check that two arrays that are both written, where both are given, share no memory."""
    if first is None or second is None:
        return
    if np.may_share_memory(first, second) and (
        not isinstance(first, np.ndarray) or np.shares_memory(first, second)
    ):
        raise ArgumentError(f"{names} share memory: pass separate arrays")


def writeable(array: Any, name: str) -> None:
    """Check that `array` can be written."""
    if not backend.is_writeable(array):
        raise ArgumentError(f"{name} is read-only: pass an array that can be written")


def counter(array: Any, name: str, device: str = "cpu") -> Any:
    """Check that `array` is one int64 that can be counted up; return it as a view of shape (1,)."""
    unmasked(array, name)
    given = backend.is_array(array)
    if not given or array.dtype != np.int64 or array.size != 1:
        found = f"{array.dtype} {array.shape}" if given else type(array)
        raise DTypeError(f"{name} must be an int64 numpy.ndarray of one element, got {found}")
    on_device(array, device, name)
    writeable(array, name)
    return array.reshape(1)


def largest(dtype: np.dtype[Any]) -> float:
    """Return the largest finite number of a floating type."""
    # NumPy knows no bfloat16, whose range is that of float32.
    return float(np.finfo(np.float32 if backend.is_bfloat16(dtype) else dtype).max)


def labels(array: Any, shape: tuple[int, ...], device: str = "cpu", ignored: int = NO_LABEL) -> Any:
    """Check class labels against the shape (N, K, ...) of the logits; return them flat, as int64.

    They lie in [0, K), or are the label that is `ignored`.
    """
    unmasked(array, "labels")
    given = backend.is_array(array)
    if not given or array.dtype.kind not in "iu":
        found = array.dtype if given else type(array).__name__
        raise DTypeError(
            f"labels must be an integer numpy.ndarray, a class per row, got {found}: convert them "
            f"with {label_advice(array)}; for regression, use losses.mse"
        )
    on_device(array, device, "labels")
    classes = shape[min(1, len(shape) - 1)]
    expected = (*shape[:1], *shape[2:]) if len(shape) > 1 else ()
    if array.shape != expected:
        raise ShapeError(
            f"labels must have shape {expected}, one per row of logits {shape}, got {array.shape}"
            + _labels_advice(array.shape, shape, expected)
        )
    result = backend.contiguous(array, np.dtype(np.int64)).reshape(-1)
    # NaN becomes NO_LABEL in int64. A class of the range is as good: it is not looked for.
    ignored = 0 if ignored == NO_LABEL and classes else ignored
    found = backend.empty(1, np.int64, device, lasting=True)
    backend.run(backend.kernels("softmax", device).first_bad_label, result, classes, ignored, found)
    # As they came: a copy may be gone by the time that a replay is verified.
    backend.verify(found, _bad_label, array, classes)
    return result


def _labels_advice(found: Any, logits: Any, expected: Any) -> str:
    if found == logits:
        axis = min(1, len(logits) - 1)
        return f": turn one-hot labels into classes with labels.argmax(axis={axis})"
    return reshape_advice("labels", found, expected)


def reshape_advice(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """Say what brings an array to another shape, where they differ in axes of length 1 alone."""
    if [n for n in found if n != 1] != [n for n in expected if n != 1]:
        return ""
    # Batches differ in length: what comes after it decides.
    shape = (-1, *expected[1:]) if expected else ()
    return f": reshape them with {name}.reshape({shape})"


def rows_advice(shape: tuple[int, ...], example: str) -> str:
    """Say how rows, to which `Batches` flattens examples, have the shape that a layer takes."""
    if len(shape) != 2:
        return ""
    return f": rows become that by nbbn.Unflatten(({example})), or keep it: Batches(flatten=False)"


def _bad_label(position: int, array: Any, classes: int) -> None:
    raise ArgumentError(
        f"labels must lie in [0, {classes}), one per class; "
        f"got {int(array.reshape(-1)[position])} at position {position}"
    )


_EMPTY = {dtype: np.empty(0, dtype) for dtype in _NATIVE}
