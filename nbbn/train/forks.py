"""What a forked child renews, because the threads of its parent are not there."""

from __future__ import annotations

import os
import weakref
from typing import Protocol

__all__: list[str] = []


class Forked(Protocol):
    """What has something to renew."""

    def _after_fork_in_child(self) -> None:
        """Forget the parent's other threads, and what only the parent may use."""


_things: weakref.WeakSet[Forked] = weakref.WeakSet()


def renew(thing: Forked) -> None:
    """Call ``thing._after_fork_in_child()`` in every forked child, as long as the thing lives."""
    _things.add(thing)


def _after_fork_in_child() -> None:
    for thing in _things:
        thing._after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
