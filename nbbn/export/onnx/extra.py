"""The packages of the extra, imported when they are needed."""

from __future__ import annotations

import importlib
from typing import Any


def require(name: str) -> Any:
    """Import a module of the extra ``onnx``; an ImportError says how to install it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"ONNX needs the package {error.name}: install it with pip install 'nbbn[onnx]'"
        ) from error
