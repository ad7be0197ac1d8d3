"""Run a command in a child of this process, within limits, and say how it ended."""

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

# Of one command: seconds of a processor, bytes of memory.
SECONDS = 10
MEMORY = 10**9
# Seconds on the clock for one of a processor, on a machine that others use too; what waits for ever ends then.
_CLOCK = 12
# What a child can't go beyond; more than what it may take, so that what takes too much is seen to.
_MOST_MEMORY = 4 * 2**30
_MOST_FILE = 2**28
_KEPT_OUTPUT = 2**20


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        code: its exit code; None: a signal ended it.
        signal: that signal.
        seconds: of a processor.
        memory: bytes beyond what the parent holds, at its peak.
        stdout: what it printed, at most 1 MiB.
        stderr: the same.
        report: lines of what it must not do.
        late: whether it was ended because it took no end.
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
    """Call `work` in a child, with a file descriptor for its report; what it returns is the exit code.

    Args:
        work: is called where stdout and stderr are files of the child's own, and stdin is empty.
        own_memory: bytes that a child takes that does nothing, see `idle_memory`.
        seconds: of a processor, after which it is killed.
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
    """Return the bytes that a child of this process holds that does nothing."""
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
