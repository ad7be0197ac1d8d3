"""Names of the backends."""

from __future__ import annotations

from typing import Final

from pom_export.bench.options import FUNCTION, KERNEL, TENSORRT

__all__ = [
    "ATTENTION",
    "ATTENTION_SHARED",
    "FUNCTION",
    "IMAGE_BACKENDS",
    "KERNEL",
    "LAYER_BACKENDS",
    "MATMUL",
    "PLAIN",
    "STREAM_BACKENDS",
    "TENSORRT",
    "TORCH",
    "TORCH_COMPILE",
]

TORCH: Final = "torch"
TORCH_COMPILE: Final = "torch-compile"
PLAIN: Final = "plain"
ATTENTION: Final = "attention"
ATTENTION_SHARED: Final = "attention-shared"
MATMUL: Final = "matmul"
LAYER_BACKENDS: Final = (TORCH, TORCH_COMPILE, PLAIN, FUNCTION, KERNEL, ATTENTION, MATMUL, TENSORRT)
STREAM_BACKENDS: Final = (FUNCTION, KERNEL, ATTENTION, ATTENTION_SHARED)
IMAGE_BACKENDS: Final = (FUNCTION, KERNEL, ATTENTION)
