"""Looking into a model while it computes: the inputs and outputs of its layers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from .. import backend
from ..autograd.tensor import Node, Position, SparseTensor, Tape, Tensor
from .module import Module

See = Callable[[str, Module, Tensor, Tensor], None]


@contextlib.contextmanager
def observed(model: Module, see: See) -> Iterator[None]:
    """Call ``see(name, module, x, y)`` after every forward of a module of `model`.

    The name is that in the state dict, "" for the model itself, and the first one of a module that
    has several. Steps that were recorded before are recorded again afterwards.
    """

    def wrap(name: str, module: Module) -> Callable[..., Tensor]:
        forward = module.forward

        def watched(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            y = forward(x, *args, **kwargs)
            see(name, module, x, y)
            return y

        return watched

    once: dict[int, tuple[str, Module]] = {}
    for name, module in model.named_modules():
        once.setdefault(id(module), (name, module))
    # A module may have a forward of its own, beside that of its class.
    own = [(module, vars(module).get("forward")) for _, module in once.values()]
    try:
        for name, module in once.values():
            module.forward = wrap(name, module)  # type: ignore[method-assign]
        yield
    finally:
        for module, forward in own:
            vars(module).pop("forward", None)
            if forward is not None:
                vars(module)["forward"] = forward


class NonFinite(NamedTuple):
    """Where an infinity or NaN comes from, and what to do."""

    text: str
    advice: str


def first_nonfinite(
    model: Module, x: np.ndarray, y: np.ndarray, loss: Callable[[Tensor, Any], Tensor]
) -> NonFinite:
    """Find where the first infinity or NaN of ``loss(model(x), y)`` comes from, and why.

    The model computes in the mode that it is in; parameters and buffers stay as they are.
    """
    return _in_batch(x, y) or _in_parameters(model) or _in_computation(model, x, y, loss)


def _in_batch(x: np.ndarray, y: np.ndarray) -> NonFinite | None:
    advice = "repair such examples or leave them out"
    if not _is_finite(x):
        return NonFinite("the batch itself holds NaN or Inf", advice)
    return None if _is_finite(y) else NonFinite("the targets hold NaN or Inf", advice)


def _in_parameters(model: Module) -> NonFinite | None:
    for name, module in model.named_modules():
        for attribute, array in module.state_dict().items():
            own = "." not in attribute and attribute not in module.buffers
            if own and not np.isfinite(array).all():
                place = f"the {attribute} of {_label(name, module)}"
                return NonFinite(
                    f"training has diverged; {place} is the first that is not finite",
                    "try a smaller learning rate; a root of 0, or another infinite slope in the "
                    "loss, does the same",
                )
    return None


def _in_computation(
    model: Module, x: np.ndarray, y: np.ndarray, loss: Callable[[Tensor, Any], Tensor]
) -> NonFinite:
    places: list[str] = []
    last = "the loss"

    def see(name: str, module: Module, inner: Tensor, output: Tensor) -> None:
        nonlocal last
        given = inner.rows if isinstance(inner, SparseTensor) else inner.data
        if not places and _is_finite(given) and not _is_finite(output.data):
            places.append(_label(name, module))
        if name:
            largest = _largest(output.numpy())
            last = f"the loss, of outputs up to {largest:.3g} from {_label(name, module)},"

    state = model.state_dict()
    try:
        with np.errstate(all="ignore"), Tape() as tape:
            with observed(model, see):
                output = model(x)
            loss(output, y)
            nodes = tape.nodes()
    finally:
        # Not load_state_dict, which refuses the running statistics of a model that has diverged.
        for name, array in model._state():
            backend.assign(array, state[name])
    cause = ""
    culprit = next((node for node in nodes if not _is_finite(node.output)), None)
    if culprit is not None:
        arrays = _inputs(culprit, nodes)
        if slip := _slip(culprit, arrays, places[0] if places else "the loss"):
            return slip
        largest = max(map(_largest, arrays), default=0.0)
        name, dtype = culprit.op.__name__, culprit.output.dtype
        cause = f": {name} of values up to {largest:.3g} overflows {dtype}"
    first = f"the output of {places[0]}" if places else last
    return NonFinite(
        f"training has diverged; {first} is the first that is not finite{cause}",
        "try a smaller learning rate, or standardize the data if they are large",
    )


def _inputs(node: Node, nodes: list[Node]) -> list[np.ndarray]:
    """Arrays that an operation was given."""
    given = (nodes[x].output if isinstance(x, Position) else x for x in node.inputs)
    return [backend.host(x.data if isinstance(x, Tensor) else x) for x in given]


def _slip(node: Node, arrays: list[np.ndarray], place: str) -> NonFinite | None:
    """Explain a result that a function does not have, or None where it is only too large."""
    output = backend.host(node.output)
    bad = ~np.isfinite(output)
    name = node.op.__name__
    if not all(map(_is_finite, arrays)):
        return NonFinite(
            f"{name} gets a constant NaN or Inf in {place}", "look where it comes from"
        )
    if name not in _SLIPS and node.op.__module__.startswith("nbbn."):
        return None
    if name not in _SLIPS:
        largest = max(map(_largest, arrays), default=0.0)
        return NonFinite(
            f"{name} makes {output[bad][0]} of values up to {largest:.3g} in {place}",
            f"look into {name}.forward",
        )
    x = np.broadcast_to(arrays[-1], output.shape)[bad]
    verb, advice = _SLIPS[name]
    if name == "Exp":
        what = f"{x.max():.3g}, which overflows {output.dtype}"
    elif (x == 0).any():
        what = "0"
    elif name != "Divide" and (x < 0).any():
        what = f"the negative number {x.min():.3g}"
    else:
        return None
    return NonFinite(f"{name} {verb} {what} in {place}", advice)


_SLIPS = {
    "Log": (
        "takes the logarithm of",
        "keep its input above 0, as with (x + 1e-7).log(), or use a loss that takes logits, such "
        "as nbbn.losses.cross_entropy",
    ),
    "Divide": ("divides by", "keep its divisor away from 0, as with a / (b + 1e-7)"),
    "Power": ("takes a power that it does not have of", "keep its base above 0, as with x + 1e-7"),
    "Exp": (
        "takes the exponential of",
        "subtract the largest value first, as nbbn.losses.cross_entropy does with logits, or try a "
        "smaller learning rate",
    ),
}


def _largest(array: Any) -> float:
    values = np.asarray(array)
    return float(np.abs(values).max(initial=0)) if values.dtype.kind in "iuf" else 0.0


def _is_finite(array: Any) -> bool:
    rows = backend.as_csr(array)
    if rows is not None:
        return _is_finite(rows.values)
    values = backend.host(array)
    return values.dtype.kind != "f" or bool(np.isfinite(values).all())


def _label(name: str, module: Module) -> str:
    return f"layer {name}, {module!r}" if name else "the model"
