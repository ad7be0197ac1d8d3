"""What the CUDA driver reports about the first device, asked by a process that loads a stand-in for the driver."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = """
#include <cstdio>
extern "C" {
int cuInit(unsigned) { return 0; }
int cuDeviceGet(int* device, int number) { return *device = 3 + number, DEVICES > number ? 0 : 100; }
int cuDeviceGetName(char* name, int size, int device) { return std::snprintf(name, size, "Card %d", device), 0; }
// Attributes as cuda.h numbers them.
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  return *value = attribute == 75 ? 12 : attribute == 76 ? 1 : -1, device == 3 ? 0 : 101;
}
}
"""
ASK = "from pom_export.engine.backend import *; print(gpu_present(), gpu_name(), gpu_capability())"


@pytest.mark.machine
@pytest.mark.parametrize(("devices", "said"), [(1, "True Card 3 121"), (0, "False None None")])
def test_the_first_gpu(devices: int, said: str, tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    (tmp_path / "driver.cpp").write_text(DRIVER)
    command = ["g++", "-shared", "-fPIC", f"-DDEVICES={devices}", "driver.cpp", "-o", "libcuda.so.1"]
    subprocess.run(command, cwd=tmp_path, check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == said
