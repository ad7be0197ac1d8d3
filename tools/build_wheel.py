#!/usr/bin/env python3
"""Build a wheel that needs no compiler where it is installed, for any Python 3.

    python tools/build_wheel.py            # dist/: the source archive, and a wheel made from it; `make wheel` does this
    python tools/build_wheel.py --local    # a wheel of what `make setup` has compiled, for this machine's GPU

A release is compiled for all GPU architectures from its own source archive, which so proves to be complete. auditwheel
checks which systems the libraries run on, and names the wheel after the oldest. It leaves out TensorRT for RTX, a
package of its own.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

import build_libraries
import fetch_headers
import progress

ROOT = Path(__file__).resolve().parent.parent
FOREIGN = ("libtensorrt_rtx.so.1",)


def build(folder: Path, local: bool, plugin: bool, show: progress.Progress) -> None:
    """Write a wheel for this system into `folder`; for a release, the source archive too."""
    options = {"cmake.define.POM_BUILD_TENSORRT": "ON" if plugin else "OFF"}
    if not local:
        options["cmake.define.POM_CUDA_ARCHITECTURES"] = "release"
        # The stand-ins name symbol versions that glibc has on this architecture only.
        options["cmake.define.POM_OLD_SYMBOLS"] = "ON" if platform.machine() == "x86_64" else "OFF"
    settings = [f"--config-setting={name}={value}" for name, value in options.items()]
    kind = ["--wheel"] if local else []
    progress.run(
        [sys.executable, "-m", "build", "--no-isolation", *kind, "--outdir", str(folder), *settings, str(ROOT)], show
    )


def repair(folder: Path, output: Path, show: progress.Progress) -> list[Path]:
    """Move the contents of `folder` to `output`, the wheel under its final name, and return the paths."""
    (wheel,) = folder.glob("*.whl")
    excluded = [f"--exclude={library}" for library in FOREIGN]
    repaired = folder / "repaired"
    command = [sys.executable, "-m", "auditwheel", "repair", *excluded, "--wheel-dir", str(repaired), str(wheel)]
    progress.run(command, show)
    output.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.move(file, output / file.name)) for file in (*repaired.iterdir(), *folder.glob("*.tar.gz"))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--local", action="store_true", help="only a wheel, of what is compiled in build/cmake")
    parser.add_argument("--plugin", choices=("ON", "OFF"), default="ON", help="the TensorRT plugin, which needs nvcc")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "dist", help="default: dist")
    arguments = parser.parse_args()
    plugin = arguments.plugin == "ON"
    if problem := build_libraries.missing_compiler(plugin):
        sys.exit(f"pom-export cannot be compiled: {problem}")
    if not fetch_headers.provide([] if plugin else ["onnxruntime"]):
        return 1
    # The source archive is unpacked and compiled in another folder, so the paths must be absolute.
    located = {headers.variable: headers.locate() for headers in fetch_headers.HEADER_SETS}
    os.environ.update({variable: str(folder) for variable, folder in located.items() if folder})
    show = progress.Progress("wheel")
    # auditwheel calls patchelf by name, and scikit-build-core CMake and ninja.
    build_libraries.build_tools(show)
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder), arguments.local, plugin, show)
        files = repair(Path(folder), arguments.output, show)
    for file in files:
        show.show(f"{file}  {file.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
