"""What a model is made of: modules, layers, batch normalization and its variants, losses."""

from .batchnorm import BatchNorm, Convention
from .groupnorm import GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from .layers import Dense, Dropout, Flatten, ReLU, Sequential, Sigmoid, Softmax, Tanh, mlp
from .localresponse import LocalResponseNorm
from .module import Module
from .reweighted import Reweighted, SpectralNorm, WeightStandardization
from .variants import BatchRenorm, GhostBatchNorm, InPlaceBatchNorm, Ramp, recalibrate

__all__ = [
    "BatchNorm", "BatchRenorm", "Convention", "Dense", "Dropout", "Flatten", "GhostBatchNorm",
    "GroupNorm", "InPlaceBatchNorm", "InstanceNorm", "LayerNorm", "LocalResponseNorm", "Module",
    "RMSNorm", "Ramp", "ReLU", "Reweighted", "Sequential", "Sigmoid", "Softmax", "SpectralNorm",
    "Tanh", "WeightStandardization", "mlp", "recalibrate",
]  # fmt: skip
