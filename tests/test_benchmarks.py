"""Every benchmark runs once; so do the comparison, asv on a planted slowdown, and the bundler."""

from __future__ import annotations

import base64
import hashlib
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import pytest

SUITE = Path(__file__).resolve().parents[1] / "asv_benchmarks"
MODULES = ("accuracy", "batchnorm", "ops", "startup", "training")
# A cold compile and a whole epoch take their time.
SLOW = ("FirstCallBenchmark", "EpochBenchmark", "AccuracyAfterOneEpochBenchmark")

# Runs the classes of a module on the first of each parameter. In a process of its own, because the
# suite sets the environment and shares threads with BLAS.
RUN_ONCE = """
import importlib, inspect, subprocess, sys, textwrap

module = importlib.import_module(f"benchmarks.{sys.argv[1]}")
for name, benchmark in inspect.getmembers(module, inspect.isclass):
    if benchmark.__module__ != module.__name__ or (name in sys.argv[3:]) != (sys.argv[2] == "slow"):
        continue
    assert name.endswith("Benchmark"), name
    params = getattr(benchmark, "params", ())
    assert len(params) == len(getattr(benchmark, "param_names", ())), name
    smallest = [values[0] for values in params]
    prefixes = ("time_", "timeraw_", "track_", "peakmem_")
    methods = [m for m in dir(benchmark) if m.startswith(prefixes)]
    assert methods, name
    for method in methods:
        instance = benchmark()
        if hasattr(instance, "setup"):
            try:
                instance.setup(*smallest)
            except NotImplementedError as reason:
                print(name, "skipped:", reason)
                continue
        result = getattr(instance, method)(*smallest)
        if method.startswith("timeraw_"):
            statement, setup = result if isinstance(result, tuple) else (result, "")
            source = textwrap.dedent(setup) + textwrap.dedent(statement)
            subprocess.run([sys.executable, "-c", source], check=True)
        elif method.startswith("track_"):
            assert result >= 0, (name, method, result)
        print(name, method)
"""


@pytest.fixture(autouse=True)
def suite_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(SUITE))


def test_every_module_is_tested():
    files = {path.stem for path in (SUITE / "benchmarks").glob("*.py")}
    assert files == {*MODULES, "common", "__init__"}


@pytest.mark.parametrize(
    ("module", "speed"),
    [
        *((name, "quick") for name in MODULES),
        pytest.param("startup", "slow", marks=pytest.mark.slow),
        pytest.param("training", "slow", marks=pytest.mark.slow),
    ],
)
def test_every_class_runs_on_its_smallest_parameters(module, speed):
    done = subprocess.run(
        [sys.executable, "-c", RUN_ONCE, module, speed, *SLOW],
        cwd=SUITE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Benchmark" in done.stdout


# -------------------------------------------------------------------------------- compare.py


def compare(*arguments):
    return subprocess.run(
        [sys.executable, str(SUITE / "compare.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_compare_batch_norm(tmp_path):
    out = tmp_path / "result.json"
    done = compare(
        "--what", "bn", "--quick", "--shapes", "16x8,2x3x3x8 last",
        "--contenders", "nbbn,nbbn out=,NumPy", "--json", str(out),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert {case["kind"] for case in result["bn"]} == {"forward", "inference", "backward"}
    for case in result["bn"]:
        assert not case["errors"]
        assert {"nbbn", "nbbn out=", "NumPy", "copyto"} <= case["seconds"].keys()
    assert "| 16x8 |" in done.stdout
    assert result["versions"]["nbbn"]


@pytest.mark.slow
def test_compare_training_step(tmp_path):
    out = tmp_path / "result.json"
    done = compare(
        "--what", "step", "--quick", "--nets", "100-100-100/64",
        "--contenders", "nbbn,NumPy", "--json", str(out),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (case,) = json.loads(out.read_text())["step"]
    assert case["seconds"].keys() == {"nbbn", "NumPy", "matrix products"}


@pytest.mark.parametrize("arguments", [("--shapes", "12"), ("--contenders", "tensorflow")])
def test_compare_names_what_it_does_not_know(arguments):
    done = compare(*arguments)
    assert done.returncode == 2
    assert arguments[1] in done.stderr


@pytest.mark.parametrize("peer", ["with_numpy", "with_torch", "with_jax"])
@pytest.mark.parametrize("axis", [1, -1])
def test_peers_compute_the_same(peer, axis):
    """A contender that computes something else would make every ratio void."""
    if peer != "with_numpy":
        pytest.importorskip(peer.removeprefix("with_"))
    shape = (4, 5, 3, 3) if axis == 1 else (4, 3, 3, 5)
    kinds = ("forward", "inference", "backward")
    mine = importlib.import_module("peers.with_nbbn")
    script = textwrap.dedent(f"""
        import sys
        import numpy as np
        from peers import {peer} as peer
        found = {{}}
        for kind in {kinds}:
            result = peer.bn(kind, {shape}, {axis})()
            first = result[0] if isinstance(result, (tuple, list)) else result
            found[kind] = np.asarray(first)
        np.savez(sys.argv[1], **found)
    """)
    found = load_arrays(script)
    for kind in kinds:
        expected = mine.bn(kind, shape, axis)()
        expected = expected[0] if isinstance(expected, tuple) else expected
        array = found[kind]
        if peer == "with_torch" and axis == -1:
            array = np.moveaxis(array, 1, -1)
        np.testing.assert_allclose(array, expected, rtol=2e-5, atol=2e-5)


def load_arrays(script):
    """Run a script that saves arrays, in a process of its own: JAX and PyTorch start threads."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "arrays.npz")
        subprocess.run([sys.executable, "-c", script, path], cwd=SUITE, check=True)
        with np.load(path) as arrays:
            return dict(arrays)


# -------------------------------------------------------------------------------- asv continuous

# asv's own environments install from a package index. This one is a bare venv that sees the
# packages of the interpreter that runs the test, so the test needs no network.
PLUGIN = """
import sysconfig
import venv
from pathlib import Path

from asv.environment import Environment


class Bare(Environment):
    tool_name = "bare"

    def __init__(self, conf, python, requirements, variables):
        # The base class reads them before it sets them.
        self._python, self._requirements, self._tagged_env_vars = python, requirements, variables
        super().__init__(conf, python, requirements, variables)

    def _setup(self):
        venv.create(self._path, symlinks=True)
        (site,) = Path(self._path).glob("lib/python*/site-packages")
        (site / "outside.pth").write_text(sysconfig.get_paths()["purelib"])

    def run(self, args, **kwargs):
        return self.run_executable("python", args, **kwargs)
"""

# Spins for a span of its own clock, so that a busy machine does not change the verdict.
PACKAGE = """
import time

def work():
    end = time.thread_time() + {seconds}
    while time.thread_time() < end:
        pass
"""

BENCHMARK = """
import time

import package


class WorkBenchmark:
    # CPU time: what other processes do does not count.
    timer = staticmethod(time.thread_time)
    rounds, number, repeat, warmup_time = 2, 1, 5, 0

    def time_work(self):
        package.work()
"""

INSTALL = (
    "in-dir={build_dir} python -c "
    '\'import shutil, sysconfig; shutil.copy("package.py", sysconfig.get_paths()["purelib"])\''
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "expected"), [(0.01, 0.03, 1), (0.01, 0.01, 0)], ids=["3x slower", "same"]
)
def test_asv_continuous_fails_on_a_slowdown(tmp_path, before, after, expected):
    pytest.importorskip("asv")
    repo = tmp_path / "repo"
    repo.mkdir()
    git(repo, "init", "-q", "-b", "main")
    for number, seconds in enumerate((before, after)):
        source = PACKAGE.format(seconds=seconds) + f"# commit {number}\n"
        (repo / "package.py").write_text(source)
        git(repo, "add", ".")
        git(repo, "commit", "-q", "-m", f"work takes {seconds} s")
    (tmp_path / "bare.py").write_text(PLUGIN)
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").touch()
    (tmp_path / "benchmarks" / "work.py").write_text(BENCHMARK)
    suite = json.loads(without_comments((SUITE / "asv.conf.json").read_text()))
    config = {
        "version": 1,
        "project": "package",
        "repo": "repo",
        "branches": ["main"],
        "plugins": [".bare"],
        "environment_type": "bare",
        "build_command": [],
        "install_command": [INSTALL],
        "uninstall_command": [],
        "launch_method": suite["launch_method"],
    }
    (tmp_path / "asv.conf.json").write_text(json.dumps(config))
    machine = ["machine", "--yes", "--machine", "test"]
    assert asv(tmp_path, *machine).returncode == 0
    done = asv(tmp_path, "continuous", "--machine", "test", "--factor", "1.5", "HEAD~1", "HEAD")
    assert done.returncode == expected, done.stdout + done.stderr
    assert ("PERFORMANCE DECREASED" in done.stdout) == bool(expected)


def asv(folder, *arguments):
    # HOME keeps the machine file of the user out of it.
    return subprocess.run(
        [sys.executable, "-m", "asv", *arguments],
        cwd=folder,
        env=os.environ | {"HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def git(folder, *arguments):
    who = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True)


def without_comments(text):
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("//"))


# -------------------------------------------------------------------------------- offline.py

PAGE = """<head>
    <script src="https://cdn.example/a.js" integrity="{digest}" crossorigin="anonymous"></script>
    <script language="javascript" type="text/javascript" src="asv.js"></script>
</head>
"""


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A page that loads one file, which "npm" has; return the bundler, its folder and the file."""
    offline = importlib.import_module("offline")
    content = b"var a;"
    digest = "sha256-" + base64.b64encode(hashlib.sha256(content).digest()).decode()
    (tmp_path / "index.html").write_text(PAGE.format(digest=digest))
    (tmp_path / "index.json").write_text('{"project": "nbbn"}')
    monkeypatch.setattr(offline, "SOURCES", {"a.js": offline.Source("a@1", "a.js")})
    monkeypatch.setattr(offline, "fetch", lambda source, temporary: content)
    return offline, tmp_path


def test_offline_page_loads_nothing_from_the_network(published):
    offline, folder = published
    assert offline.bundle(folder) == ["a.js"]
    page = (folder / "index.html").read_text()
    assert "https://" not in page
    assert "integrity" not in page
    assert page.index("offline/a.js") < page.index("offline/files.js") < page.index("asv.js")
    assert '"index.json": {"project": "nbbn"}' in (folder / "offline" / "files.js").read_text()


def test_offline_refuses_a_file_that_is_not_the_page_s(published, monkeypatch):
    offline, folder = published
    monkeypatch.setattr(offline, "fetch", lambda source, temporary: b"var b;")
    before = (folder / "index.html").read_text()
    with pytest.raises(offline.OfflineError, match=r"a\.js from npm has digest"):
        offline.bundle(folder)
    assert (folder / "index.html").read_text() == before


def test_offline_refuses_what_it_does_not_know(published, monkeypatch):
    offline, folder = published
    monkeypatch.setattr(offline, "SOURCES", {})
    with pytest.raises(offline.OfflineError, match=r"https://cdn\.example/a\.js"):
        offline.bundle(folder)


def test_offline_without_npm_says_so(monkeypatch, capsys, tmp_path):
    offline = importlib.import_module("offline")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert offline.main([str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "npm is not on PATH" in message
    assert message.count("\n") == 1


def test_offline_knows_all_that_the_installed_asv_loads():
    pytest.importorskip("asv")
    offline = importlib.import_module("offline")
    page = Path(importlib.util.find_spec("asv").origin).with_name("www") / "index.html"
    names = {offline.name_of(match) for match in offline.REMOTE.finditer(page.read_text())}
    assert names
    assert names <= offline.SOURCES.keys()
