"""Find the installed TensorRT and prepare it for our plugin."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pom_export import contract
from pom_export.errors import EngineError, InputError, MissingDependencyError
from pom_export.process_wide import OneAtATime
from pom_export.runtime.library import plugin_library, rtx_soname_library
from pom_export.suggestions import did_you_mean

TENSORRT: Final = "tensorrt"
TENSORRT_RTX: Final = "tensorrt-rtx"
BACKENDS: Final = (TENSORRT, TENSORRT_RTX)
# The full TensorRT if installed, else TensorRT for RTX.
AUTO: Final = "auto"
_NAMES = (*contract.OP_NAMES, *contract.GATED_OP_NAMES)
_LONGEST_NAME = 256
# CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
_CAPABILITY: Final = (75, 76)
_POLYGRAPHY: Final = OneAtATime()
_REGISTRY: Final = OneAtATime()
# The value of Python's flag `optimize` that removes docstrings.
_NO_DOCSTRINGS = 2
PACKAGES: Final = {TENSORRT: "tensorrt>=10.9", TENSORRT_RTX: "tensorrt-rtx-cu13>=1.7"}
MODULES: Final = {TENSORRT: "tensorrt", TENSORRT_RTX: "tensorrt_rtx"}


@dataclass(frozen=True)
class Backend:
    """An imported TensorRT: its name, version and module."""

    name: str
    version: str
    module: Any

    @property
    def is_rtx(self) -> bool:
        """Whether this is TensorRT for RTX."""
        return self.name == TENSORRT_RTX


def gpu_present() -> bool:
    """Return whether there is a CUDA driver with at least one device."""
    return gpu_name() is not None


def gpu_name() -> str | None:
    """Return the product name of the first CUDA device; None if there is no driver or no device."""
    found = _first_gpu()
    name = ctypes.create_string_buffer(_LONGEST_NAME)
    if found is None or found[0].cuDeviceGetName(name, len(name), found[1]):
        return None
    return name.value.decode(errors="replace")


def gpu_capability() -> int | None:
    """Return the compute capability of the first CUDA device, such as 86; None if it is unknown."""
    found = _first_gpu()
    if found is None:
        return None
    cuda, device = found
    major, minor = ctypes.c_int(), ctypes.c_int()
    for part, attribute in zip((major, minor), _CAPABILITY, strict=True):
        if cuda.cuDeviceGetAttribute(ctypes.byref(part), attribute, device):
            return None
    return 10 * major.value + minor.value


def _first_gpu() -> tuple[ctypes.CDLL, ctypes.c_int] | None:
    """Return the CUDA driver and the handle of its first device; None if there is no driver or no device."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device = ctypes.c_int()
    return None if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0) else (cuda, device)


def load_backend(name: str = AUTO) -> Backend:
    """Import a TensorRT.

    Args:
        name: "tensorrt", "tensorrt-rtx", or "auto": the full TensorRT if installed, else TensorRT for RTX.

    Raises:
        InputError: there is no backend of this name.
        MissingDependencyError: it is not installed.
    """
    names = (AUTO, *BACKENDS)
    if name not in names:
        hint = did_you_mean(str(name), names) or f"Choose one of {', '.join(names)}"
        raise InputError(f"unknown backend {name!r}", hint)
    candidates = BACKENDS if name == AUTO else (name,)
    for candidate in candidates:
        module = _import(candidate)
        if module is not None:
            return Backend(candidate, str(module.__version__), module)
    raise MissingDependencyError(
        f"{' and '.join(candidates)} {'are' if len(candidates) > 1 else 'is'} not installed",
        f"Install it: pip install '{PACKAGES[candidates[-1]]}'",
    )


def _import(name: str) -> Any:
    """Return the backend's module, or None; a stub package without bindings counts as missing."""
    if importlib.util.find_spec(MODULES[name]) is None:
        return None
    try:
        module = importlib.import_module(MODULES[name])
    except (ImportError, OSError):
        return None
    return module if hasattr(module, "Builder") else None


def polygraphy_trt(backend: Backend) -> Any:
    """Return `polygraphy.backend.trt`, imported for a backend.

    The TensorRT that it uses is selected once per process, at its first import, and cannot be changed afterwards.

    Raises:
        EngineError: it uses the other TensorRT already, or Python runs without docstrings.
    """
    if sys.flags.optimize >= _NO_DOCSTRINGS:
        raise EngineError(
            "Python runs with -OO, which removes the docstrings that Polygraphy reads",
            "Run Python without -OO, or with -O",
        )
    with _POLYGRAPHY.block():
        from polygraphy import config

        if "polygraphy.backend.trt" not in sys.modules:
            config.USE_TENSORRT_RTX = backend.is_rtx
        elif backend.is_rtx != config.USE_TENSORRT_RTX:
            raise EngineError("this process already uses another TensorRT", "Start a new one")
        return importlib.import_module("polygraphy.backend.trt")


def load_plugin(backend: Backend) -> Path:
    """Register our plugin with TensorRT and return the library's path; loading it again has no effect.

    Raises:
        MissingDependencyError: the library is not in this installation.
        EngineError: TensorRT did not accept it.
    """
    library = plugin_library()
    if backend.is_rtx:
        _answer_to_unversioned_name()
    registry = backend.module.get_plugin_registry()

    def is_loaded() -> bool:
        key = (contract.PLUGIN_VERSION, contract.PLUGIN_NAMESPACE)
        return all(registry.get_creator(name, *key) is not None for name in _NAMES)

    with _REGISTRY.block():
        if not is_loaded():
            registry.load_library(os.fspath(library))
    if not is_loaded():
        raise EngineError(
            f"{backend.name} {backend.version} did not load {library}", "Build it again with `make setup`"
        )
    return library


def _answer_to_unversioned_name() -> None:
    """Make the parser's dlopen("libtensorrt_rtx.so") succeed, a name that the wheel does not provide.

    Otherwise, TensorRT for RTX terminates the process as soon as its parser meets a plugin.
    """
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        for library in sorted(Path(folder).glob("libtensorrt_rtx.so.*")):
            ctypes.CDLL(os.fspath(library), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(os.fspath(rtx_soname_library()))
