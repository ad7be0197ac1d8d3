"""Packages for Triton's tensorrt backend: an engine with our plugin inside; the server carries the state."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pom_export.bench.options import TENSORRT as BENCHED
from pom_export.engine.backend import TENSORRT
from pom_export.engine.build_config import PLUGIN
from pom_export.engine.manifest import check_model, path_in, read_engine
from pom_export.errors import InputError
from pom_export.graph.exported_model import BATCH, ExportedModel
from pom_export.packaging.folder import PackageFolder
from pom_export.packaging.readme import readme
from pom_export.packaging.targets import Contents, PackageOptions, Progress
from pom_export.packaging.triton.carried import carried_config, carried_text
from pom_export.packaging.triton.config import Word
from pom_export.packaging.triton.repository import COMMAND, MOST_TOGETHER, batched_config, write_repository
from pom_export.packaging.triton.states import carried_states
from pom_export.packaging.triton.texts import requests_text

# An engine that embeds a plugin holds code for the host, which the backend allows with this option alone.
_ALLOWED: Final = f"{COMMAND} --backend-config=tensorrt,version-compatible=true"
_SERVE: Final = """
    In this folder:

        python3 preflight.py
        {command}

    {embedded}The engine is of TensorRT {version}, for {targets}: the server's TensorRT must be of that version.

    This package has not been run, for an engine needs a GPU. `pom-export verify --engine` compares the engine with the
    model there; compare what the server answers with it too before you rely on it.
    """
_EMBEDDED: Final = """The engine has our plugin inside, which is code for the host. The server's option allows it;
    without it the server refuses the engine. (Its option plugins= would not do: it loads a library, but does not ask it
    for its creators.)

    """
_UNTRIED: Final = "it was not run: an engine needs a GPU"


def write(
    folder: PackageFolder, model: ExportedModel, name: str, options: PackageOptions, progress: Progress
) -> Contents:
    """Write the package; see `Target`."""
    if options.engine is None:
        raise InputError("`backend=tensorrt` serves an engine, and none was given", "Give `engine`")
    if model.stateful:
        raise InputError(
            f"{model.path.name} keeps a state in the form of our own streams, which a server cannot carry",
            "Package it with `backend=onnxruntime`, and build the engine from the model.onnx in that package",
        )
    states = carried_states(model)
    progress(f"reading {options.engine}")
    content, manifest = read_engine(options.engine)
    check_model(manifest, options.engine, model)
    _check_servable(manifest, Path(options.engine))
    most = _most_rows(model, manifest)
    if states:
        config = carried_config(model, states, min(most, MOST_TOGETHER))
    else:
        config = batched_config(model, options.bench, BENCHED, most)
    folder.place(f"models/{name}/1/model.plan").write_bytes(content)
    write_repository(folder, name, "tensorrt", {**config, "instance_group": [{"count": 1, "kind": Word("KIND_GPU")}]})
    command = _ALLOWED if path_in(manifest) == PLUGIN else COMMAND
    clients = carried_text(model, states, name) if states else requests_text(model)
    sections = {"Serve it": _serve_text(manifest, command), "Send arrays to it": clients}
    folder.write("README.md", readme(f"{name} for Triton's tensorrt backend", model, sections))
    return Contents(command=command, serving={"name": name, "backend": "tensorrt"}, notes=[_UNTRIED])


def _check_servable(manifest: Mapping[str, Any], engine: Path) -> None:
    """Raise InputError for an engine that the server's TensorRT cannot run."""
    if manifest["backend"] != TENSORRT:
        raise InputError(
            f"{engine} is an engine of TensorRT for RTX, and Triton runs the full TensorRT's",
            "Build it with `backend=tensorrt`",
        )
    if path_in(manifest) == PLUGIN and not manifest.get("plugin_embedded"):
        raise InputError(
            f"{engine} needs our plugin beside it, and Triton's option for libraries does not register it",
            "Build it with the plugin inside, which is the default",
        )


def _most_rows(model: ExportedModel, manifest: Mapping[str, Any]) -> int:
    """Return the largest batch that the engine's profile allows."""
    profiles = manifest["profiles"]
    rows = [profiles[s.name]["max"][0] for s in model.inputs if s.axes[:1] == (BATCH,) and s.name in profiles]
    return int(min(rows, default=0))


def _serve_text(manifest: Mapping[str, Any], command: str) -> str:
    targets = ", ".join(manifest["targets"])
    if manifest["gpu"]:
        targets = f"{targets} ({manifest['gpu']})"
    embedded = _EMBEDDED if command == _ALLOWED else ""
    return _SERVE.format(command=command, embedded=embedded, version=manifest["backend_version"], targets=targets)
