"""The trials of programs: compilers, and the Python of another environment."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from pom_export.checkup.child import SECONDS
from pom_export.checkup.findings import BROKEN, NOT_INSTALLED, OK, Finding
from pom_export.checkup.versions import is_older
from pom_export.errors import PomExportError, printable
from pom_export.files import scratch_folder

_OLDEST_CUDA: Final = "12.8"
_CUDA_REMEDY: Final = f"Install the CUDA toolkit {_OLDEST_CUDA} or newer, or: make setup PLUGIN=OFF"
_COMPILER_REMEDY: Final = "apt-get install g++"
# The first NumPy with which Triton's Python backend exchanges wrong numbers without an error.
_BAD_NUMPY: Final = "2"
_NUMPY_CODE: Final = """
import json, sys, numpy
assert float((numpy.arange(4.0) ** 2).sum()) == 14
print(json.dumps([numpy.__version__, "%d.%d" % sys.version_info[:2]]))
"""


def compiler() -> Finding:
    """Compile a C++17 program and run it."""
    name = "compiler"
    found = _found(os.environ.get("CXX"), "c++", "g++", "clang++")
    if found is None:
        return Finding(name, NOT_INSTALLED, "no C++ compiler is on the PATH", _COMPILER_REMEDY)
    program = "#include <optional>\nint main() { std::optional<int> zero = 0; return *zero; }\n"
    wrong = _compiled([found, "-std=c++17", "-x", "c++"], program, linked=True)
    if wrong:
        return Finding(name, BROKEN, f"{found} cannot compile C++17: {wrong}", _COMPILER_REMEDY)
    return Finding(name, OK, f"compiles C++17: {_version_line(found)}")


def nvcc() -> Finding:
    """Compile a CUDA kernel."""
    name = "nvcc"
    found = _found(os.environ.get("CUDACXX"), "nvcc", "/usr/local/cuda/bin/nvcc")
    if found is None:
        return Finding(name, NOT_INSTALLED, "no CUDA compiler is on the PATH", _CUDA_REMEDY)
    release = re.search(r"release (\d+\.\d+)", _output([found, "--version"])[1])
    if release is None:
        return Finding(name, BROKEN, f"{found} does not tell its version", _CUDA_REMEDY)
    if is_older(release[1], _OLDEST_CUDA):
        return Finding(name, BROKEN, f"{found} is {release[1]}, older than {_OLDEST_CUDA}", _CUDA_REMEDY)
    wrong = _compiled([found, "-x", "cu"], "__global__ void nothing() {}\n", linked=False)
    if wrong:
        return Finding(name, BROKEN, f"{found} cannot compile a kernel: {wrong}", _CUDA_REMEDY)
    return Finding(name, OK, f"{release[1]}, compiles a kernel: {found}")


def triton(environment: str) -> Finding:
    """Ask the Python of an environment for Triton's Python backend for its NumPy.

    Args:
        environment: the folder of a virtual or conda environment.
    """
    name = "triton"
    python = Path(environment) / "bin" / "python"
    if not python.is_file():
        return Finding(
            name, BROKEN, f"{environment} is no environment: it has no bin/python", f"python -m venv {environment}"
        )
    code, text = _output([str(python), "-c", _NUMPY_CODE], {"PYTHONPATH": "", "PYTHONNOUSERSITE": "1"})
    install = f"{python} -m pip install 'numpy<2'"
    try:
        numpy, version = json.loads(text.splitlines()[-1]) if code == 0 else ("", "")
    except (ValueError, IndexError):
        numpy = ""
    if not numpy:
        return Finding(name, BROKEN, f"NumPy does not work in {environment}: {_last(text)}", install)
    if not is_older(numpy, _BAD_NUMPY):
        wrong = f"{environment} has NumPy {numpy}, with which Triton's Python backend gives wrong numbers silently"
        return Finding(name, BROKEN, wrong, install)
    return Finding(name, OK, f"NumPy {numpy} in Python {version}, whose stub Triton needs: {environment}")


def _found(*names: str | None) -> str | None:
    """Return the path of the first program that exists."""
    return next((path for name in names if name and (path := shutil.which(name))), None)


def _version_line(program: str) -> str:
    lines = _output([program, "--version"])[1].splitlines()
    return lines[0].strip() if lines else program


def _compiled(command: Sequence[str], program: str, *, linked: bool) -> str:
    """Compile a program, and run it if it is linked; return what went wrong, empty if nothing did."""
    try:
        with scratch_folder() as folder:
            source, result = folder / "program", folder / "result"
            source.write_text(program)
            code, text = _output([*command, str(source), *([] if linked else ["-c"]), "-o", str(result)])
            if code or not result.is_file():
                return _last(text) or f"exit code {code}"
            code, text = _output([str(result)]) if linked else (0, "")
            return f"the program ended with {code}" if code else ""
    except PomExportError as error:
        return error.what


def _output(command: Sequence[str], environment: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Return a program's exit code and what it printed."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=SECONDS,
            check=False, env={**os.environ, **(environment or {})},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return -1, printable(str(error), 300)
    return done.returncode, done.stdout.decode(errors="replace")


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return printable(lines[-1], 300) if lines else ""
