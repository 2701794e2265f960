"""What an operation is: a forward and its backward on arrays; knows neither tensors nor tapes."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

__all__ = ["Context", "Op"]


class Context:
    """What an operation's forward leaves for its backward: set any attribute.

    Attributes
    ----------
    needs : tuple of bool
        Which inputs want a gradient.
    buffers : tuple of ndarray or None
        Where the gradient of each input may be written instead of a fresh array.
    owns_dy : bool
        Whether backward may overwrite dy.
    """

    needs: tuple[bool, ...] = ()
    buffers: tuple[np.ndarray | None, ...] = ()
    owns_dy: bool = False


class Op:
    """A differentiable operation: two static methods on arrays.

    ``forward(ctx, *arrays, **attributes) -> array`` and
    ``backward(ctx, dy) -> array or tuple of arrays``, one per input, None where not needed.
    `nbbn.apply` runs a subclass on tensors. For second derivatives it also defines
    ``backward_graph(ctx, dy, inputs, output)``, the same on tensors; see `nbbn.grad`.

    Attributes
    ----------
    recordable : bool, default False
        Whether all it computes goes through `nbbn.backend.run`, so that a recorded training step
        can replay it. With False the step stays correct, and eager. A subclass that computes in
        another way says so again.
    """

    recordable: ClassVar[bool] = False
    # Whether backward returns arrays that nobody else holds; the next operation may overwrite them.
    fresh: ClassVar[bool] = False

    @staticmethod
    def forward(ctx: Context, *arrays: Any, **attributes: Any) -> np.ndarray:
        """Compute the result."""
        raise NotImplementedError

    @staticmethod
    def backward(ctx: Context, dy: np.ndarray) -> Any:
        """Compute the gradient of each input from the gradient of the result."""
        raise NotImplementedError

    @staticmethod
    def backward_graph(ctx: Context, dy: Any, inputs: tuple[Any, ...], output: Any) -> Any:
        """Compute the same on tensors; `nbbn.grad` refuses an operation that leaves it out."""
        raise NotImplementedError
