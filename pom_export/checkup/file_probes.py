"""The trials of a model file and of an engine, each in a process of its own: whether they work on this machine."""

from __future__ import annotations

from pom_export.checkup.findings import BrokenError, about_to
from pom_export.checkup.probes import loaded

_CURRENT = "current"


def model(path: str) -> str:
    """Load an ONNX file with our kernels and without them, and compare what both compute."""
    import numpy as np
    import onnx

    from pom_export.batches.calling import Caller
    from pom_export.batches.interface import read_interface
    from pom_export.batches.probing import distance, draw_row, small_sizes
    from pom_export.graph.exported_model import read_model
    from pom_export.graph.function_check import check_functions
    from pom_export.runtime.library import has_custom_ops_library

    file = read_model(path)
    version = onnx.load(path, format="protobuf", load_external_data=False).ir_version
    unknown = check_functions(file.path)
    about = f"opset {file.opset}, IR {version}, {len(file.aggregations)} aggregations"
    if not file.aggregations and file.inlined:
        about = f"opset {file.opset}, IR {version}, {file.inlined} aggregations, inlined"
    ways = [True] if file.aggregations and has_custom_ops_library() else []
    ways += [] if file.without_function else [False]
    if not ways:
        raise BrokenError(f"{about}: only our kernels can run it, and they are not here", "make setup")
    results = []
    for kernels in ways:
        session = loaded(path, kernels=kernels)
        interface = read_interface(session)
        row = draw_row(interface, small_sizes(interface), np.random.default_rng(0))
        results.append(Caller(session, interface).call([row])[0])
    if not all(np.isfinite(array).all() for array in results[0].values()):
        raise BrokenError(f"{about}: it gives numbers that are not finite", "pom-export verify")
    if len(results) > 1:
        # Each of the two is rounded.
        far = [name for name, array in results[0].items() if not distance(array, results[1][name]) <= 2]
        if far:
            raise BrokenError(f"{about}: kernels and function differ in {far[0]}", "pom-export verify")
    alone = "by its function" if file.aggregations else "by standard operators"
    by = " as ".join("by our kernels" if kernels else alone for kernels in ways)
    skipped = f"; the function of {unknown[0]} was not compared" if unknown else ""
    return f"{about}, computed {by}{skipped}"


def engine(path: str) -> str:
    """Compare an engine's manifest with the file and this machine, and load it."""
    from pom_export.engine.backend import gpu_capability, load_plugin
    from pom_export.engine.build_config import PLUGIN
    from pom_export.engine.loading import deserialize
    from pom_export.engine.manifest import path_in, read_engine
    from pom_export.engine.runner import backend_in
    from pom_export.files import sha256_of
    from pom_export.runtime.library import plugin_library

    content, manifest = read_engine(path)
    again = "Build the engine again, here: pom-export build"
    backend = backend_in(manifest, path)
    built = str(manifest.get("backend_version"))
    if backend.version != built:
        raise BrokenError(f"it was built with {backend.name} {built}, and {backend.version} is here", again)
    uses_plugin = path_in(manifest) == PLUGIN
    if uses_plugin:
        load_plugin(backend)
        if not manifest.get("plugin_embedded") and manifest.get("plugin_sha256") != sha256_of(plugin_library()):
            raise BrokenError("it was built with another plugin library than the one here", again)
    targets = [str(target) for target in manifest.get("targets", [])]
    chip = gpu_capability()
    if chip is None:
        fit = f"it is for {', '.join(targets)}, fits {backend.name} {built} here"
        raise BrokenError(f"{fit}, but needs a GPU, and there is none here", "Run it on a machine with such a GPU")
    if _CURRENT not in targets and f"sm{chip}" not in targets:
        raise BrokenError(f"it is for {', '.join(targets)}, and the GPU here is sm{chip}", again)
    about_to("load the engine")
    deserialize(content, backend, uses_plugin)
    return f"loads in {backend.name} {built} on sm{chip}"
