"""Call a function in a separate process: measurements must not share threads, allocators or peak memory.

`python -m pom_export.bench.worker CALL RESULT THREADS PARENT` is that process. It ends with its parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from pom_export import interrupts
from pom_export.bench.machine import usable_processors
from pom_export.errors import ParityError, PomExportError, reason_of

_Result = TypeVar("_Result")
_LONGEST_REASON: Final = 200
_PR_SET_PDEATHSIG: Final = 1


class WorkerError(PomExportError):
    """A worker ended without a result."""


def call_in_worker(
    function: Callable[..., _Result],
    *arguments: object,
    folder: Path,
    threads: int,
    environment: Mapping[str, str] | None = None,
) -> _Result:
    """Call a function in a separate process.

    Args:
        function: a function of a module; it, its arguments and its result are pickled.
        arguments: its positional arguments.
        folder: where the files of the call and temporary files go.
        threads: the number of processors that the process may use.
        environment: variables added to those of this process.

    Raises:
        ParityError: the function raised it.
        WorkerError: the call failed, or its process was killed.
    """
    with tempfile.TemporaryDirectory(dir=folder) as name:
        call, result, log = (Path(name) / file for file in ("call", "result", "log"))
        # The path comes first: the function may be in a folder that only this process has in its path.
        call.write_bytes(pickle.dumps(sys.path) + pickle.dumps((function, arguments)))
        variables = {**os.environ, **(environment or {}), "TMPDIR": os.fspath(folder)}
        with log.open("wb") as output:
            code = _run(_command(call, result, threads), variables, output)
        if code or not result.exists():
            raise WorkerError(_reason(code, log.read_text(errors="replace")))
        found: Any = pickle.loads(result.read_bytes())  # noqa: S301 (written by our own process)
    if isinstance(found, ParityError):
        raise found
    if isinstance(found, PomExportError):
        raise WorkerError(found.what, found.hint)
    return found


def _command(call: Path, result: Path, threads: int) -> list[str]:
    arguments = [os.fspath(call), os.fspath(result), str(threads), str(os.getpid())]
    return [sys.executable, "-m", "pom_export.bench.worker", *arguments]


def _run(command: list[str], environment: Mapping[str, str], output: Any) -> int:
    """Run a command in its own process group, which ends with this call; return the exit code."""
    process = None
    try:
        with interrupts.held():
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        interrupts.check()
        return process.wait()
    finally:
        with interrupts.held():
            if process is not None:
                # With the processes that it started; a process that has ended leaves no group.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _reason(code: int, log: str) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        return f"its process was ended by {name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")
    lines = log.strip().splitlines()
    return lines[-1][:_LONGEST_REASON] if lines else f"its process ended with code {code}"


def main(arguments: list[str]) -> int:
    """Make the call in the first file, and write its result or its error to the second."""
    call, result, threads, parent = arguments
    _end_with_parent(int(parent))
    os.sched_setaffinity(0, usable_processors()[: int(threads)])
    try:
        # Both files were written by this benchmark, in a folder that nobody else can write to.
        with Path(call).open("rb") as file:
            sys.path[:] = pickle.load(file)  # noqa: S301
            function, given = pickle.load(file)  # noqa: S301
        found = function(*given)
    except PomExportError as error:
        found = error
    except Exception as error:  # noqa: BLE001 (the parent reports it)
        found = PomExportError(f"{type(error).__name__}: {reason_of(error)}")
    Path(result).write_bytes(pickle.dumps(found))
    return 0


def _end_with_parent(parent: int) -> None:
    """Have this process killed when its parent, with process ID `parent`, ends in any way."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit("the parent process has ended")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
