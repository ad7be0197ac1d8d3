"""Parts of documentation pages that tools write: the text between two markers."""

from __future__ import annotations

import sys
from pathlib import Path


def write_part(page: Path, name: str, text: str) -> None:
    """Replace the text between a part's markers, `<!-- NAME: begin -->` and `<!-- NAME: end -->`."""
    begin, end = (f"<!-- {name}: {which} -->" for which in ("begin", "end"))
    before, _, rest = page.read_text().partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        sys.exit(f"{page} has no lines {begin} and {end}: there is no place for the table")
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")
