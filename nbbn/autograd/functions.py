"""The operations as functions on tensors: `nbbn.ops`.

They take Tensors or arrays and return Tensors; in everything else each is the function of
`nbbn.functional` whose name it has, and raises what that does. A tensor's operators and methods
need none: `a + b`, `x.sum()`.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import backend
from .. import functional as F  # noqa: N812 - the usual name
from .._validation import fraction, instance, integer, number, positive, possible, real, switch
from ..errors import ArgumentError, DTypeError, ShapeError
from ..functional import checks
from ..functional.layout import axis_index
from ..functional.pooling import Padding, Pair, whole_image
from .ops.activation import GELU, LeakyReLU, ReLU, Sigmoid, SiLU, Softplus, Tanh
from .ops.arithmetic import Add, Divide, Exp, Log, Multiply, Power, Subtract
from .ops.batchnorm import BatchNormInfer, BatchNormSync, BatchNormTrain
from .ops.batchnorm_variants import (
    BatchRenorm,
    GhostBatchNorm,
    InPlaceBatchNorm,
    Released,
    WeightedBatchNorm,
)
from .ops.convolution import Conv2d, ConvTranspose2d
from .ops.dropout import Dropout
from .ops.groupnorm import GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from .ops.index import Index, Scatter
from .ops.joining import Concatenate, Maximum, Pad, Where
from .ops.linear import Linear
from .ops.localresponse import LocalResponseNorm
from .ops.losses import CrossEntropy, Huber
from .ops.matmul import MatMul
from .ops.pooling import AvgPool2d, GlobalAvgPool2d, MaxPool2d
from .ops.recurrent import Recurrent
from .ops.reductions import Max, Mean, Sum
from .ops.shapes import Reshape, To, Transpose
from .ops.softmax import LogSoftmax, Softmax
from .ops.sparse import SparseLinear
from .tensor import SparseTensor, Tensor, apply, apply_with_stats, tensor_of

# What `nbbn.ops` gives; the variants of batch normalization are public as layers.
__all__ = [
    "GELU", "Add", "AvgPool2d", "BatchNormInfer", "BatchNormTrain", "Concatenate", "Conv2d",
    "ConvTranspose2d", "CrossEntropy", "Divide", "Dropout", "Exp", "GlobalAvgPool2d", "GroupNorm",
    "Huber", "Index", "InstanceNorm", "LayerNorm", "LeakyReLU", "Linear", "LocalResponseNorm",
    "Log", "LogSoftmax", "MatMul", "Max", "MaxPool2d", "Maximum", "Mean", "Multiply", "Pad",
    "Power", "RMSNorm", "ReLU", "Recurrent", "Reshape", "Scatter", "SiLU", "Sigmoid", "Softmax",
    "Softplus", "Subtract", "Sum", "Tanh", "To", "Transpose", "Where", "avg_pool2d",
    "batch_norm_infer", "batch_norm_train", "concatenate", "conv2d", "conv_transpose2d",
    "cross_entropy", "dropout", "einsum", "gather", "gelu", "global_avg_pool2d",
    "global_max_pool2d", "group_norm", "huber", "instance_norm", "layer_norm", "leaky_relu",
    "linear", "local_response_norm", "log_softmax", "max_pool2d", "maximum", "minimum", "pad",
    "recurrent", "relu", "rms_norm", "scatter_add", "sigmoid", "silu", "softmax", "softplus",
    "split", "stack", "tanh", "where",
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


def gelu(x: Any, *, approximate: str = "none") -> Tensor:
    """Differentiable `nbbn.functional.gelu`."""
    return apply(GELU, x, approximate=approximate)


def silu(x: Any) -> Tensor:
    """Differentiable `nbbn.functional.silu`."""
    return apply(SiLU, x)


def leaky_relu(x: Any, *, slope: float = 0.01) -> Tensor:
    """Differentiable `nbbn.functional.leaky_relu`."""
    return apply(LeakyReLU, x, slope=slope)


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

    Otherwise as `relu`.

    Parameters
    ----------
    p : float
        In [0, 1]; 1 leaves zeros.
    rng : Generator
        Source of the mask.
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
        Or sparse rows, (N, in), which get no gradient.
    weight : Tensor or ndarray, shape (out, in)
    bias : Tensor or ndarray, shape (out,), optional

    Returns
    -------
    Tensor, shape (N, out) or (..., out)
    """
    if isinstance(x, SparseTensor):
        return apply(SparseLinear, *x.rows.parts(), weight, bias, features=x.rows.features)
    return apply(Linear, x, weight, bias)


def conv2d(
    x: Any, weight: Any, bias: Any = None, *,
    stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1, axis: int = 1,
    activation: str | None = None,
) -> Tensor:  # fmt: skip
    """Differentiable `nbbn.functional.conv2d`."""
    return apply(
        Conv2d, x, weight, bias, stride=stride, padding=padding, dilation=dilation,
        groups=groups, axis=axis, activation=activation,
    )  # fmt: skip


def conv_transpose2d(
    x: Any, weight: Any, bias: Any = None, *,
    stride: Any = 1, padding: Any = 0, output_padding: Any = 0, dilation: Any = 1, groups: int = 1,
    axis: int = 1,
) -> Tensor:  # fmt: skip
    """Differentiable `nbbn.functional.conv_transpose2d`."""
    return apply(
        ConvTranspose2d, x, weight, bias, stride=stride, padding=padding,
        output_padding=output_padding, dilation=dilation, groups=groups, axis=axis,
    )  # fmt: skip


def max_pool2d(
    x: Any, size: Pair, *, stride: Pair | None = None, padding: Padding = 0, dilation: Pair = 1,
    ceil_mode: bool = False, axis: int = 1,
) -> Tensor:  # fmt: skip
    """Differentiable `nbbn.functional.max_pool2d`, without the index."""
    return apply(
        MaxPool2d, x, size=size, stride=stride, padding=padding, dilation=dilation,
        ceil_mode=ceil_mode, axis=axis,
    )  # fmt: skip


def avg_pool2d(
    x: Any, size: Pair, *, stride: Pair | None = None, padding: Padding = 0, dilation: Pair = 1,
    ceil_mode: bool = False, count_include_pad: bool = True, axis: int = 1,
) -> Tensor:  # fmt: skip
    """Differentiable `nbbn.functional.avg_pool2d`."""
    return apply(
        AvgPool2d, x, size=size, stride=stride, padding=padding, dilation=dilation,
        ceil_mode=ceil_mode, count_include_pad=count_include_pad, axis=axis,
    )  # fmt: skip


def global_avg_pool2d(x: Any, *, axis: int = 1, keepdims: bool = False) -> Tensor:
    """Differentiable `nbbn.functional.global_avg_pool2d`."""
    return apply(GlobalAvgPool2d, x, axis=axis, keepdims=keepdims)


def global_max_pool2d(x: Any, *, axis: int = 1, keepdims: bool = False) -> Tensor:
    """Differentiable `nbbn.functional.global_max_pool2d`, without the index."""
    size = whole_image(x.data if isinstance(x, Tensor) else x, axis)
    y = apply(MaxPool2d, x, size=size, axis=axis)
    return y if switch(keepdims, "keepdims") else y.reshape(x.shape[0], x.shape[axis])


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
    return apply(Huber, x, delta=real(delta, "delta", above=0))


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


def recurrent(
    projected: Any, weight: Any, bias: Any = None, initial: Any = None, *,
    kind: str, lengths: np.ndarray | None = None, reverse: bool = False,
) -> Tensor:  # fmt: skip
    """Differentiable `nbbn.functional.recurrent`; returns the states alone."""
    options = {"kind": kind, "lengths": lengths, "reverse": reverse}
    return apply(Recurrent, projected, weight, bias, initial, **options)


# ---------------------------------------------------------------- several tensors in one


def concatenate(tensors: Sequence[Any], axis: int = 0) -> Tensor:
    """Join tensors along an axis that they have, as ``numpy.concatenate``.

    Parameters
    ----------
    tensors : list or tuple of Tensor or ndarray
        One or more, of the same shape but for that axis.
    axis : int, default 0

    Returns
    -------
    Tensor
    """
    return apply(Concatenate, *_several(tensors), axis=axis)


def stack(tensors: Sequence[Any], axis: int = 0) -> Tensor:
    """Join tensors of one shape along a new axis, as ``numpy.stack``. Otherwise as `concatenate`.

    Parameters
    ----------
    axis : int, default 0
        Where the new axis is in the result.
    """
    several = [tensor_of(x, "a tensor") for x in _several(tensors)]
    shape = several[0].shape
    position = integer(axis, "axis")
    if not -len(shape) - 1 <= position <= len(shape):
        raise ShapeError(f"axis {axis} is no place for a new axis in shape {shape}")
    position %= len(shape) + 1
    for x in several:
        if x.shape != shape:
            raise ShapeError(f"stack takes tensors of one shape, got {shape} and {x.shape}")
    new = (*shape[:position], 1, *shape[position:])
    return concatenate([x.reshape(new) for x in several], position)


def split(x: Any, sections: int | Sequence[int], axis: int = 0) -> list[Tensor]:
    """Cut a tensor into parts, as ``numpy.split``.

    Parameters
    ----------
    x : Tensor or ndarray
    sections : int or sequence of int
        How many equal parts, or where each part but the first begins.
    axis : int, default 0

    Returns
    -------
    list of Tensor

    Raises
    ------
    ShapeError
        No such axis, or a length that does not divide into so many parts.
    """
    x = tensor_of(x, "x")
    axis = axis_index(axis, x.data)
    length = x.shape[axis]
    if isinstance(sections, list | tuple):
        starts = [integer(n, "a start in sections") for n in sections]
    else:
        count = positive(sections, "sections")
        if length % count:
            raise ShapeError(f"axis {axis} of shape {x.shape} does not divide into {count} parts")
        starts = [length // count * i for i in range(1, count)]
    ends = itertools.pairwise((0, *starts, length))
    return [x[(slice(None),) * axis + (slice(start, stop),)] for start, stop in ends]


def pad(x: Any, widths: Any, value: float = 0.0) -> Tensor:
    """Put a border of a constant value around a tensor, as ``numpy.pad``. Otherwise as `relu`.

    Parameters
    ----------
    widths : int, (int, int), or sequence of (int, int)
        Elements before and after, for all axes or for each.
    value : float, default 0
    """
    x, value = tensor_of(x, "x"), real(value, "value")
    try:
        found = np.broadcast_to(np.asarray(widths), (x.ndim, 2)).tolist()
    except ValueError:
        raise ShapeError(
            f"widths must be a number, a pair, or a pair for each axis of shape {x.shape}, "
            f"got {widths!r}"
        ) from None
    pairs = tuple(tuple(integer(n, "widths", least=0) for n in pair) for pair in found)
    padded = tuple(n + sum(pair) for n, pair in zip(x.shape, pairs, strict=True))
    possible(padded, x.dtype, "a padded tensor")
    return apply(Pad, x, widths=pairs, value=value)


def where(condition: Any, a: Any, b: Any) -> Tensor:
    """Take elements of `a` where a condition holds, else of `b`, as ``numpy.where``.

    Parameters
    ----------
    condition : ndarray of bool
        A constant; it broadcasts with `a` and `b`.
    a, b : Tensor, ndarray or float

    Returns
    -------
    Tensor
        NaN in the one that is not taken reaches neither the result nor a gradient.
    """
    if not backend.is_array(condition) or condition.dtype != np.bool_:
        kind = getattr(condition, "dtype", type(condition).__name__)
        raise DTypeError(f"condition must be an array of bool, such as x.data > 0, got {kind}")
    return apply(Where, _operand(a, "a"), _operand(b, "b"), condition=condition)


def maximum(a: Any, b: Any) -> Tensor:
    """Larger of two elements, as ``numpy.maximum``.

    Parameters
    ----------
    a, b : Tensor, ndarray or float
        They broadcast together. Where both are the same, each gets half of the gradient.

    Returns
    -------
    Tensor
    """
    return apply(Maximum, _operand(a, "a"), _operand(b, "b"))


def minimum(a: Any, b: Any) -> Tensor:
    """Smaller of two elements, as ``numpy.minimum``. Otherwise as `maximum`."""
    return -maximum(*(-x for x in (_operand(a, "a"), _operand(b, "b"))))


def gather(x: Any, index: np.ndarray, axis: int = -1) -> Tensor:
    """Take ``x[..., index[..., i, ...], ...]`` along an axis, as ``numpy.take_along_axis``.

    Otherwise as `relu`.

    Parameters
    ----------
    index : ndarray of int, rank of `x`
        It broadcasts with `x` on the other axes. Positions taken twice add up in the gradient.
    axis : int, default -1
    """
    x = tensor_of(x, "x")
    return apply(Index, x, index=_along(x.shape, index, axis_index(axis, x.data)))


def scatter_add(x: Any, index: np.ndarray, size: int, axis: int = -1) -> Tensor:
    """Add elements up at positions along an axis of length `size`, zeros elsewhere.

    The transposed of `gather`: ``y[..., index[..., i, ...], ...] += x[..., i, ...]``. Otherwise as
    `gather`.

    Parameters
    ----------
    index : ndarray of int, shape of `x`
    size : int
        Length of the axis in the result.
    """
    x = tensor_of(x, "x")
    axis = axis_index(axis, x.data)
    shape = (*x.shape[:axis], positive(size, "size"), *x.shape[axis + 1 :])
    if getattr(index, "shape", x.shape) != x.shape:
        raise ShapeError(f"index must have the shape of x, {x.shape}, got {index.shape}")
    possible(shape, x.dtype, "a tensor")
    return apply(Scatter, x, shape=shape, index=_along(shape, index, axis))


def einsum(subscripts: str, a: Any, b: Any) -> Tensor:
    """Sum of products of two tensors, as ``numpy.einsum``; computed by one batched product.

    Parameters
    ----------
    subscripts : str
        Such as ``"bij,bjk->bik"``: a letter for each axis of `a`, of `b` and of the result, none
        of them twice in one place.
    a, b : Tensor or ndarray

    Returns
    -------
    Tensor

    Raises
    ------
    ArgumentError
        Subscripts of another form.
    ShapeError
        Tensors that do not have these axes, or a letter of two lengths.
    """
    instance(subscripts, str, "subscripts")
    match = re.fullmatch(r"([a-zA-Z]*),([a-zA-Z]*)->([a-zA-Z]*)", subscripts.replace(" ", ""))
    if match is None:
        raise ArgumentError(f"subscripts must look like 'ij,jk->ik', got {subscripts!r}")
    of_a, of_b, result = match.groups()
    if any(len(set(part)) < len(part) for part in match.groups()) or not {*result} <= {
        *of_a,
        *of_b,
    }:
        raise ArgumentError(
            f"each part of {subscripts!r} must name a letter once, and the result none that is new"
        )
    tensors = [tensor_of(a, "a"), tensor_of(b, "b")]
    sizes: dict[str, int] = {}
    for x, letters in zip(tensors, (of_a, of_b), strict=True):
        if len(letters) != x.ndim:
            raise ShapeError(f"{letters!r} names {len(letters)} axes, got shape {x.shape}")
        for letter, length in zip(letters, x.shape, strict=True):
            if sizes.setdefault(letter, length) != length:
                raise ShapeError(
                    f"axis {letter!r} of {subscripts!r} has two lengths in shapes "
                    f"{tensors[0].shape} and {tensors[1].shape}"
                )
    both = [c for c in of_a if c in of_b]
    batch, summed = [c for c in both if c in result], [c for c in both if c not in result]
    rows, columns = ([c for c in part if c in result and c not in both] for part in (of_a, of_b))

    def arrange(x: Tensor, letters: str, *groups: list[str]) -> Tensor:
        """Sum what only x has and the result lacks, and bring the rest into (groups)."""
        kept = [c for c in letters if any(c in group for group in groups)]
        alone = tuple(d for d, c in enumerate(letters) if c not in kept)
        x = x.sum(axis=alone) if alone else x
        order = [kept.index(c) for group in groups for c in group]
        if order != sorted(order):
            x = x.transpose(*order)
        return x.reshape([math.prod(sizes[c] for c in group) for group in groups])

    product = arrange(tensors[0], of_a, batch, rows, summed) @ arrange(
        tensors[1], of_b, batch, summed, columns
    )
    found = [*batch, *rows, *columns]
    product = product.reshape([sizes[c] for c in found])
    order = [found.index(c) for c in result]
    return product.transpose(*order) if order != sorted(order) else product


def _operand(x: Any, name: str) -> Any:
    """Check one of two operands, which may be a number."""
    if isinstance(x, int | float | np.number) and not isinstance(x, bool):
        return number(x, name)
    return tensor_of(x, name)


def _several(tensors: Any) -> list[Any]:
    if not isinstance(tensors, list | tuple):
        raise DTypeError(f"expected a list of tensors, got {type(tensors).__name__}")
    if not tensors:
        raise ArgumentError("expected a list of one tensor or more, got none")
    return list(tensors)


def _along(shape: tuple[int, ...], index: Any, axis: int) -> tuple[Any, ...]:
    """Make the index that is `index` along one axis, and its own place along every other."""
    checks.integers(index, "index")
    if index.ndim != len(shape):
        raise ShapeError(f"index must have the rank of x, {shape}, got shape {index.shape}")
    grid = np.ogrid[tuple(slice(n) for n in shape)]
    return tuple(index if d == axis else places for d, places in enumerate(grid))


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


def sync_batch_norm(
    x: Any, gamma: Any = None, beta: Any = None, residual: Any = None, **options: Any
) -> tuple[Tensor, F.WeightedStats]:
    """Normalize with the statistics of the batches of all `ranks`, which all call this."""
    return apply_with_stats(BatchNormSync, x, gamma, beta, residual, **options)


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
