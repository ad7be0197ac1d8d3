"""The paths and links on the pages exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [page.relative_to(ROOT).as_posix() for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))]
_LINK = re.compile(r"\]\((?!https?://)([^)#\s]*)(#[^)\s]+)?\)")
_CODE_BLOCK = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
_PATH = re.compile(r"`([a-z_][\w./*]*(?:\.(?:py|h|cpp|cu|cuh|md)|/))`")
# Folders that the short paths on a page may be relative to: `graph/tracing.py` is in the package.
_FOLDERS = ("", "pom_export", "plugins", "plugins/include", "plugins/cpu", "plugins/onnxruntime", "plugins/tensorrt")


def anchor(heading: str) -> str:
    """Return the anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", sorted(PAGES))
def test_links_lead_somewhere(page: str) -> None:
    text = _CODE_BLOCK.sub("", (ROOT / page).read_text())
    for path, fragment in _LINK.findall(text):
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page} links to {path}"
        if fragment and target.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert fragment[1:] in map(anchor, headings), f"{page} links to {path}{fragment}"


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_paths_are_there(page: str) -> None:
    named = [path for path in _PATH.findall((ROOT / page).read_text()) if "NAME" not in path and "/" in path]
    assert len(named) > 20
    for path in named:
        assert any(list((ROOT / folder).glob(path)) for folder in _FOLDERS), f"{page} names {path}"
