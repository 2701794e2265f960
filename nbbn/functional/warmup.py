"""Compile every kernel into the cache ahead of time, for container builds and first requests."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from .. import backend
from .. import functional as F  # noqa: N812 - the usual name
from .._validation import choice, function, iterate
from .pooling import max_pool2d_at

__all__ = ["warmup"]

_DTYPES = ("float32", "float64")


def warmup(
    dtypes: str | Iterable[str] = _DTYPES, *, on_compile: Callable[[str], None] | None = None
) -> int:
    """Compile every CPU kernel, serial and parallel, and store it in the cache.

    Nothing runs: no thread pool starts.

    Parameters
    ----------
    dtypes : {"float32", "float64"}, or several
        Types to compile for.
    on_compile : callable, optional
        Called with each kernel's name as its compilation begins.

    Returns
    -------
    int
        How many kernels were compiled; 0 if all were in the cache.

    Raises
    ------
    ArgumentError
        An unknown dtype.
    """
    if on_compile is not None:
        function(on_compile, "on_compile")
    several = [dtypes] if isinstance(dtypes, str) else iterate(dtypes, "dtypes", "dtypes")
    dtypes = tuple(several)
    for dtype in dtypes:
        choice(dtype, _DTYPES, "dtypes")
    from ..kernels import _cache, _jit

    compiled: list[str] = []

    def note(name: str) -> None:
        compiled.append(name)
        if on_compile is not None:
            on_compile(name)

    outer, _cache.on_compile = _cache.on_compile, note
    try:
        with _jit.compiling_only():
            for dtype in dtypes:
                _call_everything(np.dtype(dtype))
    finally:
        _cache.on_compile = outer
    return len(compiled)


def _call_everything(dtype: np.dtype[Any]) -> None:
    """Call every launcher with the argument types that the library uses."""
    names = ("dropout", "elementwise", "gather", "matmul", "optim", "softmax", "weighted")
    dropout, elementwise, gather, matmul, optim, softmax, weighted = map(backend.kernels, names)
    sparse = backend.kernels("sparse")
    rows = np.zeros((4, 3), dtype)
    vector = np.zeros(3, dtype)
    labels = np.zeros(4, np.int64)
    # A single channel goes the way of planes that are too large for a cache.
    for x in (rows, np.zeros((2, 1, 4), dtype), np.zeros((2, 3, 4), dtype)):
        own = vector[: x.shape[1]]
        stats = F.batch_norm_train(x, own, own)[1]
        F.batch_norm_infer(x, stats.mean, stats.var)
        F.batch_norm_infer(x, own, own)
        F.batch_norm_backward(x, x, stats)
        F.batch_norm_infer_backward(x, x, stats.mean, stats.var)
        weights, wide, number = np.zeros(x[:, 0].shape), np.zeros(3), np.zeros(())
        weighted.stats(x, weights, 1e-5, wide, wide, wide, number, number)
        weighted.subtract(x, weights, wide, wide, wide, x)
    for skipped in (None, np.zeros(1, np.int64)):
        F.update_running_stats(vector, vector.copy(), stats, skipped=skipped)
    for x in (rows, np.zeros((2, 3, 4), dtype)):
        y, groups = F.group_norm(x, vector, vector, groups=1)
        F.group_norm_backward(y, x, groups, vector, groups=1)
    F.local_response_norm_backward(x, F.local_response_norm(x, size=3), size=3)
    for forward, backward in (
        (F.relu, F.relu_backward), (F.sigmoid, F.sigmoid_backward), (F.tanh, F.tanh_backward),
        (F.softmax, F.softmax_backward), (F.log_softmax, F.log_softmax_backward),
    ):  # fmt: skip
        forward(rows)
        backward(rows, rows)
    for name in ("gelu", "gelu_tanh", "silu"):
        getattr(elementwise, name)(vector, vector.copy())
        getattr(elementwise, f"{name}_backward")(vector, vector, vector.copy())
    elementwise.leaky_relu(vector, 0.1, vector.copy())
    elementwise.leaky_relu_backward(vector, vector, 0.1, vector.copy())
    for kind, gates in (("lstm", 8), ("gru", 6), ("tanh", 2)):
        weight, lengths = np.zeros((gates, 2), dtype), np.ones(3, np.int64)
        states = F.recurrent(np.zeros((1, 3, gates), dtype), weight, kind=kind, lengths=lengths)
        F.recurrent_backward(states.states, weight, states, kind=kind)
    # Not through `F`, which looks at the verdict on the labels, and no kernel has written it.
    softmax.first_bad_label(labels, 3, -1, labels)
    softmax.cross_entropy(rows, labels, vector, -1, 0.0, vector)
    softmax.cross_entropy_backward(rows, labels, vector, -1, 0.0, vector, 1.0, rows)
    softmax.scaled_sum(vector, 1.0, vector)
    # One channel, and several that are last in memory.
    for images in (np.zeros((1, 4, 4, 1), dtype), np.zeros((1, 4, 4, 2), dtype)):
        y, index = F.max_pool2d(images, 2, axis=-1)
        F.max_pool2d_backward(y, np.zeros_like(index), images.shape, 2, axis=-1)
        max_pool2d_at(images, np.zeros_like(index), 2, axis=-1)
        F.avg_pool2d_backward(F.avg_pool2d(images, 2, axis=-1), images.shape, 2, axis=-1)
        mean = F.global_avg_pool2d(images, axis=-1)
        F.global_avg_pool2d_backward(mean, images.shape, axis=-1)
    elementwise.add_bias(rows, vector, rows)
    elementwise.bias_gradient(rows, vector)
    elementwise.masked(vector, vector, vector.copy())
    dropout.dropout_mask(np.zeros(1, np.uint64), 0.5, vector)
    for left in (rows, np.zeros((2, 4, 3), dtype)):
        matmul.matmul(left, rows.T, np.zeros((*left.shape[:-1], 4), dtype))
    # So many rows that the other matrix is turned first.
    matmul.matmul(np.zeros((1024, 3), dtype), rows.T, np.zeros((1024, 4), dtype))
    image, kernel, bias = np.zeros((1, 1, 2, 2), dtype), np.zeros((1, 1, 1, 1), dtype), vector[:1]
    y = F.conv2d(image, kernel, bias)
    F.conv2d_backward(y, image, kernel)
    for integers in (np.int32, np.int64):
        places = np.zeros(5, integers)
        sparse.sparse_linear(vector, places, places, rows, np.zeros((4, 4), dtype))
        sparse.sparse_gradient(rows, vector, places, places, rows)
    hyper = np.zeros(9, dtype)
    optim.sgd(vector, hyper, vector, vector)
    optim.adam(vector, hyper, vector, vector, vector)
    batch, scale = np.zeros((4, 3), np.float32), np.zeros(3)
    for images in (np.zeros((4, 3), np.uint8), rows):
        gather.gather_scale(images, labels, 1.0, 0.0, batch)
        gather.gather_scale_features(images, labels, scale, scale, batch)
