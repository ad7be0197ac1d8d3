"""The real server of Triton, which `make test-all` fetches, and Python environments for its Python backend."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from pom_export.runtime.library import custom_ops_library
from tests.other_runtimes import ROOT, fetched

_SECONDS_TO_LOAD = 120
_SECONDS_TO_ANSWER = 120
_SECONDS_TO_END = 30
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Server:
    """A running server: its ports on the loopback interface, and the file with what it has printed."""

    http: int
    grpc: int
    log: Path


class NotReadyError(Exception):
    """The server ended, or not all of its models were loaded; the argument is what it has printed."""


def environment(folder: Path, *, numpy: str = "1") -> Path:
    """Return an environment with what is installed here, with this NumPy or with the one that Triton needs."""
    older = [str(fetched(r"TRITON := .*\.deps/numpy-([0-9.]+)", "numpy"))] if numpy == "1" else []
    # The folders of a .pth file are searched in this order, after the environment's own, which is empty.
    searched = [*older, sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), str(ROOT)]
    venv.create(folder, with_pip=False, symlinks=True)
    place = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    (Path(place) / "searched.pth").write_text("\n".join(dict.fromkeys(searched)) + "\n")
    return folder


def client(*command: str) -> subprocess.CompletedProcess[str]:
    """Run Python with Triton's client library in a separate process."""
    folder = fetched(r"TRITON_CLIENT := \.deps/tritonclient-([0-9.]+)$", "tritonclient")
    return subprocess.run(
        [sys.executable, *command], env=os.environ | {"PYTHONPATH": str(folder)}, capture_output=True, text=True,
        check=False, timeout=_SECONDS_TO_ANSWER,
    )  # fmt: skip


@contextmanager
def serving(repository: Path, folder: Path) -> Iterator[Server]:
    """Serve a model repository while the block runs.

    Args:
        repository: the folder of models.
        folder: where the server's log and backends are put.

    Raises:
        NotReadyError: it ended before it was ready, as it does if a model cannot be loaded.
    """
    package = fetched(r"TRITON := \.deps/nvidia-pytriton-([0-9.]+) ", "nvidia-pytriton")
    tritonserver = package / "pytriton" / "tritonserver"
    http, grpc = _free_ports()
    log = folder / "server.log"
    command = [
        tritonserver / "bin" / "tritonserver", f"--model-repository={repository}",
        f"--backend-directory={_backends(tritonserver, folder)}", "--allow-metrics=false",
        "--http-address=127.0.0.1", f"--http-port={http}", "--grpc-address=127.0.0.1", f"--grpc-port={grpc}",
        "--exit-timeout-secs=2",
    ]  # fmt: skip
    libraries = f"{package / 'nvidia_pytriton.libs'}{os.pathsep}{_libpython()}"
    variables = os.environ | {"LD_LIBRARY_PATH": libraries, "POM_CUSTOM_OPS_LIBRARY": str(custom_ops_library())}
    with log.open("w") as out:
        process = subprocess.Popen(
            command, env=variables, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            start_new_session=True, preexec_fn=_end_with_parent,
        )  # fmt: skip
        try:
            _wait(process, http, log)
            yield Server(http, grpc, log)
        finally:
            _end(process)


def _backends(tritonserver: Path, folder: Path) -> Path:
    """Return a folder with the Python backend, and its stub for this Python beside it."""
    version = "{}.{}".format(*sys.version_info)
    stub = tritonserver / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.exists():
        pytest.skip(f"the server has no stub for Python {version}")
    backend = folder / "backends" / "python"
    if not backend.exists():
        backend.mkdir(parents=True)
        for file in (*(tritonserver / "backends" / "python").iterdir(), stub):
            (backend / file.name).symlink_to(file)
    return backend.parent


def _libpython() -> str:
    """Return the folder of this Python's shared library, which the stub is linked to."""
    folder, name = sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME")
    if not Path(folder, name).is_file() or ".so" not in name:
        pytest.skip("this Python has no shared library")
    return str(folder)


def _end_with_parent() -> None:
    """Have the server end if the tests are killed, and cannot end it."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _free_ports() -> list[int]:
    with socket.socket() as one, socket.socket() as other:
        for each in (one, other):
            each.bind(("127.0.0.1", 0))
        return [one.getsockname()[1], other.getsockname()[1]]


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    latest = time.monotonic() + _SECONDS_TO_LOAD
    while time.monotonic() < latest and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise NotReadyError(log.read_text(errors="replace"))


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server, which ends its stubs and removes their shared memory; if it hangs, end all of its processes."""
    process.terminate()
    try:
        process.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
