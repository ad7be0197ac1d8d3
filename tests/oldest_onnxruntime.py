"""The oldest ONNX Runtime that the project allows, which `make test-all` fetches into a folder of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def oldest_version() -> str:
    """Return the lowest version that pyproject.toml allows, as its first release."""
    found = re.search(r'^onnxruntime = \["onnxruntime>=([0-9.]+)"\]$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert found is not None
    return f"{found[1]}.0"


def run_python(*command: str) -> subprocess.CompletedProcess[str]:
    """Run Python with that ONNX Runtime in a separate process, or skip the test."""
    folder = ROOT / ".deps" / f"onnxruntime-{oldest_version()}"
    if not folder.is_dir():
        pytest.skip(f"{folder.name} is not in {folder.parent}: `make test-all` fetches it")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (folder, ROOT)))}
    return subprocess.run(
        [sys.executable, *command], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
