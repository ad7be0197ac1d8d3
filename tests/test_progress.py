"""What `make` shows while it runs the commands that set up the project."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools.progress import LOGS, step_of

PROGRESS = Path(__file__).resolve().parents[1] / "tools" / "progress.py"


def run(script: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, PROGRESS, "progress-test", "sh", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ("[3/20] Building CXX object cpu/CMakeFiles/pom_cpu.dir/avx2.cpp.o", "[ 3/20] compiled cpu/avx2.cpp"),
        ("[20/20] Linking CXX shared library onnxruntime/libpom.so", "[20/20] linked onnxruntime/libpom.so"),
        ("  Downloading onnx-1.23.2-cp311-cp311-manylinux_2_28_x86_64.whl (8.9 MB)", "onnx-1.23.2 (8.9 MB)"),
        ("Processing /wheels/torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl (from x)", "torch-2.13.0+cpu"),
        ("Installing collected packages: a, b", "installing 2 packages"),
        ("Installing collected packages: a", "installing a"),
        ("WARNING: Location 'file:///x' is ignored: it is neither a file nor a directory.", None),
        ("Requirement already satisfied: numpy", None),
    ],
)
def test_steps_are_shown_in_short(line: str, step: str | None) -> None:
    assert step_of(line) == step


def test_only_steps_are_shown_and_all_is_in_the_log() -> None:
    done = run("echo noise; echo 'Installing collected packages: a' >&2")
    assert done.returncode == 0
    assert [line.split(" s  ")[1] for line in done.stdout.splitlines()] == [
        "started; the log is build/log/progress-test.log",
        "installing a",
        "done",
    ]
    assert (LOGS / "progress-test.log").read_text().splitlines()[1:] == ["noise", "Installing collected packages: a"]


def test_a_failure_shows_the_end_the_log_and_what_to_do() -> None:
    done = run("seq 100; echo the reason >&2; exit 3")
    assert done.returncode == 1
    assert "failed with exit code 3" in done.stderr
    assert "    82\n" in done.stderr
    assert "    81\n" not in done.stderr
    assert "    the reason\n" in done.stderr
    assert "build/log/progress-test.log" in done.stderr
    assert "run the same command again" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("output", "hint"),
    [
        ("Failed to establish a new connection: [Errno 111] Connection refused", "The package index was not reached"),
        ("OSError: [Errno 28] No space left on device", "The disk is full"),
        ("c++: fatal error: Killed signal terminated program cc1plus", "CMAKE_BUILD_PARALLEL_LEVEL=1"),
    ],
)
def test_a_known_failure_says_what_to_do(output: str, hint: str) -> None:
    assert hint in run(f"echo '{output}'; exit 1").stderr


@pytest.mark.parametrize("plugin", ["OFF", "ON"])
def test_a_missing_compiler_is_one_line(plugin: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, PROGRESS.with_name("build_libraries.py"), "--check", "--plugin", plugin],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("pom-export cannot be compiled: no C++ compiler is on the PATH: install one")
    assert done.stderr.count("\n") == 1


def test_an_old_cuda_compiler_is_named(tmp_path: Path) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.4, V12.4.131'\n")
    nvcc.chmod(0o755)
    done = subprocess.run(
        [sys.executable, PROGRESS.with_name("build_libraries.py"), "--check"],
        env={"PATH": "/usr/bin:/bin", "CXX": "c++", "CUDACXX": str(nvcc)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"{nvcc} is 12.4: install the CUDA toolkit 12.8 or newer, or leave the TensorRT plugin out" in done.stderr
    assert "make demo PLUGIN=OFF" in done.stderr
