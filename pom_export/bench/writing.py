"""Write a benchmark's files to a folder: all of them, or none."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pom_export.bench.results import BenchResult
from pom_export.bench.table import as_page
from pom_export.errors import InputError
from pom_export.files import AnyPath, made_folder, staged_output

_RESULTS: Final = "results.json"
_TABLE: Final = "table.md"


@contextmanager
def results_folder(folder: AnyPath, *sources: AnyPath | None, more: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a staging folder whose files move to `folder` at the end; check beforehand that they can.

    Args:
        folder: where the files go, created if it is missing; files of the same names are replaced.
        sources: files that must not be replaced.
        more: names of files besides those of `write_result`; old ones that are not written again are removed.

    Raises:
        InputError: the folder cannot be created or written to, or is a file.
    """
    place = Path(folder)
    if place.exists() and not place.is_dir():
        raise InputError(f"output {place} is a file", "Name a folder")
    others = [place / name for name in more]
    beside = [place / _TABLE, *others]
    with made_folder(place), staged_output(place / _RESULTS, *sources, beside=beside, stale=lambda: others) as staged:
        yield staged.parent


def write_result(result: BenchResult, folder: Path) -> None:
    """Write results.json and table.md."""
    (folder / _RESULTS).write_text(json.dumps(result.to_dict(), indent=1) + "\n")
    (folder / _TABLE).write_text(as_page(result), encoding="utf-8")
