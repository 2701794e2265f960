"""Local response normalization."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ... import functional as F  # noqa: N812 - the usual name
from ...functional.localresponse import Plan, Windows
from ._common import LinearMap, Tensor
from .activation import OfInput


class LocalResponseNorm(OfInput):
    """x / (k + a * sum(x^2))^beta, the sum being over a window around each element."""

    pair = F.local_response_norm, F.local_response_norm_backward

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        (x,) = inputs
        plan = Plan(ctx.kept, **ctx.options)
        sums, mirrored = (partial(_sums, plan.windows, mirrored=way) for way in (False, True))
        d = dy._apply(LinearMap, x * x, function=sums, adjoint=mirrored) * plan.a + plan.k
        ratio = dy * x * d ** (-plan.beta - 1)
        pull = dy._apply(LinearMap, ratio, function=mirrored, adjoint=sums)
        return dy * d**-plan.beta - x * pull * (2 * plan.a * plan.beta)


def _sums(windows: Windows, x: np.ndarray, *, mirrored: bool) -> np.ndarray:
    return windows.sums(x, mirrored=mirrored).reshape(x.shape)
