"""The inputs of an engine build and its result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from pom_export.files import sha256_of
from pom_export.graph.exported_model import ExportedModel
from pom_export.graph.weights_file import check_weights

# Which implementation of the ops an engine holds.
PLUGIN: Final = "plugin"
FUNCTION: Final = "function"


@dataclass(frozen=True)
class BuildConfig:
    """Everything that an engine's bytes depend on, but for what TensorRT measures while it builds.

    So a timing cache is left out: it saves measurements, and changes nothing that they are made of.

    Attributes:
        backend: "tensorrt" or "tensorrt-rtx".
        backend_version: its version.
        targets: compute capabilities ("sm86"), or ["current"] for this machine's GPU.
        gpu: this machine's GPU, where it is the target.
        path: "plugin", or "function" for an engine of the ops' functions.
        plugin_embedded: whether the engine carries the plugin library.
        plugin_sha256: of the plugin library; None for an engine of functions.
        profiles: smallest, most frequent and largest shape of each input.
        model_sha256: of the ONNX file.
        weights_sha256: what `sha256_of_weights` returns.
        toolkit_version: of pom-export.
        packages: versions of the others that take part, by name.
    """

    backend: str
    backend_version: str
    targets: list[str]
    gpu: str | None
    path: str
    plugin_embedded: bool
    plugin_sha256: str | None
    profiles: dict[str, dict[str, list[int]]]
    model_sha256: str
    weights_sha256: dict[str, str]
    toolkit_version: str
    packages: dict[str, str]

    def key(self) -> str:
        """Return a name for engines of this configuration, which no other has."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class BuiltEngine:
    """What a build gives.

    Attributes:
        engine: the serialized engine.
        plugin_layers: how many of its layers are our plugin.
        precisions: how many layers compute in each floating-point type.
        matrix_products: how many matrix products and convolutions do.
    """

    engine: bytes
    plugin_layers: int
    precisions: Mapping[str, int]
    matrix_products: Mapping[str, int]

    def facts(self) -> dict[str, Any]:
        """Return all but the engine, as JSON-able values."""
        return {name: value for name, value in asdict(self).items() if name != "engine"}


def sha256_of_weights(model: ExportedModel) -> dict[str, str]:
    """Return the SHA-256 of each file of external weights, by the location that the ONNX file gives it.

    Raises:
        InputError: a file is not what its name says that it holds.
    """
    hashes = {file: sha256_of(file) for file in model.weights}
    for file, sha256 in hashes.items():
        check_weights(file, sha256)
    return {file.relative_to(model.path.parent).as_posix(): sha256 for file, sha256 in hashes.items()}
