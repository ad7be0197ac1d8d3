"""What packages can be for, by name. Cheap to import: the command line offers these names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

TARGETS: Final[Mapping[str, str]] = {
    "triton": "pom_export.packaging.triton.target",
    "genai": "pom_export.packaging.genai.target",
    "openvino": "pom_export.packaging.openvino.target",
}
"""The module of each target."""
TENSORRT: Final = "tensorrt"
TRITON_BACKENDS: Final[Mapping[str, str]] = {
    "python": "pom_export.packaging.triton.python_backend",
    "onnxruntime": "pom_export.packaging.triton.onnxruntime_backend",
    TENSORRT: "pom_export.packaging.triton.tensorrt_backend",
}
"""The module of each of Triton's backends; the first is the default."""
