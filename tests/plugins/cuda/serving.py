"""A program that runs one call after another, for as long as the calls go well."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

DONE = b"\n"
"""What the program writes after a call's outputs."""


class Server:
    """Starts when it is first asked, and again after a call that failed.

    Args:
        program: see `serve_calls` in emulation/call.h.
        environment: of its process.
    """

    def __init__(self, program: Path, environment: Mapping[str, str]) -> None:
        self._program, self._environment = program, environment
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def run(self, message: bytes, size: int) -> bytes:
        """Send a call and return its outputs.

        Args:
            message: the call.
            size: of its outputs, in bytes.

        Raises:
            AssertionError: the call failed; what the program wrote to stderr.
        """
        if self._process is None:
            self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(
                [self._program], stdin=pipe, stdout=pipe, stderr=self._log, env=self._environment
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._log is not None
        self._log.seek(0)  # what it says of calls that went well; the process shares the place
        self._log.truncate()
        try:
            self._process.stdin.write(message)
            self._process.stdin.flush()
        except BrokenPipeError:
            made = b""
        else:
            made = self._process.stdout.read(size + len(DONE))
        if made[size:] != DONE:
            process = self._process
            said = self.close()
            raise AssertionError(f"exit code {process.returncode}, {len(made)} bytes rather than {size}: {said}")
        return made[:size]

    def close(self) -> str:
        """End the program; return what it wrote to stderr since the last call that went well."""
        if self._process is None or self._log is None:
            return ""
        self._process.communicate()
        self._log.seek(0)
        said = self._log.read().decode(errors="replace")
        self._log.close()
        self._process = None
        return said
