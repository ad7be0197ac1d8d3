"""The versions that the installation asks for, and those that are there."""

from __future__ import annotations

import re
from functools import cache
from importlib import metadata
from typing import Final

_PACKAGE: Final = "pom-export"
_REQUIREMENT: Final = re.compile(r"([\w.-]+)\s*(?:\[[^]]*\])?\s*\(?\s*(?:>=\s*([\d.]+))?[^;]*(?:;(.*))?")
_EXTRA: Final = re.compile(r"extra\s*==\s*['\"]([\w.-]+)['\"]")


@cache
def _requirements() -> tuple[tuple[str, str, str], ...]:
    """Return name, oldest version and extra of every requirement; the last two may be empty."""
    try:
        lines = metadata.requires(_PACKAGE) or []
    except metadata.PackageNotFoundError:
        return ()
    found = []
    for line in lines:
        match = _REQUIREMENT.match(line)
        if match is not None:
            extra = _EXTRA.search(match[3] or "")
            found.append((match[1].lower(), match[2] or "", extra[1] if extra else ""))
    return tuple(found)


def required_packages() -> list[str]:
    """Return the packages that every installation needs, by name."""
    return [name for name, _, extra in _requirements() if not extra]


def oldest(package: str) -> str:
    """Return the oldest version of a package that is accepted; empty if any is."""
    return next((version for name, version, _ in _requirements() if name == package and version), "")


def requirement(package: str) -> str:
    """Return what to give to pip."""
    version = oldest(package)
    return f"'{package}>={version}'" if version else package


def is_older(version: str, than: str) -> bool:
    """Return whether a version comes before another."""
    return bool(than) and _numbers(version) < _numbers(than)


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()
