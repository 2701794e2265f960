"""Reading files, unpacking them, and the IDX format of the MNIST files."""

from __future__ import annotations

import gzip
import io
import math
import os
import zlib
from pathlib import Path

import numpy as np

from .._validation import as_path
from ..errors import DataError

_UBYTE = 0x08
_MAX_RANK = 32


def read_idx(source: str | os.PathLike[str] | bytes) -> np.ndarray:
    """Read an array in the IDX format of the MNIST files.

    Parameters
    ----------
    source : path or bytes
        A file or its content, plain or gzipped.

    Returns
    -------
    ndarray of uint8
        A new, writable array with the shape that the file states.

    Raises
    ------
    DataError
        If the file cannot be read, is damaged, or is not an IDX file of unsigned bytes.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return parse_idx(unpack(bytes(source), "the data"), "the data")
    path = as_path(source, "source")
    content = read_file(path)
    if content is None:
        raise DataError(f"{path} does not exist: pass the path of an IDX file")
    return parse_idx(unpack(content, str(path)), str(path))


def read_file(path: Path) -> bytes | None:
    """Return the content of a file, None if there is no such file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {reason(error)}") from error


def unpack(content: bytes, name: str, most: int | None = None) -> bytes:
    """Return `content` without its gzip wrapping, if it has one; `most` bounds the result."""
    if content[:2] == b"\0\0":
        return content
    if not content:
        raise DataError(f"{name} is empty")
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
            return stream.read() if most is None else stream.read(most + 1)
    except EOFError as error:
        raise DataError(f"{name} is truncated: its gzip data ends too early") from error
    except gzip.BadGzipFile as error:
        raise DataError(
            f"{name} is neither IDX nor sound gzip data ({error}); it starts with {content[:16]!r}"
        ) from error
    except zlib.error as error:
        raise DataError(f"{name} is damaged: its gzip data cannot be unpacked ({error})") from error


def parse_idx(raw: bytes, name: str) -> np.ndarray:
    """Return the array that an unpacked IDX file holds; `name` stands for it in messages."""
    if len(raw) < 4 or raw[:2] != b"\0\0" or not 1 <= raw[3] <= _MAX_RANK:
        raise DataError(
            f"{name} is not an IDX file: expected a magic number like 00 00 08 03, "
            f"got {raw[:4].hex(' ') or 'nothing'}"
        )
    if raw[2] != _UBYTE:
        raise DataError(
            f"{name} holds IDX type 0x{raw[2]:02x}; only 0x08, unsigned bytes, can be read"
        )
    start = 4 + 4 * raw[3]
    if len(raw) < start:
        raise DataError(f"{name} ends inside its IDX header of {start} bytes: it is truncated")
    shape = tuple(np.frombuffer(raw, ">u4", raw[3], 4).tolist())
    if len(raw) != start + math.prod(shape):
        raise DataError(
            f"{name} states the shape {shape}, which takes {start + math.prod(shape)} bytes, "
            f"but has {len(raw)}"
        )
    try:
        return np.frombuffer(raw, np.uint8, offset=start).reshape(shape).copy()
    except ValueError as error:  # an empty array, but with lengths that overflow
        raise DataError(f"{name} states the shape {shape}, which NumPy cannot hold") from error


def idx_bytes(array: np.ndarray) -> bytes:
    """Return the IDX file that holds `array` as unsigned bytes."""
    head = bytes([0, 0, _UBYTE, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return head + array.astype(np.uint8).tobytes()


def reason(error: Exception) -> str:
    """Say in one line why something could not be read or written."""
    inner = getattr(error, "reason", None) or error
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror
    return " ".join(str(inner).split()) or type(inner).__name__
