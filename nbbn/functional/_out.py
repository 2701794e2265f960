"""Where a result goes: into `out` when it can be written directly, else through a temporary."""

from __future__ import annotations

import numpy as np

from .. import backend
from . import checks
from .layout import Layout


class Target:
    """The destination of a result shaped like `x`.

    `folded` is what the kernel fills; `finish()` returns the array for the caller.
    """

    __slots__ = ("_copy_to", "_result", "_whole", "folded")

    def __init__(
        self, out: np.ndarray | None, x: np.ndarray, layout: Layout, *inputs: np.ndarray | None
    ) -> None:
        self._copy_to: np.ndarray | None = None
        apart = True
        if out is None:
            out = empty_like(x, layout)
        else:
            plain = type(out) is type(x) is np.ndarray and out.dtype is x.dtype is layout.dtype
            usual = plain and layout.order is None and out.flags.carray and out.shape == x.shape
            if not usual:
                checks.output(out, x.shape, x.dtype, device=layout.device)
            for array in inputs:
                if array is not None and _overlaps(out, array):
                    apart = False
            if usual and apart:
                # The rest would find nothing to do.
                self._result = out
                self.folded = out if out.shape == layout.shape else out.reshape(layout.shape)
                return
        self._result = out
        direct = out if layout.order is None else out.transpose(layout.order)
        on_host = layout.device == "cpu"
        # A device stores x's own type, bfloat16 as its bits.
        dtype = layout.dtype if on_host else x.dtype
        whole = direct.flags.carray if on_host else direct.flags.c_contiguous
        if apart and whole and direct.dtype == dtype:
            target = direct if direct.shape == layout.shape else direct.reshape(layout.shape)
        else:
            target = backend.empty(layout.shape, dtype, layout.device)
            self._copy_to = direct
        self._whole = target
        self.folded = target if dtype is layout.storage else target.view(layout.storage)

    def finish(self) -> np.ndarray:
        """Move a temporary into place and return the result."""
        if self._copy_to is not None:
            source = self._whole.reshape(self._copy_to.shape)
            backend.run(np.copyto, self._copy_to, source, "unsafe")
        return self._result


def empty_like(x: np.ndarray, layout: Layout) -> np.ndarray:
    if layout.order is None:
        return backend.empty(x.shape, x.dtype, layout.device)
    inverse = [layout.order.index(d) for d in range(x.ndim)]
    shape = tuple(x.shape[d] for d in layout.order)
    return backend.empty(shape, x.dtype, layout.device).transpose(inverse)


def _overlaps(out: np.ndarray, array: np.ndarray) -> bool:
    """Whether they share memory in another way than element for element."""
    if out is array or not share(out, array):
        return False
    return (
        out.strides != array.strides
        or out.dtype != array.dtype
        or backend.address(out) != backend.address(array)
    )


def share(out: np.ndarray, array: np.ndarray) -> bool:
    """Whether writing `out` may change `array`."""
    # What is not given is an empty array of the host, which a device must not be asked about.
    return array.size > 0 and bool(np.may_share_memory(out, array))


def unchanged_by(
    out: np.ndarray | None, layout: Layout, *vectors: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Return per-channel operands, copied where writing `out` would change them.

    Planes are finished channel by channel, while the operands of the next are yet to be read.
    """
    if out is None or len(layout.shape) == 2:
        return vectors
    return tuple(copied(v) if share(out, v) else v for v in vectors)


def copied(vector: np.ndarray) -> np.ndarray:
    """Return a copy, which a recorded step makes anew."""
    copy = backend.empty(vector.shape, vector.dtype, backend.device_of(vector))
    backend.run(np.copyto, copy, vector)
    return copy


def gradient(
    out: np.ndarray | None, shape: tuple[int, ...], layout: Layout, name: str, *inputs: np.ndarray
) -> np.ndarray:
    """Return what receives dgamma or dbeta: `out`, unless writing it would change an input."""
    if out is not None:
        checks.output(out, shape, layout.dtype, name, layout.device)
        if out.flags.c_contiguous and not any(share(out, array) for array in inputs):
            return out
    return backend.empty(shape, layout.dtype, layout.device)


def hand_over(found: np.ndarray, out: np.ndarray | None) -> np.ndarray:
    """Return the result in `out`, where given."""
    if out is None or found is out:
        return found
    backend.run(np.copyto, out, found)
    return out
