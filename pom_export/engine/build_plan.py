"""A build with all of its options resolved."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from pom_export.engine.backend import Backend, gpu_capability, gpu_name
from pom_export.engine.build_config import FUNCTION, PLUGIN, BuildConfig, sha256_of_weights
from pom_export.engine.profiles import ShapeProfile
from pom_export.engine.targets import CURRENT
from pom_export.files import sha256_of
from pom_export.graph.exported_model import ExportedModel
from pom_export.version import __version__

# onnx inlines functions, and polygraphy configures TensorRT.
_PACKAGES: Final = ("onnx", "polygraphy")


@dataclass(frozen=True)
class BuildPlan:
    """The resolved options of a build.

    Attributes:
        model: the model to build the engine from.
        backend: the TensorRT that builds it.
        targets: architectures, or `CURRENT` for this machine's GPU.
        profiles: shapes of each input.
        library: the plugin library; None: the ops' functions are used instead.
        embed_plugin: whether the engine contains the library.
        timing_cache: a file to read and update, or None.
        progress: called with one line per stage.
    """

    model: ExportedModel
    backend: Backend
    targets: Sequence[str]
    profiles: Mapping[str, ShapeProfile]
    library: Path | None
    embed_plugin: bool
    timing_cache: str | os.PathLike[str] | None
    progress: Callable[[str], None]

    @property
    def embedded(self) -> Path | None:
        """The library that the engine contains, or None."""
        return self.library if self.embed_plugin else None

    @property
    def chips(self) -> list[int]:
        """The compute capabilities of the targets, such as 86; that of this machine's GPU only if it is known."""
        found = (gpu_capability() if name == CURRENT else int(name.removeprefix("sm")) for name in self.targets)
        return [chip for chip in found if chip is not None]

    def config(self) -> BuildConfig:
        """Return the engine's build configuration, with the current hashes of the files."""
        return BuildConfig(
            backend=self.backend.name,
            backend_version=self.backend.version,
            targets=list(self.targets),
            gpu=gpu_name() if CURRENT in self.targets else None,
            path=FUNCTION if self.library is None else PLUGIN,
            plugin_embedded=self.embedded is not None,
            plugin_sha256=None if self.library is None else sha256_of(self.library),
            profiles={name: profile.to_dict() for name, profile in self.profiles.items()},
            model_sha256=sha256_of(self.model.path),
            weights_sha256=sha256_of_weights(self.model),
            toolkit_version=__version__,
            packages={name: version(name) for name in _PACKAGES},
        )
