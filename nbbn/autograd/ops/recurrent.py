"""Recurrent networks through time: one direction of one layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import functional as F  # noqa: N812 - the usual name
from ._common import RecordableOp, Tensor
from .activation import Sigmoid, Tanh
from .joining import Concatenate, Where
from .masks import through_relu


class Recurrent(RecordableOp):
    """States (S, T + 1, N, H) from projected inputs, weight, bias and initial state."""

    fresh = True

    @staticmethod
    def forward(
        ctx: Any, projected: np.ndarray, weight: np.ndarray, bias: np.ndarray | None,
        initial: np.ndarray | None, **options: Any,
    ) -> np.ndarray:  # fmt: skip
        ctx.states = F.recurrent(projected, weight, bias, initial, **options)
        ctx.weight, ctx.bias, ctx.options = weight, bias, options
        return ctx.states.states  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        return tuple(F.recurrent_backward(dy, ctx.weight, ctx.states, ctx.bias, **ctx.options))

    @staticmethod
    def backward_graph(ctx: Any, dy: Tensor, inputs: tuple[Any, ...], output: Tensor) -> Any:
        projected, weight, bias, _ = inputs
        reverse, lengths = ctx.options["reverse"], ctx.options["lengths"]
        T = output.shape[1] - 1
        before, after = (slice(T), slice(1, None))[:: -1 if reverse else 1]
        hidden = output[0, before]
        product = hidden @ weight.T if bias is None else hidden @ weight.T + bias
        slopes = _SLOPES[ctx.options["kind"]](
            projected, product, output[:, before], output[:, after]
        )
        carried: list[Any] = [0.0] * len(output)
        dgates: list[Any] = [None] * T
        dproducts: list[Any] = [None] * T
        for t in range(T) if reverse else reversed(range(T)):
            own = [dy[s, after][t] + carried[s] for s in range(len(output))]
            dgate, dproduct, kept = slopes(t, *own)
            if lengths is not None:
                runs = (t < lengths)[:, None]
                dgate, dproduct = (_where(runs, d, 0.0) for d in (dgate, dproduct))
                kept = [_where(runs, k, d) for k, d in zip(kept, own, strict=True)]
            carried = [kept[0] + dproduct @ weight, *kept[1:]]
            dgates[t], dproducts[t] = dgate[None], dproduct[None]
        dprojected, through = (dy._apply(Concatenate, *d, axis=0) for d in (dgates, dproducts))
        rows = through.reshape(-1, through.shape[-1])
        initial = dy._apply(Concatenate, *(d[None] for d in carried), axis=0)
        return (
            dprojected,
            rows.T @ hidden.reshape(len(rows), -1),
            None if bias is None else rows.sum(axis=0),
            initial + dy[:, T if reverse else 0],
        )


def _where(condition: np.ndarray, a: Any, b: Any) -> Any:
    like = a if hasattr(a, "_apply") else b
    return like._apply(Where, a, b, condition=condition)


def _parts(x: Tensor, H: int) -> list[Tensor]:
    return [x[..., start : start + H] for start in range(0, x.shape[-1], H)]


def _joined(*parts: Tensor) -> Tensor:
    return parts[0]._apply(Concatenate, *parts, axis=-1)


# For each kind what a step's backward multiplies with, of all steps at once, and the rule of a
# step: from the gradients of its states to those of gates, of the hidden product, and of the states
# before by another way than that product.


def _lstm(projected: Any, product: Tensor, before: Tensor, after: Tensor) -> Any:
    i, f, g, o = _parts(product + projected, before.shape[-1])
    i, f, o = (x._apply(Sigmoid, x) for x in (i, f, o))
    g, squashed = (x._apply(Tanh, x) for x in (g, after[1]))
    c = before[1]

    def slopes(t: int, dh: Tensor, dc: Tensor) -> Any:
        dc = dc + dh * o[t] * (1 - squashed[t] ** 2)
        gates = _joined(
            dc * g[t] * i[t] * (1 - i[t]), dc * c[t] * f[t] * (1 - f[t]),
            dc * i[t] * (1 - g[t] ** 2), dh * squashed[t] * o[t] * (1 - o[t]),
        )  # fmt: skip
        return gates, gates, [0.0, dc * f[t]]

    return slopes


def _gru(projected: Any, product: Tensor, before: Tensor, after: Tensor) -> Any:
    H, h = before.shape[-1], before[0]
    r, z, m = _parts(product, H)
    r, z = (x + projected[..., k * H : (k + 1) * H] for k, x in enumerate((r, z)))
    r, z = (x._apply(Sigmoid, x) for x in (r, z))
    n = r * m + projected[..., 2 * H :]
    n = n._apply(Tanh, n)

    def slopes(t: int, dh: Tensor) -> Any:
        dn = dh * (1 - z[t]) * (1 - n[t] ** 2)
        dr = dn * m[t] * r[t] * (1 - r[t])
        dz = dh * (h[t] - n[t]) * z[t] * (1 - z[t])
        return _joined(dr, dz, dn), _joined(dr, dz, dn * r[t]), [dh * z[t]]

    return slopes


def _tanh(projected: Any, product: Tensor, before: Tensor, after: Tensor) -> Any:
    def slopes(t: int, dh: Tensor) -> Any:
        gate = dh * (1 - after[0, t] ** 2)
        return gate, gate, [0.0]

    return slopes


def _relu(projected: Any, product: Tensor, before: Tensor, after: Tensor) -> Any:
    def slopes(t: int, dh: Tensor) -> Any:
        gate = through_relu(dh, after.data[0, t])
        return gate, gate, [0.0]

    return slopes


_SLOPES = {"lstm": _lstm, "gru": _gru, "tanh": _tanh, "relu": _relu}
