"""Find the compiled libraries that ship in the package."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from pom_export.errors import MissingDependencyError

_FOLDER = "lib"


def _locate(file_name: str, variable: str, purpose: str) -> Path:
    """Return a library's path, from the environment or else from the package (its source or its installed part)."""
    named = os.environ.get(variable)
    if named:
        if Path(named).is_file():
            return Path(named).resolve()
        raise MissingDependencyError(f"{variable}={named} is not a file", f"Point it at {file_name} or unset it")
    # The package is not imported here, because it imports this module.
    for folder in sys.modules[__name__.partition(".")[0]].__path__:
        candidate = Path(folder) / _FOLDER / file_name
        if candidate.is_file():
            return candidate.resolve()
    raise MissingDependencyError(
        f"{file_name} ({purpose}) is not in this installation",
        "Install pom-export from a wheel, or build it with `make setup`",
    )


def custom_ops_library() -> Path:
    """Return the path of our ONNX Runtime op library, for `SessionOptions.register_custom_ops_library`.

    Raises:
        MissingDependencyError: this installation was built without it.
    """
    return _locate("libpom_onnxruntime.so", "POM_CUSTOM_OPS_LIBRARY", "ONNX Runtime custom op")


def has_custom_ops_library() -> bool:
    """Return whether this installation has our ONNX Runtime op library."""
    try:
        custom_ops_library()
    except MissingDependencyError:
        return False
    return True


def cpu_kernel() -> str | None:
    """Return the name of the kernel that our op library would use now; None if it or the library is missing."""
    return _named("pom_cpu_kernel")


def product_kernel() -> str | None:
    """Return the name of the kernel that products in fused nodes would use now; None if the library has none."""
    return _named("pom_cpu_products")


def _named(function: str) -> str | None:
    """Return the text that a function of our op library returns; None if it is empty or there is no such function."""
    try:
        called = getattr(ctypes.CDLL(os.fspath(custom_ops_library())), function)
    except (MissingDependencyError, OSError, AttributeError):
        return None
    called.restype = ctypes.c_char_p
    text: bytes | None = called()
    return text.decode() if text else None


def plugin_library() -> Path:
    """Return the path of our TensorRT plugin library, for `IPluginRegistry.load_library`.

    Raises:
        MissingDependencyError: this installation was built without it.
    """
    return _locate("libpom_tensorrt.so", "POM_PLUGIN_LIBRARY", "TensorRT plugin")


def rtx_soname_library() -> Path:
    """Return the path of the library that stands in for TensorRT for RTX's unversioned SONAME.

    Raises:
        MissingDependencyError: this installation was built without it.
    """
    return _locate("libpom_rtx_soname.so", "POM_RTX_SONAME_LIBRARY", "helper for TensorRT for RTX")
