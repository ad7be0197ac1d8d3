"""Record in the model what it is and where it came from."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from pom_export.graph.exported_model import METADATA_PREFIX
from pom_export.version import __version__


class StampMetadataPass(ir.passes.InPlacePass):
    """Set the producer and `pom_export.*` metadata properties.

    Args:
        properties: texts of the properties, by name without the prefix.
    """

    def __init__(self, properties: Mapping[str, str]) -> None:
        super().__init__()
        self.properties = properties

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Write the properties."""
        model.producer_name, model.producer_version = "pom-export", __version__
        for name, text in self.properties.items():
            model.metadata_props[METADATA_PREFIX + name] = text
        return ir.passes.PassResult(model, modified=True)
