"""Models to and from ONNX, and a backend for ONNX's own tests; needs the extra ``nbbn[onnx]``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .exporter import export
from .importer import load

if TYPE_CHECKING:
    from .backend import Backend

__all__ = ["Backend", "export", "load"]


def __getattr__(name: str) -> Any:
    # The class derives from one of onnx, which is imported here and not before.
    if name != "Backend":
        raise AttributeError(f"module 'nbbn.onnx' has no attribute {name!r}")
    from .extra import require

    require("onnx.backend.base")
    from .backend import Backend

    return Backend
