"""Take a trained Polynomial Mixer (PoM) model from PyTorch to ONNX Runtime and TensorRT.

Importing the package is cheap: torch, onnxruntime and TensorRT are imported by the functions that need them.

The loggers below "pom_export" log the stages of a job at INFO, in addition to calling `progress`, and details for
debugging at DEBUG. Nothing is shown until a handler is set, for example with `logging.basicConfig(level="INFO")`.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from pom_export.version import __version__

logging.getLogger(__name__).addHandler(logging.NullHandler())

if TYPE_CHECKING:
    from pom_export.api import (
        CheckpointInspection,
        EngineInspection,
        ExportResult,
        FuseResult,
        InlineResult,
        Inspection,
        ModelInspection,
        debug,
        debug_precision,
        export,
        fuse,
        inline,
        inspect,
        quantize,
        verify,
        write_report,
    )
    from pom_export.attention import MultiheadPolynomialMixer, replace_attention, scan
    from pom_export.batches.running import RunResult, run, run_files
    from pom_export.checkpoint import load_checkpoint
    from pom_export.checkup.doctor import doctor
    from pom_export.checkup.findings import DoctorReport
    from pom_export.debugging.precision import PrecisionReport, PrecisionTrial
    from pom_export.engine import EngineInfo, build_engine
    from pom_export.engine.streaming import tensorrt_backend
    from pom_export.errors import PomExportError
    from pom_export.graph.stateful.layers import StatefulLayer
    from pom_export.mixer import PolynomialMixer, ProductMixer, RotaryPolynomialMixer
    from pom_export.packaging.package import PackageResult, package
    from pom_export.parity.modules import DebugReport
    from pom_export.parity.report import ParityReport
    from pom_export.quantization.report import QuantizeResult
    from pom_export.runtime.library import custom_ops_library, plugin_library
    from pom_export.runtime.session import inference_session
    from pom_export.runtime.streaming.session import StreamingSession
    from pom_export.runtime.streaming.state import State, merge_states
    from pom_export.runtime.tensorrt_provider import tensorrt_provider_options

_HOMES = {
    "CheckpointInspection": "api",
    "DebugReport": "parity.modules",
    "DoctorReport": "checkup.findings",
    "EngineInfo": "engine",
    "EngineInspection": "api",
    "ExportResult": "api",
    "FuseResult": "api",
    "InlineResult": "api",
    "Inspection": "api",
    "ModelInspection": "api",
    "MultiheadPolynomialMixer": "attention",
    "PackageResult": "packaging.package",
    "ParityReport": "parity.report",
    "PolynomialMixer": "mixer",
    "PomExportError": "errors",
    "PrecisionReport": "debugging.precision",
    "PrecisionTrial": "debugging.precision",
    "ProductMixer": "mixer",
    "QuantizeResult": "quantization.report",
    "RotaryPolynomialMixer": "mixer",
    "RunResult": "batches.running",
    "State": "runtime.streaming.state",
    "StatefulLayer": "graph.stateful.layers",
    "StreamingSession": "runtime.streaming.session",
    "build_engine": "engine",
    "custom_ops_library": "runtime.library",
    "debug": "api",
    "debug_precision": "api",
    "doctor": "checkup.doctor",
    "export": "api",
    "inference_session": "runtime.session",
    "fuse": "api",
    "inline": "api",
    "inspect": "api",
    "load_checkpoint": "checkpoint",
    "merge_states": "runtime.streaming.state",
    "package": "packaging.package",
    "plugin_library": "runtime.library",
    "quantize": "api",
    "replace_attention": "attention",
    "run": "batches.running",
    "run_files": "batches.running",
    "scan": "attention",
    "tensorrt_backend": "engine.streaming",
    "tensorrt_provider_options": "runtime.tensorrt_provider",
    "verify": "api",
    "write_report": "api",
}

__all__ = [
    "CheckpointInspection",
    "DebugReport",
    "DoctorReport",
    "EngineInfo",
    "EngineInspection",
    "ExportResult",
    "FuseResult",
    "InlineResult",
    "Inspection",
    "ModelInspection",
    "MultiheadPolynomialMixer",
    "PackageResult",
    "ParityReport",
    "PolynomialMixer",
    "PomExportError",
    "PrecisionReport",
    "PrecisionTrial",
    "ProductMixer",
    "QuantizeResult",
    "RotaryPolynomialMixer",
    "RunResult",
    "State",
    "StatefulLayer",
    "StreamingSession",
    "__version__",
    "build_engine",
    "custom_ops_library",
    "debug",
    "debug_precision",
    "doctor",
    "export",
    "fuse",
    "inference_session",
    "inline",
    "inspect",
    "load_checkpoint",
    "merge_states",
    "package",
    "plugin_library",
    "quantize",
    "replace_attention",
    "run",
    "run_files",
    "scan",
    "tensorrt_backend",
    "tensorrt_provider_options",
    "verify",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
