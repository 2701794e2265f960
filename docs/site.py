"""What the site takes from outside of docs/: the README, the examples, the other pages.

A hook of MkDocs. Pages of the repository link to files; on the site these are links to pages of it.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie elsewhere."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text()))
    files.append(File.generated(config, "examples.md", content=_examples()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links to files of the repository into links of the site."""
    return re.sub(r"\]\(([^)\s]+)\)", lambda match: f"]({_target(match[1])})", markdown)


def _target(link: str) -> str:
    path, hash_, anchor = link.removeprefix("../").partition("#")
    if path.startswith("examples/"):
        return f"examples.md#{Path(path).stem}"
    return PAGES.get(path, path.removeprefix("docs/")) + hash_ + anchor


def _examples() -> str:
    """Show every example with what its docstring says."""
    parts = ["# Examples\n\nEach file runs as it is."]
    folder = ROOT / "examples"
    for path in (*sorted(folder.glob("*.py")), *sorted(folder.glob("paper/*.py"))):
        code = path.read_text()
        summary = (ast.get_docstring(ast.parse(code)) or "").split("\n\n")[0].replace("\n", " ")
        name = path.relative_to(folder)
        parts.append(f"## {name} {{#{path.stem}}}\n\n{summary}\n\n```python\n{code}```")
    return "\n\n".join(parts) + "\n"
