"""Batch normalization, and the training around it, for NumPy and Numba.

Names load on first use: ``import nbbn`` imports nothing but this file.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from . import data, distributed, errors, functional, jit, optim, train
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
    from .nn.activation import GELU, LeakyReLU, ReLU, Sigmoid, SiLU, Tanh
    from .nn.attention import (
        Embedding,
        MultiheadAttention,
        PositionalEmbedding,
        TransformerEncoderLayer,
    )
    from .nn.batchnorm import BatchNorm, Convention, SyncBatchNorm
    from .nn.convolution import Conv2d, ConvTranspose2d
    from .nn.groupnorm import GroupNorm, InstanceNorm, LayerNorm, RMSNorm
    from .nn.inspect import inspect
    from .nn.layers import Dense, Dropout, Flatten, Sequential, Softmax, Unflatten
    from .nn.localresponse import LocalResponseNorm
    from .nn.models import cnn, mlp
    from .nn.module import Module
    from .nn.pooling import AvgPool2d, GlobalAvgPool2d, GlobalMaxPool2d, MaxPool2d
    from .nn.recurrent import GRU, LSTM, RNN
    from .nn.reweighted import SpectralNorm, WeightStandardization
    from .nn.summary import summary
    from .nn.variants import BatchRenorm, GhostBatchNorm, InPlaceBatchNorm, Ramp, recalibrate
    from .train import callbacks, checkpoint, config, inference, logs, metrics, plots, progress
    from .train.trust import recordable

__all__ = [
    "GELU", "GRU", "LSTM", "RNN", "AvgPool2d", "BatchNorm", "BatchRenorm", "Conv2d",
    "ConvTranspose2d", "Convention", "Dense", "Dropout", "Embedding", "Flatten", "GhostBatchNorm",
    "GlobalAvgPool2d", "GlobalMaxPool2d", "GroupNorm", "InPlaceBatchNorm", "InstanceNorm",
    "LayerNorm", "LeakyReLU", "LocalResponseNorm", "MaxPool2d", "Module", "MultiheadAttention",
    "NbbnError", "Op", "Parameter", "PositionalEmbedding", "RMSNorm", "Ramp", "ReLU", "Sequential",
    "SiLU", "Sigmoid", "Softmax", "SpectralNorm", "SyncBatchNorm", "Tanh", "Tape", "Tensor",
    "TransformerEncoderLayer", "Unflatten", "WeightStandardization", "__version__", "apply",
    "callbacks", "checkpoint", "cnn", "config", "convert", "data", "distributed", "errors", "fold",
    "functional", "grad", "gradcheck", "gradgradcheck", "inference", "initializers", "inspect",
    "jit", "logs", "losses", "metrics", "mlp", "onnx", "ops", "optim", "plots", "pool", "progress",
    "recalibrate", "recordable", "summary", "threads", "train", "warmup",
]  # fmt: skip

# The modules that are public, by their own names or others; and the homes of names that `nn` does
# not have.
_MODULES = (
    "autograd", "backend", "backend.pool", "backend.threads", "data", "distributed", "errors",
    "export", "export.onnx", "functional", "jit", "nn", "nn.initializers", "nn.losses", "optim",
    "sklearn", "train", "train.callbacks", "train.checkpoint", "train.config", "train.inference",
    "train.logs", "train.metrics", "train.plots", "train.progress",
)  # fmt: skip
_PATHS = {module.rpartition(".")[2]: module for module in _MODULES}
_PATHS |= {"convert": "export", "jit_cuda": "jit.cuda", "ops": "autograd.functions"}
_HOMES = dict.fromkeys(__all__, "nn") | {
    **dict.fromkeys(("Op", "Parameter", "Tape", "Tensor", "apply"), "autograd"),
    **dict.fromkeys(("gradcheck", "gradgradcheck"), "autograd.gradcheck"),
    "NbbnError": "errors",
    "fold": "export.fold",
    "grad": "autograd.second_order",
    "inspect": "nn.inspect",
    "recordable": "train.trust",
    "summary": "nn.summary",
    "warmup": "functional.warmup",
}


def __getattr__(name: str) -> Any:
    if name in _PATHS:
        value: Any = importlib.import_module(f"nbbn.{_PATHS[name]}")
    elif name in _HOMES:
        value = getattr(importlib.import_module(f"nbbn.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module 'nbbn' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
