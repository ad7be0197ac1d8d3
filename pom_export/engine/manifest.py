"""The manifest beside an engine: a JSON file with what it was built from and for, checked before loading."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from pom_export.engine.build_config import PLUGIN, BuildConfig, sha256_of_weights
from pom_export.errors import InputError
from pom_export.files import as_path, readable_file, sha256_of
from pom_export.graph.exported_model import ExportedModel
from pom_export.json_text import parse_json

# It contains the inspector's description of each layer.
_LARGEST: Final = 64 << 20
_MOST_VALUES: Final = 2_000_000
# The entry with the hash of all others.
_SEAL: Final = "manifest_sha256"


@dataclass(frozen=True)
class EngineInfo(BuildConfig):
    """The outcome of a build, as written to the manifest: the build configuration, and the result.

    Attributes:
        engine: path of the engine file.
        manifest: path of this record as JSON.
        aggregations: number of aggregation nodes in the model.
        plugin_layers: how many of them became plugin layers.
        precisions: how many layers compute in each floating-point type.
        matrix_products: how many matrix products and convolutions the file asks for in each type.
        engine_products: in how many of them the engine multiplies values of each type; None if TensorRT did not list
            its layers.
        not_as_asked: those of small types that the engine computes in another, with both types, by name.
        inspected: the inspector's description of the engine's layers; None if no GPU could load the engine.
        inputs: name, dtype and axes of each input.
        outputs: the same for each output.
        bytes: size of the engine.
        cached: whether the engine was taken from the cache.
        seconds: time taken by parsing and building, or by copying a cached engine.
        sha256: the engine's hash.
        command_line: the command with which NVIDIA's own tool builds this engine.
    """

    engine: str
    manifest: str
    aggregations: int
    plugin_layers: int
    precisions: dict[str, int]
    matrix_products: dict[str, int]
    engine_products: dict[str, int] | None
    not_as_asked: dict[str, str]
    inspected: dict[str, Any] | None
    inputs: list[str]
    outputs: list[str]
    bytes: int
    cached: bool
    seconds: float
    sha256: str
    command_line: str

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-serialisable values and their hash, which reveals edits to a manifest."""
        return sealed(asdict(self))


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest's values, with their hash added."""
    return {**values, _SEAL: _sha256_of_values(values)}


def manifest_path(engine: str | os.PathLike[str]) -> Path:
    """Return the path of an engine's manifest."""
    return Path(f"{as_path(engine, 'engine')}.json")


def read_manifest(engine: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Return the values of an engine's manifest.

    Raises:
        InputError: there is none, a file of another kind has its name, or it was edited.
    """
    file = manifest_path(engine)
    if not file.exists() and Path(engine).suffix == ".onnx":
        raise InputError(
            f"{os.fspath(engine)} is no engine: by its name it is an ONNX model", "Build an engine from it"
        )
    file = readable_file(file, "manifest", "The build wrote it beside the engine: copy it too")
    values = _values(file)
    if values is None:
        raise InputError(f"manifest {file} is not one of ours", "Build the engine again")
    if _SEAL not in values:
        raise InputError(
            f"manifest {file} has no {_SEAL}, the hash of its contents: an earlier version wrote it, or it was edited",
            "Build the engine again",
        )
    if values[_SEAL] != _sha256_of_values(values):
        raise InputError(f"manifest {file} was edited: it is not what the build wrote", "Build the engine again")
    return values


def path_in(manifest: Mapping[str, Any]) -> str:
    """Return the implementation of the ops according to an engine's manifest, "plugin" or "function"."""
    return str(manifest.get("path", PLUGIN))


def check_manifest_place(engine: str | os.PathLike[str]) -> None:
    """Raise InputError if the place of an engine's manifest is taken by some other file."""
    place = manifest_path(engine)
    if place.is_file() and _values(place) is None:
        raise InputError(
            f"{place}, where the manifest would go, is not a manifest of ours", "Move it, or rename the output"
        )


def _values(file: Path) -> Mapping[str, Any] | None:
    try:
        values = parse_json(file.read_bytes(), _MOST_VALUES) if file.stat().st_size <= _LARGEST else None
    except (OSError, ValueError):
        return None
    ours = isinstance(values, dict) and values.keys() >= {"engine", "backend", "plugin_layers", "model_sha256"}
    return values if ours else None


def _sha256_of_values(values: Mapping[str, Any]) -> str:
    """Return a hash of a manifest's values that does not depend on their order and spacing in the file."""
    content = json.dumps({name: value for name, value in values.items() if name != _SEAL}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def read_engine(engine: str | os.PathLike[str]) -> tuple[bytes, Mapping[str, Any]]:
    """Return an engine and its manifest's values.

    Raises:
        InputError: either cannot be read, or the engine is not the file that was built.
    """
    file = readable_file(engine, "engine")
    manifest = read_manifest(engine)
    # Checked before allocating that much memory.
    _require(manifest.get("bytes") == file.stat().st_size, f"engine {engine} is", engine)
    content = file.read_bytes()
    _require(manifest.get("sha256") == hashlib.sha256(content).hexdigest(), f"engine {engine} is", engine)
    return content, manifest


def check_model(manifest: Mapping[str, Any], engine: str | os.PathLike[str], model: ExportedModel) -> None:
    """Raise InputError if an engine's manifest describes another model or other weights."""
    _require(manifest.get("model_sha256") == sha256_of(model.path), f"model {model.path} is", engine)
    weights = sha256_of_weights(model)
    _require(manifest.get("weights_sha256") == weights, f"the weights of {model.path} are", engine)


def _require(same: bool, what: str, engine: str | os.PathLike[str]) -> None:
    if not same:
        raise InputError(f"{what} not what {manifest_path(engine)} describes", "Build the engine again")
