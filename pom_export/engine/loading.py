"""Load a built engine into TensorRT; needs a GPU that it was built for."""

from __future__ import annotations

from typing import Any

from pom_export.engine.backend import Backend, load_plugin
from pom_export.engine.logger import collected_errors, tensorrt_logger
from pom_export.errors import EngineError


def deserialize(engine: bytes, backend: Backend, uses_plugin: bool) -> Any:
    """Return a trt.ICudaEngine, after registering our plugin if the engine needs it.

    Raises:
        EngineError: TensorRT does not load it, for example because it is for other GPUs.
        MissingDependencyError: the plugin library is not in this installation.
    """
    trt = backend.module
    if uses_plugin:
        load_plugin(backend)
    with collected_errors() as errors:
        runtime = trt.Runtime(tensorrt_logger(trt))
        runtime.engine_host_code_allowed = True  # for the embedded plugin
        loaded = runtime.deserialize_cuda_engine(engine)
    if loaded is None:
        reason = "; ".join(errors) or "it gives no reason"
        raise EngineError(f"{backend.name} {backend.version} does not load it: {reason}")
    return loaded
