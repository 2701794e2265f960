# ruff: noqa: F403, F405 - each module names in its `__all__` what it has for here
"""The NumPy-level API: arrays in, arrays out; no tape, no layers, no state.

Each function checks its arguments, allocates its result, asks a kernel to fill it and returns it.
"""

from .activation import *
from .batchnorm import *
from .convolution import *
from .groupnorm import *
from .localresponse import *
from .pooling import *
from .recurrent import *
from .softmax import *
from .stats import *
from .weighted import *

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
