"""House rules that a machine can check: imports, kernels, docstrings, lazy loading."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nbbn

PACKAGE = Path(nbbn.__file__).parent
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}
# Modules that can be imported anywhere: the others need CuPy or the simulator, or run a command.
ANYWHERE = sorted(
    name
    for name in FILES
    if name != "__main__" and not name.startswith("backend.device") and "cuda" not in name
)
KERNELS = sorted(name for name in FILES if name.startswith("kernels"))


# ----------------------------------------------------------------------------------- kernels


def compiled_functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    for name in KERNELS:
        for node in ast.walk(ast.parse(FILES[name].read_text())):
            if isinstance(node, ast.FunctionDef):
                marks = {ast.unparse(mark).split("(")[0] for mark in node.decorator_list}
                if marks & {"Kernel", "SerialKernel", "Elementwise", "device_function", "njit"}:
                    yield f"{name}.{node.name}", node


COMPILED = dict(compiled_functions())
ALLOCATORS = {"empty", "zeros", "ones", "full", "empty_like", "zeros_like", "array", "copy"}


def test_there_are_compiled_functions():
    assert len(COMPILED) > 20


@pytest.mark.parametrize("name", COMPILED)
def test_kernels_neither_raise_nor_allocate(name):
    """A raise inside prange would silently make the loop serial."""
    for node in ast.walk(COMPILED[name]):
        assert not isinstance(node, ast.Raise | ast.Assert | ast.Try), f"line {node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            allocates = node.func.attr in ALLOCATORS
            # Shared memory has its place in the kernel from the start.
            assert not allocates or ast.unparse(node.func) == "cuda.shared.array", node.lineno


@pytest.mark.parametrize("name", COMPILED)
def test_kernels_have_a_docstring(name):
    assert ast.get_docstring(COMPILED[name])


def launchers(name: str) -> dict[str, str]:
    """Public functions of a kernel module and their parameters, from its text."""
    body = ast.parse(FILES[name].read_text()).body
    functions = [node for node in body if isinstance(node, ast.FunctionDef)]
    return {f.name: ast.unparse(f.args) for f in functions if not f.name.startswith("_")}


@pytest.mark.parametrize("name", [n for n in KERNELS if n.endswith("_cuda") and n[8] != "_"])
def test_twins_export_the_same_launchers(name):
    """Whoever calls a launcher need not know on which device."""
    twin = launchers(name.replace("_cuda", "_cpu"))
    # What other kernels compile in is no launcher.
    twin.pop("exp", None)
    assert launchers(name) == twin


# -------------------------------------------------------------------------------- docstrings


def public_modules() -> dict[str, object]:
    values = {name: getattr(nbbn, name) for name in nbbn.__all__}
    return {name: value for name, value in values.items() if inspect.ismodule(value)}


def public_objects() -> dict[str, object]:
    """Every class and function that an `__all__` of a public module names, by its home."""
    homes = {value.__module__: importlib.import_module(value.__module__) for value in _exported()}
    modules = {module.__name__: module for module in public_modules().values()} | homes
    found = {}
    for module in modules.values():
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                found[f"{value.__module__}.{value.__name__}"] = value
    return found


def _exported() -> list:
    values = [getattr(nbbn, name) for name in nbbn.__all__]
    return [v for v in values if inspect.isclass(v) or inspect.isfunction(v)]


PUBLIC = public_objects()
HEADINGS = {
    "Parameters",
    "Returns",
    "Yields",
    "Raises",
    "Warns",
    "Attributes",
    "Examples",
    "Notes",
    "References",
    "See Also",
}


def sections(docstring: str) -> dict[str, list[str]]:
    """Split a numpydoc docstring into the lines under each of its headings."""
    found: dict[str, list[str]] = {}
    current: list[str] = []
    lines = docstring.splitlines()
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        if line.strip() and set(below.strip()) == {"-"}:
            current = found[line.strip()] = []
        elif set(line.strip()) != {"-"}:
            current.append(line)
    return found


def documented(lines: list[str]) -> list[str]:
    """Names before the colons of a section: "a, b : type" documents two."""
    heads = [line for line in lines if line.strip() and not line.startswith(" ")]
    return [name.strip() for line in heads for name in line.split(" : ")[0].split(",")]


def signature(value: object) -> list[str]:
    """Parameters of a function, or of the constructor of a class, with their stars."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    found = inspect.signature(value)  # type: ignore[arg-type]
    return [stars.get(p.kind, "") + p.name for p in found.parameters.values()]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_things_document_their_parameters(name):
    value = PUBLIC[name]
    docstring = inspect.cleandoc(value.__dict__.get("__doc__") or value.__doc__ or "")
    assert docstring, "no docstring"
    first = docstring.splitlines()[0]
    assert first.endswith("."), "the first line is not a sentence"
    found = sections(docstring)
    assert set(found) <= HEADINGS
    if inspect.isclass(value) and issubclass(value, BaseException):
        return
    if inspect.isclass(value) and hasattr(value, "_fields"):
        assert documented(found["Attributes"]) == list(value._fields)
    elif inspect.isclass(value) and "__init__" not in vars(value):
        assert "Parameters" not in found or documented(found["Parameters"]) == signature(value)
    else:
        assert documented(found.get("Parameters", [])) == signature(value)


@pytest.mark.parametrize("name", [name for name in PUBLIC if inspect.isfunction(PUBLIC[name])])
def test_public_functions_document_what_they_return(name):
    found = sections(inspect.cleandoc(PUBLIC[name].__doc__))
    returns_nothing = inspect.signature(PUBLIC[name]).return_annotation in ("None", None)
    assert ("Returns" in found) != returns_nothing


@pytest.mark.parametrize(
    "name", [name for name in PUBLIC if inspect.isclass(PUBLIC[name]) and name.startswith("nbbn.")]
)
def test_public_methods_have_docstrings(name):
    for member, value in vars(PUBLIC[name]).items():
        if member.startswith("_"):
            continue
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if inspect.isfunction(function):
            assert inspect.getdoc(function), member


def test_every_public_name_loads_and_is_listed():
    assert sorted(nbbn.__all__) == list(nbbn.__all__)
    assert set(dir(nbbn)) == set(nbbn.__all__)
    for name in nbbn.__all__:
        assert getattr(nbbn, name) is not None
    with pytest.raises(AttributeError, match="nothing_like_this"):
        _ = nbbn.nothing_like_this


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_module_says_what_it_is_for(name):
    assert ast.get_docstring(ast.parse(FILES[name].read_text())) or name == "_version"


# ------------------------------------------------------------------------------ lazy loading


def run(script: str, **environment: str) -> object:
    """Run Python code in a fresh process and return what it prints, read as JSON."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
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
    third_party = {name.split(".")[0] for name in loaded} - sys.stdlib_module_names
    assert third_party == {"nbbn"}


@pytest.mark.parametrize(
    "statement",
    [
        "import nbbn; nbbn.functional, nbbn.Tensor, nbbn.optim, nbbn.losses, nbbn.data, nbbn.train",
        "import nbbn; nbbn.mlp((4, 3, 2), rng=0)",
        "from nbbn.data import Batches",
    ],
)
def test_numba_waits_for_the_first_kernel(statement):
    loaded = {name.split(".")[0] for name in loaded_by(statement)}
    assert not loaded & {"numba", "llvmlite", "scipy", "torch", "matplotlib"}


def test_public_names_are_the_same_in_any_order_of_imports():
    """A module beside a function of the same name must not take its place once it is imported."""
    script = f"""
import importlib, json
import nbbn
for name in {ANYWHERE!r}:
    importlib.import_module("nbbn." + name)
print(json.dumps([n for n in nbbn.__all__ if type(getattr(nbbn, n)).__name__ == "module"]))
"""
    modules = {name for name, home in nbbn._HOMES.items() if ":" not in home}
    assert set(run(script)) == modules & set(nbbn.__all__)


def test_no_module_loads_cuda():
    loaded = loaded_by("import nbbn, numpy; nbbn.functional.relu(numpy.ones(3))")
    assert "numba" in loaded
    assert "cupy" not in loaded
    assert not {name for name in loaded if name.startswith("nbbn") and name.endswith("_cuda")}


def test_importing_changes_no_environment_and_no_numba_setting():
    modules = [f"nbbn.{name}" for name in ANYWHERE]
    script = f"""
import importlib, json, os, warnings
import numba, numpy
def settings():
    config = {{name: repr(value) for name, value in vars(numba.config).items() if name.isupper()}}
    return dict(os.environ), config, numpy.geterr(), repr(warnings.filters)
before = settings()
for name in {modules!r}:
    importlib.import_module(name)
after = settings()
print(json.dumps([str(a) for a, b in zip(after, before) if a != b]))
"""
    assert run(script) == []


def test_importing_prints_nothing():
    modules = [f"nbbn.{name}" for name in ANYWHERE]
    script = f"import importlib, json; [importlib.import_module(n) for n in {modules!r}]; print(1)"
    assert run(script) == 1
