"""Whether the packages are installed that a server needs."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Final

from pom_export.errors import MissingDependencyError

# Modules, and the packages that have them.
_HTTP: Final = {
    "fastapi": "fastapi>=0.115",
    "jinja2": "jinja2>=3.1",
    "pydantic": "pydantic>=2.7",
    "uvicorn": "uvicorn>=0.30",
}


def check_http() -> None:
    """Raise MissingDependencyError unless what answers requests is installed."""
    _check(_HTTP)


def _check(packages: Mapping[str, str]) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        wanted = " ".join(f"'{packages[name]}'" for name in missing)
        what, them = ("is", "it") if len(missing) == 1 else ("are", "them")
        raise MissingDependencyError(
            f"{' and '.join(missing)} {what} not installed", f"Install {them}: pip install {wanted}"
        )
