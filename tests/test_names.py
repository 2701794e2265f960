"""Every name that `nbbn` gave when its modules moved into packages, and that it loads them late."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import nbbn

# Modules and names of before the move; none of them may go.
MODULES = [
    "callbacks", "checkpoint", "config", "convert", "data", "errors", "functional", "inference",
    "initializers", "jit", "logs", "losses", "onnx", "ops", "optim", "plots", "pool",
    "progress", "threads", "train",
]  # fmt: skip
OBJECTS = [
    "BatchNorm", "BatchRenorm", "Dense", "Dropout", "Flatten", "GhostBatchNorm",
    "InPlaceBatchNorm", "Module", "NbbnError", "Op", "Parameter", "Ramp", "ReLU", "Sequential",
    "Sigmoid", "Softmax", "Tanh", "Tape", "Tensor", "__version__", "apply", "fold", "grad",
    "gradcheck", "gradgradcheck", "inspect", "mlp", "recalibrate", "warmup",
]  # fmt: skip

PACKAGE = Path(nbbn.__file__).parent
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}
# Modules that can be imported anywhere: the others need CuPy, the simulator or scikit-learn, or run
# a command.
ANYWHERE = sorted(
    f"nbbn.{name}"
    for name in FILES
    if name not in ("__main__", "sklearn")
    and not name.startswith("backend.device")
    and "cuda" not in name
)


@pytest.mark.parametrize("name", [*MODULES, *OBJECTS])
def test_names_stay(name):
    namespace: dict[str, object] = {}
    exec(f"from nbbn import {name}", namespace)
    assert namespace[name] is getattr(nbbn, name)
    assert inspect.ismodule(namespace[name]) == (name in MODULES)


def test_every_public_name_loads_and_is_listed():
    assert {*MODULES, *OBJECTS} <= set(nbbn.__all__)
    assert len(set(nbbn.__all__)) == len(nbbn.__all__)
    assert set(dir(nbbn)) == set(nbbn.__all__)
    for name in nbbn.__all__:
        assert getattr(nbbn, name) is not None
    with pytest.raises(AttributeError, match="nothing_like_this"):
        _ = nbbn.nothing_like_this


def run(script: str) -> object:
    """Run Python code in a fresh process and return what it prints, read as JSON."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def loaded_by(statement: str) -> set[str]:
    script = (
        "import sys; before = set(sys.modules)\n"
        f"{statement}\n"
        "import json; print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    return set(run(script))


def test_importing_nbbn_loads_nothing_else():
    loaded = loaded_by("import nbbn")
    assert {name for name in loaded if name.startswith("nbbn")} == {"nbbn", "nbbn._version"}
    assert {name.split(".")[0] for name in loaded} - sys.stdlib_module_names == {"nbbn"}


def test_numba_waits_for_the_first_kernel_and_cuda_for_a_device():
    statement = (
        "import nbbn; from nbbn.data import Batches; nbbn.mlp((4, 3, 2), rng=0)\n"
        "nbbn.functional, nbbn.Tensor, nbbn.optim, nbbn.losses, nbbn.data, nbbn.train"
    )
    loaded = {name.split(".")[0] for name in loaded_by(statement)}
    assert not loaded & {"numba", "llvmlite", "scipy", "torch", "matplotlib"}
    loaded = loaded_by("import nbbn, numpy; nbbn.functional.relu(numpy.ones(3))")
    assert "numba" in loaded
    assert "cupy" not in loaded
    assert not {name for name in loaded if name.startswith("nbbn") and name.endswith("_cuda")}


def test_importing_everything_hides_no_name_prints_nothing_and_changes_no_setting():
    """A module beside a function of the same name must not take its place once it is imported."""
    script = f"""
import importlib, json, os, warnings
import numba, numpy
def settings():
    config = {{name: repr(value) for name, value in vars(numba.config).items() if name.isupper()}}
    return dict(os.environ), config, numpy.geterr(), repr(warnings.filters)
before = settings()
for name in {ANYWHERE!r}:
    importlib.import_module(name)
changed = [str(a) for a, b in zip(settings(), before) if a != b]
import nbbn
modules = [n for n in nbbn.__all__ if type(getattr(nbbn, n)).__name__ == "module"]
print(json.dumps([modules, changed]))
"""
    modules = [n for n in nbbn.__all__ if isinstance(getattr(nbbn, n), types.ModuleType)]
    assert run(script) == [modules, []]
    assert set(MODULES) <= set(modules)
