"""The versions of the standard ops that an export may use."""

from __future__ import annotations

from pom_export.errors import InputError

STANDARD_DOMAINS = ("", "ai.onnx")
"""Both of ONNX's names for the domain of the standard ops, the usual one first."""

OPSETS = range(18, 25)
_DEFAULT_OPSET = 20
# HardSigmoid and Conv support bfloat16 since opset 22.
_BFLOAT16_OPSET = 22


def default_opset(dtype: str) -> int:
    """Return the default opset for exporting a type."""
    return _BFLOAT16_OPSET if dtype == "bfloat16" else _DEFAULT_OPSET


def check_opset(opset: int) -> None:
    """Raise InputError for an opset that the function body or torch.onnx does not support."""
    if opset not in OPSETS:
        raise InputError(f"opset {opset!r} is not supported", f"Choose {OPSETS.start} to {OPSETS.stop - 1}")
