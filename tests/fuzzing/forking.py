"""Runs a command in a child of this process, within limits, and reports how it ended."""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from pom_export.cli.native import mute_libraries

# The limits of one command: CPU seconds, and bytes of memory.
SECONDS = 10
MEMORY = 10**9
# Wall-clock seconds per CPU second, since the machine is shared; a command that waits forever ends after these.
_CLOCK = 12
# Hard limits of a child, higher than those above, so that exceeding the limits above is noticed.
_MOST_MEMORY = 4 * 2**30
_MOST_FILE = 2**28
_KEPT_OUTPUT = 2**20


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        code: its exit code; None if a signal ended it.
        signal: the signal that ended it, or None.
        seconds: its CPU time.
        memory: its peak memory in bytes, beyond what an idle child of the parent takes.
        stdout: what it printed, at most 1 MiB.
        stderr: the same for stderr.
        report: what it did that it must not do, one line each.
        late: whether it was killed because it did not end in time.
    """

    code: int | None
    signal: int | None
    seconds: float
    memory: int
    stdout: str
    stderr: str
    report: tuple[str, ...]
    late: bool


def fork(work: Callable[[int], int], own_memory: int, seconds: int = SECONDS + 1) -> Ended:
    """Call `work` in a child, with a file descriptor for its report; `work` returns the child's exit code.

    Args:
        work: the function to call, with files of the child's own as stdout and stderr, and an empty stdin.
        own_memory: the bytes that an idle child takes, see `idle_memory`.
        seconds: the CPU time after which the child is killed.
    """
    out, err, report = (os.memfd_create(name) for name in ("out", "err", "report"))
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        _child(work, out, err, report, seconds)
    status, usage, late = _wait(pid, _CLOCK * seconds)
    ended = Ended(
        code=os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
        signal=os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
        seconds=usage.ru_utime + usage.ru_stime,
        memory=max(0, 1024 * usage.ru_maxrss - own_memory),
        stdout=_content(out),
        stderr=_content(err),
        report=tuple(_content(report).splitlines()),
        late=late,
    )
    for descriptor in (out, err, report):
        os.close(descriptor)
    return ended


def idle_memory() -> int:
    """Return how many bytes a child of this process takes that does nothing."""
    return fork(lambda _: 0, 0).memory


def _child(work: Callable[[int], int], out: int, err: int, report: int, seconds: int) -> NoReturn:
    code = 255
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
        mute_libraries()  # as the command does
        _set_limits(seconds)
        code = work(report)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException as error:  # noqa: BLE001 (nothing may return into the parent's code)
        os.write(report, f"raises {type(error).__name__}: {str(error)[:200]!r}\n".encode(errors="replace"))
    finally:
        os._exit(code)


def _set_limits(seconds: int) -> None:
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()  # noqa: PTH123, SIM115
    for what, most in (
        (resource.RLIMIT_AS, size + _MOST_MEMORY),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, _MOST_FILE),
    ):
        resource.setrlimit(what, (most, most))


def _wait(pid: int, seconds: int) -> tuple[int, resource.struct_rusage, bool]:
    child = os.pidfd_open(pid)
    ended, _, _ = select.select([child], [], [], seconds)
    os.close(child)
    if not ended:
        os.kill(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) in {signal.SIGXCPU, signal.SIGKILL}
    return status, usage, killed or not ended


def _content(descriptor: int) -> str:
    return os.pread(descriptor, _KEPT_OUTPUT, 0).decode(errors="replace")
