"""Record when, with which versions and from which files a report was made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from pom_export.files import sha256_of
from pom_export.version import __version__

# What takes part in a comparison, as far as it is installed.
_PACKAGES: Final = (
    "torch",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "polygraphy",
    "tensorrt",
    "tensorrt-rtx-cu12",
    "tensorrt-rtx-cu13",
)


@dataclass(frozen=True)
class Origin:
    """What a report was made of.

    Attributes:
        date: in UTC, to the second, as ISO 8601 has it; empty: it is not known.
        versions: of pom-export and of the packages that take part, by name.
        sha256: of the files that were compared, by path.
    """

    date: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)


def origin_of(files: Iterable[Path]) -> Origin:
    """Return the origin of a report that is made now of these files; folders are left out."""
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Origin(date, _versions(), {str(file): sha256_of(file) for file in files if file.is_file()})


def _versions() -> dict[str, str]:
    found = {"pom-export": __version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
