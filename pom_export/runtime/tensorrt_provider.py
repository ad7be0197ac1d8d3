"""Use our plugin in ONNX Runtime's TensorRT execution provider."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any, Final

from pom_export.errors import EngineError, MissingDependencyError
from pom_export.runtime.library import plugin_library

TENSORRT_PROVIDER: Final = "TensorrtExecutionProvider"
# Major version of the TensorRT that the provider is linked against.
_MAJOR = 10
_NVINFER = f"libnvinfer.so.{_MAJOR}"


def tensorrt_provider_options(**options: Any) -> dict[str, Any]:
    """Register our plugin for ONNX Runtime's TensorrtExecutionProvider, and return the provider's options.

    The provider opens the libraries named in its options and looks for plugins in TensorRT's registry, but only
    libraries with TensorRT's old plugin interface register themselves there. This function therefore registers ours, in
    the TensorRT that the provider uses.

    Args:
        options: other options of the provider, such as trt_engine_cache_enable.

    Raises:
        MissingDependencyError: this installation was built without the plugin, or TensorRT 10 was not found.
        EngineError: TensorRT did not accept the plugin.
    """
    library = plugin_library()
    try:
        nvinfer = ctypes.CDLL(_NVINFER)
    except OSError as error:
        raise MissingDependencyError(
            f"{_NVINFER}, which {TENSORRT_PROVIDER} uses, was not found", "Put its folder into LD_LIBRARY_PATH"
        ) from error
    register_creators(library, nvinfer)
    key = "trt_extra_plugin_lib_paths"
    libraries = [*filter(None, str(options.get(key, "")).split(";")), os.fspath(library)]
    return {**options, key: ";".join(dict.fromkeys(libraries))}


def register_creators(library: Path, nvinfer: ctypes.CDLL) -> None:
    """Add the plugin's creators to a TensorRT's registry; doing it again has no effect.

    Raises:
        EngineError: it is not TensorRT 10, or did not accept them.
    """
    major = nvinfer.getInferLibMajorVersion()
    if major != _MAJOR:  # the registry's interface differs
        raise EngineError(f"TensorRT {major} is installed", f"Use TensorRT {_MAJOR} here, or build an engine")
    nvinfer.getPluginRegistry.restype = ctypes.c_void_p
    register = ctypes.CDLL(os.fspath(library)).pom_register_creators
    register.argtypes, register.restype = [ctypes.c_void_p], ctypes.c_bool
    if not register(nvinfer.getPluginRegistry()):
        raise EngineError(f"TensorRT did not accept the plugins of {library}", "See what TensorRT logged")
