"""Layers whose weight goes through a function before it is used: standardized, or of norm 1."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from .. import backend
from .._validation import generator, instance, integer, positive, real
from ..autograd import functions as ops
from ..autograd.tensor import Parameter, Tensor
from ..errors import ArgumentError, ShapeError
from ..functional import checks
from ..functional.layout import all_but
from .module import Module

__all__ = ["Reweighted", "SpectralNorm", "WeightStandardization"]


class Reweighted(Module):
    """Base class of wrappers that compute a layer with another weight than it learns.

    A subclass defines ``reweighted(weight)`` on tensors.

    Parameters
    ----------
    layer : Module
        A Dense, Conv2d or any other layer with a Parameter `weight` of two dimensions or more.

    Attributes
    ----------
    layer : Module
        "layer.weight" and so on in the state dict.
    """

    def __init__(self, layer: Module) -> None:
        instance(layer, Module, "layer")
        self.layer = layer
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, Parameter):
            raise ArgumentError(
                f"a {type(self).__name__} wraps a layer with a Parameter `weight`, such as a "
                f"Dense, got {layer!r}"
            )
        if weight.ndim < 2:
            raise ShapeError(f"the weight must have 2 dimensions or more, got shape {weight.shape}")

    def reweighted(self, weight: Tensor) -> Tensor:
        """Compute the weight that is used."""
        raise NotImplementedError(f"{type(self).__name__} must define reweighted(weight)")

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer with that weight."""
        return self._with(self.reweighted(self._learned()))(x)

    def plain(self) -> Module:
        """Return a copy of the layer that has the weight, as evaluation uses it, for its own."""
        layer = copy.copy(self)
        vars(layer)["training"] = False
        return copy.deepcopy(self._with(Parameter(layer.reweighted(self._learned()).data)))

    def _learned(self) -> Tensor:
        weight: Tensor = vars(self.layer)["weight"]
        return weight

    def _with(self, weight: Tensor) -> Module:
        # A copy: nothing else that uses the layer, in this thread or another, sees the weight.
        layer: Module = copy.copy(self.layer)
        vars(layer)["weight"] = weight
        return layer

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.layer!r})"


class WeightStandardization(Reweighted):
    """A layer whose weights are normalized, for each output, over all that goes into it.

    With the mean and the biased variance of the weights of an output:
    ``(weight - mean) / sqrt(var + eps)``. Usually together with a GroupNorm, for small batches.
    The outputs are the first axis of the weight. Otherwise as `Reweighted`.

    Parameters
    ----------
    eps : float, default 1e-5

    References
    ----------
    Qiao, Wang, Liu, Shen and Yuille, "Micro-Batch Training with Batch-Channel Normalization and
    Weight Standardization" (2019), arXiv:1903.10520.
    """

    def __init__(self, layer: Module, *, eps: float = 1e-5) -> None:
        super().__init__(layer)
        self.eps = checks.epsilon(eps, zero_allowed=False)
        shape = self._learned().shape
        if np.prod(shape[1:]) < 2:
            raise ShapeError(
                f"one weight an output has no variance: the weight of {layer!r} has shape {shape}"
            )

    def reweighted(self, weight: Tensor) -> Tensor:
        """Normalize the weights of each output."""
        return ops.layer_norm(weight, axis=1, eps=self.eps)


class SpectralNorm(Reweighted):
    """A layer whose weight is divided by an estimate of its largest singular value, as PyTorch's.

    The weight counts as a matrix, its outputs by all the rest, W. Each call in training improves
    the estimates ``u = W v / |W v|`` and ``v = W^T u / |W^T u|`` of its singular vectors;
    ``sigma = u^T W v``, whose gradient takes u and v as constants. Otherwise as `Reweighted`.

    Parameters
    ----------
    iterations : int, default 1
        Improvements a call.
    axis : int, default 0
        The axis of the outputs: 1 for a transposed convolution.
    eps : float, default 1e-12
        Least norm to divide by.
    rng : Generator, int or None
        Source of the first vectors, which 15 iterations improve.

    Attributes
    ----------
    u, v : ndarray

    References
    ----------
    Miyato, Kataoka, Koyama and Yoshida, "Spectral Normalization for Generative Adversarial
    Networks" (2018), arXiv:1802.05957.
    """

    buffers = ("u", "v")

    def __init__(
        self,
        layer: Module,
        *,
        iterations: int = 1,
        axis: int = 0,
        eps: float = 1e-12,
        rng: np.random.Generator | int | None = None,
    ) -> None:
        super().__init__(layer)
        self.iterations = positive(iterations, "iterations")
        self.eps = real(eps, "eps", above=0, most=1)
        weight = self._learned()
        axis = integer(axis, "axis")
        if not -weight.ndim <= axis < weight.ndim:
            raise ShapeError(f"axis {axis} is out of range for a weight of shape {weight.shape}")
        self.axis = axis % weight.ndim
        rng = generator(rng)
        outputs = weight.shape[self.axis]
        self.u, self.v = (
            rng.standard_normal(n).astype(weight.dtype) for n in (outputs, weight.size // outputs)
        )
        _improve(weight.data, self._order(), 15, self.eps, self.u, self.v)

    def _order(self) -> tuple[int, ...]:
        return (self.axis, *all_but(self.axis, self._learned()))

    def reweighted(self, weight: Tensor) -> Tensor:
        """Divide by the largest singular value."""
        order = self._order()
        if self.training:
            backend.run(_improve, weight.data, order, self.iterations, self.eps, self.u, self.v)
        # Copies: backward is of this call, and the next one improves them.
        u, v = (backend.empty(a.shape, a.dtype, weight.device) for a in (self.u, self.v))
        backend.run(np.copyto, u, self.u)
        backend.run(np.copyto, v, self.v)
        matrix = weight.transpose(*order).reshape(u.size, v.size)
        sigma = Tensor(u.reshape(1, -1)) @ (matrix @ v.reshape(-1, 1))
        return weight / sigma.reshape(())


def _improve(
    weight: Any, order: tuple[int, ...], iterations: int, eps: float, u: Any, v: Any
) -> None:
    """Improve estimates of the singular vectors, in place."""
    matrix = weight.transpose(order).reshape(u.size, v.size)
    for _ in range(iterations):
        for found, source, target in ((matrix, v, u), (matrix.T, u, v)):
            product = found @ source
            norm = (product * product).sum() ** 0.5
            target[...] = product / np.maximum(norm, eps)
