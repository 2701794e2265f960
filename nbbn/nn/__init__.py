"""What a model is made of: modules, layers, batch normalization and its variants, losses."""

from .attention import (
    Embedding,
    MultiheadAttention,
    PositionalEmbedding,
    TransformerEncoderLayer,
)
from .batchnorm import BatchNorm, Convention
from .groupnorm import GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from .layers import Dense, Dropout, Flatten, ReLU, Sequential, Sigmoid, Softmax, Tanh, mlp
from .module import Module
from .recurrent import GRU, LSTM, RNN
from .variants import BatchRenorm, GhostBatchNorm, InPlaceBatchNorm, Ramp, recalibrate

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "BatchNorm",
    "BatchRenorm",
    "Convention",
    "Dense",
    "Dropout",
    "Embedding",
    "Flatten",
    "GhostBatchNorm",
    "GroupNorm",
    "InPlaceBatchNorm",
    "InstanceNorm",
    "LayerNorm",
    "Module",
    "MultiheadAttention",
    "PositionalEmbedding",
    "RMSNorm",
    "Ramp",
    "ReLU",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "Tanh",
    "TransformerEncoderLayer",
    "mlp",
    "recalibrate",
]  # fmt: skip
