"""Recurrent networks on NumPy arrays: one direction of one layer, forward and back through time.

Arrays have the time first: T steps of N sequences, H hidden units. The input's products of all
steps come in as one array, `projected` = x @ w_ih.T + b_ih. The gates of a cell lie side by side,
in PyTorch's order. By `kind`, with s the logistic function and p the product of the state before
with `weight`, plus `bias`:

- "lstm", gates i, f, g, o and a cell state c: c' = s(f) c + s(i) tanh(g), h' = s(o) tanh(c');
- "gru", gates r, z, n: h' = (1 - z) n + z h with n = tanh(x_n + r p_n), the others s(x + p);
- "tanh" and "relu", one gate: h' = tanh(x + p), or max(x + p, 0).

Hochreiter and Schmidhuber, "Long Short-Term Memory" (1997); Cho et al., "Learning Phrase
Representations using RNN Encoder-Decoder" (2014), arXiv:1406.1078.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import backend
from .._validation import choice, switch
from ..errors import ArgumentError, DTypeError, ShapeError
from . import checks
from ._kind import in_kind

__all__ = ["RecurrentGradients", "RecurrentStates", "recurrent", "recurrent_backward"]


class _Kind(NamedTuple):
    gates: int
    states: int
    # Of how many arrays (N, H) the backward needs what the forward computed in a step.
    saved: int


KINDS = {"lstm": _Kind(4, 2, 4), "gru": _Kind(3, 1, 4), "tanh": _Kind(1, 1, 0),
         "relu": _Kind(1, 1, 0)}  # fmt: skip


class RecurrentStates(NamedTuple):
    """What `recurrent` returns.

    Attributes
    ----------
    states : ndarray, shape (S, T + 1, N, H)
        Hidden states, and of an LSTM the cell states (S = 2): the initial one, then that after each
        step; the initial one last where the steps go in reverse.
    saved : ndarray, shape (T, N, K)
        Activated gates, for the backward.
    """

    states: np.ndarray
    saved: np.ndarray


class RecurrentGradients(NamedTuple):
    """What `recurrent_backward` returns: the gradient of each operand, None for no bias.

    Attributes
    ----------
    projected : ndarray, shape (T, N, G * H)
    weight : ndarray, shape (G * H, H)
    bias : ndarray, shape (G * H,), or None
    initial : ndarray, shape (S, N, H)
    """

    projected: np.ndarray
    weight: np.ndarray
    bias: np.ndarray | None
    initial: np.ndarray


@in_kind
def recurrent(
    projected: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    initial: np.ndarray | None = None,
    *,
    kind: str,
    lengths: np.ndarray | None = None,
    reverse: bool = False,
) -> RecurrentStates:
    """Run one direction of a recurrent layer over all time steps.

    Parameters
    ----------
    projected : ndarray of float, shape (T, N, G * H)
        The input's products, see above; G gates.
    weight : ndarray of float, shape (G * H, H)
        What the hidden state is multiplied with, PyTorch's weight_hh.
    bias : ndarray of float, shape (G * H,), optional
        Added to that product, PyTorch's bias_hh.
    initial : ndarray of float, shape (S, N, H), optional
        State to start from, zeros by default: hidden, and of an LSTM the cell's (S = 2).
    kind : {"lstm", "gru", "tanh", "relu"}
    lengths : ndarray of int, shape (N,), optional
        Steps of each sequence, from 1 to T, which is the default. Beyond them a sequence keeps its
        state; in reverse it starts at its own last step.
    reverse : bool, default False
        From the last step to the first.

    Returns
    -------
    RecurrentStates
        In the type that `projected` computes in: float32 for float16.

    Raises
    ------
    DTypeError, ShapeError, ArgumentError
        Operands that do not fit together, lengths out of range, an unknown kind.
    """
    run = _Run(kind, weight, lengths, reverse, np.shape(projected), projected)
    states = run.empty(run.kind.states, run.T + 1)
    saved = backend.empty((run.T, run.N, run.kind.saved * run.H), run.dtype, run.device)
    first = run.T if reverse else 0
    if initial is not None:
        checks.floating(initial, "initial")
        checks.on_device(initial, run.device, "initial")
        if initial.shape != (run.kind.states, run.N, run.H):
            raise ShapeError(
                f"initial must have shape {(run.kind.states, run.N, run.H)}, a state of {kind} for "
                f"each sequence, got {initial.shape}"
            )
    backend.run(np.copyto, states[:, first], 0 if initial is None else initial, "unsafe")
    bias = checks.channel_vector(bias, run.gates, run.dtype, "bias", run.device)
    projected = backend.contiguous(projected, run.dtype)
    product = backend.empty((run.N, run.gates), run.dtype, run.device)
    turned = backend.contiguous(run.weight.T, run.dtype)
    step = getattr(run.kernels, f"{kind}_step")
    add_bias = backend.kernels("elementwise", run.device).add_bias
    for t, before, after in run.steps() if run.N else ():
        backend.matmul(states[0, before], turned, product)
        if bias.size:
            backend.run(add_bias, product, bias, product)
        backend.run(
            step, projected[t], product, *states[:, before], run.lengths, t, saved[t],
            *states[:, after],
        )  # fmt: skip
    return RecurrentStates(states, saved)


@in_kind
def recurrent_backward(
    dstates: np.ndarray,
    weight: np.ndarray,
    states: RecurrentStates,
    bias: np.ndarray | None = None,
    *,
    kind: str,
    lengths: np.ndarray | None = None,
    reverse: bool = False,
) -> RecurrentGradients:
    """Gradient of `recurrent`, back through time. Otherwise as `recurrent`.

    Parameters
    ----------
    dstates : ndarray of float, shape (S, T + 1, N, H)
        Gradient of the loss with respect to all states.
    states : RecurrentStates
        What the forward returned.

    Returns
    -------
    RecurrentGradients
    """
    if not isinstance(states, RecurrentStates):
        raise DTypeError(f"states must be RecurrentStates, got {type(states).__name__}")
    checks.floating(states.states, "states")
    shape = states.states.shape
    gates = np.shape(weight)[0] if np.ndim(weight) else 0
    sizes = (shape[1] - 1, shape[2], gates) if len(shape) == 4 else shape
    run = _Run(kind, weight, lengths, reverse, sizes, states.states)
    N, own = run.N, run.kind
    expected = (own.states, run.T + 1, N, run.H), (run.T, N, own.saved * run.H)
    if (shape, np.shape(states.saved)) != expected:
        raise ShapeError(
            f"states of {kind} for this weight must have shapes {expected[0]} and {expected[1]}, "
            f"got {shape} and {np.shape(states.saved)}"
        )
    checks.same_shape(states.saved, states.saved, "saved")
    checks.same_shape(dstates, states.states, "dstates", like="the states")
    checks.channel_vector(bias, run.gates, run.dtype, "bias", run.device)
    dstates, outputs, saved = (backend.contiguous(a, run.dtype) for a in (dstates, *states))
    dgates = backend.empty((run.T, N, run.gates), run.dtype, run.device)
    dproducts = backend.empty(dgates.shape, run.dtype, run.device) if kind == "gru" else dgates
    product, carried = run.empty(), run.empty(run.kind.states)
    for array in (product, carried):
        backend.run(np.copyto, array, 0)
    step = getattr(run.kernels, f"{kind}_step_backward")
    for t, before, after in reversed(run.steps()) if N else ():
        targets = (dgates[t], dproducts[t]) if kind == "gru" else (dgates[t],)
        backend.run(
            step, *dstates[:, after], product, saved[t], *outputs[:, before], *outputs[:, after],
            run.lengths, t, *carried, *targets,
        )  # fmt: skip
        backend.matmul(dproducts[t], run.weight, product)
    first = run.T if reverse else 0
    backend.run(np.add, carried[0], product, carried[0])
    backend.run(np.add, carried, dstates[:, first], carried)
    dweight = backend.empty(run.weight.shape, run.dtype, run.device)
    rows = dproducts.reshape(run.T * N, run.gates)
    hidden = outputs[0, 1:] if reverse else outputs[0, :-1]
    backend.matmul(rows.T, hidden.reshape(run.T * N, run.H), dweight)
    dbias = None
    if bias is not None:
        dbias = backend.empty(run.gates, run.dtype, run.device)
        backend.run(backend.kernels("elementwise", run.device).bias_gradient, rows, dbias)
    return RecurrentGradients(dgates, dweight, dbias, carried)


class _Run:
    """What both passes check and share: sizes, the weight, the lengths, the order of steps."""

    def __init__(
        self, kind: Any, weight: Any, lengths: Any, reverse: Any, shape: Any, like: Any
    ) -> None:
        self.kind = KINDS[choice(kind, tuple(KINDS), "kind")]
        self.reverse = switch(reverse, "reverse")
        self.dtype = checks.floating(like, "projected")
        self.device = backend.device_of(like)
        checks.floating(weight, "weight")
        checks.on_device(weight, self.device, "weight")
        if weight.ndim != 2 or weight.shape[0] != self.kind.gates * weight.shape[1]:
            raise ShapeError(
                f"the weight of {kind} must have shape ({self.kind.gates} * H, H), "
                f"got {weight.shape}"
            )
        self.gates, self.H = weight.shape
        if len(shape) != 3 or shape[2] != self.gates or not self.H:
            raise ShapeError(
                f"projected must have shape (T, N, {self.gates}) for a weight of shape "
                f"{weight.shape}, with H >= 1, got {shape}"
            )
        self.T, self.N, _ = shape
        self.weight = backend.contiguous(weight, self.dtype)
        self.lengths = checked_lengths(lengths, self.T, self.N, self.device)
        self.kernels = backend.kernels("recurrent", self.device)

    def empty(self, *leading: int) -> np.ndarray:
        return backend.empty((*leading, self.N, self.H), self.dtype, self.device)

    def steps(self) -> list[tuple[int, int, int]]:
        """Each time, and the places of the states before and after it, in the order they run."""
        if self.reverse:
            return [(t, t + 1, t) for t in reversed(range(self.T))]
        return [(t, t, t + 1) for t in range(self.T)]


def checked_lengths(lengths: Any, T: int, N: int, device: str) -> np.ndarray:
    """Return lengths (N,) as int64, or an empty array for None."""
    if lengths is None:
        return backend.zeros(0, np.int64, device)
    checks.integers(lengths, "lengths")
    checks.unmasked(lengths, "lengths")
    if lengths.shape != (N,):
        raise ShapeError(f"lengths must have shape ({N},), one for each sequence, got "
                         f"{lengths.shape}")  # fmt: skip
    values = backend.host(lengths)
    if N and not (values.min() >= 1 and values.max() <= T):
        raise ArgumentError(
            f"lengths must lie between 1 and the {T} steps there are, got {values.min()} to "
            f"{values.max()}: leave empty sequences out"
        )
    return backend.contiguous(backend.to(lengths, device), np.dtype(np.int64))
