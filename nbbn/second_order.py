"""Gradients as tensors, which can be differentiated again: for gradient penalties and the like.

`grad` walks the tape backwards as `Tape.backward` does, without consuming it. With
``create_graph=True`` it computes on tensors, by the rules of `graph_rules`, so that the tape
records how each gradient came about. First-order training passes none of this.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from . import backend, checks
from .autograd import Node, Tensor, apply, recording_tape
from .errors import DTypeError, ShapeError, TapeError
from .graph_rules import RULES, Cast, Gradients

__all__ = ["grad"]


def grad(
    output: Tensor,
    inputs: Sequence[Tensor],
    grad_output: Tensor | np.ndarray | None = None,
    *,
    create_graph: bool = False,
) -> list[Tensor]:
    """Gradients of `output` with respect to `inputs`; the tape stays as it is.

    Parameters
    ----------
    output : Tensor
        A result recorded on a tape.
    inputs : sequence of Tensor
        Leaves or intermediate results that `output` depends on.
    grad_output : Tensor or ndarray, shape of `output`, optional
        Gradient to start from; may be left out where `output` has one element.
    create_graph : bool, default False
        Record the gradients themselves, so that `Tape.backward` passes through them. Call it inside
        the `with` block of the tape. Arithmetic, reductions, activations, Dense, BatchNorm in
        training and evaluation, softmax and cross-entropy can do that, and operations of your own
        that define ``backward_graph(ctx, dy, inputs, output)``, `backward` on tensors. It reaches
        second derivatives; third ones through BatchNorm are refused.

    Returns
    -------
    list of Tensor
        One for each input, of its shape and dtype.

    Raises
    ------
    TapeError
        No tape recorded `output`, or it was consumed; an input that `output` does not depend on;
        with `create_graph`, another tape or none records, or an operation has no second derivative.
    ShapeError, DTypeError
        `grad_output` is missing for an output of several elements, or does not fit; `inputs` is
        no sequence.
    DeviceError
        `create_graph` with arrays on a device.

    Examples
    --------
    >>> x = nbbn.Parameter([3.0])
    >>> with nbbn.Tape() as tape:
    ...     (slope,) = nbbn.grad((x**3).sum(), [x], create_graph=True)
    ...     penalty = (slope * slope).sum()
    >>> tape.backward(penalty)
    >>> slope.data, x.grad
    (array([27.], dtype=float32), array([972.], dtype=float32))
    """
    tape = output._tape if isinstance(output, Tensor) else None
    if tape is None:
        raise TapeError(
            "no tape holds this output: compute it inside `with nbbn.Tape():` from tensors that "
            "require gradients, and call grad before backward"
        )
    if create_graph:
        checks.host_only(output.data, "differentiating twice")
    if create_graph and recording_tape() is not tape:
        raise TapeError(
            "create_graph records on the tape of the output: call grad inside its `with` block"
        )
    if isinstance(inputs, Tensor) or not isinstance(inputs, Iterable):
        raise DTypeError(
            f"inputs must be a sequence of Tensors, got {type(inputs).__name__}: put it into a list"
        )
    wanted = list(inputs)
    nodes = tape.nodes()
    sources = _sources(output, nodes)
    for position, x in enumerate(wanted):
        if not isinstance(x, Tensor) or x not in sources:
            raise TapeError(f"the output does not depend on input {position}")
    reached = _reached(nodes, wanted)
    gradients = {output: _start(output, grad_output)}
    found: dict[Tensor, Tensor] = {}
    differentiate = _on_tensors if create_graph else _on_arrays
    for node in reversed(nodes):
        dy = gradients.pop(node.output, None)
        if dy is None:
            continue
        if any(node.output is x for x in wanted):
            found[node.output] = dy
        needs = tuple(isinstance(x, Tensor) and x in reached for x in node.inputs)
        if any(needs):
            for x, needed, dx in zip(
                node.inputs, needs, differentiate(node, dy, needs), strict=True
            ):
                if needed and dx is not None:
                    # Where types mix, a gradient has its tensor's.
                    dx = dx if dx.dtype == x.dtype else apply(Cast, dx, dtype=x.dtype)
                    gradients[x] = gradients[x] + dx if x in gradients else dx
    found = gradients | found
    return [
        found[x] if x in found else Tensor(backend.zeros(x.shape, x.dtype, x.device))
        for x in wanted
    ]


def _reached(nodes: Sequence[Node], inputs: Sequence[Tensor]) -> set[Tensor]:
    """All tensors that depend on one of `inputs`, these included."""
    reached = set(inputs)
    for node in nodes:
        if any(isinstance(x, Tensor) and x in reached for x in node.inputs):
            reached.add(node.output)
    return reached


def _sources(output: Tensor, nodes: Sequence[Node]) -> set[Tensor]:
    """All tensors that `output` depends on, itself included."""
    sources = {output}
    for node in reversed(nodes):
        if node.output in sources:
            sources.update(x for x in node.inputs if isinstance(x, Tensor))
    return sources


def _start(output: Tensor, grad_output: Tensor | np.ndarray | None) -> Tensor:
    if grad_output is None:
        if output.size != 1:
            raise ShapeError(
                f"grad needs an output of one element, got shape {output.shape}: reduce it with "
                ".sum() or .mean(), or pass grad_output"
            )
        return Tensor(backend.ones(output.shape, output.dtype, output.device))
    if not isinstance(grad_output, Tensor):
        checks.floating(grad_output, "grad_output")
        grad_output = Tensor(grad_output)
    if grad_output.shape != output.shape:
        raise ShapeError(f"grad_output must have shape {output.shape}, got {grad_output.shape}")
    return grad_output


def _on_arrays(node: Node, dy: Tensor, needs: tuple[bool, ...]) -> Gradients:
    """Gradients by the operation's own backward; dy may be somebody else's."""
    node.ctx.needs, node.ctx.owns_dy = needs, False
    node.ctx.buffers = (None,) * len(needs)
    found = node.op.backward(node.ctx, dy.data)
    if not isinstance(found, tuple):
        found = (found,)
    return [None if dx is None else Tensor(dx) for dx in found]


def _on_tensors(node: Node, dy: Tensor, needs: tuple[bool, ...]) -> Gradients:
    node.ctx.needs = needs
    own = getattr(node.op, "backward_graph", None)
    if own is not None:
        found = own(node.ctx, dy, node.inputs, node.output)
        return found if isinstance(found, tuple) else (found,)
    rule = RULES.get(node.op)
    if rule is None:
        raise TapeError(
            f"{node.op.__name__} has no second derivative here: leave it out of what create_graph "
            "differentiates, or define backward_graph if it is your own"
        )
    return rule(node, dy)
