"""Gradients as tensors, which can be differentiated again: for gradient penalties and the like.

`grad` walks the tape backwards as `Tape.backward` does, without consuming it. With
``create_graph=True`` it computes on tensors, by each operation's `backward_graph`, so that the tape
records how each gradient came about. First-order training passes none of this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import backend
from .._validation import iterate, switch
from ..errors import DTypeError, ShapeError, TapeError
from ..functional import checks
from .op import Op
from .ops.shapes import Cast
from .tensor import Elsewhere, Node, Position, Tape, Tensor, apply, recording_tape, tensor_of

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
        the `with` block of the tape. Arithmetic, reductions, activations, Dense, convolutions,
        BatchNorm in training and evaluation, softmax and cross-entropy can do that, and operations
        of your own that define ``backward_graph(ctx, dy, inputs, output)``, `backward` on tensors.
        It reaches second derivatives; third ones through BatchNorm are refused.

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
    if tape is None or not tape.holds(output):
        raise TapeError(
            "no tape holds this output: compute it inside `with nbbn.Tape():` from tensors that "
            "require gradients, and call grad before backward"
        )
    create_graph = switch(create_graph, "create_graph")
    if create_graph:
        checks.host_only(output.data, "differentiating twice")
    if create_graph and recording_tape() is not tape:
        raise TapeError(
            "create_graph records on the tape of the output: call grad inside its `with` block"
        )
    if isinstance(inputs, Tensor):
        raise DTypeError("inputs must be a list of Tensors, got one Tensor: put it into a list")
    wanted = list(iterate(inputs, "inputs", "Tensors"))
    nodes = tape.nodes()
    keys = [_key(x._position if isinstance(x, Tensor) and tape.holds(x) else x) for x in wanted]
    start = output._position
    sources = _sources(start, nodes)
    for number, key in enumerate(keys):
        if key is None or key not in sources:
            raise TapeError(f"the output does not depend on input {number}")
    reached = _reached(nodes, keys)
    gradients: dict[Any, Tensor] = {start: _start(output, grad_output)}
    found: dict[Any, Tensor] = {}
    for position in reversed(range(len(nodes))):
        dy = gradients.pop(position, None)
        if dy is None:
            continue
        if position in keys:
            found[position] = dy
        node = nodes[position]
        own = [_key(x) for x in node.inputs]
        needs = tuple(key in reached for key in own)
        if not any(needs):
            continue
        if create_graph:
            differentiated = _on_tensors(_as_tensors(tape, node, position), dy, needs)
        else:
            differentiated = _on_arrays(node, dy, needs)
        for key, needed, dx in zip(own, needs, differentiated, strict=True):
            if needed and dx is not None:
                # Where types mix, a gradient has its tensor's.
                dtype = (nodes[key].output if isinstance(key, Position) else key).dtype
                dx = dx if dx.dtype == dtype else apply(Cast, dx, dtype=dtype)
                gradients[key] = gradients[key] + dx if key in gradients else dx
    found = gradients | found
    return [
        found[key] if key in found else Tensor(backend.zeros(x.shape, x.dtype, x.device))
        for key, x in zip(keys, wanted, strict=True)
    ]


def _key(x: Any) -> Any:
    """What names an input, of a node or wanted, among gradients; None for a constant."""
    if isinstance(x, Elsewhere):
        original = x.original()
        return x if original is None else original
    return x if isinstance(x, Tensor | Position) else None


def _reached(nodes: Sequence[Node], keys: Sequence[Any]) -> set[Any]:
    """All tensors that depend on one of `keys`, these included."""
    reached = set(keys)
    for position, node in enumerate(nodes):
        if any(_key(x) in reached for x in node.inputs):
            reached.add(position)
    return reached


def _sources(start: Any, nodes: Sequence[Node]) -> set[Any]:
    """All tensors that a result depends on, itself included."""
    sources = {start}
    for position in reversed(range(len(nodes))):
        if position in sources:
            sources.update(_key(x) for x in nodes[position].inputs)
    return sources - {None}


def _as_tensors(tape: Tape, node: Node, position: int) -> Node:
    """Return a node whose inputs and output are tensors that the tape can follow."""
    inputs = tuple(
        tape.result(x) if isinstance(x, Position) else _key(x) if isinstance(x, Tensor) else x
        for x in node.inputs
    )
    return node._replace(inputs=inputs, output=tape.result(Position(position)))


def _start(output: Tensor, grad_output: Tensor | np.ndarray | None) -> Tensor:
    if grad_output is None:
        if output.size != 1:
            raise ShapeError(
                f"grad needs an output of one element, got shape {output.shape}: reduce it with "
                ".sum() or .mean(), or pass grad_output"
            )
        return Tensor(backend.ones(output.shape, output.dtype, output.device))
    grad_output = tensor_of(grad_output, "grad_output")
    if grad_output.shape != output.shape:
        raise ShapeError(f"grad_output must have shape {output.shape}, got {grad_output.shape}")
    return grad_output


def _on_arrays(node: Node, dy: Tensor, needs: tuple[bool, ...]) -> Sequence[Tensor | None]:
    """Gradients by the operation's own backward; dy may be somebody else's."""
    node.ctx.needs, node.ctx.owns_dy = needs, False
    node.ctx.buffers = (None,) * len(needs)
    found = node.op.backward(node.ctx, dy.data)
    if not isinstance(found, tuple):
        found = (found,)
    return [None if dx is None else Tensor(dx) for dx in found]


def _on_tensors(node: Node, dy: Tensor, needs: tuple[bool, ...]) -> Sequence[Tensor | None]:
    op, rule = node.op, node.op.backward_graph
    # A user's subclass of an operation computes something else.
    inherited = rule.__module__.startswith("nbbn.") and not op.__module__.startswith("nbbn.")
    if rule is Op.backward_graph or inherited:
        raise TapeError(
            f"{op.__name__} has no second derivative here: leave it out of what create_graph "
            "differentiates, or define backward_graph if it is your own"
        )
    node.ctx.needs = needs
    found = rule(node.ctx, dy, node.inputs, node.output)
    return found if isinstance(found, tuple) else (found,)
