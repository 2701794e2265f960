"""Layer, RMS, group and instance normalization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from ... import functional as F  # noqa: N812 - the usual name
from ...functional.layout import Layout, group_layout, trailing_layout
from ._common import RecordableOp, Tensor


class OfGroups(RecordableOp):
    """Normalization of groups of values: a subclass names the functional pair and the groups."""

    fresh = True
    centered: ClassVar[bool] = True
    pair: ClassVar[tuple[Callable[..., Any], Callable[..., Any]]]
    # How x folds into (N, G, D, S), whose last two axes are a group.
    layout: ClassVar[Callable[..., Layout]]

    @classmethod
    def forward(cls, ctx: Any, x: np.ndarray, *affine: Any, eps: Any, **where: Any) -> np.ndarray:
        y, ctx.stats = cls.pair[0](x, *affine, eps=eps, **where)
        ctx.x, ctx.gamma, ctx.eps, ctx.where = x, affine[0], eps, where
        return y  # type: ignore[no-any-return]

    @classmethod
    def backward(cls, ctx: Any, dy: np.ndarray) -> Any:
        names = "out_dgamma", "out_dbeta"
        buffers = dict(zip(names, ctx.buffers[1:], strict=False))
        return cls.pair[1](dy, ctx.x, ctx.stats, ctx.gamma, **ctx.where, **buffers)

    @classmethod
    def backward_graph(cls, ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        x, gamma, *_ = inputs
        layout = cls.layout(ctx.x, **ctx.where)
        order, groups = layout.order or tuple(range(x.ndim)), layout.shape
        folded_shape = tuple(x.shape[d] for d in order)
        inverse = tuple(order.index(d) for d in range(x.ndim))
        x, g = (a.transpose(*order).reshape(groups) for a in (x, dy))
        eps = float(np.finfo(layout.dtype).eps) if ctx.eps is None else ctx.eps
        if cls.centered:
            x = x - _mean(x)
        inv_std = (_mean(x * x) + eps) ** -0.5
        x_hat, h = x * inv_std, g
        if gamma is not None:
            h = g * gamma.reshape(1, *groups[1:3], 1)
        dx = h - x_hat * _mean(h * x_hat)
        dx = (dx - _mean(h) if cls.centered else dx) * inv_std
        dx = dx.reshape(folded_shape).transpose(*inverse)
        affine = [
            sums.sum(axis=(0, 3)).reshape(np.shape(vector)) if wanted else None
            for sums, vector, wanted in zip((g * x_hat, g), inputs[1:], ctx.needs[1:], strict=False)
        ]
        return dx, *affine


def _mean(x: Tensor) -> Tensor:
    """Mean of each group."""
    return x.mean(axis=(2, 3), keepdims=True)


class LayerNorm(OfGroups):
    """Over the axes from `axis` on."""

    pair = F.layer_norm, F.layer_norm_backward
    layout = staticmethod(trailing_layout)


class RMSNorm(OfGroups):
    """Over the axes from `axis` on, about 0."""

    centered = False
    pair = F.rms_norm, F.rms_norm_backward
    layout = staticmethod(trailing_layout)


class GroupNorm(OfGroups):
    """Over groups of channels of each example."""

    pair = F.group_norm, F.group_norm_backward

    @staticmethod
    def layout(x: Any, **where: Any) -> Layout:
        return group_layout(x, where["groups"], where["axis"])


class InstanceNorm(OfGroups):
    """Over each channel of each example."""

    pair = F.instance_norm, F.instance_norm_backward

    @staticmethod
    def layout(x: Any, **where: Any) -> Layout:
        return group_layout(x, None, where["axis"])
