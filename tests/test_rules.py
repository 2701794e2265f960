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
    if name.split(".")[0] not in {"__main__", "device"} and "cuda" not in name
)
KERNELS = sorted(name for name in FILES if name.startswith("kernels"))


# -------------------------------------------------------------------------- import direction

# The floors of the house: a module imports from lower floors only, or from its own package.
FLOORS = [
    {"_version", "errors"},
    {"_validation", "files"},
    {"kernels", "recorder", "callbacks", "pool"},
    {"device"},
    {"backend"},
    {"data", "checks", "autograd"},
    {"functional", "initializers"},
    {"ops", "modules"},
    {"variant_ops", "losses", "optim", "graph_rules"},
    {"normalization"},
    {"layers", "variants"},
    {"convert", "folding", "onnx", "checkpoint", "observe"},
    {"diagnostics"},
    {"transparent"},
    {"trust"},
    {"step", "config"},
    {"train"},
]
# Those that ask kernels what they compile, or for the one kernel of a leaf.
COMPILING = {"data.batches", "cli.train", "cli.system", "precompile", "threads"}
# Nothing but errors, and the writing of files.
LEAVES = {"_validation", "data", "recorder", "errors", "_version", "files", "callbacks", "pool"}


def package_of(name: str) -> str:
    return name.split(".")[0]


def floor(name: str) -> int:
    """Modules that no floor names make up the top: the command line and what it shows."""
    found = [level for level, names in enumerate(FLOORS) if package_of(name) in names]
    return found[0] if found else len(FLOORS)


def imports(name: str, *, top_level_only: bool = False) -> set[str]:
    """Modules of nbbn, without its name, that a module imports; others with their full name."""
    tree = ast.parse(FILES[name].read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    package = ["nbbn", *name.split(".")]
    if FILES[name].name != "__init__.py":
        package.pop()
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parent = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*parent, *([node.module] if node.module else [])])
            children = {f"{module}.{alias.name}" for alias in node.names}
            modules = {child for child in children if child.removeprefix("nbbn.") in FILES}
            found |= modules or {module}
    return {name.removeprefix("nbbn.") for name in found}


def own_imports(name: str, **options: bool) -> set[str]:
    return {other for other in imports(name, **options) if other in FILES or other == "nbbn"}


@pytest.mark.parametrize("name", FILES)
def test_imports_point_downwards(name):
    for other in own_imports(name):
        beside = package_of(other) == package_of(name) or floor(name) == len(FLOORS)
        assert beside or floor(other) < floor(name), f"{name} imports {other} from above"


@pytest.mark.parametrize("name", [name for name in FILES if package_of(name) in LEAVES])
def test_leaves_import_next_to_nothing(name):
    others = {other for other in own_imports(name, top_level_only=True) if other != "nbbn"}
    assert {package_of(other) for other in others} <= {
        "_validation", "errors", "files", package_of(name),
    }  # fmt: skip


def test_autograd_knows_no_operation():
    assert own_imports("autograd", top_level_only=True) == {"_validation", "errors", "backend"}


def test_only_the_functional_floor_and_the_backend_reach_the_kernels():
    """Others ask `backend.kernels`, which knows where an array lives; the data leaf asks late."""
    for name in FILES:
        # `jit` and `jit_cuda` show users what they may call from compiled code of their own.
        if package_of(name) not in {"kernels", "backend", "jit", "jit_cuda"}:
            reached = {other for other in own_imports(name) if package_of(other) == "kernels"}
            assert not any("kernels" in other for other in own_imports(name, top_level_only=True))
            assert not reached or name in COMPILING, (name, reached)


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_import_only_what_compiles(name):
    helpers = name.rpartition(".")[2].startswith("_")
    for other in imports(name) - {"__future__"}:
        top = other.split(".")[0]
        if top in {"numba", "numpy", "math", "kernels"}:
            continue
        assert helpers, f"{name} imports {other}"
        allowed = {"llvmlite", "_validation", "_version"} | (
            {"cuda", "numba_cuda"} if "_cuda" in name else set()
        )
        assert top in allowed or top in sys.stdlib_module_names, other
        assert top not in {"_validation", "_version"} or name == "kernels._cache"


@pytest.mark.parametrize("name", FILES)
def test_no_framework_and_no_star_is_imported(name):
    heavy = {"torch", "tensorflow", "jax", "keras", "sklearn", "pandas"}
    assert not {other.split(".")[0] for other in imports(name)} & heavy
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names)


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
    assert set(run(script)) == nbbn._MODULES


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
