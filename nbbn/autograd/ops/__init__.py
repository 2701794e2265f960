"""The catalogue of differentiable operations, each about a dozen lines.

Adding one: its kernels, its functions in `nbbn.functional`, a class here, one line in
`tests/cases.py`.
Everything computed goes through `backend.run`, so that a step can be recorded and replayed.
"""

from .activations import (
    Dropout,
    LogSoftmax,
    ReLU,
    Sigmoid,
    Softmax,
    Softplus,
    Tanh,
    dropout,
    log_softmax,
    relu,
    sigmoid,
    softmax,
    softplus,
    tanh,
)
from .arithmetic import Add, Divide, Exp, Log, MatMul, Multiply, Power, Subtract
from .batchnorm import BatchNormInfer, BatchNormTrain, batch_norm_infer, batch_norm_train
from .dense import CrossEntropy, Huber, Linear, cross_entropy, huber, linear
from .shapes import Index, Max, Mean, Reshape, Sum, To, Transpose

__all__ = [
    "Add",
    "BatchNormInfer",
    "BatchNormTrain",
    "CrossEntropy",
    "Divide",
    "Dropout",
    "Exp",
    "Huber",
    "Index",
    "Linear",
    "Log",
    "LogSoftmax",
    "MatMul",
    "Max",
    "Mean",
    "Multiply",
    "Power",
    "ReLU",
    "Reshape",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Subtract",
    "Sum",
    "Tanh",
    "To",
    "Transpose",
    "batch_norm_infer",
    "batch_norm_train",
    "cross_entropy",
    "dropout",
    "huber",
    "linear",
    "log_softmax",
    "relu",
    "sigmoid",
    "softmax",
    "softplus",
    "tanh",
]
