"""Run workers: processes whose threads don't spin, which end when this one does and leave nothing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pom_export import interrupts
from pom_export.bench.worker import ROOFLINE, Job, to_json
from pom_export.errors import ParityError, PomExportError

_LAST = 200
# Threads that have nothing to do sleep: they would take processors from the backend that is timed next.
_SLEEPING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}


class WorkerError(PomExportError):
    """A worker ended without a result."""


def run_worker(job: Job) -> dict[str, Any]:
    """Have a job done in a process of its own.

    Raises:
        ParityError: backends differ.
        WorkerError: the job failed, or its process was killed.
    """
    with tempfile.TemporaryDirectory(dir=job.folder) as folder:
        job_file, result_file, log_file = (Path(folder) / name for name in ("job.json", "result.json", "log"))
        job_file.write_text(to_json(job))
        with log_file.open("wb") as log:
            code = _run(_command(job_file, result_file), _environment(job, folder), log)
        if code or not result_file.exists():
            raise WorkerError(_why(code, log_file))
        result: dict[str, Any] = json.loads(result_file.read_text())
    if "error" in result:
        kind = ParityError if result["exit_code"] == ParityError.exit_code else WorkerError
        raise kind(result["error"], result["hint"])
    return result


def _command(job_file: Path, result_file: Path) -> list[str]:
    files = [os.fspath(job_file), os.fspath(result_file)]
    return [sys.executable, "-m", "pom_export.bench.worker", *files, str(os.getpid())]


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


def _environment(job: Job, folder: str) -> dict[str, str]:
    """Return the variables that torch and its OpenMP read when they load."""
    threads = str(job.threads)
    return {
        **os.environ,
        # Where nobody else is timed, waking threads should not count.
        **({} if job.task == ROOFLINE else _SLEEPING),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        # What torch.compile writes goes with the benchmark's folder, and its compilers with its process.
        "TORCHINDUCTOR_CACHE_DIR": os.fspath(Path(job.folder) / "inductor"),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "TMPDIR": folder,
    }


def _why(code: int, log_file: Path) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        return f"its process was ended by {name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")
    lines = log_file.read_text(errors="replace").strip().splitlines()
    return lines[-1][:_LAST] if lines else f"its process ended with code {code}"
