"""Answer requests over HTTP from one loaded model, whose streams share its calls."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pom_export.serving.app import create_app
    from pom_export.serving.service import Service
    from pom_export.serving.settings import ServeSettings

# Imported on first use: the command line reads the settings' defaults without FastAPI.
_HOMES = {"ServeSettings": "settings", "Service": "service", "create_app": "app"}

__all__ = ["ServeSettings", "Service", "create_app"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
