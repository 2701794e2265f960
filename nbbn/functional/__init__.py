"""The NumPy-level API: arrays in, arrays out; no tape, no layers, no state.

Each function checks its arguments, allocates its result, asks a kernel to fill it and returns it.
"""

from .activation import (
    gelu,
    gelu_backward,
    leaky_relu,
    leaky_relu_backward,
    relu,
    relu_backward,
    sigmoid,
    sigmoid_backward,
    silu,
    silu_backward,
    tanh,
    tanh_backward,
)
from .batchnorm import (
    batch_norm,
    batch_norm_backward,
    batch_norm_infer,
    batch_norm_infer_backward,
    batch_norm_train,
    update_running_stats,
)
from .convolution import conv2d, conv2d_backward, conv_transpose2d, conv_transpose2d_backward
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
from .localresponse import local_response_norm, local_response_norm_backward
from .pooling import (
    avg_pool2d,
    avg_pool2d_backward,
    global_avg_pool2d,
    global_avg_pool2d_backward,
    global_max_pool2d,
    global_max_pool2d_backward,
    max_pool2d,
    max_pool2d_backward,
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
    "avg_pool2d", "avg_pool2d_backward", "batch_norm", "batch_norm_backward", "batch_norm_infer",
    "batch_norm_infer_backward", "batch_norm_train", "conv2d", "conv2d_backward",
    "conv_transpose2d", "conv_transpose2d_backward", "cross_entropy", "cross_entropy_backward",
    "gelu", "gelu_backward", "global_avg_pool2d", "global_avg_pool2d_backward", "global_max_pool2d",
    "global_max_pool2d_backward", "group_norm", "group_norm_backward", "instance_norm",
    "instance_norm_backward", "layer_norm", "layer_norm_backward", "leaky_relu",
    "leaky_relu_backward", "local_response_norm", "local_response_norm_backward", "log_softmax",
    "log_softmax_backward", "max_pool2d", "max_pool2d_backward", "merge_stats", "recurrent",
    "recurrent_backward", "relu", "relu_backward", "rms_norm", "rms_norm_backward", "sigmoid",
    "sigmoid_backward", "silu", "silu_backward", "softmax", "softmax_backward", "tanh",
    "tanh_backward", "update_running_stats", "weighted_batch_norm_backward",
    "weighted_batch_norm_train",
]  # fmt: skip
