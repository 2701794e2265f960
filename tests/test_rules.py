"""House rules that no linter checks: kernels, their twins, documented parameters."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import nbbn

KERNELS = {
    path.stem: ast.parse(path.read_text())
    for path in sorted((Path(nbbn.__file__).parent / "kernels").glob("*.py"))
}


# ----------------------------------------------------------------------------------- kernels


MARKS = {
    "Kernel", "SerialKernel", "Elementwise", "Pointwise", "_rows", "device_function", "njit",
}  # fmt: skip


def compiled_functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    for name, tree in KERNELS.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                marks = {ast.unparse(mark).split("(")[0] for mark in node.decorator_list}
                if marks & MARKS:
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


def launchers(name: str) -> dict[str, str]:
    """Public functions of a kernel module and their parameters, from its text."""
    functions = [node for node in KERNELS[name].body if isinstance(node, ast.FunctionDef)]
    return {f.name: ast.unparse(f.args) for f in functions if not f.name.startswith("_")}


@pytest.mark.parametrize("name", [n for n in KERNELS if n.endswith("_cuda") and n[0] != "_"])
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


def referred(value: object) -> object | None:
    """What a docstring names for all that it does not say itself: "Otherwise as `relu`"."""
    found = re.search(r"(?:Otherwise\s+as|Differentiable)\s+`([\w.]+)`", value.__doc__)
    if found is None:
        return None
    home, _, name = found[1].rpartition(".")
    return getattr(importlib.import_module(home or value.__module__), name)


def parameters(value: object) -> set[str]:
    """Names that a docstring documents, or what it refers to."""
    own = documented(sections(inspect.cleandoc(value.__doc__)).get("Parameters", []))
    other = referred(value)
    return {*own, *(() if other is None else parameters(other))}


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
    found = sections(docstring)
    assert set(found) <= HEADINGS
    if inspect.isclass(value) and issubclass(value, BaseException):
        return
    if inspect.isclass(value) and hasattr(value, "_fields"):
        assert documented(found["Attributes"]) == list(value._fields)
    elif inspect.isclass(value) and "__init__" not in vars(value):
        assert "Parameters" not in found or documented(found["Parameters"]) == signature(value)
    elif referred(value) is None:
        assert documented(found.get("Parameters", [])) == signature(value)
    else:
        assert set(documented(found.get("Parameters", []))) <= {*signature(value)}
        assert {*signature(value)} <= parameters(value)


@pytest.mark.parametrize("name", [name for name in PUBLIC if inspect.isfunction(PUBLIC[name])])
def test_public_functions_document_what_they_return(name):
    found = sections(inspect.cleandoc(PUBLIC[name].__doc__))
    returns_nothing = inspect.signature(PUBLIC[name]).return_annotation in ("None", None)
    assert referred(PUBLIC[name]) or ("Returns" in found) != returns_nothing
