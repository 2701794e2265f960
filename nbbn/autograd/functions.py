"""The operations as functions on tensors: `nbbn.ops`.

A tensor's operators and methods need none: `a + b`, `x.sum()`. Bad operands raise what the function
of `nbbn.functional` raises.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import functional as F  # noqa: N812 - the usual name
from .._validation import fraction, positive, real
from ..errors import ArgumentError, DTypeError
from .ops.activation import ReLU, Sigmoid, Softplus, Tanh
from .ops.arithmetic import Add, Divide, Exp, Log, Multiply, Power, Subtract
from .ops.batchnorm import BatchNormInfer, BatchNormTrain
from .ops.batchnorm_variants import (
    BatchRenorm,
    GhostBatchNorm,
    InPlaceBatchNorm,
    Released,
    WeightedBatchNorm,
)
from .ops.dropout import Dropout
from .ops.index import Index
from .ops.linear import Linear
from .ops.losses import CrossEntropy, Huber
from .ops.matmul import MatMul
from .ops.reductions import Max, Mean, Sum
from .ops.shapes import Reshape, To, Transpose
from .ops.softmax import LogSoftmax, Softmax
from .tensor import Tensor, apply, apply_with_context

# What `nbbn.ops` gives; the variants of batch normalization are public as layers.
__all__ = [
    "Add",
    "BatchNormInfer",
    "BatchNormTrain",
    "CrossEntropy",
    "Divide",
    "Dropout",
    "Exp",
    "Huber",
    "Index",
    "Linear",
    "Log",
    "LogSoftmax",
    "MatMul",
    "Max",
    "Mean",
    "Multiply",
    "Power",
    "ReLU",
    "Reshape",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Subtract",
    "Sum",
    "Tanh",
    "To",
    "Transpose",
    "batch_norm_infer",
    "batch_norm_train",
    "cross_entropy",
    "dropout",
    "huber",
    "linear",
    "log_softmax",
    "relu",
    "sigmoid",
    "softmax",
    "softplus",
    "tanh",
]


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
    """Differentiable `nbbn.functional.sigmoid`; the result remembers what it is.

    Parameters
    ----------
    x : Tensor or ndarray

    Returns
    -------
    Tensor
    """
    y = apply(Sigmoid, x)
    y._of_sigmoid = True
    return y


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


def softplus(x: Any) -> Tensor:
    """``log(1 + exp(x))``, smooth and without overflow.

    Parameters
    ----------
    x : Tensor or ndarray

    Returns
    -------
    Tensor
    """
    return apply(Softplus, x)


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
    # Of the axis that cross_entropy takes for the classes.
    if isinstance(x, Tensor) and x.ndim and axis % x.ndim == min(1, x.ndim - 1):
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


def dropout(x: Any, p: float, rng: np.random.Generator) -> Tensor:
    """Zero elements with probability `p` and scale the rest by ``1 / (1 - p)``.

    Parameters
    ----------
    x : Tensor or ndarray
    p : float
        In [0, 1]; 1 leaves zeros.
    rng : Generator
        Source of the mask.

    Returns
    -------
    Tensor
    """
    p = fraction(p, "the dropout probability p")
    if not isinstance(rng, np.random.Generator):
        raise DTypeError(f"rng must be a numpy.random.Generator, got {type(rng).__name__}")
    return apply(Dropout, x, p=p, rng=rng)


def linear(x: Any, weight: Any, bias: Any = None) -> Tensor:
    """``x @ weight.T + bias``.

    Parameters
    ----------
    x : Tensor or ndarray, shape (N, in) or (..., in)
    weight : Tensor or ndarray, shape (out, in)
    bias : Tensor or ndarray, shape (out,), optional

    Returns
    -------
    Tensor, shape (N, out) or (..., out)
    """
    return apply(Linear, x, weight, bias)


def cross_entropy(
    logits: Any, labels: np.ndarray, *, weight: np.ndarray | None = None,
    ignore_index: int | None = None, label_smoothing: float = 0.0, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """Differentiable `nbbn.functional.cross_entropy`.

    Parameters
    ----------
    logits : Tensor or ndarray, shape (N, K), (N, K, d1, ...) or (K,)
    labels : ndarray of int, shape (N,), (N, d1, ...) or ()
    weight : ndarray of float, shape (K,), optional
    ignore_index : int, optional
    label_smoothing : float, default 0
    reduction : {"mean", "sum", "none"}, default "mean"

    Returns
    -------
    Tensor
    """
    return apply(
        CrossEntropy, logits, labels, weight=weight, ignore_index=ignore_index,
        label_smoothing=label_smoothing, reduction=reduction,
    )  # fmt: skip


def huber(x: Any, delta: float = 1.0) -> Tensor:
    """``x**2 / 2`` where ``|x| <= delta``, else ``delta * (|x| - delta / 2)``.

    Parameters
    ----------
    x : Tensor or ndarray
    delta : float, default 1
        Above 0.

    Returns
    -------
    Tensor
    """
    if real(delta, "delta") <= 0:
        raise ArgumentError(f"delta must be positive, got {delta}")
    return apply(Huber, x, delta=delta)


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


def weighted_batch_norm(
    x: Any, weights: np.ndarray, gamma: Any = None, beta: Any = None, residual: Any = None, *,
    eps: float = 1e-5, axis: int = 1, activation: str | None = None, single: bool = False,
) -> tuple[Tensor, F.WeightedStats]:  # fmt: skip
    """Differentiable `nbbn.functional.weighted_batch_norm_train`.

    Parameters
    ----------
    x : Tensor or ndarray
    weights : ndarray of bool, int or float
        Constants.
    gamma, beta : Tensor or ndarray, shape (C,), optional
    residual : Tensor or ndarray, shape of `x`, optional
        Added before the activation.
    eps : float, default 1e-5
    axis : int, default 1
    activation : {None, "relu"}, default None
    single : bool, default False
        Accept one position with all the weight.

    Returns
    -------
    y : Tensor
    stats : WeightedStats

    Raises
    ------
    ArgumentError
        `weights` is a Tensor that requires a gradient.
    """
    if isinstance(weights, Tensor):
        if weights.requires_grad:
            raise ArgumentError("weights are constants and get no gradient: pass weights.detach()")
        weights = weights.data
    y, ctx = apply_with_context(
        WeightedBatchNorm, x, weights, gamma, beta, residual,
        eps=eps, axis=axis, activation=activation, single=single,
    )  # fmt: skip
    return y, ctx.stats  # type: ignore[attr-defined]


def ghost_batch_norm(
    x: Any, gamma: Any = None, beta: Any = None, residual: Any = None, *,
    size: int, eps: float = 1e-5, axis: int = 1, activation: str | None = None,
    single: bool = False,
) -> tuple[Tensor, F.BatchNormStats]:  # fmt: skip
    """Normalize groups of examples, each with its own statistics.

    N examples make ``max(1, N // size)`` groups of as equal a length as can be.

    Parameters
    ----------
    x : Tensor or ndarray
        The examples are along the first axis that is not the channels'.
    gamma, beta : Tensor or ndarray, shape (C,), optional
    residual : Tensor or ndarray, shape of `x`, optional
        Added before the activation.
    size : int
        Examples in a group, at least.
    eps : float, default 1e-5
    axis : int, default 1
    activation : {None, "relu"}, default None
    single : bool, default False
        Accept one value per channel.

    Returns
    -------
    y : Tensor
    stats : BatchNormStats
        Of the whole batch: those of the groups, merged.
    """
    y, ctx = apply_with_context(
        GhostBatchNorm, x, gamma, beta, residual,
        size=positive(size, "size"), eps=eps, axis=axis, activation=activation,
        single=single,
    )  # fmt: skip
    return y, ctx.stats  # type: ignore[attr-defined]


def batch_renorm(
    x: Any, running_mean: np.ndarray, running_var: np.ndarray, limits: np.ndarray,
    gamma: Any = None, beta: Any = None, residual: Any = None, *,
    eps: float = 1e-5, axis: int = 1, activation: str | None = None, single: bool = False,
) -> tuple[Tensor, F.BatchNormStats]:  # fmt: skip
    """Normalize with the batch's statistics, corrected towards the running ones.

    Parameters
    ----------
    x : Tensor or ndarray
    running_mean, running_var : ndarray, shape (C,)
        Read, not updated.
    limits : ndarray of float64, shape (2,)
        r_max >= 1 and d_max >= 0: r is clipped to [1 / r_max, r_max], d to [-d_max, d_max].
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
        BatchRenorm, x, running_mean, running_var, limits, gamma, beta, residual,
        eps=eps, axis=axis, activation=activation, single=single,
    )  # fmt: skip
    return y, ctx.stats  # type: ignore[attr-defined]


def in_place_batch_norm(
    x: Any, gamma: Any = None, beta: Any = None, mean: Any = None, var: Any = None, *,
    slope: float = 0.01, eps: float = 1e-5, axis: int = 1, single: bool = False,
) -> tuple[Tensor, F.BatchNormStats | None]:  # fmt: skip
    """Batch normalization and leaky ReLU that keep their output only.

    While a tape records, an `x` that it has recorded gives up its array: memory falls by one array
    per layer. Using such an `x` again raises DTypeError; operations that used it before keep it.

    Parameters
    ----------
    x : Tensor or ndarray
    gamma, beta : Tensor or ndarray, shape (C,), optional
        The scale is |gamma| + eps.
    mean, var : ndarray, shape (C,), optional
        Statistics to use instead of the batch's.
    slope : float, default 0.01
        Of the leaky ReLU below 0, in (0, 1]; 1 is no activation.
    eps : float, default 1e-5
    axis : int, default 1
    single : bool, default False
        Accept one value per channel.

    Returns
    -------
    y : Tensor
    stats : BatchNormStats or None
        None where statistics were given.
    """
    # Another one could not be undone.
    slope = real(slope, "slope", above=0, most=1)
    y, ctx = apply_with_context(
        InPlaceBatchNorm, x, gamma, beta, mean, var,
        slope=slope, eps=eps, axis=axis, single=single,
    )  # fmt: skip
    if isinstance(x, Tensor) and x._tape is not None and x._tape is y._tape:
        x._tape.release(x, Released(x.shape, x.dtype))
    return y, ctx.stats  # type: ignore[attr-defined]
