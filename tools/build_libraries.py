#!/usr/bin/env python3
"""Compile the libraries of `plugins/` into `pom_export/lib`, where an editable installation has them.

    python tools/build_libraries.py                # both; `make setup` does this
    python tools/build_libraries.py --plugin OFF   # without the TensorRT plugin and without CUDA
    python tools/build_libraries.py --check        # only say which compiler is missing

Compiles what has changed, in build/cmake. CMake and ninja are taken from the PATH, or else installed from the package
index into this Python's environment. Needs only the standard library.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import fetch_headers
import progress

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "cmake"
LIBRARIES = ROOT / "pom_export" / "lib"
OLDEST_CMAKE = (3, 24)
OLDEST_NVCC = (12, 8)


def version_of(program: str, pattern: str) -> tuple[int, int] | None:
    """Return the version that a program reports, or None if it is missing or reports none."""
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return None
    match = re.search(pattern + r" (\d+)\.(\d+)", said)
    return (int(match[1]), int(match[2])) if match else None


def find_nvcc() -> str | None:
    """Return the CUDA compiler that CMake will use, or None."""
    return os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def missing_compiler(plugin: bool) -> str | None:
    """Return what to install if a compiler is missing or too old, else None."""
    if not (os.environ.get("CXX") or any(map(shutil.which, ("c++", "g++", "clang++")))):
        return "no C++ compiler is on the PATH: install one, for instance with `apt install g++`"
    if not plugin:
        return None
    without = "or leave the TensorRT plugin out: `make demo PLUGIN=OFF`"
    nvcc = find_nvcc()
    if nvcc is None:
        return f"nvcc, the CUDA compiler, is not on the PATH: install the CUDA toolkit (12.8 or newer), {without}"
    version = version_of(nvcc, "release")
    if version is None or version < OLDEST_NVCC:
        found = "of an unknown version" if version is None else ".".join(map(str, version))
        return f"{nvcc} is {found}: install the CUDA toolkit 12.8 or newer, {without}"
    return None


def build_tools(show: progress.Progress) -> tuple[str, str]:
    """Return the paths of CMake and ninja; install those that the PATH lacks or has in too old a version."""
    scripts = sysconfig.get_path("scripts")
    path = os.pathsep.join((scripts, os.environ.get("PATH", os.defpath)))
    cmake, ninja = shutil.which("cmake", path=path), shutil.which("ninja", path=path)
    needed = [
        *(["cmake"] if cmake is None or (version_of(cmake, "version") or (0, 0)) < OLDEST_CMAKE else []),
        *(["ninja"] if ninja is None else []),
    ]
    if needed:
        progress.run([sys.executable, "-m", "pip", "install", "--no-compile", *needed], show)
        cmake, ninja = shutil.which("cmake", path=path), shutil.which("ninja", path=path)
    assert cmake is not None
    assert ninja is not None
    return cmake, ninja


def compile_libraries(plugin: bool, options: list[str]) -> None:
    """Configure and compile, and replace the contents of `pom_export/lib`."""
    show = progress.Progress("libraries")
    cmake, ninja = build_tools(show)
    configure = [
        *(cmake, "-S", str(ROOT / "plugins"), "-B", str(BUILD), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"),
        *("-DCMAKE_BUILD_TYPE=Release", f"-DPOM_BUILD_TENSORRT={'ON' if plugin else 'OFF'}", *options),
    ]
    progress.run(configure, show)
    progress.run([cmake, "--build", str(BUILD)], show)
    # Removed first: a program that has a library open keeps the old file, and a library that is no longer built
    # disappears.
    shutil.rmtree(LIBRARIES, ignore_errors=True)
    progress.run([cmake, "--install", str(BUILD), "--prefix", str(ROOT)], show)
    show.show(f"done: {', '.join(sorted(file.name for file in LIBRARIES.iterdir()))} in {LIBRARIES.relative_to(ROOT)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plugin", choices=("ON", "OFF"), default="ON", help="the TensorRT plugin, which needs nvcc")
    parser.add_argument("--check", action="store_true", help="compile nothing; exit 1 when a compiler is missing")
    arguments, options = parser.parse_known_args()
    plugin = arguments.plugin == "ON"
    if problem := missing_compiler(plugin):
        sys.exit(f"pom-export cannot be compiled: {problem}")
    if arguments.check:
        return 0
    if not fetch_headers.provide([] if plugin else ["onnxruntime"]):
        return 1
    compile_libraries(plugin, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
