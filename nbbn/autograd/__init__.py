"""Reverse-mode differentiation: tensors, the tape that follows them, operations, derivatives."""

from .op import Context, Op
from .tensor import Parameter, Tape, Tensor, apply

__all__ = ["Context", "Op", "Parameter", "Tape", "Tensor", "apply"]
