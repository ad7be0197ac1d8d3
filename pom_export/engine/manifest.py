"""What an engine was built from and for: a JSON file beside it, to be checked before loading."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class EngineInfo:
    """The outcome of a build, as it is written into the manifest.

    Attributes:
        engine: path of the engine file.
        manifest: path of this record as JSON.
        backend: "tensorrt" or "tensorrt-rtx".
        backend_version: its version.
        targets: compute capabilities ("sm86"), or ["current"] for this machine's GPU.
        aggregations: aggregation nodes in the model.
        plugin_layers: how many of them became plugin layers.
        plugin_embedded: whether the engine carries the plugin library.
        profiles: smallest, most frequent and largest shape of each input.
        inputs: name, dtype and axes of each input.
        outputs: the same of each output.
        bytes: size of the engine.
        seconds: time that parsing and building took.
        sha256: of the engine.
        model_sha256: of the ONNX file.
        plugin_sha256: of the plugin library.
        toolkit_version: of pom-export.
    """

    engine: str
    manifest: str
    backend: str
    backend_version: str
    targets: list[str]
    aggregations: int
    plugin_layers: int
    plugin_embedded: bool
    profiles: dict[str, dict[str, list[int]]]
    inputs: list[str]
    outputs: list[str]
    bytes: int
    seconds: float
    sha256: str
    model_sha256: str
    plugin_sha256: str
    toolkit_version: str

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return asdict(self)
