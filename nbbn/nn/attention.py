"""Attention and what a Transformer's encoder is made of; weights are named as PyTorch's."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from .. import backend
from .._validation import float_type, fraction, generator, instance, positive, possible, switch
from ..autograd import functions as ops
from ..autograd.tensor import Parameter, Tensor, as_tensor
from ..errors import ArgumentError, DTypeError, ShapeError
from ..functional import checks
from ..functional.recurrent import checked_lengths
from .activation import ReLU
from .groupnorm import LayerNorm
from .initializers import initialize
from .layers import Dense, Dropout
from .module import Module

__all__ = ["Embedding", "MultiheadAttention", "PositionalEmbedding", "TransformerEncoderLayer"]


class Embedding(Module):
    """A vector that is learned for each of several tokens.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
        How many tokens there are, V, and features of each, E.
    rng : Generator, int or None
        Source of the weight, normal with standard deviation 1 as PyTorch's.
    dtype : {float32, float64}

    Attributes
    ----------
    weight : Parameter, shape (V, E)
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        rng: np.random.Generator | int | None = None,
        dtype: Any = np.float32,
    ) -> None:
        shape = positive(num_embeddings, "num_embeddings"), positive(embedding_dim, "embedding_dim")
        self.weight = Parameter(initialize(1.0, shape, rng, dtype))

    def forward(self, x: Any) -> Tensor:
        """Map tokens (...) to their vectors (..., E).

        Tokens are an array of integers; a Tensor, as in a `Sequential`, has them as whole numbers.
        A token outside of [0, V), or between two, is an ArgumentError.
        """
        tokens = x.data if isinstance(x, Tensor) else x
        V, device = len(self.weight), self.weight.device
        if not isinstance(x, Tensor):
            checks.integers(tokens, "tokens")
        checks.on_device(tokens, device, "tokens")
        if tokens.dtype.kind == "f":
            index = backend.empty(tokens.shape, np.int64, device)
            backend.run(_whole, tokens, index)
        else:
            index = backend.contiguous(tokens, np.dtype(np.int64))
        bad = backend.empty(1, np.int64, device, lasting=True)
        find = backend.kernels("softmax", device).first_bad_label
        # Nothing is ignored: 0 is a token.
        backend.run(find, index.reshape(-1), V, 0, bad)
        backend.verify(bad, _bad_token, tokens, V)
        return self.weight[index]

    def __call__(self, x: Any) -> Tensor:
        """Apply `forward` to an array of integers, or a Tensor."""
        return self.forward(x)

    def __repr__(self) -> str:
        return "Embedding({}, {})".format(*self.weight.shape)


def _whole(tokens: Any, index: Any) -> None:
    """Write tokens to an array of integers: -1, which is none, for a number that is not whole."""
    with np.errstate(invalid="ignore"):
        index[...] = np.where(np.floor(tokens) == tokens, tokens, -1)


def _bad_token(position: int, tokens: Any, V: int) -> None:
    found = backend.host(tokens).reshape(-1)[position]
    raise ArgumentError(
        f"tokens must lie in [0, {V}), one for each embedding; got {found:g} at position {position}"
    )


class PositionalEmbedding(Module):
    """Add to each step a vector for its position: learned, or sines and cosines.

    The latter, feature 2 i of position t being ``sin(t / 10000^(2 i / E))`` and feature 2 i + 1 its
    cosine, are those of Vaswani et al.

    Parameters
    ----------
    max_steps, features : int
        The longest sequence, and E.
    learned : bool, default True
    rng : Generator, int or None
        Source of a weight that is learned, normal with standard deviation 0.02.
    dtype : {float32, float64}

    Attributes
    ----------
    weight : Parameter, shape (max_steps, E), or None
    table : ndarray, shape (max_steps, E), or None

    References
    ----------
    Vaswani et al., "Attention Is All You Need" (2017), arXiv:1706.03762.
    """

    buffers = ("table",)
    takes_rows = False

    def __init__(
        self,
        max_steps: int,
        features: int,
        *,
        learned: bool = True,
        rng: np.random.Generator | int | None = None,
        dtype: Any = np.float32,
    ) -> None:
        shape = positive(max_steps, "max_steps"), positive(features, "features")
        rng, dtype = generator(rng), float_type(dtype)
        self.weight: Parameter | None = None
        self.table: np.ndarray | None = None
        if switch(learned, "learned"):
            self.weight = Parameter(initialize(0.02, shape, rng, dtype))
            return
        possible(shape, dtype, "a table of positions")
        pairs = np.arange(shape[1])
        angles = np.arange(shape[0])[:, None] / 10000.0 ** ((pairs - pairs % 2) / shape[1])
        self.table = np.where(pairs % 2, np.cos(angles), np.sin(angles)).astype(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Add the positions to x (..., T, E)."""
        positions: Any = self.table if self.weight is None else self.weight
        steps, features = positions.shape
        if x.ndim < 2 or x.shape[-1] != features or x.shape[-2] > steps:
            raise ShapeError(
                f"{self!r} takes x of shape (..., T, {features}) with T <= {steps}, got {x.shape}"
                + checks.rows_advice(x.shape, f"T, {features}")
            )
        y: Tensor = x + positions[: x.shape[-2]]
        return y

    def __repr__(self) -> str:
        positions: Any = self.table if self.weight is None else self.weight
        return f"PositionalEmbedding({positions.shape[0]}, {positions.shape[1]})"


class MultiheadAttention(Module):
    """Attention of several heads, ``softmax(q k.T / sqrt(E / heads)) v`` of each, as PyTorch's.

    Parameters
    ----------
    embed_dim : int
        Features E of a step.
    num_heads : int
        A divisor of E.
    bias : bool, default True
    dropout : float, default 0
        Probability of zeroing a weight of the attention in training.
    causal : bool, default False
        No step attends to a later one.
    rng : Generator, int or None
        Source of weights and masks.
    dtype : {float32, float64}

    Attributes
    ----------
    in_proj_weight : Parameter, shape (3 E, E)
        For queries, keys and values, one below the other.
    in_proj_bias : Parameter, shape (3 E,), or None
    out_proj : Dense

    References
    ----------
    Vaswani et al., "Attention Is All You Need" (2017), arXiv:1706.03762.
    """

    takes_rows = False

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        bias: bool = True,
        dropout: float = 0.0,
        causal: bool = False,
        rng: np.random.Generator | int | None = None,
        dtype: Any = np.float32,
    ) -> None:
        E, self.num_heads = positive(embed_dim, "embed_dim"), positive(num_heads, "num_heads")
        if E % self.num_heads:
            raise ArgumentError(
                f"num_heads must divide embed_dim, got {num_heads} heads for {embed_dim} features"
            )
        rng, bias, self.causal = generator(rng), switch(bias, "bias"), switch(causal, "causal")
        self.dropout = fraction(dropout, "dropout")
        self.rng = rng
        self.in_proj_weight = Parameter(initialize("glorot_uniform", (3 * E, E), rng, dtype))
        self.in_proj_bias = Parameter(np.zeros(3 * E, float_type(dtype))) if bias else None
        self.out_proj = Dense(E, E, bias=bias, init="glorot_uniform", rng=rng, dtype=dtype)

    def forward(
        self,
        x: Tensor,
        key: Any = None,
        value: Any = None,
        *,
        mask: np.ndarray | None = None,
        lengths: np.ndarray | None = None,
    ) -> Tensor:
        """Map queries x (N, T, E) to (N, T, E); the rest is that of `with_weights`."""
        return self.with_weights(x, key, value, mask=mask, lengths=lengths)[0]

    def with_weights(
        self,
        x: Any,
        key: Any = None,
        value: Any = None,
        *,
        mask: np.ndarray | None = None,
        lengths: np.ndarray | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the output and the weights of the attention.

        Parameters
        ----------
        x : Tensor or ndarray, shape (N, T, E)
            Queries.
        key : Tensor or ndarray, shape (N, S, E), optional
            What they attend to: by default `x` itself.
        value : Tensor or ndarray, shape (N, S, E), optional
            By default `key`.
        mask : ndarray of bool, shape (T, S) or (N, T, S), optional
            Where a step may attend to another: True is what PyTorch's masks call False.
        lengths : ndarray of int, shape (N,), optional
            How many of the S keys there are in each sequence, from 1 on.

        Returns
        -------
        y : Tensor, shape (N, T, E)
        weights : Tensor, shape (N, heads, T, S)

        Raises
        ------
        ShapeError, DTypeError, ArgumentError
            Operands that do not fit together; a step that may attend to nothing.
        """
        x = as_tensor(x)
        E = self.out_proj.weight.shape[0]
        if key is None and value is not None:
            raise ArgumentError("value needs a key: pass both")
        key = x if key is None else as_tensor(key)
        value = key if value is None else as_tensor(value)
        for name, tensor in (("x", x), ("key", key), ("value", value)):
            if tensor.ndim != 3 or tensor.shape[::2] != (x.shape[0], E):
                expected = "T" if name == "x" else "S"
                raise ShapeError(
                    f"{name} must have shape (N, {expected}, {E}), with one N, got {tensor.shape}"
                    + checks.rows_advice(tensor.shape, f"{expected}, {E}")
                )
        if value.shape != key.shape:
            raise ShapeError(f"value must have key's shape {key.shape}, got {value.shape}")
        q, k, v = map(self._heads, self._projected(x, key, value))
        scores = (q * (1.0 / math.sqrt(E // self.num_heads))) @ k.transpose(0, 1, 3, 2)
        allowed = self._allowed(scores, mask, lengths)
        if allowed is not None:
            scores = ops.where(allowed, scores, -math.inf)
        weights = ops.softmax(scores)
        kept = weights
        if self.training and self.dropout:
            kept = ops.dropout(weights, self.dropout, self.rng)
        y = (kept @ v).transpose(0, 2, 1, 3).reshape(x.shape)
        return self.out_proj(y), weights

    def _projected(self, x: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Return queries, keys and values; by one product where all come from one."""
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if key is x and value is x:
            return ops.split(ops.linear(x, weight, bias), 3, 2)
        biases = [None] * 3 if bias is None else ops.split(bias, 3)
        return [
            ops.linear(*operands)
            for operands in zip((x, key, value), ops.split(weight, 3), biases, strict=True)
        ]

    def _heads(self, x: Tensor) -> Tensor:
        """Bring x (N, T, E) into (N, heads, T, E / heads)."""
        N, T, E = x.shape
        return x.reshape(N, T, self.num_heads, E // self.num_heads).transpose(0, 2, 1, 3)

    def _allowed(self, scores: Tensor, mask: Any, lengths: Any) -> Any:
        """Where scores (N, heads, T, S) count; None for everywhere."""
        N, _, T, S = scores.shape
        masks: list[Any] = [np.tri(T, S, dtype=bool)] if self.causal else []
        if mask is None and lengths is None:
            # It follows from shapes alone.
            return backend.constant(backend.to(masks[0], scores.device)) if masks else None
        if mask is not None:
            if not backend.is_array(mask) or mask.dtype != np.bool_:
                found = getattr(mask, "dtype", type(mask).__name__)
                raise DTypeError(f"mask must be an array of bool, True where allowed, got {found}")
            if mask.shape not in ((T, S), (N, T, S)):
                raise ShapeError(f"mask must have shape {(T, S)} or {(N, T, S)}, got {mask.shape}")
            masks.append(backend.host(mask).reshape(-1, 1, T, S))
        if lengths is not None:
            known = backend.host(checked_lengths(lengths, S, N, "cpu"))
            masks.append((np.arange(S) < known[:, None])[:, None, None])
        allowed = functools.reduce(np.logical_and, masks)
        if not allowed.any(-1).all():
            raise ArgumentError(
                "mask leaves a step nothing to attend to: allow it one, itself for example, and "
                "leave it out of the loss"
            )
        return backend.to(allowed, scores.device)

    def __call__(self, x: Any, key: Any = None, value: Any = None, **masks: Any) -> Tensor:
        """Apply `forward` to Tensors or arrays."""
        return self.forward(as_tensor(x), key, value, **masks)

    def __repr__(self) -> str:
        causal = ", causal=True" if self.causal else ""
        return f"MultiheadAttention({len(self.out_proj.weight)}, {self.num_heads}{causal})"


class TransformerEncoderLayer(Module):
    """Self-attention and two Dense layers, each with a residual and a LayerNorm, as PyTorch's.

    Otherwise as `MultiheadAttention`.

    Parameters
    ----------
    d_model, nhead : int
        Features of a step, and heads of the attention.
    dim_feedforward : int, default 2048
        Features between the two Dense layers.
    dropout : float, default 0.1
        For the attention, between the Dense layers, and before both residuals.
    activation : Module, optional
        Between the Dense layers: ReLU by default.
    norm_first : bool, default False
        Normalize what goes into the attention and the Dense layers, not what comes out.
    eps : float, default 1e-5
        Of the layer norms.

    Attributes
    ----------
    self_attn : MultiheadAttention
    linear1, linear2 : Dense
    norm1, norm2 : LayerNorm
    """

    takes_rows = False

    def __init__(
        self,
        d_model: int,
        nhead: int,
        *,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Module | None = None,
        norm_first: bool = False,
        causal: bool = False,
        eps: float = 1e-5,
        rng: np.random.Generator | int | None = None,
        dtype: Any = np.float32,
    ) -> None:
        rng = generator(rng)
        self.norm_first = switch(norm_first, "norm_first")
        self.self_attn = MultiheadAttention(
            d_model, nhead, dropout=dropout, causal=causal, rng=rng, dtype=dtype
        )
        options: Any = {"init": "glorot_uniform", "rng": rng, "dtype": dtype}
        self.linear1 = Dense(d_model, dim_feedforward, **options)
        self.linear2 = Dense(dim_feedforward, d_model, **options)
        self.norm1 = LayerNorm(d_model, eps=eps, dtype=dtype)
        self.norm2 = LayerNorm(d_model, eps=eps, dtype=dtype)
        if activation is not None:
            instance(activation, Module, "activation")
        self.activation = ReLU() if activation is None else activation
        self.dropout = Dropout(dropout, rng=rng)

    def forward(
        self, x: Tensor, *, mask: np.ndarray | None = None, lengths: np.ndarray | None = None
    ) -> Tensor:
        """Map x (N, T, d_model) to the same shape; masks are those of `MultiheadAttention`."""
        masks = {"mask": mask, "lengths": lengths}
        if self.norm_first:
            x = x + self.dropout(self.self_attn(self.norm1(x), **masks))
            return x + self.dropout(self._feed(self.norm2(x)))
        x = self.norm1(x + self.dropout(self.self_attn(x, **masks)))
        return self.norm2(x + self.dropout(self._feed(x)))

    def _feed(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(self.activation(self.linear1(x))))

    def __call__(self, x: Any, **masks: Any) -> Tensor:
        """Apply `forward` to a Tensor or an array."""
        return self.forward(as_tensor(x), **masks)

    def __repr__(self) -> str:
        attention, first = self.self_attn, ", norm_first=True" if self.norm_first else ""
        size = len(attention.out_proj.weight)
        return f"TransformerEncoderLayer({size}, {attention.num_heads}{first})"
