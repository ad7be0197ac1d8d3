"""The programs of samples/03_cpp, built as its CMakeLists.txt says."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def build_sample(folder: Path, program: str, *options: str) -> Path:
    """Build a program into a folder and return its path; skip the test if there is no cmake."""
    if shutil.which("cmake") is None:
        pytest.skip("needs cmake")
    for command in (
        ["cmake", "-S", ROOT / "samples" / "03_cpp", "-B", folder, *options],
        ["cmake", "--build", folder, "--target", program],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / program
