"""The AArch64 CPU kernels, cross-compiled and run by an emulator: no such machine is needed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.machine]

SOURCES = Path(__file__).parent / "arm64"
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
SYSROOT = "/usr/aarch64-linux-gnu"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for tool in (COMPILER, EMULATOR, "cmake"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    folder = tmp_path_factory.mktemp("arm64")
    options = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", "-DCMAKE_BUILD_TYPE=Release"]
    configure = ["cmake", "-S", SOURCES, "-B", folder, f"-DCMAKE_CXX_COMPILER={COMPILER}", *options]
    for command in (configure, ["cmake", "--build", folder]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def run(program: Path, kernel: str = "", processor: str = "max") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "POM_CPU_KERNEL": kernel}
    command = [EMULATOR, "-cpu", processor, "-L", SYSROOT, program]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize(("wanted", "name"), [("", "neon"), ("scalar", "scalar")])
def test_every_call_matches_double(folder: Path, wanted: str, name: str) -> None:
    done = run(folder / "check_kernel", wanted)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[0] == name


def test_an_unknown_kernel_is_an_error(folder: Path) -> None:
    done = run(folder / "check_kernel", "avx2")
    assert done.returncode == 1
    assert 'POM_CPU_KERNEL must be one of neon, scalar on this machine, got "avx2"' in done.stderr


@pytest.mark.parametrize(
    ("processor", "names"), [("max", ["neondot", "neon", "scalar"]), ("cortex-a72", ["neon", "scalar"])]
)
def test_every_product_matches_double(folder: Path, processor: str, names: list[str]) -> None:
    done = run(folder / "check_products", processor=processor)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == names
