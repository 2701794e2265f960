"""Reverse-mode differentiation: tensors, the tape that follows them, operations, derivatives."""

from .tensor import Context, Op, Parameter, Tape, Tensor, apply

__all__ = ["Context", "Op", "Parameter", "Tape", "Tensor", "apply"]
