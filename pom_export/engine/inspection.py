"""Describe an engine's layers with TensorRT's inspector, where a GPU can load it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from pom_export.engine.backend import Backend, gpu_present
from pom_export.engine.loading import deserialize
from pom_export.errors import reason_of


@dataclass(frozen=True)
class EngineLayers:
    """A summary of the inspector's list of layers.

    Attributes:
        layers: number of layers after TensorRT's fusions.
        plugin_layers: how many of them are plugins.
        formats: how many of the layers' outputs have each type and format, as TensorRT names them.
    """

    layers: int
    plugin_layers: int
    formats: dict[str, int]

    @classmethod
    def of(cls, information: str) -> EngineLayers:
        """Read the inspector's JSON."""
        layers: list[dict[str, Any]] = json.loads(information)["Layers"]
        outputs = (output for layer in layers for output in layer.get("Outputs", []))
        return cls(
            layers=len(layers),
            plugin_layers=sum("plugin" in str(layer.get("LayerType", "")).lower() for layer in layers),
            formats=dict(Counter(str(output.get("Format/Datatype", "unknown")) for output in outputs)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return asdict(self)


def inspect_engine(
    engine: bytes, backend: Backend, uses_plugin: bool, progress: Callable[[str], None]
) -> EngineLayers | None:
    """Load an engine and list its layers; None if this machine cannot do that, which is not the engine's fault."""
    if not gpu_present():
        return None
    try:
        loaded = deserialize(engine, backend, uses_plugin)
        information = loaded.create_engine_inspector().get_engine_information(
            backend.module.LayerInformationFormat.JSON
        )
        return EngineLayers.of(information)
    except Exception as error:  # noqa: BLE001 (an engine for other GPUs, or a list of an unknown form)
        progress(f"the engine's layers cannot be listed here: {reason_of(error)}")
        return None
