"""The version of this package, and those of others."""

from __future__ import annotations

__version__ = "0.1.0"


def version_of(package: str) -> str | None:
    """Return the version of an installed package; None if it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None
