"""ONNX operators on arrays, computed by nbbn: what the backend runs.

Each takes the node, its inputs (None where left out) and the opset, and returns its outputs. The
semantics are those of the ONNX operator specification at that opset.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nbbn import functional as F  # noqa: N812 - the usual name
from nbbn.autograd import functions as ops
from nbbn.autograd.op import Context
from nbbn.export.onnx.graph import Node
from nbbn.export.onnx.recurrent import kind_of, weights_of

__all__ = ["OPERATORS", "Inputs"]

Inputs = list[Any]
Operator = Callable[[Node, Inputs, int], tuple[Any, ...]]


def _batch_normalization(node: Node, inputs: Inputs, opset: int) -> tuple[Any, ...]:
    x, gamma, beta, mean, var = inputs
    eps, momentum = node.attribute("epsilon", 1e-5), node.attribute("momentum", 0.9)
    old = opset < 14
    training = node.attribute("training_mode", 0)
    if not node.attribute("spatial", 1):
        raise node.refusal("statistics for every position (spatial=0) are not batch normalization")
    if old and (len(node.outputs) > 1 or (opset < 7 and not node.attribute("is_test", 0))):
        raise node.refusal("before opset 14 training returned other outputs: convert the model")
    # One axis alone means one channel.
    shape = x.shape
    x = x.reshape(-1, 1) if x.ndim == 1 else x
    if not training:
        return (F.batch_norm_infer(x, mean, var, gamma, beta, eps=eps).reshape(shape),)
    y, stats = F.batch_norm_train(x, gamma, beta, eps=eps, single=True)
    running = mean.copy(), var.copy()
    F.update_running_stats(*running, stats, momentum=1.0 - momentum, unbiased=False)
    return (y.reshape(shape), *running)


def _layer_normalization(node: Node, inputs: Inputs, opset: int) -> tuple[Any, ...]:
    x, scale, bias = inputs
    axis, eps = node.attribute("axis", -1) % x.ndim, node.attribute("epsilon", 1e-5)
    shape = x.shape[axis:]
    scale, bias = (None if v is None else np.broadcast_to(v, shape) for v in (scale, bias))
    y, stats = F.layer_norm(x, scale, bias, axis=axis, eps=eps)
    kept = x.shape[:axis] + (1,) * len(shape)
    return y, *(a.reshape(kept).astype(x.dtype) for a in (stats.mean, stats.inv_std))


def _rms_normalization(node: Node, inputs: Inputs, opset: int) -> tuple[Any, ...]:
    x, scale = inputs
    axis, eps = node.attribute("axis", -1) % x.ndim, node.attribute("epsilon", 1e-5)
    return (F.rms_norm(x, np.broadcast_to(scale, x.shape[axis:]), axis=axis, eps=eps)[0],)


def _group_normalization(node: Node, inputs: Inputs, opset: int) -> tuple[Any, ...]:
    x, scale, bias = inputs
    groups, eps = node.attribute("num_groups", None), node.attribute("epsilon", 1e-5)
    if opset < 21:
        # One number a group, not a channel.
        scale, bias = (np.repeat(v, x.shape[1] // groups) for v in (scale, bias))
    return (F.group_norm(x, scale, bias, groups=groups, eps=eps)[0],)


def _instance_normalization(node: Node, inputs: Inputs, opset: int) -> tuple[Any, ...]:
    return (F.instance_norm(*inputs, eps=node.attribute("epsilon", 1e-5))[0],)


def _lrn(node: Node, inputs: Inputs, opset: int) -> tuple[Any, ...]:
    size, k = node.attribute("size", None), node.attribute("bias", 1.0)
    alpha, beta = node.attribute("alpha", 1e-4), node.attribute("beta", 0.75)
    if size % 2 == 0:
        raise node.refusal("a window of an even size reaches further to the other side")
    return (F.local_response_norm(*inputs, size=size, alpha=alpha, beta=beta, k=k),)


def _softmax(function: Callable[..., np.ndarray]) -> Operator:
    def run(node: Node, inputs: Inputs, opset: int) -> tuple[Any, ...]:
        (x,) = inputs
        if opset >= 13:
            return (function(x, axis=node.attribute("axis", -1)),)
        # Before opset 13 all axes from this one on were one.
        axis = node.attribute("axis", 1) % x.ndim
        rows = x.reshape(int(np.prod(x.shape[:axis])), -1)
        return (function(rows, axis=1).reshape(x.shape),)

    return run


def _elementwise(function: Callable[[np.ndarray], np.ndarray]) -> Operator:
    return lambda node, inputs, opset: (function(*inputs),)


def _leaky_relu(node: Node, inputs: Inputs, opset: int) -> tuple[Any, ...]:
    return (F.leaky_relu(*inputs, slope=float(np.float32(node.attribute("alpha", 0.01)))),)


def _gelu(node: Node, inputs: Inputs, opset: int) -> tuple[Any, ...]:
    return (F.gelu(*inputs, approximate=node.attribute("approximate", b"none").decode()),)


def _swish(node: Node, inputs: Inputs, opset: int) -> tuple[Any, ...]:
    if node.attribute("alpha", 1.0) != 1.0:
        raise node.refusal("only x times its sigmoid is computed (alpha=1)")
    return (F.silu(*inputs),)


def _multiply(node: Node, inputs: Inputs, opset: int) -> tuple[Any, ...]:
    return (ops.Multiply.forward(Context(), *inputs),)


def pads(node: Node, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Padding before and behind each dimension of images (N, C, ...), as auto_pad says."""
    how, size = node.attribute("auto_pad", b"NOTSET"), node.attribute("kernel_shape", ())
    if not how.startswith(b"SAME"):
        given = node.attribute("pads", (0,) * (2 * len(size)))
        return list(zip(given[: len(size)], given[len(size) :], strict=True))
    found = []
    for n, k, stride in zip(
        shape[2:], size, node.attribute("strides", (1,) * len(size)), strict=True
    ):
        total = max((-(-n // stride) - 1) * stride + k - n, 0)
        half = total // 2
        found.append((half, total - half) if how == b"SAME_UPPER" else (total - half, half))
    return found


def _pooling(function: Callable[..., Any]) -> Operator:
    def run(node: Node, inputs: Inputs, opset: int) -> tuple[Any, ...]:
        (x,) = inputs
        size = tuple(node.attribute("kernel_shape", ()))
        if len(size) != 2:
            raise node.refusal("only images of two dimensions are pooled")
        if len(node.outputs) > 1:
            raise node.refusal("it gives indices too")
        options = {
            "stride": tuple(node.attribute("strides", (1, 1))),
            "padding": tuple(pads(node, x.shape)),
            "dilation": tuple(node.attribute("dilations", (1, 1))),
            "ceil_mode": node.attribute("ceil_mode", 0),
        }
        if function is F.avg_pool2d:
            options["count_include_pad"] = node.attribute("count_include_pad", 0)
            return (function(x, size, **options),)
        return (function(x, size, **options)[0],)

    return run


def _add(node: Node, inputs: Inputs, opset: int) -> tuple[Any, ...]:
    a, b = inputs
    if opset < 7 and node.attribute("broadcast", 0) and b.ndim:
        # b's axes meet those of a from `axis` on.
        axis = node.attribute("axis", a.ndim - b.ndim)
        b = b.reshape(b.shape + (1,) * (a.ndim - axis - b.ndim))
    return (ops.Add.forward(Context(), a, b),)


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return ops.MatMul.forward(Context(), a, b)


def _matmul(node: Node, inputs: Inputs, opset: int) -> tuple[Any, ...]:
    a, b = inputs
    # As in NumPy, a vector is a row on the left and a column on the right.
    y = _product(a[None] if a.ndim == 1 else a, b[:, None] if b.ndim == 1 else b)
    if b.ndim == 1:
        y = y[..., 0]
    return (y[..., 0] if a.ndim == b.ndim == 1 else y[..., 0, :] if a.ndim == 1 else y,)


def _gemm(node: Node, inputs: Inputs, opset: int) -> tuple[Any, ...]:
    a, b, c = inputs
    a = a.T if node.attribute("transA", 0) else a
    b = b.T if node.attribute("transB", 0) else b
    y = _product(a, b)
    alpha, beta = (node.attribute(name, 1.0) for name in ("alpha", "beta"))
    if alpha != 1.0:
        y = ops.Multiply.forward(Context(), y, alpha)
    if c is None or beta == 0.0:
        return (y,)
    return (ops.Add.forward(Context(), y, c if beta == 1.0 else beta * c),)


def _convolution(node: Node, inputs: Inputs, opset: int) -> tuple[Any, ...]:
    x, weight, bias = inputs
    rank = x.ndim - 2
    if rank > 2:
        raise node.refusal("it convolves volumes")
    # One axis is an image of one row.
    image = (lambda a: a[:, :, None]) if rank == 1 else (lambda a: a)
    given = {
        name: (default,) * (2 - rank) + tuple(node.attribute(attribute, (default,) * rank))
        for name, attribute, default in (
            ("stride", "strides", 1), ("dilation", "dilations", 1), ("more", "output_padding", 0)
        )
    }  # fmt: skip
    more = given.pop("more")
    pads = node.attribute("pads", (0,) * 2 * rank)
    padding: Any = ((0, 0),) * (2 - rank) + tuple(zip(pads[:rank], pads[rank:], strict=True))
    auto = node.attribute("auto_pad", b"NOTSET").decode()
    groups = node.attribute("group", 1)
    x, weight = image(x), image(weight)
    if node.op == "Conv":
        padding = {"SAME_UPPER": "same", "VALID": 0}.get(auto, padding)
        if auto == "SAME_LOWER":
            padding = _lower(x, weight, given)
        y = F.conv2d(x, weight, bias, padding=padding, groups=groups, **given)
    else:
        shape = node.attribute("output_shape", None)
        if auto.startswith("SAME"):
            shape = [n * s for n, s in zip(x.shape[2:], given["stride"], strict=True)]
        if shape is not None:
            whole = F.conv_transpose2d(x, weight, groups=groups, **given).shape[2:]
            # What the kernels do not reach is output_padding; what they reach too far is cut off.
            spare = [n - m for n, m in zip(whole, shape, strict=True)]
            more = tuple(max(-n, 0) for n in spare)
            cut = [max(n, 0) for n in spare]
            padding = tuple((n // 2, n - n // 2) for n in cut)
            if auto == "SAME_LOWER":
                padding = tuple((n - n // 2, n // 2) for n in cut)
        y = F.conv_transpose2d(
            x, weight, bias, padding=padding, output_padding=more, groups=groups, **given
        )
    return (y[:, :, 0] if rank == 1 else y,)


def _lower(x: np.ndarray, weight: np.ndarray, given: dict[str, Any]) -> Any:
    """Numbers of SAME_LOWER, which has the odd zero in front."""
    sizes = x.shape[2:], weight.shape[2:], given["stride"], given["dilation"]
    totals = [
        max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
        for n, k, s, d in zip(*sizes, strict=True)
    ]
    return tuple((total - total // 2, total // 2) for total in totals)


def _dropout(node: Node, inputs: Inputs, opset: int) -> tuple[Any, ...]:
    x, ratio, mode = inputs
    ratio = node.attribute("ratio", 0.5) if ratio is None else float(ratio)
    if mode is not None and bool(mode) and ratio > 0:
        raise node.refusal("which elements training drops depends on the generator of the runtime")
    mask = np.ones(x.shape, bool if opset >= 10 else x.dtype)
    return (x.copy(), mask)


def _rows(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn scores (N, C, d1, ...) and labels (N, d1, ...) into (M, C) and (M,)."""
    rows = np.moveaxis(scores, 1, -1).reshape(-1, scores.shape[1])
    return rows, labels.reshape(-1).astype(np.int64)


def _reduced(
    node: Node,
    loss_of: Callable[[np.ndarray, np.ndarray], np.ndarray],
    scores: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray | None,
) -> np.ndarray:
    """Weigh the loss of each position by its class, leave out what is to be ignored, combine."""
    rows, flat = _rows(scores, labels)
    ignored = flat == node.attribute("ignore_index", np.iinfo(np.int64).min)
    flat = np.where(ignored, 0, flat)
    factors = np.ones(len(flat), rows.dtype) if weights is None else weights[flat]
    factors = np.where(ignored, 0, factors).astype(rows.dtype)
    losses: np.ndarray = factors * np.where(ignored, 0, loss_of(rows, flat))
    reduction = node.attribute("reduction", b"mean").decode()
    if reduction == "none":
        return losses.reshape(labels.shape)
    total = losses.sum()
    return np.asarray(total / factors.sum() if reduction == "mean" else total, rows.dtype)


def _softmax_cross_entropy(node: Node, inputs: Inputs, opset: int) -> tuple[Any, ...]:
    scores, labels, weights = inputs

    def loss_of(rows: np.ndarray, flat: np.ndarray) -> np.ndarray:
        return F.cross_entropy(rows, flat, reduction="none")

    loss = _reduced(node, loss_of, scores, labels, weights)
    return (loss, F.log_softmax(scores, axis=1))


def _negative_log_likelihood(node: Node, inputs: Inputs, opset: int) -> tuple[Any, ...]:
    scores, labels, weights = inputs

    def loss_of(rows: np.ndarray, flat: np.ndarray) -> np.ndarray:
        picked: np.ndarray = rows[np.arange(len(flat)), flat]
        return -picked

    return (_reduced(node, loss_of, scores, labels, weights),)


def _flatten(node: Node, inputs: Inputs, opset: int) -> tuple[Any, ...]:
    (x,) = inputs
    axis = node.attribute("axis", 1)
    axis += x.ndim if axis < 0 else 0
    return (ops.Reshape.forward(Context(), x, shape=(int(np.prod(x.shape[:axis])), -1)),)


def _transpose(node: Node, inputs: Inputs, opset: int) -> tuple[Any, ...]:
    (x,) = inputs
    axes = tuple(node.attribute("perm", range(x.ndim)[::-1]))
    return (ops.Transpose.forward(Context(), x, axes=axes),)


def _recurrent(node: Node, inputs: Inputs, opset: int) -> tuple[Any, ...]:
    x, W, R, B, lengths, *initial = inputs
    kind, direction = kind_of(node), node.attribute("direction", b"forward")
    initial = [a for a in initial[:2] if a is not None]
    if node.attribute("layout", 0):
        x, initial = x.swapaxes(0, 1), [a.swapaxes(0, 1) for a in initial]
    lengths = None if lengths is None else lengths.astype(np.int64)
    every, ends = [], []
    for d in range(len(W)):
        reverse = direction == b"reverse" or d == 1
        weights = weights_of(kind, W[d], R[d], None if B is None else B[d])
        projected = _product(x, weights["weight_ih"].T)
        if B is not None:
            projected = projected + weights["bias_ih"]
        start = np.stack([a[d] for a in initial]) if initial else None
        states = F.recurrent(projected, weights["weight_hh"], weights.get("bias_hh"), start,
                             kind=kind, lengths=lengths, reverse=reverse).states  # fmt: skip
        y = states[0, :-1] if reverse else states[0, 1:]
        if lengths is not None:
            y = np.where(np.arange(len(y))[:, None, None] < lengths[:, None], y, 0)
        every.append(y)
        ends.append(states[:, 0 if reverse else -1])
    found = [np.stack(every, 1), *np.stack(ends, 1)]
    if node.attribute("layout", 0):
        found = [found[0].transpose(2, 0, 1, 3), *(a.swapaxes(0, 1) for a in found[1:])]
    return tuple(found)


# Operator -> how many inputs it may have, and what computes it.
OPERATORS: dict[str, tuple[int, Operator]] = {
    "Add": (2, _add),
    "AveragePool": (1, _pooling(F.avg_pool2d)),
    "BatchNormalization": (5, _batch_normalization),
    "Conv": (3, _convolution),
    "ConvTranspose": (3, _convolution),
    "Dropout": (3, _dropout),
    "Flatten": (1, _flatten),
    "Gelu": (1, _gelu),
    "Gemm": (3, _gemm),
    "GRU": (6, _recurrent),
    "GlobalAveragePool": (1, _elementwise(lambda x: F.global_avg_pool2d(x, keepdims=True))),
    "GlobalMaxPool": (1, _elementwise(lambda x: F.global_max_pool2d(x, keepdims=True)[0])),
    "GroupNormalization": (3, _group_normalization),
    "Identity": (1, _elementwise(np.array)),
    "LeakyRelu": (1, _leaky_relu),
    "InstanceNormalization": (3, _instance_normalization),
    "LRN": (1, _lrn),
    "LSTM": (8, _recurrent),
    "LayerNormalization": (3, _layer_normalization),
    "LogSoftmax": (1, _softmax(F.log_softmax)),
    "MatMul": (2, _matmul),
    "MaxPool": (1, _pooling(F.max_pool2d)),
    "Mul": (2, _multiply),
    "NegativeLogLikelihoodLoss": (3, _negative_log_likelihood),
    "RNN": (6, _recurrent),
    "RMSNormalization": (2, _rms_normalization),
    "Relu": (1, _elementwise(F.relu)),
    "Sigmoid": (1, _elementwise(F.sigmoid)),
    "Softmax": (1, _softmax(F.softmax)),
    "SoftmaxCrossEntropyLoss": (3, _softmax_cross_entropy),
    "Swish": (1, _swish),
    "Tanh": (1, _elementwise(F.tanh)),
    "Transpose": (1, _transpose),
}
