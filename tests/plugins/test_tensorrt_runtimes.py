"""One binary under other TensorRTs: the lean runtimes need no GPU to load a plugin library and to ask its creators."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.lean_runtimes import MODULE, TENSORRT_10, TENSORRT_11, run_python

CREATORS = Path(__file__).with_name("test_tensorrt_creators.py")


@pytest.mark.slow
@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("version", [TENSORRT_10, TENSORRT_11])
def test_the_creators_work_under_another_tensorrt(version: str) -> None:
    """Run the creators' tests with that TensorRT."""
    assert printed(version, "-c", f"import {MODULE}; print({MODULE}.__version__)").strip() == version

    said = printed(version, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(CREATORS))
    passed = re.search(r"(\d+) passed in", said)
    assert passed is not None, said
    assert int(passed[1]) >= 25, said


def printed(version: str, *command: str) -> str:
    done = run_python(version, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
