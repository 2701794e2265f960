"""Every launch that launchers can make: each kernel, storage type, width of lanes and layout."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbbn.kernels import (
    _cuda,
    batchnorm_cuda,
    convolution_cuda,
    dropout_cuda,
    elementwise_cuda,
    gather_cuda,
    groupnorm_cuda,
    localresponse_cuda,
    optim_cuda,
    pooling_cuda,
    recurrent_cuda,
    softmax_cuda,
)
from tests.gpu.storage import DTYPES, shifted, statistics_type

INTEGERS = np.zeros(64, np.int64)
# What statistics, parameters and masks are stored as.
WIDE = ("float32", "float64")


def _empty(dtype: str, *shape: int) -> np.ndarray:
    return np.empty(shape, "uint16" if dtype == "bfloat16" else dtype)


def _batchnorm(dtype: str) -> None:
    wide = statistics_type(dtype)
    # Enough for several blocks to a channel, and for one; with whole lanes and without.
    for shape in ((4096, 64), (4096, 63), (16, 2, 4096), (16, 2, 4095)):
        x, channels = _empty(dtype, *shape), np.ones(shape[1], wide)
        batchnorm_cuda.train(x, x, channels, channels, 1e-5, True, x, *[channels] * 3)
        batchnorm_cuda.infer(x, x, channels, channels, channels, channels, 1e-5, True, x)
        batchnorm_cuda.backward(x, x, x, *[channels] * 3, False, x, channels, channels)
    if dtype in WIDE:
        batchnorm_cuda.inverse_std(channels, 1e-5, channels)
        for running in (np.ones(64, np.float32), np.ones(64)):
            numbers, arrays = (16, 0.1, True), (running, running)
            batchnorm_cuda.update_running(channels, channels, *numbers, *arrays)
            batchnorm_cuda.update_running_within(
                channels, channels, *numbers, 1e6, *arrays, INTEGERS
            )


def _convolution(dtype: str) -> None:
    geometry = 3, 4, 4, 2, 3, 3, 2, 2, 1, 1, 0, 0, 1, 1, 1, 0
    wide = statistics_type(dtype)
    x, y, w = _empty(dtype, 1, 3, 4, 4), _empty(dtype, 1, 2, 2, 2), np.ones((2, 3, 3, 3), wide)
    convolution_cuda.forward(x, w, w[0, 0, 0], True, geometry, y)
    convolution_cuda.input_gradient(y, w, w[0, 0, 0], geometry, x)
    convolution_cuda.weight_gradient(y, x, geometry, w)
    convolution_cuda.bias_gradient(y.reshape(1, 2, 4), w[0, 0, 0, :2])


def _elementwise(dtype: str) -> None:
    for arrange in (np.copy, shifted):
        x = arrange(np.zeros_like(_empty(dtype, 64)))
        for name in ("relu", "sigmoid", "tanh", "gelu", "gelu_tanh", "silu"):
            getattr(elementwise_cuda, name)(x, x)
            getattr(elementwise_cuda, f"{name}_backward")(x, x, x)
        elementwise_cuda.leaky_relu(x, 0.1, x)
        elementwise_cuda.leaky_relu_backward(x, x, 0.1, x)
        elementwise_cuda.masked(x, x, x)
        rows = x.reshape(4, 16)
        elementwise_cuda.add_bias(rows, x[:16], rows)
        elementwise_cuda.bias_gradient(rows, x[:16])
        if dtype in WIDE:
            optim_cuda.sgd(x, x, x, x)
            optim_cuda.adam(x, x, x, x, x)
            dropout_cuda.dropout_mask(INTEGERS.view(np.uint64), 0.5, x)


def _softmax(dtype: str) -> None:
    x, loss = _empty(dtype, 4, 10), _empty(dtype, 4)
    for name in ("softmax", "log_softmax"):
        getattr(softmax_cuda, name)(x, x)
        getattr(softmax_cuda, f"{name}_backward")(x, x, x)
    targets = INTEGERS, np.ones(10, statistics_type(dtype)), -1, 0.1
    softmax_cuda.cross_entropy(x, *targets, loss)
    softmax_cuda.cross_entropy_backward(x, *targets, loss, 1.0, x)
    softmax_cuda.scaled_sum(loss, 1.0, loss)


def _pooling(dtype: str) -> None:
    # Channels in whole lanes and one by one.
    for B in (16, 1):
        x, y = _empty(dtype, 2, 4, 4, B), _empty(dtype, 2, 2, 2, B)
        share = np.empty(y.shape, statistics_type(dtype))
        window, counted = (2, 2, 2, 2, 0, 0, 1, 1), (0, 0, 4, 4)
        for index in (np.empty(y.shape, kind) for kind in ("uint8", "uint16", "uint32")):
            pooling_cuda.max_pool(x, window, y, index)
            pooling_cuda.max_pool_backward(y, index, window, x)
            pooling_cuda.max_pool_take(x, index, window, y)
        pooling_cuda.avg_pool(x, window, counted, y)
        pooling_cuda.avg_pool_backward(y, window, counted, share, x)
        images, means = x.reshape(2, 16, B), y[:, 0, 0]
        pooling_cuda.global_avg_pool(images, means)
        pooling_cuda.global_avg_pool_backward(means, images)


def _groupnorm(dtype: str) -> None:
    wide = statistics_type(dtype)
    for shape in ((4, 1, 64, 1), (4, 1, 63, 1), (2, 2, 4, 64), (2, 2, 4, 63)):
        x, vector = _empty(dtype, *shape), np.ones(shape[1] * shape[2], wide)
        runs = np.ones(4, wide)
        for centered in (True, False):
            affine = vector, vector, 1e-5, centered
            groupnorm_cuda.normalize(x, *affine, x, runs, runs, runs)
            groupnorm_cuda.normalize_backward(x, x, vector, runs, runs, centered, x, vector, vector)


def _localresponse(dtype: str) -> None:
    for arrange in (np.copy, shifted):
        x, p = arrange(_empty(dtype, 64)), arrange(np.ones(64, statistics_type(dtype)))
        for start in (x, p):
            localresponse_cuda.window_sums(start.reshape(4, 4, 4), start is x, 1, 1, p)
        localresponse_cuda.powers(p, 1.0, 0.5, 0.75, p)
        localresponse_cuda.multiply(x, p, x)
        localresponse_cuda.ratio(x, x, p, p, 1.0, 0.5, p)
        localresponse_cuda.combine(x, p, x, p, 1.0, x)


def _recurrent(dtype: str) -> None:
    for H in (16, 15):
        state, gates = _empty(dtype, 4, H), {n: _empty(dtype, 4, n * H) for n in (1, 3, 4)}
        ends = INTEGERS[:4], 0
        recurrent_cuda.lstm_step(gates[4], gates[4], state, state, *ends, gates[4], state, state)
        recurrent_cuda.lstm_step_backward(
            *[state] * 3, gates[4], *[state] * 4, *ends, state, state, gates[4]
        )
        recurrent_cuda.gru_step(gates[3], gates[3], state, *ends, gates[4], state)
        recurrent_cuda.gru_step_backward(
            state, state, gates[4], state, state, *ends, state, gates[3], gates[3]
        )
        for name in ("tanh", "relu"):
            getattr(recurrent_cuda, f"{name}_step")(*[state] * 3, *ends, state, state)
            getattr(recurrent_cuda, f"{name}_step_backward")(*[state] * 5, *ends, state, state)


def _data() -> None:
    for dtype in (np.uint8, np.float32, np.float64):
        for features in (16, 15):
            images, x = np.zeros((8, features), dtype), _empty("float32", 4, features)
            rows = images, INTEGERS[:4]
            gather_cuda.gather_scale(*rows, 1.0, 0.0, x)
            factors = np.ones((2, features))
            gather_cuda.gather_scale_features(*rows, *factors, x)
    for targets in (INTEGERS, np.zeros((64, 3), np.float32), np.zeros(64)):
        gather_cuda.gather_targets(targets, INTEGERS[:4], targets[:4].copy())
    softmax_cuda.first_bad_label(INTEGERS, 10, -1, INTEGERS)


def every_launch(patch: Any) -> dict[str, tuple[Any, Any]]:
    """(variant, kinds of arguments) by a name for each; `patch` is pytest's monkeypatch."""
    found = {}

    def note(variant: Any, grid: Any, block: Any, *args: Any) -> None:
        kinds, _ = _cuda.packed(args)
        constants = "-".join(map(str, variant.constants))
        arrays = "-".join(dict.fromkeys(str(kind) for kind in _flat(kinds) if "[]" in kind))
        found[f"{variant.name}[{constants}]({arrays})".replace("[]", "")] = variant, kinds

    memory = np.zeros(_cuda.BLOCKS * _cuda.PARTIALS, np.float32)
    with patch.context() as context:
        context.setattr(_cuda.Variant, "__call__", note)
        context.setattr(_cuda, "_scratch", {(0, 0): (memory, memory.view(np.uint32))})
        for dtype in DTYPES:
            _batchnorm(dtype)
            _convolution(dtype)
            _elementwise(dtype)
            if dtype in WIDE:
                _recurrent(dtype)
            _softmax(dtype)
            _pooling(dtype)
            _groupnorm(dtype)
            _localresponse(dtype)
        _data()
    return found


def _flat(kinds: Any) -> Any:
    for kind in kinds:
        yield from _flat(kind) if isinstance(kind, tuple) else (kind,)
