"""Runtimes that files are verified on, which `make test-all` fetches into folders of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def fetched(pattern: str, tool: str) -> Path:
    """Return the folder of a tool that the Makefile fetches, or skip the test.

    Args:
        pattern: matches the start of a line of the Makefile; its group is the version, or a variable that
            constraints.txt pins.
        tool: its name.
    """
    name = re.search(rf"^{pattern}", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert name is not None
    version = name[1]
    if version.startswith("$"):
        pinned = re.search(rf"^{tool}==([0-9.]+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
        assert pinned is not None
        version = pinned[1]
    folder = ROOT / ".deps" / f"{tool}-{version}"
    if not folder.is_dir():
        pytest.skip(f"{folder.name} is not in {folder.parent}: `make test-all` fetches it")
    return folder


def javascript_folder() -> Path:
    """Return the folder whose node_modules hold onnxruntime-web, or skip the test."""
    return fetched(r"JAVASCRIPT := \.deps/onnxruntime-web-([0-9.]+)$", "onnxruntime-web")


def run_with_openvino(*command: str) -> subprocess.CompletedProcess[str]:
    """Run Python with OpenVINO in a separate process, or skip the test."""
    return _run_with(fetched(r"OPENVINO := \.deps/openvino-(\$.*)$", "openvino"), command)


def run_with_genai(*command: str) -> subprocess.CompletedProcess[str]:
    """Run Python with onnxruntime-genai in a separate process, or skip the test."""
    return _run_with(genai_folder(), command)


def genai_folder() -> Path:
    """Return the folder of onnxruntime-genai, or skip the test."""
    return fetched(r"GENAI := \.deps/onnxruntime-genai-(\$.*)$", "onnxruntime-genai")


def _run_with(folder: Path, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    paths = [str(ROOT), str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(
        [sys.executable, *command], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
