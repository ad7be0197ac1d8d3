"""The floating-point types of a file, and how users may write them."""

from __future__ import annotations

from typing import Final

PRECISIONS: Final = ("float32", "float16", "bfloat16")
_FLOAT32, _FLOAT16, _BFLOAT16 = PRECISIONS
_SPELLINGS: Final = {
    "fp32": _FLOAT32,
    "f32": _FLOAT32,
    "float": _FLOAT32,
    "single": _FLOAT32,
    "fp16": _FLOAT16,
    "f16": _FLOAT16,
    "half": _FLOAT16,
    "bf16": _BFLOAT16,
}


def canonical_precision(name: str) -> str:
    """Return a type's name in `PRECISIONS`, also for spellings such as "fp16" or "torch.float16"; keep other names."""
    written = name.lower().removeprefix("torch.")
    known = _SPELLINGS.get(written, written)
    return known if known in PRECISIONS else name
