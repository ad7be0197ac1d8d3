"""TensorRT's lean runtimes, which `make test-all` fetches into separate folders: they share a module's name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULE = "tensorrt_lean_bindings"
# One release of each major version.
TENSORRT_10, TENSORRT_11 = "10.15.1.29", "11.4.0.106"


def lean_library(version: str) -> Path:
    """Return a runtime's library, or skip the test."""
    folder = ROOT / ".deps" / "tensorrt-lean" / version
    found = sorted(folder.glob("tensorrt_lean_libs/libnvinfer_lean.so.*"))
    if not found:
        pytest.skip(f"the lean runtime {version} is not in {folder}: `make test-all` fetches it")
    return found[0]


def run_python(version: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python with a runtime's module in a separate process, since a process can load one TensorRT."""
    folders = (lean_library(version).parents[1], ROOT)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "POM_TEST_TENSORRT": MODULE,
    }
    return subprocess.run(
        [sys.executable, *command], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
