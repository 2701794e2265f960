"""What a model is made of: modules, layers, batch normalization and its variants, losses."""

from .activation import GELU, LeakyReLU, ReLU, Sigmoid, SiLU, Tanh
from .batchnorm import BatchNorm, Convention
from .layers import Dense, Dropout, Flatten, Sequential, Softmax, mlp
from .module import Module
from .pooling import AvgPool2d, GlobalAvgPool2d, GlobalMaxPool2d, MaxPool2d
from .variants import BatchRenorm, GhostBatchNorm, InPlaceBatchNorm, Ramp, recalibrate

__all__ = [
    "GELU",
    "AvgPool2d",
    "BatchNorm",
    "BatchRenorm",
    "Convention",
    "Dense",
    "Dropout",
    "Flatten",
    "GhostBatchNorm",
    "GlobalAvgPool2d",
    "GlobalMaxPool2d",
    "InPlaceBatchNorm",
    "LeakyReLU",
    "MaxPool2d",
    "Module",
    "Ramp",
    "ReLU",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Tanh",
    "mlp",
    "recalibrate",
]  # fmt: skip
