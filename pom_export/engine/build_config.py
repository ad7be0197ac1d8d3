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

# The implementations of the ops that an engine can contain.
PLUGIN: Final = "plugin"
FUNCTION: Final = "function"


@dataclass(frozen=True)
class BuildConfig:
    """Everything that an engine's bytes depend on, except for what TensorRT measures during the build.

    A timing cache is therefore not part of it: it saves measurements, but does not change their basis.

    Attributes:
        backend: "tensorrt" or "tensorrt-rtx".
        backend_version: its version.
        targets: compute capabilities ("sm86"), or ["current"] for this machine's GPU.
        gpu: name of this machine's GPU, if it is the target.
        path: "plugin", or "function" for an engine of the ops' functions.
        plugin_embedded: whether the engine contains the plugin library.
        plugin_sha256: hash of the plugin library; None for an engine of functions.
        profiles: smallest, most frequent and largest shape of each input.
        model_sha256: hash of the ONNX file.
        weights_sha256: hashes of its weights; see `sha256_of_weights`.
        toolkit_version: version of pom-export.
        packages: versions of the other packages that take part, by name.
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
        """Return a name that is unique to engines of this configuration."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class BuiltEngine:
    """The result of a build.

    Attributes:
        engine: the serialized engine.
        plugin_layers: how many of its layers are our plugin.
        precisions: how many layers compute in each floating-point type.
        matrix_products: how many matrix products and convolutions the file asks for in each type.
        engine_products: in how many of them the engine multiplies values of each type; None if TensorRT did not list
            its layers.
        not_as_asked: those of small types that the engine computes in another, with both types, by name.
    """

    engine: bytes
    plugin_layers: int
    precisions: Mapping[str, int]
    matrix_products: Mapping[str, int]
    engine_products: Mapping[str, int] | None
    not_as_asked: Mapping[str, str]

    def facts(self) -> dict[str, Any]:
        """Return everything except the engine as JSON-serialisable values."""
        return {name: value for name, value in asdict(self).items() if name != "engine"}


def sha256_of_weights(model: ExportedModel) -> dict[str, str]:
    """Return the SHA-256 of each file of external weights, by its location in the ONNX file.

    Raises:
        InputError: a file does not match the hash in its name.
    """
    hashes = {file: sha256_of(file) for file in model.weights}
    for file, sha256 in hashes.items():
        check_weights(file, sha256)
    return {file.relative_to(model.path.parent).as_posix(): sha256 for file, sha256 in hashes.items()}
