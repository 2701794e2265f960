"""What a model is made of: modules, layers, batch normalization and its variants, losses."""

from .activation import GELU, LeakyReLU, ReLU, Sigmoid, SiLU, Tanh
from .attention import Embedding, MultiheadAttention, PositionalEmbedding, TransformerEncoderLayer
from .batchnorm import BatchNorm, Convention, SyncBatchNorm
from .convolution import Conv2d, ConvTranspose2d
from .groupnorm import GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from .layers import Dense, Dropout, Flatten, Sequential, Softmax, Unflatten
from .localresponse import LocalResponseNorm
from .models import cnn, mlp
from .module import Module
from .pooling import AvgPool2d, GlobalAvgPool2d, GlobalMaxPool2d, MaxPool2d
from .recurrent import GRU, LSTM, RNN
from .reweighted import Reweighted, SpectralNorm, WeightStandardization
from .variants import BatchRenorm, GhostBatchNorm, InPlaceBatchNorm, Ramp, recalibrate

__all__ = [
    "GELU", "GRU", "LSTM", "RNN", "AvgPool2d", "BatchNorm", "BatchRenorm", "Conv2d",
    "ConvTranspose2d", "Convention", "Dense", "Dropout", "Embedding", "Flatten", "GhostBatchNorm",
    "GlobalAvgPool2d", "GlobalMaxPool2d", "GroupNorm", "InPlaceBatchNorm", "InstanceNorm",
    "LayerNorm", "LeakyReLU", "LocalResponseNorm", "MaxPool2d", "Module", "MultiheadAttention",
    "PositionalEmbedding", "RMSNorm", "Ramp", "ReLU", "Reweighted", "Sequential", "SiLU", "Sigmoid",
    "Softmax", "SpectralNorm", "SyncBatchNorm", "Tanh", "TransformerEncoderLayer", "Unflatten",
    "WeightStandardization", "cnn", "mlp", "recalibrate",
]  # fmt: skip
