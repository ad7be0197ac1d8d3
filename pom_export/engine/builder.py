"""Build a TensorRT engine from an exported model, with or without our plugin for the aggregations."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pom_export.engine.backend import load_backend, load_plugin
from pom_export.engine.build_config import BuiltEngine
from pom_export.engine.build_plan import BuildPlan
from pom_export.engine.cache import EngineCache, open_cache
from pom_export.engine.command_line import command_line
from pom_export.engine.gpu_code import check_gpu_code
from pom_export.engine.inspection import inspect_engine
from pom_export.engine.job import BuildJob
from pom_export.engine.manifest import EngineInfo, check_manifest_place, manifest_path
from pom_export.engine.profiles import Shapes, make_profiles
from pom_export.engine.small_types import check_targets, small_types, targets_for
from pom_export.engine.targets import DEFAULT_TARGETS, resolve_targets
from pom_export.errors import InputError, only_ours
from pom_export.files import check_writable, sha256_of, staged_output
from pom_export.graph.exported_model import read_model
from pom_export.runtime.library import plugin_library
from pom_export.stages import logged

_LOG = logging.getLogger(__name__)


@only_ours
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
    cache: str | os.PathLike[str] | None = None,
    use_plugin: bool = True,
    embed_plugin: bool = True,
    progress: Callable[[str], None] = lambda _: None,
) -> EngineInfo:
    """Build an engine. TensorRT for RTX can do this without a GPU.

    Args:
        model: path of an exported ONNX file.
        output: path of the engine; its manifest is written beside it, with ".json" added to the name.
        backend: "auto", "tensorrt" or "tensorrt-rtx".
        targets: compute capabilities such as "sm86", "sm_86" or "8.6" (TensorRT for RTX only); default: this machine's
            GPU, or if there is none those of `DEFAULT_TARGETS` that multiply the model's types.
        min_shapes: smallest shape of each input; missing dimensions get defaults.
        opt_shapes: most frequent shape of each input.
        max_shapes: largest shape of each input.
        timing_cache: a file to read and update (full TensorRT only).
        cache: a folder that keeps engines, from which an engine is copied if it was built before with the same files,
            versions and options.
        use_plugin: whether our plugin computes the aggregations. Otherwise the standard ops of their functions do,
            which is slower but works everywhere. An inlined model has nothing for the plugin to compute.
        embed_plugin: whether the engine contains the plugin library, so that it can be loaded anywhere.
        progress: called with one line per stage; the lines are also logged at level INFO.

    Raises:
        InputError: a file or option is unusable, a target lacks a type that the model multiplies, or the plugin
            library that the engine would contain has no code for it.
        MissingDependencyError: TensorRT or the plugin library is not installed.
        EngineError: TensorRT refused the model, an aggregation did not become what was requested, or a precision
            differs from the model's.
    """
    progress = logged(progress, _LOG)
    exported = read_model(model)
    if not exported.aggregations and not exported.inlined:
        raise InputError(f"{exported.path} holds no PoM aggregation", "Export it with `pom-export export`")
    if not exported.aggregations and use_plugin:
        progress("the model is inlined: standard operators compute its aggregations, not the plugin")
        use_plugin = False
    shapes = (min_shapes or {}, opt_shapes or {}, max_shapes or {})
    profiles = make_profiles(exported.inputs, *shapes, exported.limits)
    loaded = load_backend(backend)
    types = small_types(exported.path)
    chosen = resolve_targets(loaded, targets)
    if not targets and chosen == DEFAULT_TARGETS and targets_for(types) != chosen:
        chosen = targets_for(types)
        progress(f"the model has products in {', '.join(types)}: building for {', '.join(chosen)} alone")
    if timing_cache is not None and loaded.is_rtx:
        raise InputError("TensorRT for RTX keeps no timing cache", "Leave `timing_cache` out")
    library = plugin_library() if use_plugin else None
    plan = BuildPlan(exported, loaded, chosen, profiles, library, embed_plugin, timing_cache, progress)
    check_targets(exported.path, types, plan.targets, plan.chips)
    if plan.embedded is not None:
        check_gpu_code(plan.embedded, plan.chips, progress)
    manifest = manifest_path(output)
    kept = None if cache is None else open_cache(cache, [output, manifest], progress)
    sources = [exported.path, *exported.weights]
    with staged_output(output, *sources, beside=[manifest]) as staged:
        check_manifest_place(output)
        if timing_cache is not None:
            check_writable(timing_cache, [*sources, output, manifest], "timing cache")
        return _write(plan, kept, output, staged)


def _write(plan: BuildPlan, kept: EngineCache | None, output: str | os.PathLike[str], staged: Path) -> EngineInfo:
    """Build an engine, or take it from the cache, and write it along with its manifest."""
    config = plan.config()
    started = time.monotonic()
    found = kept.get(config.key()) if kept else None
    built = found or _build(plan)
    staged.write_bytes(built.engine)
    seconds = time.monotonic() - started
    info = EngineInfo(
        **vars(config),
        **built.facts(),
        **_places(plan, output),
        bytes=len(built.engine),
        sha256=sha256_of(staged),
        cached=found is not None,
        seconds=round(seconds, 2),
        inspected=_inspected(plan, built),
    )
    manifest_path(staged).write_text(json.dumps(info.to_dict(), indent=2) + "\n")
    # If a file was replaced in the meantime, it is unknown which version the engine was built from.
    if kept and not found and plan.config() == config:
        kept.put(config.key(), built)
    return info


def _build(plan: BuildPlan) -> BuiltEngine:
    if plan.library is not None:
        load_plugin(plan.backend)
    if plan.timing_cache is None:
        return BuildJob(plan).run()
    # Polygraphy reads the file, updates it in place and leaves a lock beside it, so it gets a copy.
    with staged_output(plan.timing_cache, plan.model.path, *plan.model.weights) as staged:
        cache = Path(plan.timing_cache)
        staged.write_bytes(cache.read_bytes() if cache.exists() else b"")
        built = BuildJob(replace(plan, timing_cache=os.fspath(staged))).run()
        staged.with_name(f"{staged.name}.lock").unlink(missing_ok=True)
    return built


def _inspected(plan: BuildPlan, built: BuiltEngine) -> dict[str, Any] | None:
    """Return the results of TensorRT's inspector, and report if it lists another number of plugin layers."""
    inspection = inspect_engine(built.engine, plan.backend, plan.library is not None, plan.progress)
    if inspection is None:
        return None
    if inspection.plugin_layers != built.plugin_layers:
        plan.progress(f"TensorRT's inspector lists {inspection.plugin_layers} plugin layers")
    return inspection.to_dict()


def _places(plan: BuildPlan, output: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the part of an engine's manifest that describes the files and their interface."""
    return {
        "engine": os.fspath(output),
        "manifest": os.fspath(manifest_path(output)),
        "aggregations": len(plan.model.aggregations),
        "inputs": [str(spec) for spec in plan.model.inputs],
        "outputs": [str(spec) for spec in plan.model.outputs],
        "command_line": command_line(plan, output),
    }
