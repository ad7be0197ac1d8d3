"""The toolkit's functions, whole jobs each: what `import pom_export` offers and the command line calls."""

from pom_export.api.exporting import ExportResult, export
from pom_export.api.inspecting import Inspection, inspect
from pom_export.api.verifying import verify, write_report

__all__ = ["ExportResult", "Inspection", "export", "inspect", "verify", "write_report"]
