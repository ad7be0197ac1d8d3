"""An engine that is to be compared, together with the model that it was built from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pom_export.engine.backend import Backend, gpu_present
from pom_export.engine.manifest import check_model, path_in, read_engine
from pom_export.engine.runner import backend_in, engine_runner
from pom_export.graph.exported_model import ExportedModel
from pom_export.runtime.runners import Runner


@dataclass(frozen=True)
class GivenEngine:
    """An engine of a model; both were read once, so that the engine that runs is the one that was checked.

    Attributes:
        file: the engine.
        model: the model.
        content: the engine's bytes.
        manifest: the values of its manifest.
        backend: the TensorRT that it was built with.
    """

    file: Path
    model: ExportedModel
    content: bytes
    manifest: Mapping[str, Any]
    backend: Backend

    @property
    def path(self) -> str:
        """The implementation of the op that it uses: "plugin" or "function"."""
        return path_in(self.manifest)

    @property
    def not_run(self) -> str:
        """Why it can't run here; empty if it can."""
        return "" if gpu_present() else f"{self.backend.name}: {self.file.name} needs a GPU, and there is none here"

    def runner(self, content: bytes | None = None) -> Runner:
        """Return a runner for it, or for another engine that was built alike."""
        name = f"{self.backend.name} {self.path}"
        return engine_runner(self.content if content is None else content, self.manifest, self.backend, name)


def given_engine(engine: str | os.PathLike[str], model: ExportedModel) -> GivenEngine:
    """Read an engine of a model.

    Raises:
        InputError: it can't be read, or was built from another model.
        MissingDependencyError: the TensorRT that it was built with is not installed.
    """
    content, manifest = read_engine(engine)
    backend = backend_in(manifest, engine)
    check_model(manifest, engine, model)
    return GivenEngine(Path(engine), model, content, manifest, backend)
