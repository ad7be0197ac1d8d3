"""Write a benchmark to a folder: all of its files, or none."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pom_export import interrupts
from pom_export.bench.results import BenchResult
from pom_export.bench.table import as_page
from pom_export.errors import InputError
from pom_export.files import staged_output

RESULTS: Final = "results.json"
TABLE: Final = "table.md"


class Writer:
    """Writes into the folder in which a benchmark's files wait until all are there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def place(self, name: str) -> Path:
        """Return where a file waits."""
        return self._folder / name

    def write(self, result: BenchResult) -> None:
        """Write results.json and table.md."""
        self.place(RESULTS).write_text(json.dumps(result.to_dict(), indent=1) + "\n")
        self.place(TABLE).write_text(as_page(result), encoding="utf-8")


@contextmanager
def results_folder(folder: str | os.PathLike[str], *sources: Path | None, more: Sequence[str] = ()) -> Iterator[Writer]:
    """Yield what writes into a folder, which is made where it is missing; checked before anything is measured.

    Args:
        folder: where the files go; old ones of the same names are replaced.
        sources: files that are never replaced.
        more: names of files besides results.json and table.md; old ones that are not written again are removed.

    Raises:
        InputError: the folder cannot be made or written to, or is a file.
    """
    place = Path(folder)
    made = _make(place)
    more_places = [place / name for name in more]
    try:
        beside = [place / TABLE, *more_places]
        with staged_output(place / RESULTS, *sources, beside=beside, stale=lambda: more_places) as staged:
            yield Writer(staged.parent)
    except BaseException:
        with interrupts.held():
            if made and not any(place.iterdir()):
                place.rmdir()
        raise


def _make(place: Path) -> bool:
    """Make a folder where there is none; return whether that was done."""
    if place.exists() and not place.is_dir():
        raise InputError(f"output {place} is a file", "Name a folder")
    if place.is_dir():
        return False
    if not place.parent.exists():
        raise InputError(f"folder {place.parent} does not exist", f"Create it: mkdir -p {place.parent}")
    try:
        place.mkdir()
    except OSError as error:
        raise InputError(f"cannot make {place}: {error.strerror}", "Choose a writable folder") from error
    return True
