"""Names of the backends."""

from __future__ import annotations

from typing import Final

from pom_export.bench.options import FUNCTION, KERNEL, TENSORRT

__all__ = [
    "ATTENTION",
    "ATTENTION_1K",
    "ATTENTION_8K",
    "ATTENTION_SHARED",
    "FUNCTION",
    "GENAI",
    "IMAGE_BACKENDS",
    "KERNEL",
    "LAYER_BACKENDS",
    "MATMUL",
    "PLAIN",
    "POOL",
    "SERVING_BACKENDS",
    "SESSIONS",
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
POOL: Final = "pool"
SESSIONS: Final = "sessions"
GENAI: Final = "genai"
ATTENTION_1K: Final = "attention-1k"
ATTENTION_8K: Final = "attention-8k"
LAYER_BACKENDS: Final = (TORCH, TORCH_COMPILE, PLAIN, FUNCTION, KERNEL, ATTENTION, MATMUL, TENSORRT)
STREAM_BACKENDS: Final = (FUNCTION, KERNEL, ATTENTION, ATTENTION_SHARED)
SERVING_BACKENDS: Final = (POOL, SESSIONS, GENAI, ATTENTION_1K, ATTENTION_8K)
IMAGE_BACKENDS: Final = (FUNCTION, KERNEL, ATTENTION)
