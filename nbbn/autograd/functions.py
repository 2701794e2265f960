"""The operations as functions on tensors: `nbbn.ops`.

They take Tensors or arrays and return Tensors; in everything else each is the function of
`nbbn.functional` whose name it has, and raises what that does. A tensor's operators and methods
need none: `a + b`, `x.sum()`.
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
from .ops.groupnorm import GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from .ops.index import Index
from .ops.linear import Linear
from .ops.localresponse import LocalResponseNorm
from .ops.losses import CrossEntropy, Huber
from .ops.matmul import MatMul
from .ops.reductions import Max, Mean, Sum
from .ops.shapes import Reshape, To, Transpose
from .ops.softmax import LogSoftmax, Softmax
from .tensor import Tensor, apply, apply_with_stats

# What `nbbn.ops` gives; the variants of batch normalization are public as layers.
__all__ = [
    "Add", "BatchNormInfer", "BatchNormTrain", "CrossEntropy", "Divide", "Dropout", "Exp",
    "GroupNorm", "Huber", "Index", "InstanceNorm", "LayerNorm", "Linear", "LocalResponseNorm",
    "Log", "LogSoftmax", "MatMul", "Max", "Mean", "Multiply", "Power", "RMSNorm", "ReLU", "Reshape",
    "Sigmoid", "Softmax", "Softplus", "Subtract", "Sum", "Tanh", "To", "Transpose",
    "batch_norm_infer", "batch_norm_train", "cross_entropy", "dropout", "group_norm", "huber",
    "instance_norm", "layer_norm", "linear", "local_response_norm", "log_softmax", "relu",
    "rms_norm", "sigmoid", "softmax", "softplus", "tanh",
]  # fmt: skip


def relu(x: Any) -> Tensor:
    """Differentiable `nbbn.functional.relu`."""
    return apply(ReLU, x)


def sigmoid(x: Any) -> Tensor:
    """Differentiable `nbbn.functional.sigmoid`; the result remembers what it is."""
    y = apply(Sigmoid, x)
    y._of_sigmoid = True
    return y


def tanh(x: Any) -> Tensor:
    """Differentiable `nbbn.functional.tanh`."""
    return apply(Tanh, x)


def softplus(x: Any) -> Tensor:
    """``log(1 + exp(x))``, smooth and without overflow. Otherwise as `relu`."""
    return apply(Softplus, x)


def softmax(x: Any, *, axis: int = -1) -> Tensor:
    """Differentiable `nbbn.functional.softmax`; the result remembers its logits."""
    y = apply(Softmax, x, axis=axis)
    # Of the axis that cross_entropy takes for the classes.
    if isinstance(x, Tensor) and x.ndim and axis % x.ndim == min(1, x.ndim - 1):
        y._logits = x
    return y


def log_softmax(x: Any, *, axis: int = -1) -> Tensor:
    """Differentiable `nbbn.functional.log_softmax`."""
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
    """Differentiable `nbbn.functional.cross_entropy`."""
    return apply(
        CrossEntropy, logits, labels, weight=weight, ignore_index=ignore_index,
        label_smoothing=label_smoothing, reduction=reduction,
    )  # fmt: skip


def huber(x: Any, delta: float = 1.0) -> Tensor:
    """``x**2 / 2`` where ``|x| <= delta``, else ``delta * (|x| - delta / 2)``. Otherwise as `relu`.

    Parameters
    ----------
    delta : float, default 1
        Above 0.
    """
    if real(delta, "delta") <= 0:
        raise ArgumentError(f"delta must be positive, got {delta}")
    return apply(Huber, x, delta=delta)


def batch_norm_train(
    x: Any, gamma: Any = None, beta: Any = None, residual: Any = None, *,
    eps: float = 1e-5, axis: int = 1, activation: str | None = None, single: bool = False,
) -> tuple[Tensor, F.BatchNormStats]:  # fmt: skip
    """Differentiable `nbbn.functional.batch_norm_train`."""
    return apply_with_stats(
        BatchNormTrain, x, gamma, beta, residual,
        eps=eps, axis=axis, activation=activation, single=single,
    )  # fmt: skip


def batch_norm_infer(
    x: Any, mean: Any, var: Any, gamma: Any = None, beta: Any = None, residual: Any = None, *,
    eps: float = 1e-5, axis: int = 1, activation: str | None = None,
) -> Tensor:  # fmt: skip
    """Differentiable `nbbn.functional.batch_norm_infer`; the statistics are constants."""
    return apply(
        BatchNormInfer, x, mean, var, gamma, beta, residual,
        eps=eps, axis=axis, activation=activation,
    )  # fmt: skip


def layer_norm(
    x: Any, gamma: Any = None, beta: Any = None, *, axis: int = -1, eps: float = 1e-5
) -> Tensor:
    """Differentiable `nbbn.functional.layer_norm`; the result alone."""
    return apply(LayerNorm, x, gamma, beta, axis=axis, eps=eps)


def rms_norm(x: Any, gamma: Any = None, *, axis: int = -1, eps: float | None = None) -> Tensor:
    """Differentiable `nbbn.functional.rms_norm`; the result alone."""
    return apply(RMSNorm, x, gamma, axis=axis, eps=eps)


def group_norm(
    x: Any, gamma: Any = None, beta: Any = None, *, groups: int, axis: int = 1, eps: float = 1e-5
) -> Tensor:
    """Differentiable `nbbn.functional.group_norm`; the result alone."""
    return apply(GroupNorm, x, gamma, beta, groups=groups, axis=axis, eps=eps)


def instance_norm(
    x: Any, gamma: Any = None, beta: Any = None, *, axis: int = 1, eps: float = 1e-5
) -> Tensor:
    """Differentiable `nbbn.functional.instance_norm`; the result alone."""
    return apply(InstanceNorm, x, gamma, beta, axis=axis, eps=eps)


def local_response_norm(
    x: Any, *, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0,
    alpha_of: str = "mean", over: str = "channels", axis: int = 1,
) -> Tensor:  # fmt: skip
    """Differentiable `nbbn.functional.local_response_norm`."""
    return apply(
        LocalResponseNorm, x, size=size, alpha=alpha, beta=beta, k=k, alpha_of=alpha_of, over=over,
        axis=axis,
    )  # fmt: skip


# The variants, for their layers; options and their defaults are those of the operations.


def weighted_batch_norm(
    x: Any, weights: Any, gamma: Any = None, beta: Any = None, residual: Any = None, **options: Any
) -> tuple[Tensor, F.WeightedStats]:
    """Differentiable `nbbn.functional.weighted_batch_norm_train`; the weights are constants."""
    if isinstance(weights, Tensor):
        if weights.requires_grad:
            raise ArgumentError("weights are constants and get no gradient: pass weights.detach()")
        weights = weights.data
    return apply_with_stats(WeightedBatchNorm, x, weights, gamma, beta, residual, **options)


def ghost_batch_norm(
    x: Any, gamma: Any = None, beta: Any = None, residual: Any = None, *, size: int, **options: Any
) -> tuple[Tensor, F.BatchNormStats]:
    """Normalize each of ``max(1, N // size)`` groups of examples; merge their statistics.

    The examples are along the first axis that is not the channels'.
    """
    size = positive(size, "size")
    return apply_with_stats(GhostBatchNorm, x, gamma, beta, residual, size=size, **options)


def batch_renorm(
    x: Any, running_mean: np.ndarray, running_var: np.ndarray, limits: np.ndarray,
    gamma: Any = None, beta: Any = None, residual: Any = None, **options: Any,
) -> tuple[Tensor, F.BatchNormStats]:  # fmt: skip
    """Normalize with the batch's statistics, corrected towards the running ones, which stay.

    `limits` holds r_max >= 1 and d_max >= 0 in float64: r is clipped to [1 / r_max, r_max], d to
    [-d_max, d_max].
    """
    given = running_mean, running_var, limits
    return apply_with_stats(BatchRenorm, x, *given, gamma, beta, residual, **options)


def in_place_batch_norm(
    x: Any, gamma: Any = None, beta: Any = None, mean: Any = None, var: Any = None, *,
    slope: float = 0.01, **options: Any,
) -> tuple[Tensor, F.BatchNormStats | None]:  # fmt: skip
    """Batch normalization and leaky ReLU that keep their output only.

    While a tape records, an `x` that it has recorded gives up its array: memory falls by one array
    per layer. Using such an `x` again raises DTypeError; operations that used it before keep it.
    The scale is |gamma| + eps. Given `mean` and `var`, it returns no statistics.
    """
    # Another one could not be undone.
    slope = real(slope, "slope", above=0, most=1)
    y, stats = apply_with_stats(InPlaceBatchNorm, x, gamma, beta, mean, var, slope=slope, **options)
    if isinstance(x, Tensor) and x._tape is not None and x._tape is y._tape:
        x._tape.release(x, Released(x))
    return y, stats
