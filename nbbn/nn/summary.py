"""A table of what a model is made of."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import backend
from .._validation import instance, positive
from ..autograd.tensor import Parameter, Tensor, as_tensor
from .module import Module
from .observe import observed

__all__ = ["LayerSummary", "Summary", "summary"]


class LayerSummary(NamedTuple):
    """What `summary` says of one layer.

    Attributes
    ----------
    name : str
        As in the state dict.
    layer : str
        The layer's repr.
    output : tuple of int or None
        Shape of its output; None without an input, and where the layer did not run.
    parameters, frozen : int
        Numbers that are learned, and parameters that are not (`requires_grad` is False).
    statistics : int
        Numbers that are kept but not learned, such as running means and variances.
    """

    name: str
    layer: str
    output: tuple[int, ...] | None
    parameters: int
    frozen: int
    statistics: int


class Summary(NamedTuple):
    """What `summary` says; `print` shows it as a table.

    Attributes
    ----------
    layers : tuple of LayerSummary
    parameters, frozen, statistics : int
        Of the whole model; what several layers share counts once.
    nbytes : int
        Memory of all of them.
    """

    layers: tuple[LayerSummary, ...]
    parameters: int
    frozen: int
    statistics: int
    nbytes: int

    def __str__(self) -> str:
        """Lay out a table, and the sums under it."""
        head = "", "layer", "output", "parameters", "statistics"
        rows = [head] + [
            (
                own.name,
                own.layer,
                "-" if own.output is None else " x ".join(map(str, own.output)),
                f"{own.parameters + own.frozen:,}",
                f"{own.statistics:,}",
            )
            for own in self.layers
        ]
        frozen = f" ({self.frozen:,} of them frozen)" if self.frozen else ""
        sums = (
            f"{self.parameters + self.frozen:,} parameters{frozen}, {self.statistics:,} "
            f"statistics, {self.nbytes / 1e6:,.2f} MB"
        )
        return "\n".join([*table(rows, 3), sums])


def table(rows: Sequence[Sequence[str]], words: int) -> list[str]:
    """Lay out columns, the first ones as words and the others as numbers; return the lines."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < words else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def summary(model: Module, x: Tensor | np.ndarray | tuple[int, ...] | None = None) -> Summary:
    """Count what a model is made of, layer by layer, and find the shapes of its layers' outputs.

    A copy runs, in evaluation mode: the model stays as it is.

    Parameters
    ----------
    model : Module
    x : Tensor, ndarray or tuple of int, optional
        A batch, or the shape of one. Without it no shapes of outputs are known.

    Returns
    -------
    Summary

    Raises
    ------
    DTypeError
        `model` is not a Module.
    ArgumentError
        `x` is neither an array nor a shape. What a layer raises for an input that does not fit.

    Examples
    --------
    >>> print(nbbn.summary(nbbn.mlp((784, 256, 10)), (128, 784)))
    """
    instance(model, Module, "model")
    backend.not_recordable("nbbn.summary looks at values")
    shapes: dict[str, tuple[int, ...]] = {}
    if x is not None:
        if isinstance(x, tuple):
            shape = tuple(positive(size, "a size of x") for size in x)
            kind = next((p for p in model.parameters()), Parameter(np.zeros(1, np.float32)))
            x = backend.zeros(shape, kind.dtype, kind.device)

        def see(name: str, module: Module, inner: Tensor, output: Tensor) -> None:
            shapes[name] = output.shape

        twin = copy.deepcopy(model).eval()
        with observed(twin, see):
            twin(as_tensor(x).detach())
    layers = []
    first: dict[int, str] = {}
    for name, module in model.named_modules():
        output = shapes.get(first.setdefault(id(module), name))
        own = _counts(_own(module))
        if any(own) or not any(module.children()):
            layers.append(LayerSummary(name, repr(module), output, *own))
    every = {id(array): (p, array) for m in model.modules() for p, array in _own(m)}
    nbytes = sum(array.nbytes for _, array in every.values())
    return Summary(tuple(layers), *_counts(list(every.values())), nbytes)


def _own(module: Module) -> list[tuple[Parameter | None, Any]]:
    """Arrays of a module itself, each with its Parameter if it is one."""
    values = vars(module)
    found: list[tuple[Parameter | None, Any]] = [
        (value, value.data) for value in values.values() if isinstance(value, Parameter)
    ]
    return found + [(None, values[n]) for n in module.buffers if values.get(n) is not None]


def _counts(arrays: list[tuple[Parameter | None, Any]]) -> tuple[int, int, int]:
    """Count numbers that are learned, frozen, and kept but not learned."""
    return (
        sum(a.size for p, a in arrays if p is not None and p.requires_grad),
        sum(a.size for p, a in arrays if p is not None and not p.requires_grad),
        sum(a.size for p, a in arrays if p is None),
    )
