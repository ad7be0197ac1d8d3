"""Describe the machine, and measure the memory of this process. Linux only."""

from __future__ import annotations

import ctypes
import datetime
import gc
import os
import platform
import re
from pathlib import Path
from typing import Any

from pom_export.runtime.library import cpu_kernel
from pom_export.version import __version__, version_of

_PROC = Path("/proc")
_KIB = 1024
_RESET_PEAK = "5"


def describe_machine() -> dict[str, Any]:
    """Return what a reader needs to judge the numbers, and nothing that identifies the owner."""
    return {
        "processor": _processor_name(),
        "architecture": platform.machine(),
        "processors": os.cpu_count(),
        "usable_processors": len(usable_processors()),
        "memory_bytes": _field("meminfo", "MemTotal"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": version_of("torch"),
        "onnxruntime": version_of("onnxruntime") or version_of("onnxruntime-gpu"),
        "pom_export": __version__,
        "pom_cpu_kernel": cpu_kernel(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def usable_processors() -> list[int]:
    """Return the numbers of the processors that this process may run on."""
    return sorted(os.sched_getaffinity(0))


def available_bytes() -> int:
    """Return the memory that is available without swapping."""
    return _field("meminfo", "MemAvailable")


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    return _field("self/status", "VmRSS")


def peak_bytes() -> int:
    """Return the peak of this process's resident memory since `reset_peak`."""
    return _field("self/status", "VmHWM")


def reset_peak() -> bool:
    """Reset the peak to the current resident memory; return whether the system allows it."""
    try:
        (_PROC / "self/clear_refs").write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def give_back_freed_memory() -> None:
    """Return freed memory to the system if the C library can: code that reuses it would seem to need none."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _processor_name() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", (_PROC / "cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.machine()


def _field(file: str, name: str) -> int:
    """Return in bytes a field that a file in /proc gives in KiB; 0 if it is missing."""
    found = re.search(rf"^{name}:\s*(\d+) kB$", (_PROC / file).read_text(), re.MULTILINE)
    return _KIB * int(found[1]) if found else 0
