"""Recurrent layers, whose weights are PyTorch's, and normalization inside of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from .. import backend
from .._validation import choice, float_type, fraction, generator, positive, possible, real, switch
from ..autograd import functions as ops
from ..autograd.tensor import Parameter, Tensor, as_tensor
from ..errors import ArgumentError, DTypeError, ShapeError
from ..functional import checks, update_running_stats
from ..functional.recurrent import KINDS, checked_lengths
from .groupnorm import LayerNorm
from .module import Module

__all__ = ["GRU", "LSTM", "RNN", "StepBatchNorm"]

State = Tensor | tuple[Tensor, Tensor]


class Direction(Module):
    """One direction of one layer: its weights, and how it runs over (T, N, F)."""

    def __init__(
        self, kind: str, sizes: tuple[int, int], reverse: bool, bias: bool,
        rng: np.random.Generator, dtype: Any,
    ) -> None:  # fmt: skip
        inputs, hidden = sizes
        self.kind, self.reverse = kind, reverse
        gates = KINDS[kind].gates * hidden

        def draw(*shape: int) -> Parameter:
            possible(shape, dtype, "a recurrent layer with a weight")
            bound = 1 / math.sqrt(hidden)
            return Parameter(rng.uniform(-bound, bound, shape).astype(dtype))

        self.weight_ih, self.weight_hh = draw(gates, inputs), draw(gates, hidden)
        self.bias_ih = draw(gates) if bias else None
        self.bias_hh = draw(gates) if bias else None

    def run(
        self, x: Tensor, initial: Tensor | None, lengths: np.ndarray | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the hidden states (T, N, H) and the last states, each (N, H)."""
        bias: Tensor | None = self.bias_ih
        inside = self.bias_hh
        if bias is not None and inside is not None and self.kind != "gru":
            # The two only ever add up; a GRU's gate n scales the second.
            bias, inside = bias + inside, None
        states = ops.recurrent(
            ops.linear(x, self.weight_ih, bias), self.weight_hh, inside, initial,
            kind=self.kind, lengths=lengths, reverse=self.reverse,
        )  # fmt: skip
        every, last = (slice(-1), 0) if self.reverse else (slice(1, None), -1)
        return states[0, every], [states[s, last] for s in range(len(states))]


class Recurrent(Module):
    """What the recurrent layers share: `LSTM`, `GRU` and `RNN` say which cells they have.

    Parameters
    ----------
    input_size, hidden_size : int
        Features of a step F, and hidden units H.
    num_layers : int, default 1
        Layers one on the other.
    bias : bool, default True
    bidirectional : bool, default False
        Run over the steps in both orders, and put the results side by side.
    last : bool, default False
        Return the hidden state after the last step instead of all of them, for a classifier.
    rng : Generator, int or None
        Source of the weights, uniform in +-1 / sqrt(H) as PyTorch's.
    dtype : {float32, float64}

    Attributes
    ----------
    cells : tuple of Module
        The directions of all layers, with `weight_ih` (G * H, F), `weight_hh` (G * H, H),
        `bias_ih` and `bias_hh` (G * H,) for G gates. The state dict calls them as PyTorch does:
        "weight_ih_l0", "weight_ih_l0_reverse", "weight_ih_l1".
    """

    kind: str
    takes_rows = False

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        num_layers: int = 1,
        bias: bool = True,
        bidirectional: bool = False,
        last: bool = False,
        rng: np.random.Generator | int | None = None,
        dtype: Any = np.float32,
    ) -> None:
        self.input_size = positive(input_size, "input_size")
        self.hidden_size = positive(hidden_size, "hidden_size")
        self.num_layers = positive(num_layers, "num_layers")
        self.bidirectional = switch(bidirectional, "bidirectional")
        self.last = switch(last, "last")
        bias, rng, dtype = switch(bias, "bias"), generator(rng), float_type(dtype)
        self.directions = 2 if self.bidirectional else 1
        wide = self.directions * self.hidden_size
        self.cells = tuple(
            self._direction((wide if layer else self.input_size, self.hidden_size), bool(reverse),
                            bias, rng, dtype)
            for layer in range(self.num_layers)
            for reverse in range(self.directions)
        )  # fmt: skip

    def _direction(self, sizes: tuple[int, int], *rest: Any) -> Direction:
        return Direction(self.kind, sizes, *rest)

    def _suffixes(self) -> list[str]:
        ends = ("", "_reverse")[: self.directions]
        return [f"_l{layer}{end}" for layer in range(self.num_layers) for end in ends]

    def children(self) -> Iterator[tuple[str, Module]]:
        """Directions of all layers, named by PyTorch's suffix."""
        yield from zip(self._suffixes(), self.cells, strict=True)

    def _state(self, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
        for suffix, cell in self.children():
            for name, array in cell._state():
                head, dot, rest = name.partition(".")
                yield f"{prefix}{head}{suffix}{dot}{rest}", array

    def forward(self, x: Tensor, initial: Any = None, lengths: np.ndarray | None = None) -> Tensor:
        """Map x (N, T, F) to hidden states (N, T, D * H) in D directions, or the last (N, D * H).

        `initial` and `lengths` are those of `with_state`.
        """
        y, ends = self._run(x, initial, lengths)
        if not self.last:
            return y.transpose(1, 0, 2)
        return _beside([end[0] for end in ends[-self.directions :]])

    def with_state(
        self, x: Tensor | np.ndarray, initial: Any = None, lengths: np.ndarray | None = None
    ) -> tuple[Tensor, State]:
        """Return the hidden states after all steps, and the last state of each direction.

        Parameters
        ----------
        x : Tensor or ndarray, shape (N, T, F)
        initial : Tensor or ndarray, shape (L * D, N, H), optional
            State to start from, for each of L layers its D directions; zeros by default. An LSTM
            takes a pair, hidden and cell state.
        lengths : ndarray of int, shape (N,), optional
            Steps of each sequence, from 1 to T. Hidden states beyond them are 0, the last state is
            that of the sequence's own last step; in reverse it starts there.

        Returns
        -------
        y : Tensor, shape (N, T, D * H)
        state : Tensor, shape (L * D, N, H), or a pair of them
            As `initial`.

        Raises
        ------
        ShapeError, DTypeError, ArgumentError
            Operands that do not fit together, lengths out of range.
        """
        y, ends = self._run(as_tensor(x), initial, lengths)
        states = [ops.stack(several) for several in zip(*ends, strict=True)]
        return y.transpose(1, 0, 2), (states[0], states[1]) if len(states) > 1 else states[0]

    def _run(
        self, x: Tensor, initial: Any, lengths: np.ndarray | None
    ) -> tuple[Tensor, list[list[Tensor]]]:
        """Return the hidden states (T, N, D * H), and the last states of all directions."""
        if x.ndim != 3 or x.shape[2] != self.input_size or not x.shape[1]:
            raise ShapeError(
                f"{self!r} takes x of shape (N, T, {self.input_size}) with T >= 1 steps, "
                f"got {x.shape}" + checks.rows_advice(x.shape, f"T, {self.input_size}")
            )
        N, T, _ = x.shape
        starts = self._starts(initial, N)
        runs = None
        if lengths is not None:
            lengths = checked_lengths(lengths, T, N, x.device)
            steps = backend.to(np.arange(T)[:, None, None], x.device)
            runs = steps < lengths[:, None]
        y, ends = x.transpose(1, 0, 2), []
        for layer in range(self.num_layers):
            own = slice(layer * self.directions, (layer + 1) * self.directions)
            parts = []
            for cell, start in zip(self.cells[own], starts[own], strict=True):
                part, end = cell.run(y, start, lengths)
                parts.append(part if runs is None else ops.where(runs, part, 0.0))
                ends.append(end)
            y = _beside(parts)
        return y, ends

    def _starts(self, initial: Any, N: int) -> list[Any]:
        """Return the initial states of each direction, (S, N, H), or None."""
        count = len(self.cells)
        if initial is None:
            return [None] * count
        several, S = initial, KINDS[self.kind].states
        if S == 1:
            several = (initial,)
        if not isinstance(several, tuple | list) or len(several) != S:
            raise DTypeError(
                "the initial state of an LSTM is a pair, hidden and cell state, "
                f"got {type(initial).__name__}"
            )
        shape = (count, N, self.hidden_size)
        tensors = [as_tensor(x) for x in several]
        for x in tensors:
            if x.shape != shape:
                raise ShapeError(f"the initial state must have shape {shape}, got {x.shape}")
        return [ops.stack([x[k] for x in tensors]) for k in range(count)]

    def __call__(
        self, x: Tensor | np.ndarray, initial: Any = None, lengths: np.ndarray | None = None
    ) -> Tensor:
        """Apply `forward` to a Tensor or an array."""
        return self.forward(as_tensor(x), initial, lengths)

    def __repr__(self) -> str:
        layers = f", num_layers={self.num_layers}" if self.num_layers > 1 else ""
        both = ", bidirectional=True" if self.bidirectional else ""
        return f"{type(self).__name__}({self.input_size}, {self.hidden_size}{layers}{both})"


def _beside(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else ops.concatenate(parts, -1)


class GRU(Recurrent):
    """Gated recurrent units, as PyTorch's (and Keras' with reset_after=True).

    Otherwise as `nbbn.nn.recurrent.Recurrent`.
    """

    kind = "gru"


class RNN(Recurrent):
    """Elman networks, ``h' = tanh(W x + U h + b)``.

    Parameters
    ----------
    input_size, hidden_size : int
    nonlinearity : {"tanh", "relu"}, default "tanh"
    **options
        As of `Recurrent`.
    """

    def __init__(
        self, input_size: int, hidden_size: int, *, nonlinearity: str = "tanh", **options: Any
    ) -> None:
        self.kind = choice(nonlinearity, ("tanh", "relu"), "nonlinearity")
        super().__init__(input_size, hidden_size, **options)


class LSTM(Recurrent):
    """Long short-term memory, as PyTorch's; on request with normalization in the recurrence.

    With ``normalization="batch"`` it is that of Cooijmans et al.: the products of the input and of
    the hidden state are normalized apart, by statistics of each step, and so is the cell state that
    the output looks at. ``"layer"`` normalizes the same three over the units of an example. All
    scales start at 0.1, so that tanh does not saturate; the products have no shift of their own.

    Parameters
    ----------
    input_size, hidden_size : int
    normalization : {None, "batch", "layer"}, default None
    max_steps : int, default 100
        Steps that have running statistics of their own; later steps have the last one's.
    **options
        As of `Recurrent`.

    References
    ----------
    Cooijmans et al., "Recurrent Batch Normalization" (2016), arXiv:1603.09025. Ba, Kiros and
    Hinton, "Layer Normalization" (2016), arXiv:1607.06450.
    """

    kind = "lstm"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        normalization: str | None = None,
        max_steps: int = 100,
        **options: Any,
    ) -> None:
        self.normalization = choice(normalization, (None, "batch", "layer"), "normalization")
        self.max_steps = positive(max_steps, "max_steps")
        super().__init__(input_size, hidden_size, **options)

    def _direction(self, sizes: tuple[int, int], *rest: Any) -> Direction:
        if self.normalization is None:
            return super()._direction(sizes, *rest)
        return NormalizedDirection(self.normalization, self.max_steps, sizes, *rest)


class NormalizedDirection(Direction):
    """A direction of an LSTM with normalization, step by step."""

    def __init__(
        self, normalization: str, max_steps: int, sizes: tuple[int, int], reverse: bool, bias: bool,
        rng: np.random.Generator, dtype: Any,
    ) -> None:  # fmt: skip
        super().__init__("lstm", sizes, reverse, bias, rng, dtype)

        def norm(channels: int, shift: bool) -> StepNorm:
            if normalization == "batch":
                return StepBatchNorm(channels, max_steps, shift=shift, dtype=dtype)
            return StepLayerNorm(channels, shift=shift, dtype=dtype)

        hidden = sizes[1]
        self.norm_ih, self.norm_hh = norm(4 * hidden, False), norm(4 * hidden, False)
        self.norm_cell = norm(hidden, True)

    def run(
        self, x: Tensor, initial: Tensor | None, lengths: np.ndarray | None
    ) -> tuple[Tensor, list[Tensor]]:
        """As of `Direction`."""
        T, N, _ = x.shape
        H = self.weight_hh.shape[1]
        if initial is None:
            initial = Tensor(backend.zeros((2, N, H), x.dtype, x.device))
        h, c = initial[0], initial[1]
        bias = None if self.bias_ih is None else self.bias_ih + self.bias_hh
        y: list[Any] = [None] * T
        for step, t in enumerate(reversed(range(T)) if self.reverse else range(T)):
            runs = None if lengths is None else lengths > t
            gates = self.norm_ih.at(step, ops.linear(x[t], self.weight_ih), runs)
            gates = gates + self.norm_hh.at(step, ops.linear(h, self.weight_hh), runs)
            gates = gates if bias is None else gates + bias
            opened = ops.sigmoid(gates)
            i, f, o = (opened[:, k * H : (k + 1) * H] for k in (0, 1, 3))
            cell = f * c + i * ops.tanh(gates[:, 2 * H : 3 * H])
            hidden = o * ops.tanh(self.norm_cell.at(step, cell, runs))
            if runs is None:
                h, c = hidden, cell
            else:
                h, c = (ops.where(runs[:, None], a, b) for a, b in ((hidden, h), (cell, c)))
            y[t] = h
        return ops.stack(y), [h, c]


class StepBatchNorm(Module):
    """Batch normalization with statistics of its own for each of several steps.

    Scale and shift are those of all steps. Running variances are biased; a batch of one example is
    normalized to the shift. The running statistics start from nothing and not from 0 and 1, from
    which a small variance would be far for long: the k-th batch of a step has the weight
    ``a / (1 - (1 - a)**k)`` with a the momentum.

    Parameters
    ----------
    channels : int
    max_steps : int
        Later steps use, and move, the statistics of the last one.
    scale : float, default 0.1
        Where gamma starts.
    shift : bool, default True
        Learn beta.
    eps : float, default 1e-2
        More than a BatchNorm's. At a step where nearly all examples are equal, what a running mean
        is off by is divided by little more than sqrt(eps), for all of them, and goes on from there.
    momentum : float, default 0.1
        Weight of a batch in the running statistics, once there are many.
    dtype : {float32, float64}

    Attributes
    ----------
    gamma, beta : Parameter, shape (C,); beta may be None
        "weight" and "bias" in the state dict.
    running_mean, running_var : ndarray, shape (max_steps, C)
    num_batches_tracked : ndarray of int64, shape (max_steps,)
    """

    buffers = ("running_mean", "running_var", "num_batches_tracked")
    host_buffers = ("num_batches_tracked",)
    state_names: ClassVar[Mapping[str, str]] = {"gamma": "weight", "beta": "bias"}

    def __init__(
        self,
        channels: int,
        max_steps: int,
        *,
        scale: float = 0.1,
        shift: bool = True,
        eps: float = 1e-2,
        momentum: float = 0.1,
        dtype: Any = np.float32,
    ) -> None:
        shape = positive(max_steps, "max_steps"), positive(channels, "channels")
        dtype = float_type(dtype)
        possible(shape, dtype, "running statistics")
        self.gamma = Parameter(np.full(shape[1], real(scale, "scale"), dtype))
        self.beta = Parameter(np.zeros(shape[1], dtype)) if switch(shift, "shift") else None
        self.eps = checks.epsilon(eps, zero_allowed=False)
        self.momentum = fraction(momentum, "momentum")
        if not self.momentum:
            raise ArgumentError("momentum 0 never gives the running statistics a value")
        self.running_mean, self.running_var = np.zeros(shape, dtype), np.ones(shape, dtype)
        self.num_batches_tracked = np.zeros(shape[0], np.int64)

    def at(self, step: int, x: Tensor, weights: np.ndarray | None = None) -> Tensor:
        """Normalize `x` (N, C) of a step; in training `weights`, a mask, weigh its examples."""
        row = min(step, len(self.running_mean) - 1)
        mean, var = self.running_mean[row], self.running_var[row]
        if not self.training:
            return ops.batch_norm_infer(x, mean, var, self.gamma, self.beta, eps=self.eps)
        stats: Any
        if weights is None:
            y, stats = ops.batch_norm_train(x, self.gamma, self.beta, eps=self.eps, single=True)
        else:
            y, stats = ops.weighted_batch_norm(
                x, weights, self.gamma, self.beta, eps=self.eps, single=True
            )
        weight: Any = backend.empty((), np.float64)
        backend.run(_count, self.num_batches_tracked[row:], self.momentum, weight)
        update_running_stats(mean, var, stats, momentum=weight, unbiased=False)
        return y

    def forward(self, x: Tensor) -> Tensor:
        """Normalize as in the first step."""
        return self.at(0, x)

    def __repr__(self) -> str:
        steps, channels = self.running_mean.shape
        return f"StepBatchNorm({channels}, {steps})"


def _count(counter: np.ndarray, momentum: float, weight: np.ndarray) -> None:
    """Count a batch in the first place, and write its weight."""
    counter[0] += 1
    # Rounding must not carry the first weight, which is 1, beyond it.
    weight[...] = min(momentum / (1.0 - (1.0 - momentum) ** int(counter[0])), 1.0)


class StepLayerNorm(LayerNorm):
    """Layer normalization whose scale starts at 0.1, the same in every step."""

    def __init__(self, channels: int, *, shift: bool, dtype: Any) -> None:
        super().__init__(channels, shift=shift, dtype=dtype)
        assert self.gamma is not None
        self.gamma.data[...] = 0.1

    def at(self, step: int, x: Tensor, weights: np.ndarray | None = None) -> Tensor:
        """As of `StepBatchNorm`; neither the step nor other examples matter."""
        return self.forward(x)


StepNorm = StepBatchNorm | StepLayerNorm
