"""Checkpoints: everything that a training needs to go on as if it had never stopped."""

from __future__ import annotations

from .folder import Checkpoints, latest, load
from .format import Checkpoint
from .saving import restore, save

__all__ = ["Checkpoint", "Checkpoints", "latest", "load", "restore", "save"]
