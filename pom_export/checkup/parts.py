"""The names of the parts that a checkup can be told to need."""

from __future__ import annotations

from typing import Final

OPTIONAL: Final = ("openvino", "ray", "tokenizers", "tiktoken", "matplotlib")
"""Packages that only some commands or runtimes need."""
PARTS: Final = (
    *("torch", "onnx", "onnxruntime", "op", "plugin", "tensorrt", "tensorrt-rtx", "gpu", "compiler", "nvcc"),
    *OPTIONAL,
)
"""Parts that can be asked for."""
