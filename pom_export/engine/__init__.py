"""TensorRT engines: the TensorRT at hand, shape profiles, building, and the manifest."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pom_export.engine.builder import build_engine
    from pom_export.engine.manifest import EngineInfo
    from pom_export.engine.profiles import parse_shapes
    from pom_export.engine.targets import parse_targets

# Imported on first use: the command line needs the backends' names, but not onnx.
_HOMES = {"EngineInfo": "manifest", "build_engine": "builder", "parse_shapes": "profiles", "parse_targets": "targets"}

__all__ = ["EngineInfo", "build_engine", "parse_shapes", "parse_targets"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
