"""Run an engine; needs a GPU that it was built for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pom_export.engine.backend import BACKENDS, Backend, load_backend, load_plugin, polygraphy_trt
from pom_export.engine.build_config import PLUGIN
from pom_export.engine.manifest import manifest_path, path_in
from pom_export.errors import InputError
from pom_export.runtime.runners import Runner


def backend_in(manifest: Mapping[str, Any], engine: str | os.PathLike[str]) -> Backend:
    """Return the TensorRT that an engine was built with, according to its manifest.

    Raises:
        InputError: the manifest names an unknown backend.
        MissingDependencyError: that TensorRT is not installed.
    """
    name = manifest["backend"]
    if name not in BACKENDS:
        raise InputError(
            f"manifest {manifest_path(engine)} names an unknown backend, {name!r}", "Build the engine again"
        )
    return load_backend(name)


def engine_runner(engine: bytes, manifest: Mapping[str, Any], backend: Backend, name: str) -> Runner:
    """Return a Polygraphy runner for an engine, after registering our plugin if its manifest says that it needs it."""
    if path_in(manifest) == PLUGIN:
        load_plugin(backend)
    loaders = polygraphy_trt(backend)
    runner: Runner = loaders.TrtRunner(loaders.EngineFromBytes(engine), name=name)
    return runner
