"""What a model is made of: modules, layers, batch normalization and its variants, losses."""

from .batchnorm import BatchNorm, Convention
from .layers import Dense, Dropout, Flatten, ReLU, Sequential, Sigmoid, Softmax, Tanh, mlp
from .module import Module
from .pooling import AvgPool2d, GlobalAvgPool2d, GlobalMaxPool2d, MaxPool2d
from .variants import BatchRenorm, GhostBatchNorm, InPlaceBatchNorm, Ramp, recalibrate

__all__ = [
    "AvgPool2d", "BatchNorm", "BatchRenorm", "Convention", "Dense", "Dropout", "Flatten",
    "GhostBatchNorm", "GlobalAvgPool2d", "GlobalMaxPool2d", "InPlaceBatchNorm", "MaxPool2d",
    "Module", "Ramp", "ReLU", "Sequential", "Sigmoid", "Softmax", "Tanh", "mlp",
    "recalibrate",
]  # fmt: skip
