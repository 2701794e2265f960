"""What the pages name exists: modules and what is in them, files, tests."""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    path.name: path.read_text()
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"))
    # The changelog names what is gone; the page on conformance names the tests of ONNX.
    if path.name not in ("CHANGELOG.md", "conformance.md")
}
EVERYTHING = "\n".join(PAGES.values())


def find(name: str) -> Any:
    """Import what a dotted name stands for, by its modules or by the short names of nbbn."""
    module, _, rest = name.rpartition(".")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return getattr(find(module), rest)


@contextlib.contextmanager
def without_a_compiler_for_cuda() -> Iterator[None]:
    """Skip what only numba-cuda can load."""
    try:
        yield
    except ImportError as error:
        if "numba-cuda" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\bnbbn(?:\.[A-Za-z_]\w*)+", EVERYTHING))))
def test_what_the_pages_name_can_be_imported(name):
    with without_a_compiler_for_cuda():
        find(name)


@pytest.mark.parametrize("line", sorted(set(re.findall(r"^from nbbn.*", EVERYTHING, re.MULTILINE))))
def test_imports_of_the_pages_work(line):
    with without_a_compiler_for_cuda():
        exec(line, {})


def test_the_short_names_of_modules_are_those_of_their_homes():
    """The other pages name modules by their homes alone."""
    section = PAGES["training.md"].partition("## Where the names are")[2]
    rows = re.findall(r"^\| `(nbbn\.\w+)` \| `(nbbn[.\w]+)` \|$", section, re.MULTILINE)
    assert len(rows) > 10
    rest = EVERYTHING.replace(section, "")
    for short, home in rows:
        assert not re.search(rf"\b{re.escape(short)}\b", rest), short
        if "cuda" not in home:
            assert find(short) is importlib.import_module(home)


@pytest.mark.parametrize("page", PAGES)
def test_the_tests_that_a_page_names_exist(page):
    for file, test in re.findall(
        r"`(?:tests/)?((?:\w+/)*test_\w+\.py)(?:::(test_\w+))?", PAGES[page]
    ):
        text = (ROOT / "tests" / file).read_text()
        assert f"def {test}" in text, (file, test)
    defined = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for test in re.findall(r"`(test_\w+)`", PAGES[page]):
        assert f"def {test}(" in defined, test


@pytest.mark.parametrize("page", PAGES)
def test_the_files_that_a_page_names_exist(page):
    folder = ROOT if (ROOT / page).exists() else ROOT / "docs"
    for link in re.findall(r"\]\(([^):#]+)\)", PAGES[page]):
        assert (folder / link).exists(), link
    for file in re.findall(r"`((?:nbbn|tests|docs|examples|asv_benchmarks)/[\w/.]+)`", PAGES[page]):
        assert (ROOT / file).exists(), file
