"""Batch normalization, and the training around it, for NumPy and Numba.

Names load on first use: ``import nbbn`` imports nothing but this file.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from . import (
        callbacks,
        checkpoint,
        config,
        convert,
        data,
        errors,
        functional,
        inference,
        initializers,
        jit,
        logs,
        losses,
        metrics,
        onnx,
        ops,
        optim,
        plots,
        pool,
        progress,
        threads,
        train,
    )
    from .autograd import Op, Parameter, Tape, Tensor, apply
    from .diagnostics import inspect
    from .errors import NbbnError
    from .folding import fold
    from .gradients import gradcheck, gradgradcheck
    from .layers import (
        BatchNorm,
        Dense,
        Dropout,
        Flatten,
        Module,
        ReLU,
        Sequential,
        Sigmoid,
        Softmax,
        Tanh,
        mlp,
    )
    from .precompile import warmup
    from .second_order import grad
    from .variants import BatchRenorm, GhostBatchNorm, InPlaceBatchNorm, Ramp, recalibrate

__all__ = [
    "BatchNorm",
    "BatchRenorm",
    "Dense",
    "Dropout",
    "Flatten",
    "GhostBatchNorm",
    "InPlaceBatchNorm",
    "Module",
    "NbbnError",
    "Op",
    "Parameter",
    "Ramp",
    "ReLU",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "Tanh",
    "Tape",
    "Tensor",
    "__version__",
    "apply",
    "callbacks",
    "checkpoint",
    "config",
    "convert",
    "data",
    "errors",
    "fold",
    "functional",
    "grad",
    "gradcheck",
    "gradgradcheck",
    "inference",
    "initializers",
    "inspect",
    "jit",
    "logs",
    "losses",
    "metrics",
    "mlp",
    "onnx",
    "ops",
    "optim",
    "plots",
    "pool",
    "progress",
    "recalibrate",
    "recordable",
    "threads",
    "train",
    "warmup",
]

_MODULES = {
    "callbacks",
    "checkpoint",
    "config",
    "convert",
    "data",
    "errors",
    "functional",
    "inference",
    "initializers",
    "jit",
    "logs",
    "losses",
    "metrics",
    "onnx",
    "ops",
    "optim",
    "plots",
    "pool",
    "progress",
    "threads",
    "train",
}
_HOMES = {
    **dict.fromkeys(("Op", "Parameter", "Tape", "Tensor", "apply"), "autograd"),
    **dict.fromkeys(
        ("BatchRenorm", "GhostBatchNorm", "InPlaceBatchNorm", "Ramp", "recalibrate"), "variants"
    ),
    "NbbnError": "errors",
    "fold": "folding",
    "grad": "second_order",
    **dict.fromkeys(("gradcheck", "gradgradcheck"), "gradients"),
    "inspect": "diagnostics",
    "recordable": "trust",
    "warmup": "precompile",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"nbbn.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'nbbn' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"nbbn.{_HOMES.get(name, 'layers')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
