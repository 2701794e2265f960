"""Taking the state of a training, and putting it back."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

import numpy as np

from ..._validation import as_path, mapping, switch, write_atomically
from ..._version import __version__
from ...data import Batches
from ...errors import ArgumentError, CheckpointError, DTypeError
from ...nn.module import Module
from ...optim import Optimizer
from .format import Checkpoint, pack
from .state import (
    data_difference,
    describe,
    first_difference,
    generator_states,
    named_generators,
    restorer,
    without_data,
)

__all__ = ["restore", "save"]


def save(
    path: str | PathLike[str],
    model: Module,
    optimizer: Optimizer | None = None,
    batches: Batches | None = None,
    *,
    progress: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    best: Mapping[str, np.ndarray] | None = None,
    average: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write a checkpoint. A file of that name is replaced at once and whole, or not at all.

    Parameters
    ----------
    path : path
    model : Module
    optimizer : Optimizer, optional
    batches : Batches, optional
        Their place in the epoch and their random generator. Anything else that is not Batches has
        no state that could be saved.
    progress, config : mapping, optional
        What JSON can hold, given back by `load`.
    best : mapping of str to ndarray, optional
        A state dict of the model from an earlier epoch, given back by `load`.
    average : mapping of str to ndarray, optional
        The state of the callback `EMA`, given back by `load`.

    Raises
    ------
    OSError
        The file cannot be written; what was there before is untouched.
    ArgumentError
        `path` is a folder.
    DTypeError
        `progress` or `config` hold what JSON cannot; `model`, `optimizer` or `batches` are
        something else.
    """
    _check_kinds(model, optimizer, batches)
    path = as_path(path, "path")
    if path.is_dir():
        raise ArgumentError(f"{path} is a folder: give the name of a file in it")
    for name, value in (("progress", progress), ("config", config)):
        if value is not None:
            mapping(value, name, "what JSON can hold")
    for name, arrays in (("best", best), ("average", average)):
        if arrays is not None:
            mapping(arrays, name, "arrays")
    generators = named_generators(model, batches)
    content = Checkpoint(
        path=path,
        model=model.state_dict(),
        optimizer={} if optimizer is None else optimizer.state_dict(),
        batches={} if batches is None else batches.state_dict(),
        progress=dict(progress or {}),
        generators=generator_states(generators),
        settings=describe(model, optimizer, batches),
        config=dict(config or {}),
        version=__version__,
        best=dict(best or {}),
        average=dict(average or {}),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, pack(content))


def restore(
    checkpoint: Checkpoint,
    model: Module,
    optimizer: Optimizer | None = None,
    batches: Batches | None = None,
    *,
    strict: bool = True,
) -> None:
    """Put model, optimizer, batches and their random generators into the state that was saved.

    Everything is compared first, and nothing is changed unless all of it fits.

    Parameters
    ----------
    checkpoint : Checkpoint
    model : Module
        Of the same architecture: the same modules with the same settings.
    optimizer : Optimizer, optional
        Of the same class, over the same parameters.
    batches : Batches, optional
        Over the same number of examples.
    strict : bool, default True
        Whether the settings of optimizer, schedule and batches must be the same too. Those of the
        model, all classes and the parameters of each group always must.

    Raises
    ------
    CheckpointError
        Something does not fit; the message names the first difference.
    DTypeError
        An argument of another type.
    """
    _check_kinds(model, optimizer, batches)
    strict = switch(strict, "strict")
    if not isinstance(checkpoint, Checkpoint):
        raise DTypeError(
            f"expected a Checkpoint, got {type(checkpoint).__name__}: pass checkpoint.load(path)"
        )
    where = checkpoint.path
    own = describe(model, optimizer, batches)
    other = data_difference(checkpoint.settings.get("batches", {}), batches) if strict else None
    if other is not None:
        raise CheckpointError(
            f"{where} was trained on {other[0]}, these batches hold {other[1]}: use the data that "
            "it was trained on, or restore the model alone"
        )
    for part, settings in own.items():
        if part not in checkpoint.settings:
            raise CheckpointError(f"{where} was saved without {part}")
        saved = checkpoint.settings[part]
        if not strict and part != "model":
            saved, settings = _essential(saved), _essential(settings)
        if part == "batches":
            saved, settings = without_data(saved), without_data(settings)
        if difference := first_difference(saved, settings):
            raise CheckpointError(f"{where} does not fit this {part}: {difference}")
    _compare_arrays(f"{where} does not fit this model", checkpoint.model, model.state_dict())
    if optimizer is not None:
        _compare_arrays(
            f"{where} does not fit this optimizer",
            checkpoint.optimizer,
            optimizer.expected(checkpoint.optimizer),
        )
    try:
        model._fitting(checkpoint.model, strict=True)
    except ArgumentError as error:
        raise CheckpointError(f"{where} does not fit this model: {error}") from None
    set_generators = restorer(where, checkpoint.generators, named_generators(model, batches))
    if batches is not None:
        batches.load_state_dict(checkpoint.batches)
    set_generators()
    model.load_state_dict(checkpoint.model)
    if optimizer is not None:
        optimizer.load_state_dict(checkpoint.optimizer)


def _essential(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the class, and which parameters are in which group: the state depends on both."""
    return {name: settings[name] for name in ("type", "parameters") if name in settings}


def _compare_arrays(
    complaint: str, saved: Mapping[str, np.ndarray], own: Mapping[str, np.ndarray]
) -> None:
    """Refuse arrays of other names, shapes or types: nothing may be converted on the way."""
    for name in [*own, *(name for name in saved if name not in own)]:
        if name not in saved or name not in own:
            place = "there" if name in own else "here"
            raise CheckpointError(f"{complaint}: there is no {name} {place}")
        there, here = saved[name], own[name]
        if (there.shape, there.dtype) != (here.shape, here.dtype):
            raise CheckpointError(
                f"{complaint}: {name} is {here.dtype} {here.shape} here "
                f"and {there.dtype} {there.shape} there"
            )


def _check_kinds(model: Any, optimizer: Any, batches: Any) -> None:
    """Check that each is what it must be, or None where it may be left out."""
    for name, value, kinds in (
        ("model", model, (Module,)),
        ("optimizer", optimizer, (Optimizer, type(None))),
        ("batches", batches, (Batches, type(None))),
    ):
        if not isinstance(value, kinds):
            raise DTypeError(
                f"{name} must be of type {kinds[0].__name__}, got {type(value).__name__}"
            )
