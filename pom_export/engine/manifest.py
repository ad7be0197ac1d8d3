"""What an engine was built from and for: a JSON file beside it, to be checked before loading."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pom_export.engine.recipe import PLUGIN, Recipe, sha256_of_weights
from pom_export.errors import InputError
from pom_export.files import readable_file, sha256_of
from pom_export.graph.exported import read_model


@dataclass(frozen=True)
class EngineInfo(Recipe):
    """The outcome of a build, as it is written into the manifest: the recipe, and what it became.

    Attributes:
        engine: path of the engine file.
        manifest: path of this record as JSON.
        aggregations: aggregation nodes in the model.
        plugin_layers: how many of them became plugin layers.
        precisions: how many layers compute in each floating-point type.
        matrix_products: how many matrix products and convolutions do.
        inspected: what TensorRT's inspector says about the engine's layers; None where no GPU could load it.
        inputs: name, dtype and axes of each input.
        outputs: the same of each output.
        bytes: size of the engine.
        cached: whether the engine was kept from an earlier build.
        seconds: time that parsing and building took, or the copy of a kept engine.
        sha256: of the engine.
        command_line: the line that has NVIDIA's own tool build this engine; None where that tool cannot.
    """

    engine: str
    manifest: str
    aggregations: int
    plugin_layers: int
    precisions: dict[str, int]
    matrix_products: dict[str, int]
    inspected: dict[str, Any] | None
    inputs: list[str]
    outputs: list[str]
    bytes: int
    cached: bool
    seconds: float
    sha256: str
    command_line: str | None

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


def engine_path(engine: str | os.PathLike[str]) -> str:
    """Return which implementation of the ops an engine holds, "plugin" or "function".

    Raises:
        InputError: its manifest cannot be read.
    """
    return str(read_manifest(engine).get("path", PLUGIN))


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
        InputError: the engine is not the file that was built, or was built from another model or other weights.
    """
    told = read_manifest(engine)
    found = {
        f"engine {engine} is": told.get("sha256") == sha256_of(Path(engine)),
        f"model {model} is": told.get("model_sha256") == sha256_of(model),
        f"the weights of {model} are": told.get("weights_sha256") == sha256_of_weights(read_model(model)),
    }
    for what, same in found.items():
        if not same:
            raise InputError(f"{what} not what {manifest_path(engine)} tells of", "Build the engine again")
