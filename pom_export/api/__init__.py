"""The public functions, each a complete job: what `import pom_export` offers and the command line calls."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pom_export.api.debugging import debug
    from pom_export.api.debugging_precision import debug_precision
    from pom_export.api.exporting import ExportResult, export
    from pom_export.api.fusing import FuseResult, fuse
    from pom_export.api.inlining import InlineResult, inline
    from pom_export.api.inspecting import inspect
    from pom_export.api.inspections import CheckpointInspection, EngineInspection, Inspection, ModelInspection
    from pom_export.api.quantizing import quantize
    from pom_export.api.verifying import verify, write_report

# Imported on first use: the command line checks arguments before anything slow is imported.
_HOMES = {
    "CheckpointInspection": "inspections",
    "EngineInspection": "inspections",
    "ExportResult": "exporting",
    "FuseResult": "fusing",
    "InlineResult": "inlining",
    "Inspection": "inspections",
    "ModelInspection": "inspections",
    "debug": "debugging",
    "debug_precision": "debugging_precision",
    "export": "exporting",
    "fuse": "fusing",
    "inline": "inlining",
    "inspect": "inspecting",
    "quantize": "quantizing",
    "verify": "verifying",
    "write_report": "verifying",
}

__all__ = [
    "CheckpointInspection",
    "EngineInspection",
    "ExportResult",
    "FuseResult",
    "InlineResult",
    "Inspection",
    "ModelInspection",
    "debug",
    "debug_precision",
    "export",
    "fuse",
    "inline",
    "inspect",
    "quantize",
    "verify",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
