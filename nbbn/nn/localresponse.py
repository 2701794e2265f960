"""Local response normalization as a layer."""

from __future__ import annotations

from .._validation import choice, integer, positive, real
from ..autograd import functions as ops
from ..autograd.tensor import Tensor
from ..functional.localresponse import ALPHA_OF, OVER
from .module import Module

__all__ = ["LocalResponseNorm"]


class LocalResponseNorm(Module):
    """Local response normalization as a layer.

    Otherwise as `nbbn.functional.local_response_norm`, with its options. The defaults are
    PyTorch's. AlexNet's is ``LocalResponseNorm(5, k=2, alpha=1e-4, beta=0.75, alpha_of="sum")``.
    """

    def __init__(
        self,
        size: int,
        *,
        alpha: float = 1e-4,
        beta: float = 0.75,
        k: float = 1.0,
        alpha_of: str = "mean",
        over: str = "channels",
        axis: int = 1,
    ) -> None:
        self.size = positive(size, "size")
        self.alpha = real(alpha, "alpha", least=0)
        self.beta, self.k = real(beta, "beta"), real(k, "k", least=0)
        self.alpha_of = choice(alpha_of, ALPHA_OF, "alpha_of")
        self.over = choice(over, OVER, "over")
        self.axis = integer(axis, "axis")

    def forward(self, x: Tensor) -> Tensor:
        """Divide each element of `x` by a power of the squares around it."""
        return ops.local_response_norm(
            x, size=self.size, alpha=self.alpha, beta=self.beta, k=self.k,
            alpha_of=self.alpha_of, over=self.over, axis=self.axis,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"LocalResponseNorm({self.size})"
