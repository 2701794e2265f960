"""What a model is made of: modules, layers, batch normalization and its variants, losses."""

from .activation import GELU, LeakyReLU, ReLU, Sigmoid, SiLU, Tanh
from .batchnorm import BatchNorm, Convention
from .convolution import Conv2d, ConvTranspose2d
from .layers import Dense, Dropout, Flatten, Sequential, Softmax, Unflatten
from .models import cnn, mlp
from .module import Module
from .pooling import AvgPool2d, GlobalAvgPool2d, GlobalMaxPool2d, MaxPool2d
from .variants import BatchRenorm, GhostBatchNorm, InPlaceBatchNorm, Ramp, recalibrate

__all__ = [
    "GELU", "AvgPool2d", "BatchNorm", "BatchRenorm", "Conv2d", "ConvTranspose2d", "Convention",
    "Dense", "Dropout", "Flatten", "GhostBatchNorm", "GlobalAvgPool2d", "GlobalMaxPool2d",
    "InPlaceBatchNorm", "LeakyReLU", "MaxPool2d", "Module", "Ramp", "ReLU", "Sequential", "SiLU",
    "Sigmoid", "Softmax", "Tanh", "Unflatten", "cnn", "mlp", "recalibrate",
]  # fmt: skip
