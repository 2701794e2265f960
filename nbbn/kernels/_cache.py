"""The on-disk cache of compiled kernels: never stale, never fatal.

Numba's own cache keys on a function's bytecode and its file, so another flag, an edited callee or a
damaged file goes unnoticed or raises. This one keys on everything that shapes the machine code
(options, library versions, the text of every kernel file, the CPU), checks a digest before it
loads, and turns any failure into one warning and a compile.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core.caching import _Cache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from nbbn._validation import cache_dir as user_cache
from nbbn._validation import write_atomically
from nbbn._version import __version__

_DIGEST_BYTES = 32
_warned = False
# Called with the kernel's name before each compilation; the command line uses it to say so.
on_compile: Callable[[str], None] | None = None


def cache_dir() -> Path | None:
    """The folder of compiled kernels: `NBBN_CACHE_DIR`, else the user's cache folder, else None."""
    chosen = os.environ.get("NBBN_CACHE_DIR")
    return Path(chosen).expanduser() if chosen else user_cache()


@functools.cache
def source_digest() -> str:
    """Digest of the versions of library, compilers and Python and the text of every kernel file."""
    # An entry is a pickle, and its machine code calls into the interpreter that made it.
    versions = __version__, numba.__version__, llvmlite.__version__, sys.implementation.cache_tag
    digest = hashlib.sha256(repr(versions).encode())
    paths = sorted(Path(__file__).parent.glob("*.py"))
    if not paths:
        raise FileNotFoundError(
            "the kernels' .py files, which entries are keyed on, are not in a folder"
        )
    for path in paths:
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


class KernelCache(_Cache):
    """Cache of one function under one set of options, for a dispatcher's `_cache` attribute."""

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        self._name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}"
        self._options = sorted((key, str(_ordered(value))) for key, value in options.items())
        self._enabled = True

    @property
    def cache_path(self) -> str | None:
        """The folder that holds this function's files."""
        folder = _folder()
        return None if folder is None else str(folder)

    def enable(self) -> None:
        """Use the disk again."""
        self._enabled = True

    def disable(self) -> None:
        """Leave the disk alone."""
        self._enabled = False

    def flush(self) -> None:
        """Forget nothing: entries are keyed by content and cannot be stale."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled result for `sig`, or None where there is none that can be trusted."""
        target_context.refresh()
        data = None
        if self._enabled:
            data = _stored(
                self._name,
                self._key(sig, target_context.codegen()),
                lambda payload: CompileResult._rebuild(target_context, *pickle.loads(payload)),
            )
        if data is None and on_compile is not None:
            on_compile(self._name)
        return data

    def save_overload(self, sig: Any, data: Any) -> None:
        """Store the compiled result `data`, atomically; on failure warn and go on."""
        if self._enabled and not (data.library.has_dynamic_globals or any(data.lifted)):
            _store(self._name, self._key(sig, data.codegen), lambda: dumps(data._reduce()))

    def _key(self, sig: Any, codegen: Any) -> Any:
        return self._options, sig, codegen.magic_tuple()


def cached(name: str, key: Any, build: Callable[[], bytes]) -> bytes:
    """What `build` returns, from the disk where it has been built before for `name` and `key`."""
    payload: bytes | None = _stored(name, key, bytes)
    if payload is None:
        if on_compile is not None:
            on_compile(name)
        built = payload = build()
        _store(name, key, lambda: built)
    return payload


def _stored(name: str, key: Any, decode: Callable[[bytes], Any]) -> Any:
    """What the disk has for `name` and `key`, decoded; None where it has nothing that is sound."""
    path = None
    try:
        path = _entry(name, key)
        return None if path is None else decode(_read(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # whatever is wrong with the file, compiling is right
        _warn_failed("read", path, error, "compiling instead")
        return None


def _store(name: str, key: Any, encode: Callable[[], bytes]) -> None:
    path = None
    try:
        path = _entry(name, key)
        if path is not None:
            _write(path, encode())
    except Exception as error:  # a full disk or a read-only folder must not stop the caller
        _warn_failed("write", path, error, "kernels compile again in the next process")


def _folder() -> Path | None:
    base = cache_dir()
    return None if base is None else base / "kernels" / source_digest()[:16]


def _entry(name: str, key: Any) -> Path | None:
    folder = _folder()
    if folder is None:
        return None
    digest = hashlib.sha256(repr((name, key)).encode()).hexdigest()
    return folder / f"{name}-{digest[:24]}.nbc"


def _ordered(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else value


def _read(path: Path) -> bytes:
    content = path.read_bytes()
    digest, payload = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(payload).digest() != digest:
        raise ValueError("the file is damaged")
    return payload


def _write(path: Path, payload: bytes) -> None:
    """Write a payload with its digest, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The digest tells a file that a power cut has damaged.
    write_atomically(path, hashlib.sha256(payload).digest() + payload, durable=False)


def _warn_failed(what: str, path: Path | None, error: Exception, instead: str) -> None:
    global _warned
    if not _warned:
        _warned = True
        text = f"nbbn kernel cache: could not {what} {path or 'entries'} ({error}); {instead}"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
