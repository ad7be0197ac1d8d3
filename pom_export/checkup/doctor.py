"""`doctor`: try every part, and a file or an environment if asked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Final

from pom_export.checkup.child import try_in_child
from pom_export.checkup.findings import OK, DoctorReport, Finding
from pom_export.checkup.parts import OPTIONAL, PARTS
from pom_export.checkup.programs import compiler, nvcc, triton
from pom_export.checkup.versions import required_packages, requirement
from pom_export.errors import InputError, only_ours
from pom_export.files import AnyPath, as_path
from pom_export.suggestions import did_you_mean

_SETUP: Final = "make setup"
_ENGINE_SUFFIXES: Final = (".engine", ".plan")
_AT_ONCE: Final = 4
_Trial = Callable[[], Finding]


@only_ours
def doctor(
    files: AnyPath | Sequence[AnyPath] = (),
    *,
    need: str | Sequence[str] = (),
    triton_environment: AnyPath | None = None,
    progress: Callable[[str], None] | None = None,
) -> DoctorReport:
    """Find out what is installed and what works, by trying it: packages, our libraries, runtimes, compilers, the GPU.

    Whatever may crash is tried in a process of its own.

    Args:
        files: an ONNX file or an engine to try as well, or several; an engine's manifest must be beside it.
        need: parts that must be there, by name; otherwise a part that is not installed is no fault.
        triton_environment: the folder of an environment for Triton's Python backend, to check its NumPy.
        progress: called with a line about each part as it is done.

    Returns:
        A report, truthy if nothing that was asked for is broken.

    Raises:
        InputError: there is no part of a name in `need`.
    """
    files = [files] if isinstance(files, (str, os.PathLike)) else files
    need = [need] if isinstance(need, str) else need
    for name in need:
        if name not in PARTS:
            hint = did_you_mean(str(name), PARTS) or f"Choose among {', '.join(PARTS)}"
            raise InputError(f"unknown part {name!r}", hint)
    trials = [*_of_installation(), *(_of_file(path) for path in files)]
    if triton_environment is not None:
        environment = os.fspath(as_path(triton_environment, "environment"))
        trials.append(lambda: triton(environment))
    findings = []
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for finding in pool.map(lambda trial: trial(), trials):
            findings.append(replace(finding, needed=finding.needed or finding.name in need))
            if progress is not None:
                progress(f"{finding.name}: {finding.state}")
        providers = try_in_child("providers", "providers")
        names = providers.detail.split(",") if providers.state == OK and providers.detail else []
        findings += pool.map(_provider, names)
    return DoctorReport(findings)


def _of_installation() -> Iterator[_Trial]:
    # The slowest first.
    for name in sorted(required_packages() or ("torch", "onnx", "numpy"), key=lambda each: (each != "torch", each)):
        yield _package(name, needed=True)
    yield _probe("onnxruntime", remedy=f"pip install {requirement('onnxruntime')}")
    yield _probe("op", remedy=_SETUP)
    yield _probe("plugin", remedy=_SETUP)
    for name, package in (("tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt-rtx-cu13")):
        yield _probe(name, "tensorrt", (name,), remedy=f"pip install {requirement(package)}")
    yield _probe("gpu", remedy="Install NVIDIA's driver, then: nvidia-smi")
    yield compiler
    yield nvcc
    for name in OPTIONAL:
        yield _package(name)


def _package(name: str, *, needed: bool = False) -> _Trial:
    probe, arguments = (name, ()) if name == "torch" else ("package", (name,))
    return _probe(name, probe, arguments, remedy=f"pip install {requirement(name)}", needed=needed)


def _probe(name: str, probe: str = "", arguments: Sequence[str] = (), *, remedy: str, needed: bool = False) -> _Trial:
    return lambda: replace(try_in_child(name, probe or name, arguments, remedy=remedy), needed=needed)


def _of_file(path: AnyPath) -> _Trial:
    file = as_path(path, "file")
    kind = "engine" if file.suffix in _ENGINE_SUFFIXES or Path(f"{file}.json").is_file() else "model"
    again = "Build it again: pom-export build" if kind == "engine" else "Export it again: pom-export export"
    return _probe(os.fspath(file), kind, (os.fspath(file.absolute()),), remedy=again, needed=True)


def _provider(name: str) -> Finding:
    """Try an execution provider with our op."""
    return try_in_child(name, "op", (name,), remedy="Install the CUDA libraries that onnxruntime-gpu needs")
