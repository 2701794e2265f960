"""Backward passes on tensors: how each operation's gradient is computed so that a tape sees it.

A rule takes the node and dy and returns a gradient, or None, for each input; ``node.ctx.needs``
says which are wanted. `second_order.grad` looks them up in RULES.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import backend
from .. import functional as F  # noqa: N812 - the usual name
from . import functions as ops
from .op import Op
from .ops._common import zeros_beside
from .ops.masks import masked
from .ops.reductions import maxima
from .tensor import Node, Tensor, apply

__all__ = ["RULES", "Cast"]

_FLOAT64 = np.dtype(np.float64)
Gradients = Sequence[Tensor | None]


# ---------------------------------------------------------------- helpers


def _unbroadcast(dy: Tensor, like: Any) -> Tensor:
    """Sum a gradient over the axes along which `like` was broadcast."""
    shape = like.shape if isinstance(like, Tensor) else np.shape(like)
    if dy.shape == shape:
        return dy
    extra = dy.ndim - len(shape)
    axes = (*range(extra), *(extra + d for d, n in enumerate(shape) if n == 1))
    return dy.sum(axis=axes).reshape(shape)


def _expand(dy: Tensor, shape: tuple[int, ...], axes: tuple[int, ...]) -> Tensor:
    """Put reduced axes back, repeating the values along them."""
    kept = tuple(1 if d in axes else n for d, n in enumerate(shape))
    return dy.reshape(kept) * backend.ones(shape, dy.dtype, dy.device)


def _swapped(x: Any) -> Any:
    return x.transpose(*range(x.ndim - 2), x.ndim - 1, x.ndim - 2)


class Masked(Op):
    """Scale by a constant mask that is not negative; nothing passes where it is 0, not even NaN."""

    recordable = True
    fresh = True

    @staticmethod
    def forward(ctx: Any, dy: np.ndarray, *, mask: np.ndarray) -> np.ndarray:
        """Scale."""
        ctx.mask = mask
        return masked(dy, mask)

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        """Scale again."""
        return masked(dy, ctx.mask)


def _masked(dy: Tensor, mask: np.ndarray) -> Tensor:
    return apply(Masked, dy, mask=mask)


def _where_positive(dy: Tensor, y: np.ndarray | None) -> Tensor:
    """Pass a gradient back through a ReLU of output y; None is no ReLU."""
    if y is None:
        return dy
    mask = backend.empty(y.shape, dy.dtype)
    backend.run(np.greater, y, 0, mask)
    return _masked(dy, mask)


def _per_channel(vector: Any, like: Any, axis: int) -> Any:
    """Reshape a vector over the channels so that it broadcasts against `like`."""
    shape = [1] * like.ndim
    shape[axis] = like.shape[axis]
    return vector.reshape(tuple(shape))


def _all_but(axis: int, like: Any) -> tuple[int, ...]:
    return tuple(d for d in range(like.ndim) if d != axis % like.ndim)


# ---------------------------------------------------------------- arithmetic and shapes


def _add(node: Node, dy: Tensor) -> Gradients:
    return [_unbroadcast(dy, x) for x in node.inputs]


def _subtract(node: Node, dy: Tensor) -> Gradients:
    a, b = node.inputs
    return _unbroadcast(dy, a), _unbroadcast(-dy, b)


def _multiply(node: Node, dy: Tensor) -> Gradients:
    a, b = node.inputs
    return _unbroadcast(dy * b, a), _unbroadcast(dy * a, b)


def _divide(node: Node, dy: Tensor) -> Gradients:
    a, b = node.inputs
    quotient = dy / b
    return _unbroadcast(quotient, a), _unbroadcast(-(quotient * node.output), b)


def _power(node: Node, dy: Tensor) -> Gradients:
    p = node.ctx.p
    if p == 0:
        return (_masked(dy, zeros_beside(dy.data)),)
    return (dy * (node.inputs[0] ** (p - 1) * p),)


def _matmul(node: Node, dy: Tensor) -> Gradients:
    (a, b), (needs_a, needs_b) = node.inputs, node.ctx.needs
    da = _unbroadcast(dy @ _swapped(b), a) if needs_a else None
    return da, _unbroadcast(_swapped(a) @ dy, b) if needs_b else None


def _sum(node: Node, dy: Tensor) -> Gradients:
    return (_expand(dy, node.ctx.shape, node.ctx.axes),)


def _mean(node: Node, dy: Tensor) -> Gradients:
    return (_expand(dy / node.ctx.count, node.ctx.shape, node.ctx.axes),)


def _max(node: Node, dy: Tensor) -> Gradients:
    x, axes = node.ctx.x, node.ctx.axes
    share = backend.empty(x.shape, dy.dtype)
    kept = tuple(1 if d in axes else n for d, n in enumerate(x.shape))
    backend.run(_share_of_maxima, x, node.ctx.y.reshape(kept), axes, share)
    return (_masked(_expand(dy, x.shape, axes), share),)


def _share_of_maxima(x: np.ndarray, y: np.ndarray, axes: tuple[int, ...], out: np.ndarray) -> None:
    ties = maxima(x, y)
    np.divide(ties, ties.sum(axis=axes, keepdims=True), out=out, casting="same_kind")


class Cast(Op):
    """The same numbers in another floating type; the gradient comes back in x's."""

    recordable = True

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, dtype: np.dtype[Any]) -> np.ndarray:
        """Copy to `dtype`."""
        ctx.dtype = x.dtype
        return backend.contiguous(x, dtype)

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        """Copy back."""
        return backend.contiguous(dy, ctx.dtype)


class Scatter(Op):
    """Put dy where `Index` took it from; du = u[index]."""

    recordable = True

    @staticmethod
    def forward(ctx: Any, dy: np.ndarray, *, like: np.ndarray, index: Any) -> np.ndarray:
        ctx.index = index
        dx: np.ndarray = ops.Index.backward(_Indexed(like, index), dy)
        return dx

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return ops.Index.forward(ctx, dy, index=ctx.index)


class _Indexed:
    def __init__(self, x: np.ndarray, index: Any) -> None:
        self.x, self.index = x, index


def _index(node: Node, dy: Tensor) -> Gradients:
    return (apply(Scatter, dy, like=node.ctx.x, index=node.ctx.index),)


# ---------------------------------------------------------------- activations and losses


def _sigmoid(node: Node, dy: Tensor) -> Gradients:
    y = node.output
    return (dy * (y * (1 - y)),)


def _sum_along(x: Tensor, axis: int) -> Tensor:
    """Sum along the axis of a softmax, which one number has none of."""
    return x.sum(axis=axis, keepdims=True) if x.ndim else x


def _softmax(node: Node, dy: Tensor) -> Gradients:
    y = node.output
    return (y * (dy - _sum_along(dy * y, node.ctx.axis)),)


def _log_softmax(node: Node, dy: Tensor) -> Gradients:
    return (dy - node.output.exp() * _sum_along(dy, node.ctx.axis),)


def _linear(node: Node, dy: Tensor) -> Gradients:
    (x, weight, _), needs = node.inputs, node.ctx.needs
    rows = dy.reshape(len(node.ctx.x), dy.shape[-1])
    return (
        (rows @ weight).reshape(x.shape) if needs[0] else None,
        rows.T @ x.reshape(node.ctx.x.shape) if needs[1] else None,
        rows.sum(axis=0) if needs[2] else None,
    )


class Select(Op):
    """X where a mask holds, else 0, whatever x is there."""

    recordable = True
    fresh = True

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, mask: np.ndarray) -> np.ndarray:
        ctx.mask = mask
        out = backend.empty(np.broadcast_shapes(x.shape, mask.shape), x.dtype)
        backend.run(_select, x, mask, out)
        return out

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return Select.forward(ctx, dy, mask=ctx.mask)


def _select(x: np.ndarray, mask: np.ndarray, out: np.ndarray) -> None:
    out[...] = np.where(mask, x, 0)


def _cross_entropy(node: Node, dy: Tensor) -> Gradients:
    logits, labels = node.inputs[0], node.ctx.labels
    axis = min(1, logits.ndim - 1)
    counts = backend.empty(logits.shape, logits.dtype)
    total = backend.empty((*logits.shape[:axis], 1, *logits.shape[axis + 1 :]), logits.dtype)
    known = backend.empty(total.shape, np.bool_)
    options = node.ctx.options.values()
    backend.run(_count_classes, labels, axis, *options, counts, total, known)
    if node.ctx.options["reduction"] == "none":
        dy = dy.reshape(total.shape)
    probabilities = ops.softmax(apply(Select, logits, mask=known), axis=axis)
    return (probabilities * total - counts) * dy, None


def _count_classes(
    labels: np.ndarray, axis: int, weight: Any, ignored: int | None, smoothing: float,
    reduction: str, counts: np.ndarray, total: np.ndarray, known: np.ndarray,
) -> None:  # fmt: skip
    """Write the coefficients of -log(softmax) in the loss, their sums, and which rows have any."""
    labels = np.expand_dims(labels, axis)
    classes = counts.shape[axis]
    known[...] = True if ignored is None else labels != ignored
    labels = np.where(known, labels, 0)
    counts[...] = smoothing / classes
    np.put_along_axis(counts, labels, 1 - smoothing + smoothing / classes, axis)
    counts *= known
    of_labels = known * 1.0
    if weight is not None:
        counts *= weight.reshape(classes, *(1,) * (counts.ndim - axis - 1))
        of_labels = weight[labels] * known
    if reduction == "mean":
        counts /= of_labels.sum()
    np.sum(counts, axis=axis, keepdims=True, out=total)


def _huber(node: Node, dy: Tensor) -> Gradients:
    x, delta = node.inputs[0], node.ctx.delta
    near, rest = backend.empty(x.shape, np.bool_), backend.empty(x.shape, x.dtype)
    backend.run(_split_at, x.data, delta, near, rest)
    return (dy * (apply(Select, x, mask=near) + rest),)


def _split_at(x: np.ndarray, delta: float, near: np.ndarray, rest: np.ndarray) -> None:
    """Write where |x| <= delta, and x clipped elsewhere."""
    near[...] = np.abs(x) <= delta
    rest[...] = np.where(near, 0, np.clip(x, -delta, delta))


# ---------------------------------------------------------------- batch normalization


class BatchNormInputGradient(Op):
    """dx of batch normalization with batch statistics, as a function of g, x and gamma.

    With means over the channel's m values, i = 1 / sqrt(var + eps), x_hat = (x - mean) * i and
    D(v) = i * (v - mean(v) - x_hat * mean(v * x_hat)), it is dx = gamma * D(g). D is linear and
    symmetric in v, so for an incoming u:

    - dg = gamma * D(u), and dgamma = sum(u * D(g));
    - sum(u * dx) = gamma * i * m * (mean(u g) - mean(u) mean(g) - mean(u x_hat) mean(g x_hat)).
      Derived by x, with di/dx = -i^2 x_hat / m and the gradient of mean(v * x_hat), D(v) / m:
      dx = -gamma * i * (x_hat * mean(u * D(g)) + mean(g x_hat) * D(u) + mean(u x_hat) * D(g)).

    Derived here by hand; `gradgradcheck` confirms it.
    """

    recordable = True
    fresh = True

    @staticmethod
    def forward(
        ctx: Any, g: np.ndarray, x: np.ndarray, gamma: Any, *, stats: F.BatchNormStats, axis: int
    ) -> np.ndarray:
        """Compute gamma * D(g)."""
        ctx.g, ctx.x, ctx.gamma, ctx.stats, ctx.axis = g, x, gamma, stats, axis
        return F.batch_norm_backward(g, x, stats, gamma, axis=axis)[0]

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        """Compute the gradients of g, x and gamma."""
        x, stats, axis = ctx.x, ctx.stats, ctx.axis
        channels = stats.mean.size
        d_u, u_x_hat, _ = F.batch_norm_backward(dy, x, stats, axis=axis)
        d_g, g_x_hat, _ = F.batch_norm_backward(ctx.g, x, stats, axis=axis)
        dg, dx = (backend.empty(x.shape, x.dtype) for _ in range(2))
        dgamma = backend.empty(channels, _FLOAT64)
        backend.run(
            _differentiate_input_gradient, dy, d_u, d_g, u_x_hat, g_x_hat, x, ctx.gamma,
            stats.mean, stats.inv_std, stats.count, axis, dg, dx, dgamma,
        )  # fmt: skip
        return dg, dx, None if ctx.gamma is None else dgamma


def _differentiate_input_gradient(
    u: np.ndarray, d_u: np.ndarray, d_g: np.ndarray, u_x_hat: np.ndarray, g_x_hat: np.ndarray,
    x: np.ndarray, gamma: Any, mean: np.ndarray, inv_std: np.ndarray, count: int, axis: int,
    dg: np.ndarray, dx: np.ndarray, dgamma: np.ndarray,
) -> None:  # fmt: skip
    """Write the formulas of BatchNormInputGradient's backward; ``*_x_hat`` are sums."""
    np.sum(u * d_g, axis=_all_but(axis, x), dtype=np.float64, out=dgamma)
    m = max(count, 1)
    scale = np.ones_like(mean) if gamma is None else gamma.astype(np.float64)
    vectors = scale, dgamma / m, g_x_hat / m, u_x_hat / m, mean, inv_std
    scale, u_d_g, b, a, mean, inv_std = (_per_channel(v, x, axis) for v in vectors)
    np.multiply(scale, d_u, out=dg, casting="same_kind")
    pull = (x - mean) * inv_std * u_d_g + b * d_u + a * d_g
    np.multiply(-scale * inv_std, pull, out=dx, casting="same_kind")


def _batch_norm_train(node: Node, dy: Tensor) -> Gradients:
    (x, gamma, _, _), ctx = node.inputs, node.ctx
    g, others = _where_positive(dy, ctx.y), _all_but(ctx.axis, ctx.x)
    dx = dgamma = None
    if ctx.needs[0]:
        dx = apply(BatchNormInputGradient, g, x, gamma, stats=ctx.stats, axis=ctx.axis)
    if ctx.needs[1]:
        x_hat, _ = ops.batch_norm_train(x, eps=ctx.eps, axis=ctx.axis, single=True)
        dgamma = (g * x_hat).sum(axis=others)
    return dx, dgamma, g.sum(axis=others) if ctx.needs[2] else None, g


def _batch_norm_infer(node: Node, dy: Tensor) -> Gradients:
    (x, _, _, gamma, _, _), ctx = node.inputs, node.ctx
    g, others = _where_positive(dy, ctx.y), _all_but(ctx.axis, ctx.x)
    inv_std, center = (backend.empty(ctx.var.shape, ctx.x.dtype) for _ in range(2))
    backend.run(_inverse_std, ctx.var, ctx.eps, inv_std)
    backend.run(np.copyto, center, ctx.mean, "same_kind")
    inv_std, center = (_per_channel(v, ctx.x, ctx.axis) for v in (inv_std, center))
    scaled = g * inv_std
    dx = scaled if gamma is None else scaled * _per_channel(gamma, ctx.x, ctx.axis)
    dgamma = (scaled * (x - center)).sum(axis=others) if ctx.needs[3] else None
    return dx, None, None, dgamma, g.sum(axis=others) if ctx.needs[4] else None, g


def _inverse_std(var: np.ndarray, eps: float, inv_std: np.ndarray) -> None:
    np.divide(1.0, np.sqrt(var + eps), out=inv_std, casting="same_kind")


RULES: dict[type[Op], Callable[[Node, Tensor], Gradients]] = {
    ops.Add: _add,
    ops.Subtract: _subtract,
    ops.Multiply: _multiply,
    ops.Divide: _divide,
    ops.Power: _power,
    ops.Exp: lambda node, dy: (dy * node.output,),
    ops.Log: lambda node, dy: (dy / node.inputs[0],),
    ops.MatMul: _matmul,
    ops.Sum: _sum,
    ops.Mean: _mean,
    ops.Max: _max,
    ops.Reshape: lambda node, dy: (dy.reshape(node.ctx.shape),),
    Masked: lambda node, dy: (_masked(dy, node.ctx.mask),),
    Cast: lambda node, dy: (apply(Cast, dy, dtype=node.ctx.dtype),),
    ops.To: lambda node, dy: (dy.to(node.ctx.device),),
    ops.Transpose: lambda node, dy: (dy.transpose(*node.ctx.inverse),),
    ops.Index: _index,
    ops.ReLU: lambda node, dy: (_where_positive(dy, node.ctx.y),),
    ops.Sigmoid: _sigmoid,
    ops.Tanh: lambda node, dy: (dy * (1 - node.output * node.output),),
    ops.Softplus: lambda node, dy: (dy * ops.sigmoid(node.inputs[0]),),
    ops.Softmax: _softmax,
    ops.LogSoftmax: _log_softmax,
    ops.Dropout: lambda node, dy: (_masked(dy, node.ctx.mask),),
    ops.Linear: _linear,
    ops.CrossEntropy: _cross_entropy,
    ops.Huber: _huber,
    ops.BatchNormTrain: _batch_norm_train,
    ops.BatchNormInfer: _batch_norm_infer,
}
