"""The public functions, each a complete job: what `import pom_export` offers and the command line calls."""

from pom_export.api.exporting import ExportResult, export
from pom_export.api.inspecting import inspect
from pom_export.api.inspections import CheckpointInspection, EngineInspection, Inspection, ModelInspection
from pom_export.api.verifying import verify, write_report

__all__ = [
    "CheckpointInspection",
    "EngineInspection",
    "ExportResult",
    "Inspection",
    "ModelInspection",
    "export",
    "inspect",
    "verify",
    "write_report",
]
