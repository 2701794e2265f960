"""Activations as layers."""

from __future__ import annotations

from .._validation import choice
from ..autograd import functions as ops
from ..autograd.tensor import Tensor
from ..functional.activation import leaky_slope
from .module import Module

__all__ = ["GELU", "LeakyReLU", "ReLU", "SiLU", "Sigmoid", "Tanh"]


class ReLU(Module):
    """Rectified linear unit."""

    def forward(self, x: Tensor) -> Tensor:
        """Return max(x, 0)."""
        return ops.relu(x)


class LeakyReLU(Module):
    """Rectified linear unit with a slope below 0. Otherwise as `nbbn.functional.leaky_relu`."""

    def __init__(self, slope: float = 0.01) -> None:
        self.slope = leaky_slope(slope)

    def forward(self, x: Tensor) -> Tensor:
        """Return x where it is positive, slope * x elsewhere."""
        return ops.leaky_relu(x, slope=self.slope)

    def __repr__(self) -> str:
        return f"LeakyReLU({self.slope})"


class GELU(Module):
    """Gaussian error linear unit. Otherwise as `nbbn.functional.gelu`."""

    def __init__(self, approximate: str = "none") -> None:
        self.approximate: str = choice(approximate, ("none", "tanh"), "approximate")

    def forward(self, x: Tensor) -> Tensor:
        """Return x * Phi(x), or its approximation."""
        return ops.gelu(x, approximate=self.approximate)

    def __repr__(self) -> str:
        return f"GELU({'' if self.approximate == 'none' else repr(self.approximate)})"


class SiLU(Module):
    """Sigmoid linear unit, also called swish."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x / (1 + exp(-x))."""
        return ops.silu(x)


class Sigmoid(Module):
    """Logistic function."""

    def forward(self, x: Tensor) -> Tensor:
        """Return 1 / (1 + exp(-x))."""
        return ops.sigmoid(x)


class Tanh(Module):
    """Hyperbolic tangent."""

    def forward(self, x: Tensor) -> Tensor:
        """Return tanh(x)."""
        return ops.tanh(x)
