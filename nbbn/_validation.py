"""Every check of a scalar, once: numbers, choices, switches, random generators, paths.

A value of another type is a DTypeError, one outside of the range an ArgumentError. Numbers of
NumPy, 0-dimensional arrays included, are numbers; truth values are none.

A recorded step keeps what comes out of here, while a number of NumPy's may be another next time: of
the batch, or of an array that changes. So such numbers are `noticed`.
"""

from __future__ import annotations

import contextlib
import math
import operator
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ArgumentError, DTypeError


class _Local(threading.local):
    # What is told of a number of NumPy's that becomes one of Python's, and its name, if anything.
    notice: Callable[[Any, str], None] | None = None


_local = _Local()


@contextlib.contextmanager
def noticed(notice: Callable[[Any, str], None] | None) -> Iterator[None]:
    """Tell `notice` of numbers of NumPy's that this thread checks, for the duration."""
    before, _local.notice = _local.notice, notice
    try:
        yield
    finally:
        _local.notice = before


def _notice(value: Any, name: str) -> None:
    if _local.notice is not None and isinstance(value, np.generic | np.ndarray):
        _local.notice(value, name)


def integer(value: Any, name: str, *, least: int | None = None, most: int | None = None) -> int:
    """Check that `value` is an integer, of at least `least` and at most `most`."""
    number = value if type(value) is int else _index(value, name)
    if least is not None and number < least:
        raise ArgumentError(f"{name} must be at least {least}, got {number}")
    if most is not None and number > most:
        raise ArgumentError(f"{name} must be at most {most}, got {number}")
    return number


def _index(value: Any, name: str) -> int:
    _notice(value, name)
    if not isinstance(value, bool):
        # Some arrays are integers in this sense, and some only look like it.
        with contextlib.suppress(TypeError):
            return operator.index(value)
    raise DTypeError(f"{name} must be an integer, got {type(value).__name__}")


def positive(value: Any, name: str) -> int:
    """Check that `value` is an integer of at least 1."""
    return integer(value, name, least=1)


def number(value: Any, name: str) -> float:
    """Check that `value` is one real number, finite or not."""
    _notice(value, name)
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise DTypeError(f"{name} must be a number, got {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def real(
    value: Any,
    name: str,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
) -> float:
    """Check that `value` is one finite real number within bounds."""
    found = number(value, name)
    if not math.isfinite(found):
        raise ArgumentError(f"{name} must be finite, got {found}")
    if not (least <= found <= most and above < found < below):
        bounds = {"at least": least, "above": above, "at most": most, "below": below}
        finite = (f"{word} {bound:g}" for word, bound in bounds.items() if math.isfinite(bound))
        expected = " and ".join(finite)
        raise ArgumentError(f"{name} must be {expected}, got {found}")
    return found


def fraction(value: Any, name: str) -> float:
    """Check that `value` lies in [0, 1]."""
    return real(value, name, least=0, most=1)


def switch(value: Any, name: str) -> bool:
    """Check that `value` is True or False; 1 and 0 will do."""
    if value is True or value is False:
        return bool(value)
    _notice(value, name)
    if not isinstance(value, int | np.integer | np.bool_) or value not in (0, 1):
        raise DTypeError(f"{name} must be True or False, got {type(value).__name__} {value!r:.40}")
    return bool(value)


def data_type(dtype: Any, *allowed: str) -> np.dtype[Any]:
    """Check that `dtype` is one of the types of the names `allowed`, and return it."""
    # What is not a type can make NumPy raise or warn in many ways.
    if isinstance(dtype, str | type | np.dtype):
        with contextlib.suppress(TypeError, ValueError):
            for accepted in map(np.dtype, allowed):
                if np.dtype(dtype) == accepted:
                    return accepted
    raise DTypeError(f"dtype must be {' or '.join(allowed)}, got {dtype!s:.80}")


def float_type(dtype: Any) -> np.dtype[Any]:
    """Check that `dtype` is a type for parameters, float32 or float64, and return it."""
    return data_type(dtype, "float32", "float64")


def choice(value: Any, allowed: tuple[Any, ...], name: str) -> Any:
    """Check that `value` is one of `allowed`."""
    # Others may compare in ways of their own: an array element by element.
    if not (value is None or isinstance(value, str)) or value not in allowed:
        names = ", ".join(repr(item) for item in allowed)
        raise ArgumentError(f"{name} must be one of {names}; got {value!r}")
    return value


def function(value: Any, name: str) -> None:
    """Check that `value` can be called."""
    if not callable(value):
        raise DTypeError(f"{name} must be a function, got {type(value).__name__}")


def instance(value: Any, kind: type, name: str) -> None:
    """Check that `value` is an object of a class, not the class itself."""
    if not isinstance(value, kind):
        found = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise DTypeError(f"{name} must be {article} {kind.__name__}, got {found}")


def iterate(value: Any, name: str, what: str) -> Iterator[Any]:
    """Check that `value` holds several things, a list or the like, and iterate over them."""
    # Memory and text would give numbers and letters; a 0-dimensional array gives nothing.
    if not isinstance(value, str | bytes | bytearray | memoryview | Mapping):
        with contextlib.suppress(TypeError):
            return iter(value)
    raise DTypeError(f"{name} must be a list of {what}, got {type(value).__name__}")


def positives(value: Any, name: str) -> tuple[int, ...]:
    """Check that `value` holds integers of at least 1, and return them."""
    return tuple(positive(number, name) for number in iterate(value, name, "integers"))


def mapping(value: Any, name: str, what: str) -> None:
    """Check that `value` maps names to things."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise DTypeError(f"{name} must map names to {what}, got {type(value).__name__}")


def generator(rng: Any, name: str = "rng") -> np.random.Generator:
    """Return `rng` if it is a Generator, else a new one seeded by it.

    Parameters
    ----------
    rng : Generator, int or None
        None draws a fresh seed from the operating system.
    name : str
        The argument's, for messages.

    Returns
    -------
    Generator

    Raises
    ------
    DTypeError
        Anything else.
    ArgumentError
        A negative seed.
    """
    if isinstance(rng, np.random.Generator):
        return rng
    if rng is None:
        return np.random.default_rng()
    try:
        seed = integer(rng, name)
    except DTypeError:
        raise DTypeError(
            f"{name} must be a numpy.random.Generator, an integer seed or None, "
            f"got {type(rng).__name__}"
        ) from None
    if seed < 0:
        raise ArgumentError(f"{name} must be a seed of at least 0, got {seed}")
    return np.random.default_rng(seed)


def as_array(value: Any, name: str) -> np.ndarray:
    """Return what a user gave as an array: one, nested lists, or a tensor of another library."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DTypeError(f"{name} is not an array: {error}") from None


def possible(shape: tuple[int, ...], dtype: np.dtype[Any], what: str) -> None:
    """Check that numbers of `shape` can be made: drawn in float64, and a copy of them."""
    try:
        np.empty((2, *shape))
    except (MemoryError, ValueError, OverflowError):  # too much to have, or to count in 64 bits
        gibibytes = math.prod(shape) * dtype.itemsize >> 30
        size = f"{gibibytes >> 10:,} TiB" if gibibytes >> 10 else f"{gibibytes} GiB"
        raise ArgumentError(
            f"{what} of shape {shape} would take {size}, more than can be had here: use smaller "
            "sizes"
        ) from None


def as_path(value: Any, name: str, *, expand: bool = False) -> Path:
    """Return what a user gave as a path, with the home folder for ``~`` if `expand`."""
    try:
        path = Path(value).expanduser() if expand else Path(value)
    except TypeError:
        raise DTypeError(
            f"{name} must be a path, a str or an os.PathLike, got {type(value).__name__}"
        ) from None
    except RuntimeError as error:
        raise ArgumentError(f"{name} {value!r} names no folder: {error}") from None
    if "\0" in str(path):
        raise ArgumentError(f"{name} must be a path without null characters, got {value!r}")
    return path


def write_atomically(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Replace the content of `path`, in a folder that exists, or leave it as it was.

    Raises OSError where it cannot be written; the old content is then still there. What is not
    `durable` may be lost or damaged by a power cut, and is written without waiting for the disk.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with open(part, "xb") as stream:
            stream.write(content)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    if not durable:
        return
    # A folder that cannot be synced, as on some network file systems, costs durability only.
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def cache_dir() -> Path | None:
    """Return the user's folder for what can be made again, None where there is no home folder."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "nbbn"
    except RuntimeError:
        return None
