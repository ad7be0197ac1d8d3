"""Record when, with which versions and from which files a report was made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

from pom_export.files import sha256_of
from pom_export.version import __version__, version_of

# Packages that take part in a comparison, if installed.
_PACKAGES: Final = (
    "torch",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "polygraphy",
    "tensorrt",
    "tensorrt-rtx-cu12",
    "tensorrt-rtx-cu13",
)


@dataclass(frozen=True)
class Origin:
    """When, with what and from what a report was made.

    Attributes:
        date: UTC date and time in ISO 8601, to the second; empty if unknown.
        versions: versions of pom-export and the packages that take part, by name.
        sha256: hashes of the compared files, by path.
    """

    date: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)


def origin_of(files: Iterable[Path]) -> Origin:
    """Return the origin of a report that is made now from these files; folders are left out."""
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Origin(date, _versions(), {str(file): sha256_of(file) for file in files if file.is_file()})


def _versions() -> dict[str, str]:
    installed = {name: version_of(name) for name in _PACKAGES}
    return {"pom-export": __version__} | {name: version for name, version in installed.items() if version is not None}
