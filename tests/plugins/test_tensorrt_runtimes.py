"""One binary under other TensorRTs: the lean runtimes need no GPU to load a plugin library and to ask its creators."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CREATORS = Path(__file__).with_name("test_tensorrt_creators.py")
MODULE = "tensorrt_lean_bindings"
# Fetched by `make test`, into a folder each: they share a module's name. One of each major version.
VERSIONS = ("10.15.1.29", "11.4.0.106")


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("version", VERSIONS)
def test_the_creators_work_under_another_tensorrt(version: str) -> None:
    """The tests of the creators, in a process of its own: a process has one TensorRT."""
    folder = ROOT / ".deps" / "tensorrt-lean" / version
    if not (folder / MODULE).is_dir():
        pytest.skip(f"the lean runtime {version} is not in {folder}: `make test` fetches it")
    assert run(folder, "-c", f"import {MODULE}; print({MODULE}.__version__)").strip() == version

    said = run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(CREATORS))
    passed = re.search(r"(\d+) passed in", said)
    assert passed is not None, said
    assert int(passed[1]) >= 25, said


def run(folder: Path, *command: str) -> str:
    """Run Python with the modules of a folder, and return what it prints."""
    environment = os.environ | {"PYTHONPATH": str(folder), "POM_TEST_TENSORRT": MODULE}
    done = subprocess.run([sys.executable, *command], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
