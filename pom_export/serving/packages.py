"""Whether the packages are installed that a server needs."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Final

from pom_export.errors import MissingDependencyError, reason_of

# Modules, and the packages that have them.
_HTTP: Final = {
    "fastapi": "fastapi>=0.115",
    "jinja2": "jinja2>=3.1",
    "pydantic": "pydantic>=2.7",
    "uvicorn": "uvicorn>=0.30",
}
# Ray's router by session is younger than what else we need of Ray.
_ROUTER: Final = "ray.serve.experimental.consistent_hash_router"
_RAY: Final = "'ray[data,serve]>=2.40'"


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


def check_ray() -> None:
    """Raise MissingDependencyError unless Ray Serve is installed, with a router by session."""
    try:
        importlib.import_module("ray.serve")
    except ImportError as error:
        raise MissingDependencyError(
            f"Ray Serve is not installed ({reason_of(error)})", f"Install it: pip install {_RAY}"
        ) from error
    try:
        importlib.import_module(_ROUTER)
    except ImportError as error:
        raise MissingDependencyError(
            f"this Ray Serve cannot keep a session on a replica ({reason_of(error)})",
            f"Install a newer one: pip install -U {_RAY}",
        ) from error
