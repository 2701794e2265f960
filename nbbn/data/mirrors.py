"""Files from a web server: stalls, broken connections and lies are errors, not data."""

from __future__ import annotations

import http.client
import queue
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from ..errors import DataError
from .chain import File
from .idx import reason

# Finding a host, trying each of its addresses and getting the head of its reply share OPEN_SECONDS.
OPEN_SECONDS = 10.0
STALL_SECONDS = 15.0

_CHUNK = 1 << 16


def from_mirror(url: str, files: list[File], progress: bool) -> Iterator[tuple[File, bytes]]:
    """Yield each file, packed, from the folder `url` of a server."""
    for file in files:
        name = f"{file.name}.gz"
        try:
            content = _download(url + name, file.size + _CHUNK, progress)
        except urllib.error.HTTPError as error:
            error.close()
            raise DataError(f"HTTP status {error.code} for {name}") from error
        except (OSError, http.client.HTTPException) as error:
            raise DataError(f"{reason(error)} ({name})") from error
        yield file, content


def _download(url: str, most: int, progress: bool) -> bytes:
    """Return what `url` holds; a body that breaks off or exceeds `most` bytes is an error."""
    content = bytearray()
    with _open(url) as reply:
        stated = reply.headers.get("Content-Length") or ""
        total = int(stated) if stated.isdecimal() else None
        name = url.rpartition("/")[2]
        with tqdm(total=total, unit="B", unit_scale=True, desc=name, disable=not progress) as bar:
            while chunk := reply.read(_CHUNK):
                content += chunk
                bar.update(len(chunk))
                if len(content) > most:
                    raise OSError("the reply is longer than the file asked for")
    if total is not None and len(content) < total:
        raise OSError(f"the connection broke off after {len(content)} of {total} bytes")
    return bytes(content)


def _open(url: str) -> Any:
    """Open `url` with one deadline for everything before the body.

    A socket's timeout holds for each address of a host by itself, and not for finding its name.
    """
    replies: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        try:
            replies.put(urllib.request.urlopen(url, timeout=STALL_SECONDS))
        except Exception as error:
            replies.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        reply = replies.get(timeout=OPEN_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"no reply within {OPEN_SECONDS:g} s") from None
    if isinstance(reply, Exception):
        raise reply
    return reply
