"""The NumPy-level API: arrays in, arrays out; no tape, no layers, no state.

Each function checks its arguments, allocates its result, asks a kernel to fill it and returns it.
"""

from .activation import relu, relu_backward, sigmoid, sigmoid_backward, tanh, tanh_backward
from .batchnorm import (
    batch_norm,
    batch_norm_backward,
    batch_norm_infer,
    batch_norm_infer_backward,
    batch_norm_train,
    update_running_stats,
)
from .groupnorm import (
    group_norm,
    group_norm_backward,
    instance_norm,
    instance_norm_backward,
    layer_norm,
    layer_norm_backward,
    rms_norm,
    rms_norm_backward,
)
from .recurrent import RecurrentGradients, RecurrentStates, recurrent, recurrent_backward
from .softmax import (
    cross_entropy,
    cross_entropy_backward,
    log_softmax,
    log_softmax_backward,
    softmax,
    softmax_backward,
)
from .stats import BatchNormStats, GroupStats, WeightedStats, merge_stats
from .weighted import weighted_batch_norm_backward, weighted_batch_norm_train

__all__ = [
    "BatchNormStats", "GroupStats", "RecurrentGradients", "RecurrentStates", "WeightedStats",
    "batch_norm", "batch_norm_backward", "batch_norm_infer", "batch_norm_infer_backward",
    "batch_norm_train", "cross_entropy", "cross_entropy_backward", "group_norm",
    "group_norm_backward", "instance_norm", "instance_norm_backward", "layer_norm",
    "layer_norm_backward", "log_softmax", "log_softmax_backward", "merge_stats", "recurrent",
    "recurrent_backward", "relu", "relu_backward", "rms_norm", "rms_norm_backward", "sigmoid",
    "sigmoid_backward", "softmax", "softmax_backward", "tanh", "tanh_backward",
    "update_running_stats", "weighted_batch_norm_backward", "weighted_batch_norm_train",
]  # fmt: skip
