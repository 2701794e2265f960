"""Models to and from ONNX; needs the extra ``nbbn[onnx]``."""

from .exporter import export
from .importer import load

__all__ = ["export", "load"]
