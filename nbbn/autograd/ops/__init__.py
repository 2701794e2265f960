"""The catalogue of differentiable operations: a class for each, with all its derivatives.

Classes work on arrays and know no `Tensor`; `backward_graph` is given tensors, and uses their
operators, methods and `_apply`.

Adding one: its kernels, its functions in `nbbn.functional`, a class here, its function in
`nbbn.autograd.functions`, one line in `tests/helpers/cases.py`.
Everything computed goes through `backend.run`, so that a step can be recorded and replayed.
"""

from .activation import ReLU, Sigmoid, Softplus, Tanh
from .arithmetic import Add, Divide, Exp, Log, Multiply, Power, Subtract
from .batchnorm import BatchNormInfer, BatchNormTrain
from .batchnorm_variants import BatchRenorm, GhostBatchNorm, InPlaceBatchNorm, WeightedBatchNorm
from .dropout import Dropout
from .index import Index
from .linear import Linear
from .losses import CrossEntropy, Huber
from .matmul import MatMul
from .reductions import Max, Mean, Sum
from .shapes import Reshape, To, Transpose
from .softmax import LogSoftmax, Softmax

__all__ = [
    "Add",
    "BatchNormInfer",
    "BatchNormTrain",
    "BatchRenorm",
    "CrossEntropy",
    "Divide",
    "Dropout",
    "Exp",
    "GhostBatchNorm",
    "Huber",
    "InPlaceBatchNorm",
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
    "WeightedBatchNorm",
]
