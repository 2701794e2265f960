"""Batch normalization, and the training around it, for NumPy and Numba.

Names load on first use: ``import nbbn`` imports nothing but this file.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from . import data, errors, functional, jit, optim, train
    from . import export as convert
    from .autograd import Op, Parameter, Tape, Tensor, apply
    from .autograd import functions as ops
    from .autograd.gradcheck import gradcheck, gradgradcheck
    from .autograd.second_order import grad
    from .backend import pool, threads
    from .errors import NbbnError
    from .export import onnx
    from .export.fold import fold
    from .functional.warmup import warmup
    from .jit import cuda as jit_cuda  # noqa: F401 - loads where numba-cuda is
    from .nn import initializers, losses
    from .nn.batchnorm import BatchNorm, Convention
    from .nn.inspect import inspect
    from .nn.layers import Dense, Dropout, Flatten, ReLU, Sequential, Sigmoid, Softmax, Tanh, mlp
    from .nn.module import Module
    from .nn.variants import BatchRenorm, GhostBatchNorm, InPlaceBatchNorm, Ramp, recalibrate
    from .train import callbacks, checkpoint, config, inference, logs, metrics, plots, progress
    from .train.trust import recordable

__all__ = [
    "BatchNorm",
    "BatchRenorm",
    "Convention",
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

# Public name -> the module that it is, or "module:name" for what is defined in one.
_HOMES = {
    "BatchNorm": "nn.batchnorm:BatchNorm",
    "BatchRenorm": "nn.variants:BatchRenorm",
    "Convention": "nn.batchnorm:Convention",
    "Dense": "nn.layers:Dense",
    "Dropout": "nn.layers:Dropout",
    "Flatten": "nn.layers:Flatten",
    "GhostBatchNorm": "nn.variants:GhostBatchNorm",
    "InPlaceBatchNorm": "nn.variants:InPlaceBatchNorm",
    "Module": "nn.module:Module",
    "NbbnError": "errors:NbbnError",
    "Op": "autograd:Op",
    "Parameter": "autograd:Parameter",
    "Ramp": "nn.variants:Ramp",
    "ReLU": "nn.layers:ReLU",
    "Sequential": "nn.layers:Sequential",
    "Sigmoid": "nn.layers:Sigmoid",
    "Softmax": "nn.layers:Softmax",
    "Tanh": "nn.layers:Tanh",
    "Tape": "autograd:Tape",
    "Tensor": "autograd:Tensor",
    "apply": "autograd:apply",
    "autograd": "autograd",
    "backend": "backend",
    "callbacks": "train.callbacks",
    "checkpoint": "train.checkpoint",
    "config": "train.config",
    "convert": "export",
    "data": "data",
    "errors": "errors",
    "export": "export",
    "fold": "export.fold:fold",
    "functional": "functional",
    "grad": "autograd.second_order:grad",
    "gradcheck": "autograd.gradcheck:gradcheck",
    "gradgradcheck": "autograd.gradcheck:gradgradcheck",
    "inference": "train.inference",
    "initializers": "nn.initializers",
    "inspect": "nn.inspect:inspect",
    "jit": "jit",
    "jit_cuda": "jit.cuda",
    "logs": "train.logs",
    "losses": "nn.losses",
    "metrics": "train.metrics",
    "mlp": "nn.layers:mlp",
    "nn": "nn",
    "onnx": "export.onnx",
    "ops": "autograd.functions",
    "optim": "optim",
    "plots": "train.plots",
    "pool": "backend.pool",
    "progress": "train.progress",
    "recalibrate": "nn.variants:recalibrate",
    "recordable": "train.trust:recordable",
    "threads": "backend.threads",
    "train": "train",
    "warmup": "functional.warmup:warmup",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'nbbn' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    value = importlib.import_module(f"nbbn.{module}")
    if attribute:
        value = getattr(value, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
