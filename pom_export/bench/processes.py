"""Call functions in worker processes whose threads don't spin, and which end with this one and leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pom_export import interrupts
from pom_export.errors import ParityError, PomExportError

_Result = TypeVar("_Result")
_LAST = 200
# Threads that have nothing to do sleep: they would take processors from the backend that is timed next.
_SLEEPING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}


class WorkerError(PomExportError):
    """A worker ended without a result."""


def call_in_worker(
    function: Callable[..., _Result], *arguments: object, folder: Path, threads: int, alone: bool = False
) -> _Result:
    """Call a function in a process of its own.

    Args:
        function: of a module; it, its arguments and what it returns go through pickle.
        arguments: positional ones.
        folder: for the files of the call, and what torch.compile writes.
        threads: how many processors the process may use.
        alone: nothing else is timed in the process, so that the waking of threads should not count.

    Raises:
        ParityError: backends differ.
        WorkerError: the call failed, or its process was killed.
    """
    with tempfile.TemporaryDirectory(dir=folder) as name:
        call_file, result_file, log_file = (Path(name) / file for file in ("call", "result", "log"))
        # The path first: what the call is made of may lie in a folder that only this process knows.
        call_file.write_bytes(pickle.dumps(sys.path) + pickle.dumps((function, arguments)))
        environment = _environment(folder, name, threads, {} if alone else _SLEEPING)
        with log_file.open("wb") as log:
            code = _run(_command(call_file, result_file, threads), environment, log)
        if code or not result_file.exists():
            raise WorkerError(_why(code, log_file))
        result: Any = pickle.loads(result_file.read_bytes())  # noqa: S301 (of our own process)
    if isinstance(result, ParityError):
        raise result
    if isinstance(result, PomExportError):
        raise WorkerError(result.what, result.hint)
    return result


def _command(call_file: Path, result_file: Path, threads: int) -> list[str]:
    files = [os.fspath(call_file), os.fspath(result_file)]
    return [sys.executable, "-m", "pom_export.bench.worker", *files, str(threads), str(os.getpid())]


def _run(command: list[str], environment: dict[str, str], log: Any) -> int:
    """Run a command in a process group of its own, which does not outlive this call; return its exit code."""
    process = None
    try:
        with interrupts.held():
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        interrupts.check()
        return process.wait()
    finally:
        with interrupts.held():
            if process is not None:
                _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    # What it started too; a process that is done leaves no group.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment(folder: Path, scratch: str, threads: int, waiting: dict[str, str]) -> dict[str, str]:
    """Return the variables that torch and its OpenMP read when they load."""
    return {
        **os.environ,
        **waiting,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        # What torch.compile writes goes with the benchmark's folder, and its compilers with its process.
        "TORCHINDUCTOR_CACHE_DIR": os.fspath(folder / "inductor"),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "TMPDIR": scratch,
    }


def _why(code: int, log_file: Path) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        return f"its process was ended by {name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")
    lines = log_file.read_text(errors="replace").strip().splitlines()
    return lines[-1][:_LAST] if lines else f"its process ended with code {code}"
