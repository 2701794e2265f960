"""Device arrays of other libraries: taken without a copy, and results handed over in their kind."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from .. import backend

Function = TypeVar("Function", bound=Callable[..., Any])


def in_kind(function: Function) -> Function:
    """Let a function of device arrays take those of PyTorch, Numba and others, and return them."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if args and type(args[0]) is np.ndarray:
            return function(*args, **kwargs)
        likes = [value for value in (*args, *kwargs.values()) if backend.is_foreign(value)]
        if not likes:
            return function(*args, **kwargs)
        # An array given to be filled comes back as the object that it is.
        known: dict[int, Any] = {}
        args = tuple(_adopt(value, known) for value in args)
        kwargs = {name: _adopt(value, known) for name, value in kwargs.items()}
        result = function(*args, **kwargs)
        # Handing any array over lets their stream wait for ours: the results may all be theirs.
        _, array = next(iter(known.values()))
        backend.device_module().restore(array, likes[0])
        return _restore(result, likes[0], known)

    return call  # type: ignore[return-value]


def _adopt(value: Any, known: dict[int, Any]) -> Any:
    if hasattr(value, "_fields"):
        return type(value)(*(_adopt(item, known) for item in value))
    if not backend.is_foreign(value):
        return value
    array = backend.adopt(value)
    # The key holds as long as the array does: both live until the results are handed over.
    known[id(array)] = value, array
    return array


def _restore(result: Any, like: Any, known: dict[int, Any]) -> Any:
    if hasattr(result, "_fields"):
        return type(result)(*(_restore(item, like, known) for item in result))
    if isinstance(result, tuple):
        return tuple(_restore(item, like, known) for item in result)
    if id(result) in known:
        return known[id(result)][0]
    if isinstance(result, np.ndarray) or not backend.is_array(result):
        return result
    return backend.device_module().restore(result, like)
