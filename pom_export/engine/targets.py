"""GPU architectures that an engine is built for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from pom_export.engine.backend import TENSORRT_RTX, Backend, gpu_present
from pom_export.errors import EngineError, InputError

# Used without a GPU: consumer Ampere, Ada and Blackwell, which TensorRT for RTX is made for.
DEFAULT_TARGETS: Final = ("sm86", "sm89", "sm120")
CURRENT: Final = "current"
# "sm_86" is how compilers write it, "8.6" how NVIDIA's tables do. "sm90a" is not accepted, as no other GPU runs such a
# target.
_CAPABILITY: Final = re.compile(r"(?:(?:sm|compute)_?)?(\d{2,3})|(\d{1,2})\.(\d)", re.IGNORECASE)


def parse_targets(text: str) -> tuple[str, ...]:
    """Parse `sm86,sm120`, also if written as `sm_86,8.6`, and return canonical names.

    Raises:
        InputError: there is no item, or one is not a compute capability or occurs twice.
    """
    items = [item.strip() for item in text.split(",") if item.strip()]
    if not items:
        raise InputError(
            f"`targets` names no GPU architecture, got {text!r}", "Name one, such as sm86, or leave it out"
        )
    return canonical_targets(items)


def canonical_targets(targets: Sequence[str]) -> tuple[str, ...]:
    """Return compute capabilities in the form `sm86`, also if written as sm_86, SM86, compute_86, 86 or 8.6.

    Raises:
        InputError: one is not a compute capability, or occurs twice.
    """
    found: list[str] = []
    for target in targets:
        match = _CAPABILITY.fullmatch(str(target))
        if match is None:
            raise InputError(f"target {target!r} is not a compute capability", "Examples: sm86, sm89, sm120")
        name = f"sm{match[1] or match[2] + match[3]}"
        if name in found:
            raise InputError(f"target {name} is given twice", "Name each once")
        found.append(name)
    return tuple(found)


def resolve_targets(backend: Backend, targets: Sequence[str]) -> tuple[str, ...]:
    """Return the canonical names of the targets; the full TensorRT only builds for this machine's GPU.

    Raises:
        InputError: a target is not a compute capability, occurs twice, or is not supported by this TensorRT.
        EngineError: there is no GPU, and the full TensorRT needs one.
    """
    targets = parse_targets(targets) if isinstance(targets, str) else canonical_targets(targets)
    if not backend.is_rtx:
        if targets:
            raise InputError(
                f"TensorRT builds only for the GPU of this machine, not for {', '.join(targets)}",
                f"Use `backend={TENSORRT_RTX!r}`",
            )
        if not gpu_present():
            raise EngineError(
                "TensorRT needs a GPU to build, and there is none here", f"Use `backend={TENSORRT_RTX!r}`"
            )
        return (CURRENT,)
    names = [name.lower() for name in dir(backend.module.ComputeCapability) if re.fullmatch(r"SM\d+", name)]
    known = sorted(names, key=lambda name: int(name.removeprefix("sm")))
    for target in targets:
        if target not in known:
            raise InputError(
                f"{backend.name} {backend.version} does not build for {target}", f"It knows {', '.join(known)}"
            )
    return targets or ((CURRENT,) if gpu_present() else DEFAULT_TARGETS)
