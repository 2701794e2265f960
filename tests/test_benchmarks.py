"""Every benchmark runs once; the comparison, its peers, and the bundler of the results' page."""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

SUITE = Path(__file__).resolve().parents[1] / "asv_benchmarks"
MODULES = ("accuracy", "batchnorm", "norms", "ops", "startup", "training", "recurrent")
# A cold compile takes its time.
SLOW = ("FirstCallBenchmark",)

# Runs the classes of a module on the first of each parameter. In a process of its own, because the
# suite sets the environment and shares threads with BLAS.
RUN_ONCE = """
import importlib, inspect, subprocess, sys, textwrap
import numpy as np
from nbbn.data import Dataset

module = importlib.import_module(f"benchmarks.{sys.argv[1]}")
# Epochs of something shorter than MNIST.
images = np.random.default_rng(0).integers(0, 256, (500, 28, 28), np.uint8)
labels = np.arange(500) % 10
module._mnist = lambda: Dataset(images, labels, images, labels)
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
@pytest.mark.parametrize(("what", "flags", "peers", "rows"), [
    ("bn", ("--shapes", "16x8,2x3x3x8 last"), {"NumPy"}, ["| 16x8 |"]),
    ("norms", ("--norms", "layer 512x768"), set(),
     ["| layer 512x768 |", "| normalization of groups, forward |"]),
])  # fmt: skip
def test_compare(what, flags, peers, rows, tmp_path):
    out = tmp_path / "result.json"
    given = ("--what", what, "--quick", *flags, "--contenders", "nbbn,nbbn out=,NumPy")
    done = compare(*given, "--json", str(out))
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert {case["kind"] for case in result[what]} == {"forward", "inference", "backward"}
    for case in result[what]:
        assert not case["errors"]
        assert {"nbbn", "nbbn out=", "copyto", *peers} <= case["seconds"].keys()
    assert all(row in done.stdout for row in rows)
    assert result["versions"]["nbbn"]


@pytest.mark.parametrize("kind", ["forward", "inference", "backward"])
@pytest.mark.parametrize(
    ("norm", "shape", "groups"),
    [
        ("layer_norm", (4, 6), None), ("rms_norm", (4, 6), None),
        ("group_norm", (4, 6, 3), 2), ("instance_norm", (4, 6, 3), None),
    ],
)  # fmt: skip
def test_torch_computes_the_same_norms(kind, norm, shape, groups, tmp_path):
    pytest.importorskip("torch")
    mine = importlib.import_module("peers.with_nbbn").norms(kind, norm, shape, groups)()
    script = textwrap.dedent(f"""
        import sys
        import numpy as np
        from peers import with_torch
        found = with_torch.norms({kind!r}, {norm!r}, {shape}, {groups})()
        found = found if isinstance(found, tuple) else (found,)
        np.savez(sys.argv[1], *[a.detach().numpy() for a in found])
    """)
    # In a process of its own: PyTorch starts threads.
    command = [sys.executable, "-c", script, tmp_path / "arrays.npz"]
    subprocess.run(command, cwd=SUITE, check=True)
    count = len(mine) if kind == "backward" else 1
    found = np.load(tmp_path / "arrays.npz")
    for number, expected in enumerate(mine[:count]):
        np.testing.assert_allclose(found[f"arr_{number}"], expected, rtol=2e-5, atol=2e-5)


@pytest.mark.slow
def test_compare_training_step(tmp_path):
    out = tmp_path / "result.json"
    done = compare(
        "--what", "step", "--quick", "--nets", "100-100-100/64",
        "--contenders", "nbbn,NumPy", "--json", str(out),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (case,) = json.loads(out.read_text())["step"]
    assert case["seconds"].keys() == {"nbbn", "NumPy", "matrix products", "matrix products, tiles"}


@pytest.mark.slow
def test_compare_convolutional_step(tmp_path):
    out = tmp_path / "result.json"
    done = compare("--what", "cnn", "--quick", "--contenders", "nbbn,NumPy", "--json", str(out))
    assert done.returncode == 0, done.stderr
    (case,) = json.loads(out.read_text())["cnn"]
    assert case["seconds"].keys() == case["memory"].keys() == {"nbbn"}
    assert "has no attribute 'cnn'" in case["errors"]["NumPy"]
    assert "MiB" in done.stdout


@pytest.mark.slow
def test_compare_recurrent_step(tmp_path):
    out = tmp_path / "result.json"
    names = "nbbn,NumPy"
    done = compare("--what", "recurrent", "--quick", "--contenders", names, "--json", str(out))
    assert done.returncode == 0, done.stderr
    (case,) = json.loads(out.read_text())["recurrent"]
    assert case["seconds"].keys() == {"nbbn", "matrix products", "matrix products, tiles"}
    assert "has no attribute 'recurrent'" in case["errors"]["NumPy"]
    assert "| recurrent training step, LSTM |" in done.stdout


@pytest.mark.parametrize("arguments", [("--shapes", "12"), ("--contenders", "tensorflow")])
def test_compare_names_what_it_does_not_know(arguments):
    done = compare(*arguments)
    assert done.returncode == 2
    assert arguments[1] in done.stderr


@pytest.mark.parametrize("peer", ["with_numpy", "with_torch", "with_jax"])
@pytest.mark.parametrize("axis", [1, -1])
def test_peers_compute_the_same(peer, axis, tmp_path):
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
    # In a process of its own: JAX and PyTorch start threads.
    command = [sys.executable, "-c", script, tmp_path / "arrays.npz"]
    subprocess.run(command, cwd=SUITE, check=True)
    found = np.load(tmp_path / "arrays.npz")
    for kind in kinds:
        expected = mine.bn(kind, shape, axis)()
        expected = expected[0] if isinstance(expected, tuple) else expected
        array = found[kind]
        if peer == "with_torch" and axis == -1:
            array = np.moveaxis(array, 1, -1)
        np.testing.assert_allclose(array, expected, rtol=2e-5, atol=2e-5)


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
