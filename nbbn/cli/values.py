"""Values of flags: text in, what the check of its setting makes of it out."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from .._validation import positive, real
from ..errors import NbbnError
from ..train.config import check, sources

# What a message calls a value: argparse puts the flag before it.
_NAME = "the value"


def _number(text: str) -> int | float:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    raise argparse.ArgumentTypeError(f"expected a number, got {text!r}")


def _numbers(text: str) -> list[int | float]:
    return [_number(part) for part in text.split(",")] if text else []


_READERS: dict[Any, Callable[[str], Any]] = {str: str, tuple: _numbers}


def as_text(value: Any) -> str:
    """Spell a setting as on the command line."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def setting(name: str, default: Any) -> Callable[[str], Any]:
    """Make what reads the value of a setting of `Config`."""
    read = _READERS.get(type(default), _number)
    return lambda text: _checked(check, name, read(text))


def count(text: str) -> int:
    """Read an integer of at least 1."""
    return int(_checked(positive, _number(text)))


def seconds(text: str) -> float:
    """Read a time above 0."""
    return float(_checked(partial(real, above=0), _number(text)))


def path(text: str) -> Path:
    """Read a path."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got ''")
    return Path(text)


def existing_folder(text: str) -> Path:
    """Read the path of the folder of a named data set."""
    found = path(text)
    if not found.is_dir():
        raise argparse.ArgumentTypeError(
            f"there is no folder {text}: nbbn data --dir makes and fills it"
        )
    return found


class Source(argparse.Action):
    """Takes a name, one path, or those of images and labels."""

    def __call__(self, parser: Any, namespace: Any, given: Any, option: Any = None) -> None:
        """Store one or two."""
        try:
            setattr(namespace, self.dest, sources(given, _NAME))
        except NbbnError:
            found = len(given) if all(given) else "''"
            raise argparse.ArgumentError(
                self, f"expected a name, one path, or those of images and labels, got {found}"
            ) from None


def _checked(check: Callable[..., Any], *args: Any) -> Any:
    try:
        return check(*args, _NAME)
    except NbbnError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
