"""The naive truth: every operation in its textbook form, in extended precision.

Nothing here imports nbbn, blocks a loop or saves a pass. Arrays of any floating type come in;
float64 comes out. `np.longdouble` has 64 bits of mantissa on x86 and is float64 elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

WIDE = np.longdouble


class Stats(NamedTuple):
    mean: np.ndarray
    var: np.ndarray
    inv_std: np.ndarray
    count: int


def wide(array) -> np.ndarray:
    return np.asarray(array).astype(WIDE)


def narrow(array) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.asarray(array).astype(np.float64)


# ----------------------------------------------------------------------- batch normalization


def along(vector, x: np.ndarray, axis: int, default: float) -> np.ndarray:
    """Reshape a per-channel vector so that it broadcasts against `x`; None means `default`."""
    shape = [1] * x.ndim
    shape[axis] = x.shape[axis]
    if vector is None:
        return np.full(shape, default, WIDE)
    return wide(vector).reshape(shape)


def channel_sum(array: np.ndarray, axis: int) -> np.ndarray:
    others = tuple(d for d in range(array.ndim) if d != axis % array.ndim)
    return array.sum(axis=others, dtype=WIDE)


def statistics(x, eps: float = 1e-5, axis: int = 1) -> Stats:
    """Mean, biased variance and 1 / sqrt(var + eps) of each channel, by the two-pass formula."""
    x = wide(x)
    count = x.size // x.shape[axis]
    with np.errstate(invalid="ignore"):
        mean = channel_sum(x, axis) / count
        var = channel_sum((x - along(mean, x, axis, 0)) ** 2, axis) / count
        inv_std = 1 / np.sqrt(var + WIDE(eps))
    return Stats(narrow(mean), narrow(var), narrow(inv_std), count)


def normalized(x, mean, var, eps: float, axis: int) -> np.ndarray:
    x = wide(x)
    with np.errstate(invalid="ignore"):
        centred = x - along(mean, x, axis, 0)
        return centred / np.sqrt(along(var, x, axis, 1) + WIDE(eps))


def activated(y: np.ndarray, activation, residual) -> np.ndarray:
    if residual is not None:
        y = y + wide(residual)
    return narrow(np.maximum(y, 0) if activation == "relu" else y)


def batch_norm_train(
    x, gamma=None, beta=None, *, eps=1e-5, axis=1, activation=None, residual=None
) -> tuple[np.ndarray, Stats]:
    stats = statistics(x, eps, axis)
    y = batch_norm_infer(
        x,
        stats.mean,
        stats.var,
        gamma,
        beta,
        eps=eps,
        axis=axis,
        activation=activation,
        residual=residual,
    )
    return y, stats


def batch_norm_infer(
    x, mean, var, gamma=None, beta=None, *, eps=1e-5, axis=1, activation=None, residual=None
) -> np.ndarray:
    x_hat = normalized(x, mean, var, eps, axis)
    y = along(gamma, x_hat, axis, 1) * x_hat + along(beta, x_hat, axis, 0)
    return activated(y, activation, residual)


def weighted_statistics(x, weights, eps: float = 1e-5, axis: int = 1) -> Stats:
    """As `statistics`, with a weight for each position; the count is Kish's effective one."""
    x, weights = wide(x), np.expand_dims(wide(weights), axis)
    total = weights.sum()
    mean = channel_sum(weights * x, axis) / total
    var = channel_sum(weights * (x - along(mean, x, axis, 0)) ** 2, axis) / total
    return Stats(
        narrow(mean),
        narrow(var),
        narrow(1 / np.sqrt(var + WIDE(eps))),
        float(total**2 / (weights**2).sum()),
    )


def weighted_batch_norm(x, weights, gamma=None, beta=None, *, eps=1e-5, axis=1, **rest):
    stats = weighted_statistics(x, weights, eps, axis)
    return batch_norm_infer(x, stats.mean, stats.var, gamma, beta, eps=eps, axis=axis, **rest)


def batch_renorm(x, mean, var, limits, gamma=None, beta=None, *, eps=1e-5, axis=1, **rest):
    """Normalize with the batch's statistics, corrected towards `mean` and `var`; also r and d."""
    stats, (r_max, d_max) = statistics(x, eps, axis), limits
    sigma = np.sqrt(wide(var) + WIDE(eps))
    r = np.clip(1 / (stats.inv_std * sigma), 1 / WIDE(r_max), r_max)
    d = np.clip((stats.mean - wide(mean)) / sigma, -WIDE(d_max), d_max)
    gamma = np.ones(len(r)) if gamma is None else wide(gamma)
    shift = gamma * d + (0 if beta is None else wide(beta))
    y = batch_norm_infer(x, stats.mean, stats.var, gamma * r, shift, eps=eps, axis=axis, **rest)
    return y, narrow(r), narrow(d)


def in_place_batch_norm(x, gamma, beta, slope, mean=None, var=None, *, eps=1e-5, axis=1):
    scale = np.abs(wide(gamma)) + WIDE(eps)
    if mean is None:
        y, _ = batch_norm_train(x, scale, beta, eps=eps, axis=axis)
    else:
        y = batch_norm_infer(x, mean, var, scale, beta, eps=eps, axis=axis)
    return np.where(y < 0, slope * y, y)


def masked(dy, y) -> np.ndarray:
    """The gradient that passes a fused ReLU whose output was `y`; None means no ReLU."""
    return wide(dy) if y is None else np.where(np.asarray(y) > 0, wide(dy), 0)


def batch_norm_backward(dy, x, gamma=None, *, eps=1e-5, axis=1, y=None):
    """Return (dx, dgamma, dbeta) for batch statistics, with the sums over the batch spelled out."""
    g = masked(dy, y)
    stats = statistics(x, eps, axis)
    x_hat = normalized(x, stats.mean, stats.var, eps, axis)
    dgamma = channel_sum(g * x_hat, axis)
    dbeta = channel_sum(g, axis)
    with np.errstate(invalid="ignore"):
        mean_g = along(dbeta, g, axis, 0) / stats.count
        mean_gx = along(dgamma, g, axis, 0) / stats.count
    factor = along(gamma, g, axis, 1) / np.sqrt(along(stats.var, g, axis, 1) + WIDE(eps))
    return narrow(factor * (g - mean_g - x_hat * mean_gx)), narrow(dgamma), narrow(dbeta)


def batch_norm_infer_backward(dy, x, mean, var, gamma=None, *, eps=1e-5, axis=1, y=None):
    """Return (dx, dgamma, dbeta) for statistics that do not depend on the batch."""
    g = masked(dy, y)
    x_hat = normalized(x, mean, var, eps, axis)
    factor = along(gamma, g, axis, 1) / np.sqrt(along(var, g, axis, 1) + WIDE(eps))
    return narrow(factor * g), narrow(channel_sum(g * x_hat, axis)), narrow(channel_sum(g, axis))


# ------------------------------------------------------- normalization of examples by themselves


def over_axes(x, axes, gamma=None, beta=None, *, eps, centered=True) -> np.ndarray:
    """Normalize over `axes`, about the mean or 0; gamma and beta broadcast against `x`."""
    x = wide(x)
    with np.errstate(invalid="ignore"):
        x = x - x.mean(axes, keepdims=True) if centered else x
        x_hat = x / np.sqrt((x**2).mean(axes, keepdims=True) + WIDE(eps))
    y = x_hat if gamma is None else x_hat * wide(gamma)
    return narrow(y if beta is None else y + wide(beta))


def group_gradient(x, h, x_hat, *, eps, centered=True) -> np.ndarray:
    """Return dx of rows, which are a group each, for the gradient h of x_hat."""
    x, h, x_hat = wide(x), wide(h), wide(x_hat)
    center = x.mean(1, keepdims=True) if centered else 0
    inv_std = 1 / np.sqrt(((x - center) ** 2).mean(1, keepdims=True) + WIDE(eps))
    pull = x_hat * (h * x_hat).mean(1, keepdims=True)
    return narrow(inv_std * (h - pull - (h.mean(1, keepdims=True) if centered else 0)))


def layer_norm(x, gamma=None, beta=None, *, axis=-1, eps=1e-5) -> np.ndarray:
    axes = tuple(range(axis % np.ndim(x), np.ndim(x)))
    return over_axes(x, axes, gamma, beta, eps=eps)


def rms_norm(x, gamma=None, *, axis=-1, eps=None) -> np.ndarray:
    axes = tuple(range(axis % np.ndim(x), np.ndim(x)))
    eps = np.finfo(np.asarray(x).dtype).eps if eps is None else eps
    return over_axes(x, axes, gamma, eps=eps, centered=False)


def group_norm(x, gamma=None, beta=None, *, groups, axis=1, eps=1e-5) -> np.ndarray:
    x = np.moveaxis(wide(x), axis, 1)
    N, C, *rest = x.shape
    shape = (1, groups, C // groups, *(1 for _ in rest))
    gamma, beta = (None if v is None else wide(v).reshape(shape) for v in (gamma, beta))
    parts = x.reshape(N, groups, C // groups, *rest)
    y = over_axes(parts, tuple(range(2, parts.ndim)), gamma, beta, eps=eps)
    return np.moveaxis(y.reshape(x.shape), 1, axis)


def instance_norm(x, gamma=None, beta=None, *, axis=1, eps=1e-5) -> np.ndarray:
    return group_norm(x, gamma, beta, groups=np.shape(x)[axis], axis=axis, eps=eps)


def local_response_norm(
    x, *, size, alpha=1e-4, beta=0.75, k=1.0, alpha_of="mean", over="channels", axis=1
) -> np.ndarray:
    x = np.moveaxis(wide(x), axis, 1)
    before, after = size // 2, (size - 1) // 2
    axes = (1,) if over == "channels" else tuple(range(2, x.ndim))
    sums = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        window = tuple(
            slice(max(i - before, 0), i + after + 1) if d in axes else i
            for d, i in enumerate(place)
        )
        sums[place] = (x[window] ** 2).sum()
    a = wide(alpha) / (wide(size) ** len(axes) if alpha_of == "mean" else 1)
    return narrow(np.moveaxis(x / (wide(k) + a * sums) ** wide(beta), 1, axis))


def running_stats(running_mean, running_var, stats: Stats, momentum=0.1, unbiased=True):
    """Return the new (running_mean, running_var); `momentum` weighs the new value."""
    correction = WIDE(stats.count) / (stats.count - 1) if unbiased else 1
    a = WIDE(momentum)
    mean = (1 - a) * wide(running_mean) + a * wide(stats.mean)
    var = (1 - a) * wide(running_var) + a * wide(stats.var) * correction
    return narrow(mean), narrow(var)


# ------------------------------------------------------------------------------ activations


def relu(x) -> np.ndarray:
    return narrow(np.maximum(wide(x), 0))


def relu_backward(dy, y) -> np.ndarray:
    return narrow(masked(dy, y))


def sigmoid(x) -> np.ndarray:
    with np.errstate(over="ignore"):
        return narrow(1 / (1 + np.exp(-wide(x))))


def sigmoid_backward(dy, y) -> np.ndarray:
    return narrow(wide(dy) * wide(y) * (1 - wide(y)))


def tanh(x) -> np.ndarray:
    return narrow(np.tanh(wide(x)))


def tanh_backward(dy, y) -> np.ndarray:
    return narrow(wide(dy) * (1 - wide(y) ** 2))


# ------------------------------------------------------------------------------ convolutions


def convolution(x, weight, bias=None, *, stride=(1, 1), pads=((0, 0), (0, 0)), dilation=(1, 1),
                groups=1, last=False) -> np.ndarray:  # fmt: skip
    """Correlate images (N, C, H, W), or (N, H, W, C), with weight (O, C / groups, kh, kw)."""
    x, weight = wide(x), wide(weight)
    x = np.pad(np.moveaxis(x, -1, 1) if last else x, ((0, 0), (0, 0), *pads))
    O, C, kh, kw = weight.shape  # noqa: E741
    span = [n - d * (k - 1) for n, d, k in zip(x.shape[2:], dilation, (kh, kw), strict=True)]
    size = [-(-n // s) for n, s in zip(span, stride, strict=True)]
    y = np.zeros((len(x), O, *size), WIDE)
    for o in range(O):
        own = slice(o // (O // groups) * C, (o // (O // groups) + 1) * C)
        for i, j in np.ndindex(kh, kw):
            top, left = i * dilation[0], j * dilation[1]
            seen = x[:, own, top : top + span[0] : stride[0], left : left + span[1] : stride[1]]
            y[:, o] += (seen * weight[o, :, i, j][:, None, None]).sum(1)
    if bias is not None:
        y += wide(bias)[:, None, None]
    return narrow(np.moveaxis(y, 1, -1) if last else y)


def transposed_convolution(x, weight, bias=None, *, stride=(1, 1), pads=((0, 0), (0, 0)),
                           dilation=(1, 1), groups=1, more=(0, 0), last=False):  # fmt: skip
    """Add each pixel of x (N, C, H, W), times weight (C, O / groups, kh, kw), to its window."""
    x, weight = wide(x), wide(weight)
    x = np.moveaxis(x, -1, 1) if last else x
    N, C, *size = x.shape
    O, kh, kw = weight.shape[1:]  # noqa: E741
    whole = [
        (n - 1) * s + d * (k - 1) + 1 + extra
        for n, s, d, k, extra in zip(size, stride, dilation, (kh, kw), more, strict=True)
    ]
    y = np.zeros((N, O * groups, *whole), WIDE)
    for c, i, j in np.ndindex(C, kh, kw):
        first = c // (C // groups) * O
        top, left = i * dilation[0], j * dilation[1]
        rows = slice(top, top + (size[0] - 1) * stride[0] + 1, stride[0])
        columns = slice(left, left + (size[1] - 1) * stride[1] + 1, stride[1])
        pixels = x[:, c, None] * weight[c, :, i, j][:, None, None]
        y[:, first : first + O, rows, columns] += pixels
    (top, bottom), (left, right) = pads
    y = y[:, :, top : whole[0] - bottom, left : whole[1] - right]
    if bias is not None:
        y = y + wide(bias)[:, None, None]
    return narrow(np.moveaxis(y, 1, -1) if last else y)


def _normal(x) -> np.ndarray:
    """The normal distribution, to the digits of float64 in its tail too."""
    return np.vectorize(lambda v: math.erfc(-v / math.sqrt(2)) / 2, otypes=[WIDE])(wide(x))


def gelu(x) -> np.ndarray:
    return narrow(wide(x) * _normal(x))


def gelu_backward(dy, x) -> np.ndarray:
    x = wide(x)
    return narrow(wide(dy) * (_normal(x) + x * np.exp(-(x**2) / 2) / np.sqrt(2 * wide(math.pi))))


def gelu_tanh(x) -> np.ndarray:
    x = wide(x)
    return narrow(x / 2 * (1 + np.tanh(np.sqrt(2 / wide(math.pi)) * (x + 0.044715 * x**3))))


def silu(x) -> np.ndarray:
    with np.errstate(over="ignore"):
        return narrow(wide(x) / (1 + np.exp(-wide(x))))


def silu_backward(dy, x) -> np.ndarray:
    x, s = wide(x), wide(sigmoid(x))
    return narrow(wide(dy) * s * (1 + x * (1 - s)))


def leaky_relu(x, slope: float = 0.01) -> np.ndarray:
    return narrow(np.where(wide(x) > 0, wide(x), slope * wide(x)))


def leaky_relu_backward(dy, x, slope: float = 0.01) -> np.ndarray:
    return narrow(np.where(wide(x) > 0, 1, slope) * wide(dy))


# ---------------------------------------------------------------------------------- pooling


def pooled(
    x,
    size,
    *,
    mean=False,
    stride=None,
    padding=0,
    dilation=1,
    ceil_mode=False,
    count_include_pad=True,
    axis=1,
) -> np.ndarray:
    """Maxima or means of windows, each cut out of the padded image."""

    def pair(value):
        return value if isinstance(value, tuple) else (value, value)

    x = np.moveaxis(wide(x), axis, 1)
    size, dilation = pair(size), pair(dilation)
    stride = size if stride is None else pair(stride)
    padding = [pair(p) for p in pair(padding)]
    rows_and_columns = []
    for d in range(2):
        low, high = -padding[d][0], x.shape[2 + d] + padding[d][1]
        reach = dilation[d] * (size[d] - 1) + 1
        starts = [
            start
            for start in range(low, high, stride[d])
            if start + reach <= high or (ceil_mode and start < x.shape[2 + d])
        ]
        # One more only, for what the whole ones leave.
        whole = [start for start in starts if start + reach <= high]
        starts = starts[: len(whole) + (not whole or whole[-1] + reach < high)]
        rows_and_columns.append([range(s, min(s + reach, high), dilation[d]) for s in starts])
    y = np.empty((*x.shape[:2], *map(len, rows_and_columns)), WIDE)
    for oh, rows in enumerate(rows_and_columns[0]):
        for ow, columns in enumerate(rows_and_columns[1]):
            inside = [
                [k for k in place if 0 <= k < n]
                for place, n in zip((rows, columns), x.shape[2:], strict=True)
            ]
            values = x[:, :, inside[0]][:, :, :, inside[1]].reshape(*x.shape[:2], -1)
            count = len(rows) * len(columns) if count_include_pad else values.shape[2]
            y[:, :, oh, ow] = values.sum(2) / count if mean else values.max(2)
    return narrow(np.moveaxis(y, 1, axis))


# -------------------------------------------------------------------------- softmax and loss


def softmax(x, axis: int = -1) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        powers = np.exp(wide(x) - wide(x).max(axis, keepdims=True))
        return narrow(powers / powers.sum(axis, keepdims=True))


def softmax_backward(dy, y, axis: int = -1) -> np.ndarray:
    dy, y = wide(dy), wide(y)
    return narrow(y * (dy - (dy * y).sum(axis, keepdims=True)))


def log_softmax(x, axis: int = -1) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        shifted = wide(x) - wide(x).max(axis, keepdims=True)
        return narrow(shifted - np.log(np.exp(shifted).sum(axis, keepdims=True)))


def log_softmax_backward(dy, y, axis: int = -1) -> np.ndarray:
    dy, y = wide(dy), wide(y)
    return narrow(dy - np.exp(y) * dy.sum(axis, keepdims=True))


def huber(x, delta: float) -> np.ndarray:
    size = np.abs(wide(x))
    return np.where(size <= delta, size**2 / 2, delta * (size - wide(delta) / 2))


def class_coefficients(shape, labels, weight=None, ignored=None, smoothing=0.0):
    """Return what -log(softmax) of each class counts in each row, and the weight of its label.

    Classes are on axis 1; labels (N, ...) are classes, or probabilities in `shape`, (N, K, ...).
    """
    classes = shape[1]
    weight = np.ones(classes) if weight is None else weight
    of_classes = wide(weight).reshape(1, classes, *(1,) * (len(shape) - 2))
    if np.shape(labels) == tuple(shape):
        p = wide(labels)
        return ((1 - smoothing) * p + wide(smoothing) / classes) * of_classes, np.ones(shape[:1])
    counts, of_labels = np.zeros(shape, wide(0).dtype), np.zeros(np.shape(labels))
    for place in np.ndindex(np.shape(labels)):
        label = labels[place]
        if label == ignored:
            continue
        row = np.full(classes, wide(smoothing) / classes)
        row[label] += 1 - wide(smoothing)
        counts[(place[0], slice(None), *place[1:])] = row * weight
        of_labels[place] = weight[label]
    return counts, of_labels


def cross_entropy(logits, labels, reduction: str = "mean", **options) -> np.ndarray:
    counts, of_labels = class_coefficients(np.shape(logits), labels, **options)
    with np.errstate(invalid="ignore"):
        terms = np.where(counts == 0, 0, -wide(log_softmax(logits, 1)) * counts)
    losses = terms.sum(1)
    if reduction == "mean":
        size = losses.size if np.shape(labels) == np.shape(logits) else of_labels.sum()
        return narrow(losses.sum() / size)
    return narrow(losses.sum() if reduction == "sum" else losses)


def cross_entropy_backward(
    logits, labels, dloss=1.0, reduction: str = "mean", **options
) -> np.ndarray:
    """Return (softmax * sum(counts) - counts) of each row times that row's share of `dloss`."""
    counts, of_labels = class_coefficients(np.shape(logits), labels, **options)
    share = wide(dloss) / (of_labels.sum() if reduction == "mean" else 1)
    share = np.broadcast_to(share, np.shape(labels))
    with np.errstate(invalid="ignore"):
        dlogits = (wide(softmax(logits, 1)) * counts.sum(1, keepdims=True) - counts) * share[
            :, None
        ]
    return narrow(np.where(counts.sum(1, keepdims=True) == 0, 0, dlogits))


# --------------------------------------------------------------------------------- gradients


def philox(counter: int, key: int) -> list[int]:
    """Philox4x32-10 in Python integers: the four words for a 128-bit counter and a 64-bit key."""
    word = 2**32
    c = [counter // word**n % word for n in range(4)]
    k = [key % word, key // word]
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], word)
        high1, low1 = divmod(0xCD9E8D57 * c[2], word)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % word, (k[1] + 0xBB67AE85) % word]
    return c


def dropout_kept(shape: tuple[int, ...], p: float, key: int) -> np.ndarray:
    """Which elements dropout keeps for a key."""
    size = int(np.prod(shape))
    words = [word for group in range(-(-size // 4)) for word in philox(group, key)]
    return np.array(words[:size]).reshape(shape) >= int(p * 2**32)


def central_difference(
    function: Callable[[np.ndarray], float], x: np.ndarray, step: float = 1e-5
) -> np.ndarray:
    """Differentiate a scalar function of `x` one entry at a time, in float64."""
    x = np.array(x, np.float64)
    gradient = np.empty_like(x)
    for index in np.ndindex(x.shape):
        middle = x[index]
        x[index] = middle + step
        above = function(x)
        x[index] = middle - step
        below = function(x)
        x[index] = middle
        gradient[index] = (above - below) / (2 * step)
    return gradient


def recurrent(projected, weight, bias=None, initial=None, *, kind, lengths=None, reverse=False):
    """Hidden states after every step (T, N, H), and the last of an LSTM's cell states (1, N, H)."""
    projected, weight = wide(projected), wide(weight)
    T, N, _ = projected.shape
    H = weight.shape[1]
    lengths = np.full(N, T) if lengths is None else lengths
    state = np.zeros((2, N, H), wide(0).dtype)
    if initial is not None:
        state[: len(initial)] = initial
    y = np.empty((T, N, H), state.dtype)
    for t in reversed(range(T)) if reverse else range(T):
        h, c = state
        p = h @ weight.T + (0 if bias is None else wide(bias))
        x = np.split(projected[t], weight.shape[0] // H, axis=1)
        p = np.split(p, len(x), axis=1)
        if kind == "lstm":
            i, f, g, o = (a + b for a, b in zip(x, p, strict=True))
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            after = np.stack([sigmoid(o) * np.tanh(c), c])
        elif kind == "gru":
            r, z = (sigmoid(a + b) for a, b in zip(x[:2], p[:2], strict=True))
            after = np.stack([(1 - z) * np.tanh(x[2] + r * p[2]) + z * h, c])
        else:
            total = x[0] + p[0]
            after = np.stack([np.tanh(total) if kind == "tanh" else np.maximum(total, 0), c])
        state = np.where((t < lengths)[:, None], after, state)
        y[t] = state[0]
    return np.concatenate([y, state[1:]]) if kind == "lstm" else y
