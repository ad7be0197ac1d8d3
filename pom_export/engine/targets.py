"""GPU architectures that an engine is built for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from pom_export.engine.backend import TENSORRT_RTX, Backend, gpu_present
from pom_export.errors import EngineError, InputError

# Without a GPU to ask: consumer Ampere, Ada and Blackwell, what TensorRT for RTX is made for.
DEFAULT_TARGETS: Final = ("sm86", "sm89", "sm120")
CURRENT: Final = "current"


def parse_targets(text: str | None) -> tuple[str, ...]:
    """Parse `sm86,sm120`.

    Raises:
        InputError: an item is no compute capability, or is there twice.
    """
    targets = tuple(item.strip() for item in (text or "").split(",") if item.strip())
    for target in targets:
        if not re.fullmatch(r"sm\d{2,3}", target):
            raise InputError(f"target {target!r} is no compute capability", "Examples: sm86, sm89, sm120")
        if targets.count(target) > 1:
            raise InputError(f"target {target} is given twice", "Name each once")
    return targets


def resolve_targets(backend: Backend, targets: Sequence[str]) -> tuple[str, ...]:
    """Return what to build for; the full TensorRT builds for this machine's GPU and nothing else."""
    if not backend.is_rtx:
        if targets:
            raise InputError(
                f"TensorRT builds for the GPU at hand, not for {', '.join(targets)}", f"Use --backend {TENSORRT_RTX}"
            )
        if not gpu_present():
            raise EngineError("TensorRT needs a GPU to build, and none is here", f"Use --backend {TENSORRT_RTX}")
        return (CURRENT,)
    known = sorted(name.lower() for name in dir(backend.module.ComputeCapability) if re.fullmatch(r"SM\d+", name))
    for target in targets:
        if target not in known:
            raise InputError(
                f"{backend.name} {backend.version} does not build for {target}", f"It knows {', '.join(known)}"
            )
    return tuple(targets) or ((CURRENT,) if gpu_present() else DEFAULT_TARGETS)
