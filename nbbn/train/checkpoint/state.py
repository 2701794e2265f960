"""What a training is made of: its settings, which must fit a checkpoint, and random generators."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...data import Batches
from ...errors import CheckpointError
from ...nn.module import Module
from ...optim import Optimizer

_PLAIN = (bool, int, float, str, type(None))
# What changes while training, or does not matter to the numbers.
_PASSING = {"training", "layout", "order", "position", "reuse", "device", "sync"}


def describe(
    model: Module, optimizer: Optimizer | None, batches: Batches | None
) -> dict[str, dict[str, Any]]:
    """Collect classes and plain settings, as JSON gives them back.

    By the names model, optimizer, schedule, batches; each with "type" and settings.
    """
    found: dict[str, dict[str, Any]] = {
        "model": {name or "itself": _settings(m) for name, m in model.named_modules()}
    }
    if optimizer is not None:
        found |= _optimizer(model, optimizer)
    if batches is not None:
        found["batches"] = {**_settings(batches), **_data(batches)}
    plain: dict[str, dict[str, Any]] = json.loads(json.dumps(found))
    return plain


def _optimizer(model: Module, optimizer: Optimizer) -> dict[str, dict[str, Any]]:
    """Describe an optimizer and its schedule; those of several groups by their numbers."""
    groups = optimizer.param_groups
    settings = [group.settings() for group in groups]
    schedules = [_settings(group.schedule) for group in groups]
    if len(groups) == 1:
        return {"optimizer": _settings(optimizer) | settings[0], "schedule": schedules[0]}
    names = {
        id(parameter): f"{name}.{attribute}" if name else attribute
        for name, module in model.named_modules()
        for attribute, parameter in vars(module).items()
    }
    found = _settings(optimizer) | {
        "parameters": {
            f"group {number}": [names.get(id(p), "of no module") for p in group["params"]]
            for number, group in enumerate(groups)
        }
    }
    types = ", ".join(schedule["type"] for schedule in schedules)
    return {
        "optimizer": found | {f"group {number}": own for number, own in enumerate(settings)},
        "schedule": {"type": types}
        | {f"group {number}": own for number, own in enumerate(schedules)},
    }


def _data(batches: Batches) -> dict[str, Any]:
    return {
        "examples": batches.count,
        "features": batches.features,
        "fingerprint": batches.fingerprint,
    }


def data_difference(saved: Mapping[str, Any], batches: Batches | None) -> tuple[str, str] | None:
    """Say what the data are in a checkpoint and in batches; None if they seem to be the same."""
    own = {} if batches is None else _data(batches)
    different = {name for name in own if saved.get(name, own[name]) != own[name]}
    if not different:
        return None
    there, here = (
        f"{data['examples']:,} examples of {data.get('features', own['features'])} values"
        for data in (saved, own)
    )
    return there, here if different != {"fingerprint"} else f"{here}, but not the same ones"


def without_data(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out of the settings of batches what `data_difference` compares."""
    data = ("examples", "features", "fingerprint")
    return {name: value for name, value in settings.items() if name not in data}


def _settings(thing: Any) -> dict[str, Any]:
    own = {
        name: value
        for name, value in getattr(thing, "__dict__", {}).items()
        if not name.startswith("_") and name not in _PASSING and _is_plain(value)
    }
    return {"type": type(thing).__qualname__, **own}


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(item) for item in value)
    return isinstance(value, _PLAIN)


def first_difference(saved: Any, own: Any, name: str = "") -> str | None:
    """Say in which setting two descriptions of `name` differ first, or None."""
    if not isinstance(own, dict) or not isinstance(saved, dict):
        return None if saved == own else f"{name} is {own!r} here and {saved!r} there"
    for key in [*own, *(key for key in saved if key not in own)]:
        where = f"{name}.{key}" if name else key
        # An option that came later is None for what there was before.
        if own.get(key) is saved.get(key) is None:
            continue
        if key not in own:
            return f"there is no {where} here"
        if key not in saved:
            return f"there is no {where} there"
        if difference := first_difference(saved[key], own[key], where):
            return difference
    return None


def named_generators(model: Module, batches: Batches | None) -> dict[str, np.random.Generator]:
    """Find the random generators of a model and its batches; several names may share one."""
    found = {} if batches is None else {"batches": batches.rng}
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, np.random.Generator):
                found[f"{name}.{attribute}"] = value
    return found


def generator_states(generators: Mapping[str, np.random.Generator]) -> dict[str, Any]:
    """Return "states", each generator's once, and "users", the positions in it by name."""
    unique = list({id(g): g for g in generators.values()}.values())
    order = {id(g): position for position, g in enumerate(unique)}
    return {
        "states": [g.bit_generator.state for g in unique],
        "users": {name: order[id(g)] for name, g in generators.items()},
    }


def restorer(
    where: Path, saved: Mapping[str, Any], generators: Mapping[str, np.random.Generator]
) -> Callable[[], None]:
    """Return what sets the states that `generator_states` saved.

    Raises a CheckpointError that names the file where there are other generators, or shared in
    another way.
    """
    own = generator_states(generators)
    users = {name: number for name, number in saved["users"].items() if name in own["users"]}
    same = {(users[a] == users[b]) == (own["users"][a] == own["users"][b])
            for a in users for b in users}  # fmt: skip
    if users.keys() != own["users"].keys() or same - {True}:
        raise CheckpointError(
            f"{where} does not fit: its random generators serve {saved['users']}, "
            f"these serve {own['users']}"
        )
    states = [(generators[name], saved["states"][number]) for name, number in users.items()]
    for generator, state in states:
        kind = type(generator.bit_generator).__name__
        if state["bit_generator"] != kind:
            raise CheckpointError(
                f"{where} has states of {state['bit_generator']}, but this generator is {kind}"
            )

    def set_all() -> None:
        for generator, state in states:
            generator.bit_generator.state = state

    return set_all
