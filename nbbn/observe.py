"""Looking into a model while it computes: the inputs and outputs of its layers."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from . import backend
from .autograd import Tensor
from .modules import Module

__all__ = ["BATCH", "first_nonfinite", "observed"]

# What `first_nonfinite` says of a batch that is not finite itself.
BATCH = "the batch itself"

See = Callable[[str, Module, Tensor, Tensor], None]


@contextlib.contextmanager
def observed(model: Module, see: See) -> Iterator[None]:
    """Call ``see(name, module, x, y)`` after every forward of a module of `model`.

    Steps that were recorded before are recorded again afterwards.

    Parameters
    ----------
    model : Module
    see : callable
        Takes the name of the module as in the state dict ("" for the model itself), the module,
        its input and its output.

    Yields
    ------
    None
    """

    def wrap(name: str, module: Module) -> Callable[..., Tensor]:
        forward = module.forward

        def watched(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            y = forward(x, *args, **kwargs)
            see(name, module, x, y)
            return y

        return watched

    wrapped = list(model.named_modules())
    try:
        for name, module in wrapped:
            module.forward = wrap(name, module)  # type: ignore[method-assign]
        yield
    finally:
        for _, module in wrapped:
            vars(module).pop("forward", None)


def first_nonfinite(model: Module, x: np.ndarray) -> str:
    """Find where the first infinity or NaN of a forward pass comes from.

    The model computes in the mode that it is in; parameters and buffers stay as they are.

    Parameters
    ----------
    model : Module
    x : ndarray
        A batch.

    Returns
    -------
    str
        Such as ``"the output of layer 2, Dense(8, 3)"``, or the loss and how large an output it is
        of, if everything before it is finite.
    """
    if not np.isfinite(backend.host(x)).all():
        return BATCH
    for name, module in model.named_modules():
        own = [(n, a) for n, a in module.state_dict().items() if "." not in n]
        for attribute, array in own:
            if not np.isfinite(array).all() and attribute not in module.buffers:
                return f"the {attribute} of {_label(name, module)}"
    found: list[str] = []
    last = "the loss"

    def see(name: str, module: Module, inner: Tensor, y: Tensor) -> None:
        nonlocal last
        largest = float(np.abs(y.numpy()).max())
        if not found and not math.isfinite(largest):
            found.append(f"the output of {_label(name, module)}")
        if name:
            last = f"the loss, of outputs up to {largest:.3g} from {_label(name, module)},"

    state = model.state_dict()
    try:
        with observed(model, see), np.errstate(all="ignore"):
            model(x)
    finally:
        # Not load_state_dict, which refuses the running statistics of a model that has diverged.
        for name, array in model._state():
            backend.assign(array, state[name])
    return found[0] if found else last


def _label(name: str, module: Module) -> str:
    return f"layer {name}, {module!r}" if name else "the model"
