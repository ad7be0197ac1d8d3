#!/usr/bin/env python3
"""Run a long command and show that it is working.

    python tools/progress.py NAME COMMAND...

Prints a line for each step that the command reports (ninja's edges, pip's wheels), with the seconds since its start,
and one when nothing was reported for a while. All output goes to build/log/NAME.log; its end is shown when the command
fails. Needs only the standard library.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "build" / "log"
_QUIET_SECONDS = 30
_TAIL_LINES = 20

_NINJA = re.compile(r"\[(\d+)/(\d+)\] (Building|Linking) .* (\S+)$")
_WHEEL = re.compile(
    r"\s*(?:Downloading|Using cached|Processing) (?:\S*/)?([^-\s]+-[^-\s]+)-\S+\.whl\S*(?: (\([\d.]+ [kMG]B\)))?"
)
# What to do when the output contains one of these patterns.
_HINTS = {
    r"Failed to establish a new connection|Name or service not known|name resolution|Read timed out|ProxyError": (
        "The package index was not reached: is the network up? pip's own settings are used, such as PIP_INDEX_URL."
    ),
    r"No space left on device": "The disk is full: about 3 GB are needed.",
    r"Killed (?:signal|.*terminated)|fatal error: Killed": (
        "A compiler was killed, likely for want of memory: CMAKE_BUILD_PARALLEL_LEVEL=1 compiles one file at a time."
    ),
}
_INSTALLING = re.compile(r"Installing collected packages: (.*)")


def step_of(line: str) -> str | None:
    """Return a line of ninja's or pip's output in short, or None if it reports no step."""
    if match := _NINJA.match(line):
        done, total, action, target = match.groups()
        source = re.sub(r"CMakeFiles/[^/]*\.dir/|\.o$", "", target)
        return f"[{done:>{len(total)}}/{total}] {'compiled' if action == 'Building' else 'linked'} {source}"
    if match := _WHEEL.match(line):
        return " ".join(filter(None, match.groups()))
    if match := _INSTALLING.match(line):
        names = match[1].split(", ")
        return f"installing {names[0] if len(names) == 1 else f'{len(names)} packages'}"
    return None


class Progress:
    """The lines printed about one job: its name, the seconds since its start, and what happened."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._start = self._last = time.monotonic()
        self.log = LOGS / f"{name}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.unlink(missing_ok=True)
        self.show(f"started; the log is {self.log.relative_to(ROOT)}")

    def seconds(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self._start

    def show(self, text: str) -> None:
        """Print a line."""
        self._last = time.monotonic()
        print(f"{self.name:<11} {self.seconds():4.0f} s  {text}", flush=True)

    def remind(self, ended: threading.Event) -> None:
        """Print a line whenever none has been printed for a while, until `ended` is set."""
        while not ended.wait(1):
            if time.monotonic() - self._last >= _QUIET_SECONDS:
                self.show("still working")


def run(command: Sequence[str], progress: Progress) -> None:
    """Run a job's command in the project's folder.

    Raises:
        SystemExit: the command failed, which has been printed, or was interrupted.
    """
    ended = threading.Event()
    with progress.log.open("a") as file:
        print(f"$ {' '.join(command)}", file=file, flush=True)
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process:
            threading.Thread(target=progress.remind, args=(ended,), daemon=True).start()
            try:
                lines = _follow(process, file, progress)
            except KeyboardInterrupt:
                process.wait()
                sys.exit(130)
            finally:
                ended.set()
    if process.returncode:
        _fail(progress, lines, process.returncode)


def _follow(process: subprocess.Popen[str], file: TextIO, progress: Progress) -> list[str]:
    """Copy a process's output to a file, show its steps, and return its last lines."""
    lines: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", file=file, flush=True)
        if step := step_of(line):
            progress.show(step)
        lines = [*lines[1 - _TAIL_LINES :], line.rstrip()]
    return lines


def _fail(progress: Progress, lines: list[str], code: int) -> None:
    text = "\n".join(f"    {line}" for line in lines)
    hints = [f"{hint}\n" for pattern, hint in _HINTS.items() if re.search(pattern, text)]
    print(
        f"\n{progress.name}: failed with exit code {code}. The end of its output:\n\n{text}\n\n"
        f"{''.join(hints)}All of it is in {progress.log.relative_to(ROOT)}. Once that is fixed, run the same command "
        "again: what has been compiled is kept.",
        file=sys.stderr,
    )
    sys.exit(1)


def main() -> int:
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    progress = Progress(sys.argv[1])
    run(sys.argv[2:], progress)
    progress.show("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
