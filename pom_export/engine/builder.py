"""Build a TensorRT engine from an exported model, with our plugin as its aggregation layers."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pom_export.engine.backend import load_backend, load_plugin
from pom_export.engine.job import BuildJob
from pom_export.engine.manifest import EngineInfo, check_manifest_place, manifest_path
from pom_export.engine.profiles import Shapes, make_profiles
from pom_export.engine.targets import resolve_targets
from pom_export.errors import InputError
from pom_export.files import check_replaceable, sha256_of, staged_output
from pom_export.graph.exported import read_model
from pom_export.version import __version__


def build_engine(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    backend: str = "auto",
    targets: Sequence[str] = (),
    min_shapes: Shapes | None = None,
    opt_shapes: Shapes | None = None,
    max_shapes: Shapes | None = None,
    timing_cache: str | os.PathLike[str] | None = None,
    embed_plugin: bool = True,
    progress: Callable[[str], None] = lambda _: None,
) -> EngineInfo:
    """Build an engine; TensorRT for RTX needs no GPU for it.

    Args:
        model: an exported ONNX file.
        output: where the engine goes; its manifest goes beside it, with ".json" added.
        backend: "auto", "tensorrt" or "tensorrt-rtx".
        targets: compute capabilities such as "sm86" (TensorRT for RTX only); default: this machine's GPU, or
            `DEFAULT_TARGETS` where there is none.
        min_shapes: smallest shape of each input; dimensions not given take defaults.
        opt_shapes: most frequent shapes.
        max_shapes: largest shapes.
        timing_cache: a file to read and update (full TensorRT only).
        embed_plugin: whether the engine carries the plugin library, so that it loads anywhere.
        progress: called with one line a stage.

    Raises:
        InputError: a file or option is not usable.
        MissingDependencyError: TensorRT or the plugin library is not installed.
        EngineError: TensorRT refused the model, or an aggregation did not become a plugin layer.
    """
    exported = read_model(model)
    if not exported.aggregations:
        raise InputError(f"{exported.path} holds no PoM aggregation", "Export it with `pom-export export`")
    shapes = (min_shapes or {}, opt_shapes or {}, max_shapes or {})
    profiles = make_profiles(exported.inputs, *shapes, exported.limits.tokens)
    loaded = load_backend(backend)
    chosen = resolve_targets(loaded, targets)
    if timing_cache is not None and loaded.is_rtx:
        raise InputError("TensorRT for RTX keeps no timing cache", "Leave --timing-cache out")
    sources = [exported.path, *exported.weights]
    manifest = manifest_path(output)
    with staged_output(output, *sources, beside=[manifest]) as staged:
        check_manifest_place(output)
        if timing_cache is not None:
            check_replaceable(Path(timing_cache), [*sources, output], "timing cache")
        library = load_plugin(loaded)
        started = time.monotonic()
        job = BuildJob(loaded, exported, profiles, chosen, library if embed_plugin else None, timing_cache, progress)
        engine = job.run()
        seconds = time.monotonic() - started
        staged.write_bytes(engine)
        info = EngineInfo(
            engine=os.fspath(output),
            manifest=os.fspath(manifest),
            backend=loaded.name,
            backend_version=loaded.version,
            targets=list(chosen),
            aggregations=len(exported.aggregations),
            plugin_layers=job.plugin_layers,
            plugin_embedded=embed_plugin,
            profiles={name: profile.to_dict() for name, profile in profiles.items()},
            inputs=[str(spec) for spec in exported.inputs],
            outputs=[str(spec) for spec in exported.outputs],
            bytes=len(engine),
            seconds=round(seconds, 2),
            sha256=sha256_of(staged),
            model_sha256=sha256_of(exported.path),
            weights_sha256={file.name: sha256_of(file) for file in exported.weights},
            plugin_sha256=sha256_of(library),
            toolkit_version=__version__,
        )
        manifest_path(staged).write_text(json.dumps(info.to_dict(), indent=2) + "\n")
    return info
