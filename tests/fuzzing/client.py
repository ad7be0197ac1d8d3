"""Asks a server, a process of its own, to run cases: in this one there may be threads, which no fork survives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Outcome:
    """The outcome of one case.

    Attributes:
        format: the case's format.
        seed: the case's seed; with the format, it reproduces the case.
        what: what was changed in a valid file.
        arguments: the command's arguments.
        faults: what is wrong; empty if nothing is.
        code: the exit code; None if a signal ended the command.
        seconds: CPU time.
        megabytes: memory beyond that of the imports.
        said: the last line of stderr.
        folder: where the case's files are kept; empty if they are not.
    """

    format: str
    seed: int
    what: str
    arguments: tuple[str, ...]
    faults: list[str]
    code: int | None
    seconds: float
    megabytes: int
    said: str
    folder: str

    def __str__(self) -> str:
        return (
            f"{self.format} {self.seed} ({self.what}): {'; '.join(self.faults) or 'right'}\n"
            f"  exit code {self.code}, {self.seconds} s, {self.megabytes} MB: {self.said}\n"
            f"  again: python tools/fuzz.py --format {self.format} --seed {self.seed}"
            f"{f', files in {self.folder}' if self.folder else ''}"
        )


class Client:
    """A server, for as long as the context lasts.

    Args:
        findings: where the files of cases with faults go; None to keep none.
    """

    def __init__(self, findings: Path | None = None) -> None:
        command = [sys.executable, "-m", "tests.fuzzing.server", *([] if findings is None else [os.fspath(findings)])]
        # Other tests share the machine: with several threads, a child's threads would wait for each other.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_ROOT, env=environment
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def run(self, name: str, seed: int) -> Outcome:
        """Run one case."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"format": name, "seed": seed}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the server ended at {name} {seed}; what it said is above")
        reply = json.loads(answer)
        return Outcome(**{**reply, "arguments": tuple(reply["arguments"])})
