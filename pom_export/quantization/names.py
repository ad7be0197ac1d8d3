"""Words for what a file is quantized for."""

from __future__ import annotations

from typing import Final

PURPOSES: Final = ("both", "decode", "prefill")
"""What a file is made for: single tokens, prompts, or both."""
ONNXRUNTIME: Final = "onnxruntime"
TENSORRT: Final = "tensorrt"
RUNTIMES: Final = (ONNXRUNTIME, TENSORRT)
"""What runs the file: ONNX Runtime's CPU provider, or a TensorRT engine that is built from it."""
ACTIVATION_TYPES: Final = ("int8", "fp8")
"""The types that activations with fixed scales can have."""
