"""What an engine was built from and for: a JSON file beside it, to be checked before loading."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pom_export.errors import InputError
from pom_export.files import readable_file, sha256_of


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
        weights_sha256: of each file of external weights, by name; empty when the ONNX file holds its own.
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
    weights_sha256: dict[str, str]
    plugin_sha256: str
    toolkit_version: str

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return asdict(self)


def manifest_path(engine: str | os.PathLike[str]) -> Path:
    """Return where the manifest of an engine lies."""
    return Path(f"{os.fspath(engine)}.json")


def read_manifest(engine: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Return what the manifest of an engine says.

    Raises:
        InputError: there is none, or a file of another kind has its name.
    """
    file = readable_file(manifest_path(engine), "manifest")
    values = _values(file)
    if values is None:
        raise InputError(f"manifest {file} is not one of ours", "Build the engine again")
    return values


def check_manifest_place(engine: str | os.PathLike[str]) -> None:
    """Raise InputError when a file that is no manifest lies where that of an engine would go."""
    place = manifest_path(engine)
    if place.is_file() and _values(place) is None:
        raise InputError(f"{place}, where the manifest would go, is none of ours", "Move it, or rename the output")


def _values(file: Path) -> Mapping[str, Any] | None:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    ours = isinstance(values, dict) and values.keys() >= {"engine", "backend", "plugin_layers", "model_sha256"}
    return values if ours else None


def check_manifest(engine: str | os.PathLike[str], model: Path) -> None:
    """Compare an engine with its manifest, and with the model that it is said to be of.

    Raises:
        InputError: the engine is not the file that was built, or was built from another model.
    """
    manifest = read_manifest(engine)
    for what, file, key in (("engine", Path(engine), "sha256"), ("model", model, "model_sha256")):
        if manifest.get(key) != sha256_of(file):
            raise InputError(
                f"{what} {file} is not the one that {manifest_path(engine)} tells of", "Build the engine again"
            )
