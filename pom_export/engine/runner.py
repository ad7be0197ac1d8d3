"""Run an engine: needs a GPU that the engine was built for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pom_export.engine.backend import Backend, load_backend, load_plugin
from pom_export.errors import InputError
from pom_export.files import readable_file

if TYPE_CHECKING:
    from polygraphy.backend.base import BaseRunner


def engine_backend(engine: str | os.PathLike[str]) -> Backend:
    """Return the TensorRT that an engine was built with, as its manifest says.

    Raises:
        InputError: the engine or its manifest cannot be read.
        MissingDependencyError: that TensorRT is not installed.
    """
    file = readable_file(engine, "engine")
    manifest = readable_file(f"{file}.json", "manifest")
    try:
        name = json.loads(manifest.read_text())["backend"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"manifest {manifest} is not one of ours", "Build the engine again") from error
    return load_backend(name)


def engine_runner(engine: str | os.PathLike[str], backend: Backend, name: str) -> BaseRunner:
    """Return a Polygraphy runner of an engine, our plugin registered."""
    load_plugin(backend)
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner

    return TrtRunner(EngineFromBytes(Path(engine).read_bytes()), name=name)
