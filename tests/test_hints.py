"""Messages tell users to install what this project requires, under the names of a package index."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pom_export.engine.backend import PACKAGES

ROOT = Path(__file__).parents[1]
# What an environment of another program needs.
OF_OTHERS = ("numpy<2", "onnxruntime-genai>=0.18")
FILES = sorted(
    path
    for folder in ("pom_export", "samples", "tools")
    for path in (ROOT / folder).rglob("*.py")
    if "pip install" in path.read_text()
)


def texts_of(file: Path) -> Iterator[str]:
    """Yield the texts in a file; f-strings in pieces."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "pip install" in node.value:
            yield node.value


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_what_is_to_be_installed_is_what_the_project_asks_for(file: Path) -> None:
    asked = (ROOT / "pyproject.toml").read_text()
    for text in texts_of(file):
        assert "pom-export[" not in text, f"{file} names an extra, and no index has the package"
        for requirement in re.findall(r"'([\w-]+[<>=][^' ]*)'", text):
            assert f'"{requirement}"' in asked or requirement in OF_OTHERS, (file, requirement)


def test_the_packages_of_tensorrt_are_those_of_the_extras() -> None:
    asked = (ROOT / "pyproject.toml").read_text()
    assert all(f'"{requirement}"' in asked for requirement in PACKAGES.values())
