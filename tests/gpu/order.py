"""In which order the simulator's engine and the interpreter let the threads of a block go on."""

from collections.abc import Iterator
from contextlib import contextmanager

_order: str | int = "forward"


def current() -> str | int:
    """The order in force: "forward", "reversed" or a seed."""
    return _order


@contextmanager
def schedule(order: str | int) -> Iterator[None]:
    """Let the first threads of the first blocks go first, the last ones, or some by a seed."""
    global _order
    before, _order = _order, order
    try:
        yield
    finally:
        _order = before
