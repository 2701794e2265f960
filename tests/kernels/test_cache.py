"""Faults of the cache of compiled kernels: always the right numbers, at most one warning, no error.

Each test works in a folder of its own and in fresh processes. What runs in them is written out, so
that a reader sees it whole.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import nbbn
from nbbn.kernels import _cache

ROOT = Path(__file__).resolve().parents[2]
WARNING = "nbbn kernel cache: "

CALL = """
import numpy as np
import nbbn.functional as F
x = np.arange(-6.0, 6.0).reshape(4, 3)
assert np.array_equal(F.relu(x), np.maximum(x, 0))
"""
SECOND_CALL = """
assert np.array_equal(F.relu_backward(x, x), np.maximum(x, 0))
"""
# Permissions mean nothing to the superuser.
DROP_RIGHTS = """
import os
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
"""


def start(script: str, folder: Path | None, **environment: str) -> subprocess.Popen[str]:
    env = {k: v for k, v in os.environ.items() if k not in {"NBBN_CACHE_DIR", "XDG_CACHE_HOME"}}
    if folder is not None:
        env["NBBN_CACHE_DIR"] = str(folder)
    return subprocess.Popen(
        [sys.executable, "-W", "always", "-c", script],
        env={**env, **environment},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], warns: bool = False) -> str:
    """Check that a process ended well, with one warning or none; return what it printed."""
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert errors.count(WARNING) == int(warns), errors
    assert warns or not errors, errors
    return output


def run(script: str, folder: Path | None, *, warns: bool = False, **environment: str) -> str:
    return finish(start(script, folder, **environment), warns)


def entries(folder: Path) -> list[Path]:
    """List the files of a cache, and check that nothing half-written is among them."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert all(path.suffix == ".nbc" for path in files), files
    return files


@pytest.fixture
def tmp_path():
    """Return a folder that users without rights can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "cache"


COUNTING = (
    "from nbbn.kernels import _cache\nnames = []\n_cache.on_compile = names.append\n"
    + CALL
    + "print(names)\n"
)


def test_a_kernel_compiles_once(folder):
    assert run(COUNTING, folder) == "['elementwise_cpu.relu']\n"
    assert len(entries(folder)) == 1
    assert run(COUNTING, folder) == "[]\n"


def test_six_processes_at_once(folder):
    for process in [start(CALL, folder) for _ in range(6)]:
        finish(process)
    assert len(entries(folder)) == 1
    assert run(COUNTING, folder) == "[]\n"


# ------------------------------------------------------------------- folders that do not take it


def copy_of_the_package(tmp_path: Path) -> Path:
    target = tmp_path / "site" / "nbbn"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(nbbn.__file__).parent, target, ignore=ignored)
    return target


def from_copy(package: Path, script: str) -> str:
    path = str(package.parent)
    return f"import sys\nsys.path.insert(0, {path!r})\nsys.dont_write_bytecode = True\n{script}"


@pytest.mark.parametrize("home", [True, False])
def test_read_only_install(tmp_path, folder, home):
    """Nothing is written beside the package, whether or not there is another place."""
    package = copy_of_the_package(tmp_path)
    before = sorted(package.rglob("*"))
    for path in (*before, package):
        path.chmod(0o555)
    folder.mkdir()
    folder.chmod(0o777)
    # Python itself may lie where a user without rights cannot load the rest of it.
    loaded = "import numba, nbbn.functional, nbbn.kernels._jit\nnumba.njit(lambda x: x)(1)\n"
    script = from_copy(package, loaded + DROP_RIGHTS + CALL)
    script += f"import nbbn\nassert nbbn.__file__.startswith({str(package)!r})\n"
    try:
        run(script, folder if home else None, warns=not home, HOME="/dev/null")
    finally:
        package.chmod(0o755)
        for path in before:
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert sorted(package.rglob("*")) == before
    assert len(entries(folder)) == int(home)


def test_an_archive_instead_of_a_folder(tmp_path, folder):
    package = copy_of_the_package(tmp_path)
    archive = Path(shutil.make_archive(str(tmp_path / "nbbn"), "zip", package.parent))
    run(from_copy(archive / "nbbn", CALL), folder, warns=True)
    assert entries(folder) == []


def test_no_home():
    """A user without an entry in the password file and without HOME: nothing is stored or said."""
    script = "import os\nos.path.expanduser = lambda path: path\n" + COUNTING
    assert run(script, None) == "['elementwise_cpu.relu']\n"


@pytest.mark.parametrize("place", ["/dev/null", "/dev/null/below", "~nobody-of-this-name/cache"])
def test_a_place_that_cannot_be(place):
    run(CALL, Path(place), warns=True)


@pytest.mark.parametrize("mode", [0o555, 0o000])
def test_folder_closed_after_import(folder, mode):
    """The first kernel is stored, then the rights go; later kernels compile in memory."""
    script = f"""
{CALL}
import glob
for path in (*glob.glob({str(folder / "**")!r}, recursive=True), {str(folder)!r}):
    os.chmod(path, {mode})
{DROP_RIGHTS}
{SECOND_CALL}
{CALL}
"""
    try:
        run("import os\n" + script, folder, warns=True)
    finally:
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)
    assert len(entries(folder)) == 1


def test_folder_replaced_by_a_file_after_import(folder):
    script = f"""
{CALL}
import shutil
shutil.rmtree({str(folder)!r})
open({str(folder)!r}, "w").close()
{SECOND_CALL}
"""
    run(script, folder, warns=True)


def test_full_disk(folder):
    """Writing stops in the middle of the file, and what was begun is taken away."""
    script = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
{CALL}
{SECOND_CALL}
"""
    run(script, folder, warns=True)
    assert entries(folder) == []
    assert run(COUNTING, folder) == "['elementwise_cpu.relu']\n"


def test_full_file_system(folder):
    folder.mkdir()
    size = ["-t", "tmpfs", "-o", "size=8k", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(["mount", *size], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs rights that this user has not")
    try:
        run(CALL + SECOND_CALL, folder, warns=True)
        assert entries(folder) == []
    finally:
        subprocess.run(["umount", str(folder)], check=True)


# ---------------------------------------------------------------------------------- bad files

DAMAGE = """
import pathlib, warnings
import numpy as np
from nbbn.kernels import _cache, _jit

def twice(x):
    x[0] *= 2.0

def call():
    x = np.full(1, 21.0)
    _jit.SerialKernel(twice)(x)
    assert x[0] == 42.0

folder = pathlib.Path({folder!r})
call()
(path,) = folder.rglob("*.nbc")
whole = path.read_bytes()
compiled = []
_cache.on_compile = compiled.append
call()
assert compiled == []

def damaged():
    for length in (0, 1, 31, 32, 33, len(whole) // 2, len(whole) - 1):
        yield whole[:length]
    for position in range(0, len(whole), len(whole) // 12):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        yield bytes(flipped)
    yield whole + b"more"
    # The digest is right, what it covers is not.
    for payload in (b"", b"no pickle", b"N."):
        yield _cache.hashlib.sha256(payload).digest() + payload

for number, content in enumerate(damaged(), 1):
    path.write_bytes(content)
    _cache._warned = False
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
        call()
    assert len(caught) == 1, [str(warning.message) for warning in caught]
    assert len(compiled) == number, "a damaged file was trusted, or not replaced by a good one"
print(number)
"""


def test_truncated_and_flipped_files(folder):
    assert int(run(DAMAGE.format(folder=str(folder)), folder)) > 20


def test_a_folder_where_the_file_should_be(folder):
    run(CALL, folder)
    (path,) = entries(folder)
    path.unlink()
    path.mkdir()
    run(CALL, folder, warns=True)


# --------------------------------------------------------------------------------- staleness


def test_another_python_has_entries_of_its_own(monkeypatch):
    digest = _cache.source_digest.__wrapped__
    own = digest()
    monkeypatch.setattr(sys.implementation, "cache_tag", "cpython-39")
    assert digest() != own


def test_other_options_are_another_entry(folder):
    """The same function with and without checks for division by zero."""
    script = """
import numpy as np
from nbbn.kernels import _jit

def divide(x):
    x[0] = 1.0 / x[0]

options = {"parallel": False, "error_model": "numpy", "nogil": True}
for model, expected in (("numpy", "inf"), ("python", "ZeroDivisionError")) * 2:
    dispatcher = _jit.njit(**{**options, "error_model": model})(divide)
    dispatcher._cache = _jit.KernelCache(divide, {**options, "error_model": model})
    x = np.zeros(1)
    try:
        dispatcher(x)
        found = str(x[0])
    except ZeroDivisionError as error:
        found = type(error).__name__
    assert found == expected, (model, found)
"""
    for _ in range(2):
        run(script, folder)
    assert len(entries(folder)) == 2


def test_an_edited_callee_is_seen(tmp_path, folder):
    """A helper in another file changes, with the time of the file as before."""
    package = copy_of_the_package(tmp_path)
    script = """
import numpy as np
import nbbn.functional as F
print(F.softmax(np.log([[1.0, 3.0]]))[0, 0].round(12))
"""
    script = from_copy(package, script)
    assert float(run(script, folder)) == 1 / 4
    kernels = package / "kernels" / "elementwise_cpu.py"
    status = kernels.stat()
    text = kernels.read_text()
    line = "return lambda x: math.exp(x)\n"
    assert text.count(line) == 1
    kernels.write_text(text.replace(line, "return lambda x: math.exp(2*x)\n"))
    os.utime(kernels, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert float(run(script, folder)) == 1 / 10


def test_the_private_names_of_numba_are_there():
    """A canary: raise the cap on numba's version only when this passes."""
    from numba import njit
    from numba.core.caching import _Cache
    from numba.core.compiler_lock import global_compiler_lock
    from numba.np.ufunc import parallel

    from nbbn.kernels import _jit

    wanted = {"cache_path", "load_overload", "save_overload", "enable", "disable", "flush"}
    assert _Cache.__abstractmethods__ <= wanted
    assert hasattr(njit(lambda x: x), "_cache")
    assert isinstance(parallel._is_initialized, bool)
    assert callable(global_compiler_lock.acquire)
    assert isinstance(_jit.SerialKernel(start).serial._cache, _jit.KernelCache)
