"""Run an engine; needs a GPU that it was built for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pom_export.engine.backend import BACKENDS, Backend, load_backend, load_plugin
from pom_export.engine.build_config import PLUGIN
from pom_export.engine.manifest import engine_path, manifest_path, read_manifest
from pom_export.errors import InputError
from pom_export.files import readable_file
from pom_export.runtime.runners import Runner


def engine_backend(engine: str | os.PathLike[str]) -> Backend:
    """Return the TensorRT that an engine was built with, according to its manifest.

    Raises:
        InputError: the engine or its manifest cannot be read.
        MissingDependencyError: that TensorRT is not installed.
    """
    file = readable_file(engine, "engine")
    return backend_in(read_manifest(file), file)


def backend_in(manifest: Mapping[str, Any], engine: Path) -> Backend:
    """Return the TensorRT named in an engine's manifest; raises the same errors as `engine_backend`."""
    name = manifest["backend"]
    if name not in BACKENDS:
        raise InputError(
            f"manifest {manifest_path(engine)} names an unknown backend, {name!r}", "Build the engine again"
        )
    return load_backend(name)


def engine_runner(engine: str | os.PathLike[str], backend: Backend, name: str) -> Runner:
    """Return a Polygraphy runner for an engine, after registering our plugin if the engine needs it."""
    if engine_path(engine) == PLUGIN:
        load_plugin(backend)
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner

    runner: Runner = TrtRunner(EngineFromBytes(Path(engine).read_bytes()), name=name)
    return runner
