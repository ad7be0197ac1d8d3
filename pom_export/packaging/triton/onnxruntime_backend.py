"""Packages for Triton's onnxruntime backend: the file itself with our op library; the server carries its state."""

from __future__ import annotations

import platform
from typing import Any, Final

from pom_export.graph.exported_model import ExportedModel
from pom_export.packaging.folder import PackageFolder
from pom_export.packaging.readme import readme
from pom_export.packaging.targets import Contents, PackageOptions, Progress
from pom_export.packaging.triton.carried import carried_config, carried_text
from pom_export.packaging.triton.repository import (
    COMMAND,
    batched_config,
    on_cpu,
    write_repository,
)
from pom_export.packaging.triton.states import carried_states, check_carried, write_carried
from pom_export.packaging.triton.texts import requests_text
from pom_export.runtime.library import custom_ops_library
from pom_export.runtime.pool.pool import check_poolable
from pom_export.runtime.session import inference_session
from pom_export.runtime.streaming.interface import StateTensor, stateful_interface

_SERVE: Final = """
    In this folder:

        python3 preflight.py
        {command}

    {library}The model runs on the CPU (instance_group). Only the server's own parser and ONNX Runtime have checked this
    package: it has not been run in Triton's onnxruntime backend.
    """
_LIBRARY: Final = """The configuration names the op library by its path from here. To serve the package from elsewhere,
    write the library's absolute path as op_library_filename into config.pbtxt. The library is for Linux on {machine},
    and the server's ONNX Runtime must be 1.21 or newer.

    """
_UNTRIED: Final = "it was not run in Triton's onnxruntime backend; README.md says what was checked"


def write(
    folder: PackageFolder, model: ExportedModel, name: str, options: PackageOptions, progress: Progress
) -> Contents:
    """Write the package; see `Target`."""
    place = f"models/{name}/1/model.onnx"
    checked: list[str] = []
    served, states = model, carried_states(model)
    if model.stateful:
        interface = stateful_interface(model)
        check_poolable(interface)
        progress("rewriting the state's interface")
        served = write_carried(interface, folder.place(place))
        states = carried_states(served)
        progress(f"comparing with {model.path.name}")
        checked = [check_carried(interface, served)]
    else:
        progress("loading it into ONNX Runtime")
        inference_session(model.path)
        checked = ["ONNX Runtime loads the file here"]
        folder.copy_model(model, place)
    libraries = _libraries(folder, model, name)
    config = carried_config(served, states) if states else batched_config(served, options.bench)
    write_repository(folder, name, "onnxruntime", {**config, **on_cpu(), **_operations(libraries)})
    folder.write("README.md", _readme(model, served, states, name))
    serving = {"name": name, "backend": "onnxruntime", "libraries": libraries}
    return Contents(command=COMMAND, checked=checked, serving=serving, notes=[_UNTRIED])


def _libraries(folder: PackageFolder, model: ExportedModel, name: str) -> list[str]:
    """Copy our op library into the package, if the model has our ops, and return its name there."""
    if not model.aggregations:
        return []
    library = custom_ops_library()
    folder.copy(library, f"models/{name}/1/{library.name}")
    return [f"models/{name}/1/{library.name}"]


def _operations(libraries: list[str]) -> dict[str, Any]:
    return {"model_operations": {"op_library_filename": libraries}} if libraries else {}


def _readme(model: ExportedModel, served: ExportedModel, states: list[StateTensor], name: str) -> str:
    """Return the package's README.md; `model` is what it was made from, and `served` what is in it."""
    library = _LIBRARY.format(machine=platform.machine()) if model.aggregations else ""
    serve = _SERVE.format(command=COMMAND, library=library)
    clients = carried_text(served, states, name) if states else requests_text(model)
    return readme(f"{name} for Triton's onnxruntime backend", model, {"Serve it": serve, "Send arrays to it": clients})
