"""The catalogue of differentiable operations, each about a dozen lines.

Adding one: its kernels, its functions in `nbbn.functional`, a class here, one line in
`tests/cases.py`.
Everything computed goes through `backend.run`, so that a step can be recorded and replayed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from . import backend, checks
from . import functional as F  # noqa: N812 - the usual name
from .autograd import Op, Tensor, apply, apply_with_context
from .errors import ArgumentError, DTypeError, ShapeError

__all__ = [
    "batch_norm_infer",
    "batch_norm_train",
    "cross_entropy",
    "dropout",
    "linear",
    "log_softmax",
    "relu",
    "sigmoid",
    "softmax",
    "tanh",
]

# ---------------------------------------------------------------- helpers


class _Op(Op):
    """An operation that computes through `backend.run` alone."""

    recordable = True


def _compute(function: Callable[..., Any], *operands: Any) -> np.ndarray:
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
    types = (x.dtype if backend.is_array(x) else x for x in operands)
    out = backend.empty(shape, np.result_type(*types), device)
    backend.run(function, *operands, out)
    return out


def _empty(shape: tuple[int, ...], like: Any) -> np.ndarray:
    """Allocate beside an array, in its type."""
    return backend.empty(shape, like.dtype, backend.device_of(like))


def _unbroadcast(dy: np.ndarray, like: Any) -> np.ndarray:
    """Sum a gradient over the axes along which `like` was broadcast."""
    shape = np.shape(like)
    if dy.shape == shape:
        return dy
    extra = dy.ndim - len(shape)
    axes = (*range(extra), *(extra + d for d, n in enumerate(shape) if n == 1))
    total = _empty(shape, dy)
    kept = tuple(1 if d in axes else n for d, n in enumerate(dy.shape))
    backend.run(np.sum, dy, axes, None, total.reshape(kept), True)
    return total


def _expand(value: np.ndarray, shape: tuple[int, ...], axes: tuple[int, ...]) -> np.ndarray:
    """View a reduced array with its axes back, broadcast to `shape`."""
    kept = tuple(1 if d in axes else n for d, n in enumerate(shape))
    return np.broadcast_to(value.reshape(kept), shape)


def _axes(axis: int | tuple[int, ...] | None, x: np.ndarray) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(x.ndim))
    several = axis if isinstance(axis, tuple) else (axis,)
    found = tuple(checks.axis_index(a, x, "x") for a in several)
    if len(set(found)) < len(found):
        raise ShapeError(f"axis {axis} names an axis of shape {x.shape} twice")
    return found


def _reduced(x: np.ndarray, axes: tuple[int, ...], keepdims: bool) -> tuple[int, ...]:
    if keepdims:
        return tuple(1 if d in axes else n for d, n in enumerate(x.shape))
    return tuple(n for d, n in enumerate(x.shape) if d not in axes)


# ---------------------------------------------------------------- arithmetic


class Add(_Op):
    """a + b."""

    @staticmethod
    def forward(ctx: Any, a: Any, b: Any) -> np.ndarray:
        ctx.inputs = a, b
        return _compute(np.add, a, b)

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return tuple(_unbroadcast(dy, x) if need else None
                     for x, need in zip(ctx.inputs, ctx.needs, strict=True))  # fmt: skip


class Subtract(_Op):
    """a - b."""

    @staticmethod
    def forward(ctx: Any, a: Any, b: Any) -> np.ndarray:
        ctx.inputs = a, b
        return _compute(np.subtract, a, b)

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        a, b = ctx.inputs
        da = _unbroadcast(dy, a) if ctx.needs[0] else None
        db = _compute(np.negative, _unbroadcast(dy, b)) if ctx.needs[1] else None
        return da, db


class Multiply(_Op):
    """a * b."""

    @staticmethod
    def forward(ctx: Any, a: Any, b: Any) -> np.ndarray:
        ctx.inputs = a, b
        return _compute(np.multiply, a, b)

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        a, b = ctx.inputs
        da = _unbroadcast(_compute(np.multiply, dy, b), a) if ctx.needs[0] else None
        db = _unbroadcast(_compute(np.multiply, dy, a), b) if ctx.needs[1] else None
        return da, db


class Divide(_Op):
    """a / b; da = dy / b, db = -dy * y / b."""

    @staticmethod
    def forward(ctx: Any, a: Any, b: Any) -> np.ndarray:
        ctx.inputs = a, b
        ctx.y = _compute(np.divide, a, b)
        return ctx.y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        a, b = ctx.inputs
        quotient = _compute(np.divide, dy, b)
        da = _unbroadcast(quotient, a) if ctx.needs[0] else None
        if not ctx.needs[1]:
            return da, None
        db = _compute(np.negative, _compute(np.multiply, quotient, ctx.y))
        return da, _unbroadcast(db, b)


class Power(_Op):
    """x ** p for a number p; dx = dy * p * x ** (p - 1)."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, p: float) -> np.ndarray:
        ctx.x, ctx.p = x, checks.real(p, "the exponent")
        return _compute(np.power, x, ctx.p)

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        slope = _compute(np.multiply, _compute(np.power, ctx.x, ctx.p - 1), ctx.p)
        return _compute(np.multiply, dy, slope)


class Exp(_Op):
    """exp(x); dx = dy * y."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        ctx.y = _compute(np.exp, x)
        return ctx.y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return _compute(np.multiply, dy, ctx.y)


class Log(_Op):
    """Natural logarithm; dx = dy / x."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        ctx.x = x
        return _compute(np.log, x)

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return _compute(np.divide, dy, ctx.x)


class MatMul(_Op):
    """a @ b, with NumPy's broadcasting of leading axes."""

    @staticmethod
    def forward(ctx: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        checks.floating(a, "the left operand of @")
        checks.floating(b, "the right operand of @")
        if a.ndim < 2 or b.ndim < 2:
            raise ShapeError(
                f"@ needs 2 or more dimensions on both sides, got {np.shape(a)} @ {np.shape(b)}: "
                "reshape vectors to (1, n) or (n, 1)"
            )
        if a.shape[-1] != b.shape[-2]:
            raise ShapeError(
                f"cannot multiply {a.shape} @ {b.shape}: {a.shape[-1]} columns meet "
                f"{b.shape[-2]} rows"
            )
        ctx.inputs = a, b
        return _matmul(a, b)

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        a, b = ctx.inputs
        da = _unbroadcast(_matmul(dy, b.swapaxes(-1, -2)), a) if ctx.needs[0] else None
        db = _unbroadcast(_matmul(a.swapaxes(-1, -2), dy), b) if ctx.needs[1] else None
        return da, db


def _matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
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


# ---------------------------------------------------------------- reductions and shapes


class Sum(_Op):
    """Sum over axes."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, axis: Any, keepdims: bool) -> np.ndarray:
        ctx.shape, ctx.axes = x.shape, _axes(axis, x)
        out = _empty(_reduced(x, ctx.axes, keepdims), x)
        backend.run(np.sum, x, ctx.axes, None, out, keepdims)
        return out

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        dx = _empty(ctx.shape, dy)
        backend.run(np.copyto, dx, _expand(dy, ctx.shape, ctx.axes))
        return dx


class Mean(_Op):
    """Mean over axes."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, axis: Any, keepdims: bool) -> np.ndarray:
        ctx.shape, ctx.axes = x.shape, _axes(axis, x)
        ctx.count = math.prod(x.shape[d] for d in ctx.axes)
        if ctx.count == 0:
            raise ShapeError(f"the mean of no values does not exist: x has shape {x.shape}")
        out = _empty(_reduced(x, ctx.axes, keepdims), x)
        backend.run(np.mean, x, ctx.axes, None, out, keepdims)
        return out

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        dx = _empty(ctx.shape, dy)
        backend.run(np.divide, _expand(dy, ctx.shape, ctx.axes), ctx.count, dx)
        return dx


class Max(_Op):
    """Maximum over axes; tied maxima share the gradient equally."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, axis: Any, keepdims: bool) -> np.ndarray:
        ctx.x, ctx.axes = x, _axes(axis, x)
        if math.prod(x.shape[d] for d in ctx.axes) == 0:
            raise ShapeError(f"the maximum of no values does not exist: x has shape {x.shape}")
        ctx.y = _empty(_reduced(x, ctx.axes, keepdims), x)
        backend.run(np.max, x, ctx.axes, ctx.y, keepdims)
        return ctx.y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        dx = _empty(ctx.x.shape, dy)
        y, dy = (_expand(a, ctx.x.shape, ctx.axes) for a in (ctx.y, dy))
        backend.run(_share_among_maxima, ctx.x, y, dy, ctx.axes, dx)
        return dx


def _share_among_maxima(
    x: np.ndarray, y: np.ndarray, dy: np.ndarray, axes: tuple[int, ...], dx: np.ndarray
) -> None:
    ties = x == y
    shares = np.sum(ties, axis=axes, keepdims=True)
    np.multiply(ties, dy / shares, out=dx, casting="same_kind")


class Reshape(_Op):
    """The same elements in C order under another shape."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, shape: tuple[int, ...]) -> np.ndarray:
        ctx.shape = x.shape
        try:
            return backend.contiguous(x, x.dtype).reshape(shape)
        except TypeError:
            kinds = ", ".join(type(n).__name__ for n in shape)
            raise DTypeError(f"a shape is made of integers, got {kinds}") from None
        except ValueError:
            raise ShapeError(
                f"cannot reshape {x.size} elements of shape {x.shape} into {shape}"
            ) from None

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return backend.contiguous(dy, dy.dtype).reshape(ctx.shape)


class To(Op):
    """The same elements on another device; the gradient comes back to where x is."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, device: str) -> np.ndarray:
        ctx.device = backend.device_of(x)
        return backend.to(x, device)

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return backend.to(dy, ctx.device)


class Transpose(_Op):
    """Permutation of axes, as a view."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, axes: tuple[int, ...] | None) -> np.ndarray:
        order = tuple(reversed(range(x.ndim))) if axes is None else _axes(axes, x)
        if sorted(order) != list(range(x.ndim)):
            raise ShapeError(f"axes must name each of {x.ndim} axes once, got {axes}")
        ctx.inverse = tuple(order.index(d) for d in range(x.ndim))
        return x.transpose(order)

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return dy.transpose(ctx.inverse)


class Index(_Op):
    """x[index] for any NumPy index; positions taken twice add up in the gradient."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, index: Any) -> np.ndarray:
        index = _beside(x, index)
        ctx.x, ctx.index = x, index
        try:
            shape = x[index].shape
        except IndexError as error:
            raise ShapeError(f"index does not fit shape {x.shape}: {error}") from None
        out = _empty(shape, x)
        backend.run(_take, x, index, out)
        return out

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        dx = _empty(ctx.x.shape, dy)
        backend.run(_scatter, dy, ctx.index, dx)
        return dx


def _beside(x: np.ndarray, index: Any) -> Any:
    """Put the arrays of an index where x is."""
    if isinstance(index, tuple):
        return tuple(_beside(x, item) for item in index)
    return backend.to(index, backend.device_of(x)) if backend.is_array(index) else index


def _take(x: np.ndarray, index: Any, out: np.ndarray) -> None:
    out[...] = x[index]


def _scatter(dy: np.ndarray, index: Any, dx: np.ndarray) -> None:
    dx[...] = 0
    backend.add_at(dx, index, dy)


# ---------------------------------------------------------------- activations


class ReLU(_Op):
    """max(x, 0)."""

    fresh = True

    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        ctx.y = F.relu(x)
        return ctx.y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return F.relu_backward(dy, ctx.y)


class Sigmoid(_Op):
    """1 / (1 + exp(-x))."""

    fresh = True

    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        ctx.y = F.sigmoid(x)
        return ctx.y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return F.sigmoid_backward(dy, ctx.y)


class Tanh(_Op):
    """Hyperbolic tangent."""

    fresh = True

    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        ctx.y = F.tanh(x)
        return ctx.y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return F.tanh_backward(dy, ctx.y)


class Softmax(_Op):
    """Softmax along an axis."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, axis: int) -> np.ndarray:
        ctx.axis = axis
        ctx.y = F.softmax(x, axis=axis)
        return ctx.y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return F.softmax_backward(dy, ctx.y, axis=ctx.axis)


class LogSoftmax(_Op):
    """Log-softmax along an axis."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, axis: int) -> np.ndarray:
        ctx.axis = axis
        ctx.y = F.log_softmax(x, axis=axis)
        return ctx.y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return F.log_softmax_backward(dy, ctx.y, axis=ctx.axis)


class Dropout(_Op):
    """Zero each element with probability p and scale the rest by 1 / (1 - p)."""

    fresh = True

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, p: float, rng: np.random.Generator) -> np.ndarray:
        dtype = checks.floating(x, "x")
        device = backend.device_of(x)
        ctx.mask = backend.empty(x.shape, dtype, device)
        key = backend.empty(1, np.uint64, device, lasting=True)
        backend.run_ahead(_draw_key, rng, key)
        backend.run(backend.kernels("dropout", device).dropout_mask, key, p, ctx.mask.reshape(-1))
        return _compute(np.multiply, x, ctx.mask)

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return _compute(np.multiply, dy, ctx.mask)


def _draw_key(rng: np.random.Generator, key: np.ndarray) -> None:
    backend.fill(key, rng.integers(2**64, dtype=np.uint64))


# ---------------------------------------------------------------- layers and losses


class Linear(_Op):
    """x @ weight.T + bias for x (N, in), weight (out, in), bias (out,)."""

    fresh = True

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        checks.floating(weight, "weight")
        if weight.ndim != 2:
            raise ShapeError(f"weight must have shape (out, in), got {weight.shape}")
        dtype = checks.floating(x, "x")
        if x.ndim != 2 or x.shape[1] != weight.shape[1]:
            raise ShapeError(
                f"a linear layer of weight {weight.shape} takes x of shape "
                f"(N, {weight.shape[1]}), got {x.shape}"
            )
        device = backend.device_of(x)
        checks.on_device(weight, device, "weight")
        x = backend.contiguous(x, dtype)
        ctx.x, ctx.weight, ctx.bias = x, weight, bias
        y = _matmul(x, weight.T)
        if bias is not None:
            bias = checks.channel_vector(bias, weight.shape[0], y.dtype, "bias", device)
            backend.run(backend.kernels("elementwise", device).add_bias, y, bias, y)
        return y

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        dy = backend.contiguous(dy, dy.dtype)
        dx = _matmul(dy, ctx.weight) if ctx.needs[0] else None
        dweight = _matmul(dy.T, ctx.x, ctx.buffers[1]) if ctx.needs[1] else None
        dbias = None
        if ctx.needs[2]:
            dbias = ctx.buffers[2]
            if dbias is None:
                dbias = _empty(ctx.bias.shape, ctx.bias)
            kernels = backend.kernels("elementwise", backend.device_of(dy))
            backend.run(kernels.bias_gradient, dy, dbias)
        return dx, dweight, dbias


class BatchNormTrain(_Op):
    """Batch normalization with the batch's own statistics."""

    fresh = True

    @staticmethod
    def forward(
        ctx: Any, x: np.ndarray, gamma: Any, beta: Any, residual: Any, *,
        eps: float, axis: int, activation: str | None, single: bool,
    ) -> np.ndarray:  # fmt: skip
        y, ctx.stats = F.batch_norm_train(
            x, gamma, beta, eps=eps, axis=axis, activation=activation, residual=residual,
            single=single,
        )  # fmt: skip
        ctx.x, ctx.gamma, ctx.eps, ctx.axis = x, gamma, eps, axis
        ctx.y = y if activation == "relu" else None
        return y

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        dresidual = residual_gradient(ctx, dy)
        in_place = ctx.owns_dy and dresidual is None and dy.dtype == ctx.x.dtype
        dx, dgamma, dbeta = F.batch_norm_backward(
            dy, ctx.x, ctx.stats, ctx.gamma, axis=ctx.axis, y=ctx.y, out=dy if in_place else None,
            out_dgamma=ctx.buffers[1], out_dbeta=ctx.buffers[2],
        )  # fmt: skip
        return dx, dgamma, dbeta, dresidual


class BatchNormInfer(_Op):
    """Batch normalization with given, constant statistics."""

    @staticmethod
    def forward(
        ctx: Any, x: np.ndarray, mean: Any, var: Any, gamma: Any, beta: Any, residual: Any, *,
        eps: float, axis: int, activation: str | None,
    ) -> np.ndarray:  # fmt: skip
        y = F.batch_norm_infer(
            x, mean, var, gamma, beta, eps=eps, axis=axis, activation=activation, residual=residual
        )
        ctx.x, ctx.mean, ctx.var, ctx.gamma = x, mean, var, gamma
        ctx.eps, ctx.axis = eps, axis
        ctx.y = y if activation == "relu" else None
        return y

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        dx, dgamma, dbeta = F.batch_norm_infer_backward(
            dy, ctx.x, ctx.mean, ctx.var, ctx.gamma, eps=ctx.eps, axis=ctx.axis, y=ctx.y,
            out_dgamma=ctx.buffers[3], out_dbeta=ctx.buffers[4],
        )  # fmt: skip
        return dx, None, None, dgamma, dbeta, residual_gradient(ctx, dy)


def residual_gradient(ctx: Any, dy: np.ndarray) -> np.ndarray | None:
    """Gradient of a residual, an operation's last input, added before a ReLU or nothing."""
    if not ctx.needs[-1]:
        return None
    if ctx.y is not None:
        return F.relu_backward(dy, ctx.y)
    return dy if ctx.owns_dy else _compute(np.positive, dy)


class CrossEntropy(_Op):
    """Softmax-cross-entropy of logits (N, K) against labels (N,)."""

    fresh = True

    @staticmethod
    def forward(ctx: Any, logits: np.ndarray, labels: np.ndarray, *, reduction: str) -> np.ndarray:
        ctx.logits, ctx.labels, ctx.reduction = logits, labels, reduction
        return F.cross_entropy(logits, labels, reduction=reduction)

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        dlogits = F.cross_entropy_backward(ctx.logits, ctx.labels, dy, reduction=ctx.reduction)
        return dlogits, None


# ---------------------------------------------------------------- functions on tensors


def linear(x: Any, weight: Any, bias: Any = None) -> Tensor:
    """``x @ weight.T + bias``.

    Parameters
    ----------
    x : Tensor or ndarray, shape (N, in)
    weight : Tensor or ndarray, shape (out, in)
    bias : Tensor or ndarray, shape (out,), optional

    Returns
    -------
    Tensor, shape (N, out)
    """
    return apply(Linear, x, weight, bias)


def batch_norm_train(
    x: Any, gamma: Any = None, beta: Any = None, residual: Any = None, *,
    eps: float = 1e-5, axis: int = 1, activation: str | None = None, single: bool = False,
) -> tuple[Tensor, F.BatchNormStats]:  # fmt: skip
    """Differentiable `nbbn.functional.batch_norm_train`.

    Parameters
    ----------
    x : Tensor or ndarray
    gamma, beta : Tensor or ndarray, shape (C,), optional
    residual : Tensor or ndarray, shape of `x`, optional
        Added before the activation.
    eps : float, default 1e-5
    axis : int, default 1
    activation : {None, "relu"}, default None
    single : bool, default False
        Accept one value per channel.

    Returns
    -------
    y : Tensor
    stats : BatchNormStats
    """
    y, ctx = apply_with_context(
        BatchNormTrain, x, gamma, beta, residual,
        eps=eps, axis=axis, activation=activation, single=single,
    )  # fmt: skip
    return y, ctx.stats  # type: ignore[attr-defined]


def batch_norm_infer(
    x: Any, mean: Any, var: Any, gamma: Any = None, beta: Any = None, residual: Any = None, *,
    eps: float = 1e-5, axis: int = 1, activation: str | None = None,
) -> Tensor:  # fmt: skip
    """Differentiable `nbbn.functional.batch_norm_infer`; the statistics are constants.

    Parameters
    ----------
    x : Tensor or ndarray
    mean, var : ndarray, shape (C,)
    gamma, beta : Tensor or ndarray, shape (C,), optional
    residual : Tensor or ndarray, shape of `x`, optional
        Added before the activation.
    eps : float, default 1e-5
    axis : int, default 1
    activation : {None, "relu"}, default None

    Returns
    -------
    Tensor
    """
    return apply(
        BatchNormInfer, x, mean, var, gamma, beta, residual,
        eps=eps, axis=axis, activation=activation,
    )  # fmt: skip


def relu(x: Any) -> Tensor:
    """Differentiable `nbbn.functional.relu`.

    Parameters
    ----------
    x : Tensor or ndarray

    Returns
    -------
    Tensor
    """
    return apply(ReLU, x)


def sigmoid(x: Any) -> Tensor:
    """Differentiable `nbbn.functional.sigmoid`.

    Parameters
    ----------
    x : Tensor or ndarray

    Returns
    -------
    Tensor
    """
    return apply(Sigmoid, x)


def tanh(x: Any) -> Tensor:
    """Differentiable `nbbn.functional.tanh`.

    Parameters
    ----------
    x : Tensor or ndarray

    Returns
    -------
    Tensor
    """
    return apply(Tanh, x)


def softmax(x: Any, *, axis: int = -1) -> Tensor:
    """Differentiable `nbbn.functional.softmax`; the result remembers its logits.

    Parameters
    ----------
    x : Tensor or ndarray
    axis : int, default -1

    Returns
    -------
    Tensor
    """
    y = apply(Softmax, x, axis=axis)
    if isinstance(x, Tensor) and axis in (-1, x.ndim - 1):
        y._logits = x
    return y


def log_softmax(x: Any, *, axis: int = -1) -> Tensor:
    """Differentiable `nbbn.functional.log_softmax`.

    Parameters
    ----------
    x : Tensor or ndarray
    axis : int, default -1

    Returns
    -------
    Tensor
    """
    return apply(LogSoftmax, x, axis=axis)


def cross_entropy(logits: Any, labels: np.ndarray, *, reduction: str = "mean") -> Tensor:
    """Differentiable `nbbn.functional.cross_entropy`.

    Parameters
    ----------
    logits : Tensor or ndarray, shape (N, K)
    labels : ndarray of int, shape (N,)
    reduction : {"mean", "sum", "none"}, default "mean"

    Returns
    -------
    Tensor
    """
    return apply(CrossEntropy, logits, labels, reduction=reduction)


def dropout(x: Any, p: float, rng: np.random.Generator) -> Tensor:
    """Zero elements with probability `p` and scale the rest by ``1 / (1 - p)``.

    Parameters
    ----------
    x : Tensor or ndarray
    p : float
        In [0, 1).
    rng : Generator
        Source of the mask.

    Returns
    -------
    Tensor
    """
    if not 0 <= checks.real(p, "p") < 1:
        raise ArgumentError(f"the dropout probability must lie in [0, 1), got {p}")
    if not isinstance(rng, np.random.Generator):
        raise DTypeError(f"rng must be a numpy.random.Generator, got {type(rng).__name__}")
    return apply(Dropout, x, p=p, rng=rng)
