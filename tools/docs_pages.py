#!/usr/bin/env python3
"""Gather the pages of the documentation site in build/docs: those of `docs/`, and the root's.

    python tools/docs_pages.py       # `make docs` runs it, and then the generator

The repository's pages link to each other by path, so that they can be read where the code is. A site has only pages:
links between them are kept, and a link to any other file is shown as that file's path.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
GATHERED = ROOT / "build" / "docs"
# Pages in the repository's root, by their name on the site.
ROOT_PAGES = {"contributing.md": "CONTRIBUTING.md", "security.md": "SECURITY.md", "changelog.md": "CHANGELOG.md"}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def page_on_site(markdown: str, folder: Path) -> str:
    """Return a page with its links as the site needs them.

    Args:
        markdown: the page's text.
        folder: the folder that the page's links are relative to.
    """
    return _LINK.sub(lambda link: _link_on_site(link, folder), markdown)


def _link_on_site(link: re.Match[str], folder: Path) -> str:
    image, text, path, fragment = link.group(1), link.group(2), link.group(3), link.group(4) or ""
    target = (folder / path).resolve()
    for name, root_page in ROOT_PAGES.items():
        if target == ROOT / root_page:
            return f"{image}[{text}]({name}{fragment})"
    if target.is_relative_to(DOCS) or not target.exists():  # the generator reports a missing target
        inside = target.relative_to(DOCS).as_posix() if target.is_relative_to(DOCS) else path
        return f"{image}[{text}]({inside}{fragment})"
    shown = f"`{target.relative_to(ROOT).as_posix()}`"
    return shown if text.strip("`") == shown.strip("`") else f"{text} ({shown})"


def main() -> None:
    """Write build/docs from scratch."""
    shutil.rmtree(GATHERED, ignore_errors=True)
    shutil.copytree(DOCS, GATHERED, ignore=shutil.ignore_patterns("*.json"))
    for page in DOCS.glob("*.md"):
        (GATHERED / page.name).write_text(page_on_site(page.read_text(), DOCS))
    for name, root_page in ROOT_PAGES.items():
        (GATHERED / name).write_text(page_on_site((ROOT / root_page).read_text(), ROOT))


if __name__ == "__main__":
    main()
