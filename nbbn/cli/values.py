"""Values of flags: what they must be, said in one line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["Source", "count", "existing_folder", "folder", "fraction", "non_negative", "path"]
__all__ += ["positive", "probability", "resume", "seed", "widths"]


def _number(
    text: str, convert: Callable[[str], Any], accept: Callable[[Any], bool], what: str
) -> Any:
    try:
        value = convert(text)
    except ValueError:
        value = None
    if value is None or not accept(value):
        raise argparse.ArgumentTypeError(f"expected {what}, got {text!r}")
    return value


def count(text: str) -> int:
    """Read an integer of at least 1."""
    return int(_number(text, int, lambda n: n >= 1, "an integer of at least 1"))


def seed(text: str) -> int:
    """Read an integer of at least 0."""
    return int(_number(text, int, lambda n: n >= 0, "an integer of at least 0"))


def positive(text: str) -> float:
    """Read a finite number above 0."""
    return float(_number(text, float, lambda x: 0 < x < float("inf"), "a finite number above 0"))


def fraction(text: str) -> float:
    """Read a number above 0 and at most 1."""
    return float(_number(text, float, lambda x: 0 < x <= 1, "a number between 0 and 1"))


def non_negative(text: str) -> float:
    """Read a finite number of at least 0."""
    return float(_number(text, float, lambda x: 0 <= x < float("inf"), "a finite number >= 0"))


def probability(text: str) -> float:
    """Read a number of at least 0 and below 1."""
    return float(_number(text, float, lambda x: 0 <= x < 1, "a number of at least 0, below 1"))


def folder(text: str) -> Path:
    """Read the path of a folder."""
    return Path(_number(text, str, bool, "the path of a folder"))


def existing_folder(text: str) -> Path:
    """Read the path of the folder of a named data set."""
    found = folder(text)
    if not found.is_dir():
        raise argparse.ArgumentTypeError(
            f"there is no folder {text}: nbbn data --dir makes and fills it"
        )
    return found


class Source(argparse.Action):
    """Takes a name, one path, or those of images and labels."""

    def __call__(self, parser: Any, namespace: Any, given: Any, option: Any = None) -> None:
        """Store one or two."""
        if len(given) > 2 or not all(given):
            found = len(given) if all(given) else "''"
            raise argparse.ArgumentError(
                self, f"expected a name, one path, or those of images and labels, got {found}"
            )
        setattr(namespace, self.dest, given)


def path(text: str) -> Path:
    """Read the path of a file."""
    return Path(_number(text, str, bool, "the path of a file"))


def resume(text: str) -> str:
    """Read the path of a checkpoint, or the word auto."""
    return str(_number(text, str, bool, "the path of a checkpoint or auto"))


def widths(text: str) -> tuple[int, ...]:
    """Read comma-separated integers of at least 1, perhaps none."""
    if not text:
        return ()
    what = "comma-separated widths such as 256,128"
    return tuple(int(_number(part, int, lambda n: n >= 1, what)) for part in text.split(","))
