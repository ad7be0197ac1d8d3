"""Names of the backends that stand beside our exports."""

from __future__ import annotations

from typing import Final

from pom_export.bench.workload import FUNCTION, KERNEL, TENSORRT

__all__ = [
    "ATTENTION",
    "ATTENTION_SHARED",
    "FUNCTION",
    "KERNEL",
    "MATMUL",
    "PLAIN",
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
