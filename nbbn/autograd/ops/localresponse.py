"""Local response normalization."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ... import functional as F  # noqa: N812 - the usual name
from ...functional.localresponse import Plan, Windows
from ._common import RecordableOp

if TYPE_CHECKING:
    from ..tensor import Tensor


class LocalResponseNorm(RecordableOp):
    """x / (k + a * sum(x^2))^beta, the sum being over a window around each element."""

    fresh = True

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, **options: Any) -> np.ndarray:
        ctx.x, ctx.options = x, options
        return F.local_response_norm(x, **options)

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return F.local_response_norm_backward(dy, ctx.x, **ctx.options)

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        (x,) = inputs
        plan = Plan(ctx.x, **ctx.options)
        windows, beta = plan.windows, plan.beta
        d = dy._apply(WindowSums, x * x, windows=windows, mirrored=False) * plan.a + plan.k
        ratio = dy * x * d ** (-beta - 1)
        pull = dy._apply(WindowSums, ratio, windows=windows, mirrored=True)
        return dy * d**-beta - x * pull * (2 * plan.a * beta)


class WindowSums(RecordableOp):
    """Sums over windows; linear, and its own derivative but for the windows' side."""

    fresh = True

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, windows: Windows, mirrored: bool) -> np.ndarray:
        ctx.windows, ctx.mirrored = windows, mirrored
        return windows.sums(x, mirrored=mirrored).reshape(x.shape)

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return ctx.windows.sums(dy, mirrored=not ctx.mirrored).reshape(dy.shape)

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        return dy._apply(WindowSums, dy, windows=ctx.windows, mirrored=not ctx.mirrored)
