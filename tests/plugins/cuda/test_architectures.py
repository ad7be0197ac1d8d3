"""Which GPUs the kernels are compiled for: plugins/cuda/architectures.cmake, as CMake runs it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pom_export.engine.targets import DEFAULT_TARGETS
from tests.plugins.cuda.executors import CUDA

# CMake may exist only where pip builds the package.
pytestmark = pytest.mark.machine
KNOWN = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120"]
BROKEN = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.159"
SCRIPT = f"""
include("{CUDA / "architectures.cmake"}")
pom_architecture_options(options)
message("${{options}}")
"""


def chosen(folder: Path, architectures: str, smi: str | None) -> dict[str, set[str]]:
    """Return the architectures for each front-end run's PTX; `smi` is what the machine's nvidia-smi prints, if any."""
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("cmake is not installed")
    programs = {"nvcc": "\n".join(KNOWN)} | ({} if smi is None else {"nvidia-smi": smi})
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
        (folder / name).chmod(0o755)
    script = folder / "options.cmake"
    script.write_text(SCRIPT)
    variables = [f"-DPOM_CUDA_ARCHITECTURES={architectures}", f"-DCMAKE_CUDA_COMPILER={folder / 'nvcc'}"]
    # Of the system's programs, `cat` is needed, and `nvidia-smi` must not be found.
    (folder / "cat").symlink_to(shutil.which("cat") or "/bin/cat")
    environment = os.environ | {"PATH": str(folder)}
    command = [cmake, *variables, "-P", script]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stderr
    options = re.findall(r"--generate-code=arch=(compute_\d+),code=\[([^]]+)\]", said)
    return {front_end: set(codes.split(",")) for front_end, codes in options}


@pytest.mark.parametrize(
    ("smi", "expected"),
    [
        ("8.9\n8.9", {"compute_75": {"compute_75"}, "compute_80": {"sm_89"}}),
        ("7.5", {"compute_75": {"compute_75", "sm_75"}}),
        ("12.0\n9.0", {"compute_75": {"compute_75"}, "compute_90": {"sm_90"}, "compute_100": {"sm_120"}}),
        ("8.6\n8.0", {"compute_75": {"compute_75"}, "compute_80": {"sm_80", "sm_86"}}),
        # Newer than this nvcc knows: PTX of the newest generation.
        ("13.0", {"compute_75": {"compute_75"}, "compute_100": {"compute_100"}}),
    ],
)
def test_the_gpu_at_hand(tmp_path: Path, smi: str, expected: dict[str, set[str]]) -> None:
    assert chosen(tmp_path, "local", smi) == expected


@pytest.mark.parametrize("smi", [None, "", "[N/A]", "6.1", BROKEN])
def test_without_a_gpu_the_targets_of_build(tmp_path: Path, smi: str | None) -> None:
    codes = chosen(tmp_path, "local", smi)

    assert codes == {
        "compute_75": {"compute_75"},
        "compute_80": {"sm_86"},
        "compute_100": {"sm_120"},
    }
    assert set(DEFAULT_TARGETS) == {"sm86", "sm89", "sm120"}


def test_a_release_has_all(tmp_path: Path) -> None:
    codes = set().union(*chosen(tmp_path, "release", "8.9").values())

    assert codes == {*KNOWN, "compute_100"} - {"sm_103"}
