"""`nbbn.warmup`: whatever memory holds, and nothing is left to compile afterwards."""

from __future__ import annotations

import subprocess
import sys

import pytest

import nbbn
from nbbn import backend
from nbbn.errors import ArgumentError

# Kernels know the types that they were compiled for, be it now or for the cache.
USE = """
import importlib, pkgutil
import numpy as np
import nbbn
from nbbn import functional as F, kernels, losses, optim, train
from nbbn.data import Batches
from nbbn.kernels._jit import Kernel, SerialKernel

found = {}
for module in pkgutil.iter_modules(kernels.__path__):
    if module.name.endswith("_cpu"):
        own = vars(importlib.import_module(f"nbbn.kernels.{module.name}"))
        found |= {f"{module.name}.{n}": k for n, k in own.items() if isinstance(k, SerialKernel)}


def compiled():
    return {
        (name, form, *dispatcher.signatures)
        for name, kernel in found.items()
        for form in ("serial", "parallel")
        if (dispatcher := getattr(kernel, form, None)) is not None
    }


assert nbbn.warmup() >= 0
after = compiled()
assert not [entry[:2] for entry in after if len(entry) == 2], "never compiled"
rng = np.random.default_rng(0)
for dtype in (np.float32, np.float64):
    for shape in ((8, 3), (4, 3, 2, 2), (2, 3, 300_000)):
        x, gamma = rng.normal(size=shape).astype(dtype), np.ones(3, dtype)
        mean, var, skipped = np.zeros(3, dtype), np.ones(3, dtype), np.zeros(1, np.int64)
        y, stats = F.batch_norm_train(x, gamma, gamma, activation="relu", residual=x)
        F.update_running_stats(mean, var, stats, skipped=skipped)
        F.batch_norm(x, mean, var, gamma, gamma, training=True)
        F.batch_norm_infer(x, mean, var, gamma, gamma, activation="relu", residual=x)
        F.batch_norm_backward(x, x, stats, gamma, y=y)
        F.batch_norm_infer_backward(x, x, mean, var, gamma, y=y)
        weights = np.ones(shape[0])
        stats = F.weighted_batch_norm_train(x, weights, gamma)[1]
        F.weighted_batch_norm_backward(x, x, weights, stats, gamma)
        y, stats = F.group_norm(x, gamma, gamma, groups=1)
        F.group_norm_backward(y, x, stats, gamma, groups=1)
        y, stats = F.rms_norm(x)
        F.rms_norm_backward(y, x, stats)
        if x.ndim > 2:
            F.local_response_norm_backward(x, F.local_response_norm(x, size=3), size=3)
    images, kernel = rng.normal(size=(2, 1, 4, 4)).astype(dtype), np.ones((4, 1, 3, 3), dtype)
    F.conv2d_backward(F.conv2d(images, kernel), images, kernel)
    F.conv_transpose2d(F.conv2d(images, kernel, np.ones(4)), kernel)
    F.conv2d(np.moveaxis(images, 1, -1), kernel, axis=-1)
    for kind, gates in (("lstm", 12), ("gru", 9), ("relu", 3)):
        weight, bias = np.zeros((gates, 3), dtype), np.zeros(gates, dtype)
        states = F.recurrent(np.zeros((4, 5, gates), dtype), weight, bias, kind=kind)
        F.recurrent_backward(states.states, weight, states, bias, kind=kind)
    labels = rng.integers(0, 2, 8)
    logits = rng.normal(size=(8, 2)).astype(dtype)
    for op in ("relu", "sigmoid", "tanh", "softmax", "log_softmax"):
        getattr(F, op + "_backward")(logits, getattr(F, op)(logits))
    for op in ("gelu", "silu", "leaky_relu"):
        getattr(F, op + "_backward")(logits, getattr(F, op)(logits))
    F.gelu_backward(logits, F.gelu(logits, approximate="tanh"), approximate="tanh")
    for axis, C in ((1, 1), (1, 3), (-1, 1), (-1, 3)):
        shape = (2, C, 8, 8) if axis == 1 else (2, 8, 8, C)
        x = nbbn.Parameter(rng.normal(size=shape).astype(dtype))
        with nbbn.Tape() as tape:
            y = nbbn.ops.avg_pool2d(nbbn.ops.max_pool2d(x, 2, axis=axis), 3, padding=1, axis=axis)
            y = nbbn.ops.global_max_pool2d(y, axis=axis) + nbbn.ops.global_avg_pool2d(y, axis=axis)
            (dx,) = nbbn.grad((y * y).sum(), [x], create_graph=True)
            loss = (dx * dx).sum()
        tape.backward(loss)
    F.cross_entropy_backward(logits, labels, F.cross_entropy(logits, labels))
    pixels = rng.integers(0, 256, size=(8, 5), dtype=np.uint8)
    for images in (pixels, pixels.astype(dtype)):
        for mean in (0.5, np.full(5, 0.5)):
            for make in (optim.Adam, lambda p: optim.SGD(p, momentum=0.9)):
                model = nbbn.mlp((5, 4, 3, 2), dropout=0.2, rng=0, dtype=np.float32)
                batches = Batches(images, labels.astype(np.uint8), 4, mean=mean, rng=0)
                train.fit(model, batches, make(model.parameters()), epochs=3, test=batches)
late = compiled() - after
assert not late, f"compiled by use: {late}"
"""


def test_nothing_is_left_to_compile():
    done = subprocess.run([sys.executable, "-c", USE], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]


def test_what_fresh_memory_holds_does_not_matter(monkeypatch):
    original = backend.empty

    def full(*args, **kwargs):
        array = original(*args, **kwargs)
        array.fill(1)
        return array

    monkeypatch.setattr(backend, "empty", full)
    nbbn.warmup("float32")


@pytest.mark.parametrize("dtypes", [("float16",), ("float32", "int8"), "float3", iter(["int8"])])
def test_unknown_types_are_refused(dtypes):
    with pytest.raises(ArgumentError, match="dtypes must be one of"):
        nbbn.warmup(dtypes)
