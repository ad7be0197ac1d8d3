"""Try a part in a process of its own: what is broken may crash or hang, and must not end the checkup."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, Final

from pom_export.checkup.findings import BROKEN, MARK, OK, STEP, Finding
from pom_export.errors import printable, reason_of

# The child imports what its parent would.
_CODE: Final = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from pom_export.checkup.trial import main
main(sys.argv[2], json.loads(sys.argv[3]))
"""
SECONDS: Final = 120.0
"""How long a part may take."""


def try_in_child(name: str, probe: str, arguments: Sequence[Any] = (), *, remedy: str = "") -> Finding:
    """Run one of `probes` in a child process and return what it found.

    Args:
        name: the part's name in the report.
        probe: the function's name.
        arguments: its arguments, JSON-serialisable.
        remedy: what mends the part, if the probe does not say or does not survive.
    """
    command = [sys.executable, "-c", _CODE, json.dumps(sys.path), probe, json.dumps(list(arguments))]
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        try:
            # Into files: a pipe stays open as long as a grandchild has it.
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, timeout=SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return Finding(name, BROKEN, f"it did not answer within {SECONDS:.0f} seconds", remedy)
        except OSError as error:
            return Finding(name, BROKEN, f"Python cannot be started: {reason_of(error)}", remedy)
        texts = [_text(output), _text(errors)]
    result = next((line for line in reversed(texts[0].splitlines()) if line.startswith(MARK)), None)
    if result is None:
        return Finding(name, BROKEN, _end_of(done.returncode, *texts), remedy)
    state, detail, own = json.loads(result.removeprefix(MARK))
    return Finding(name, state, detail, "" if state == OK else own or remedy)


def _text(file: Any) -> str:
    file.seek(0)
    return str(file.read().decode(errors="replace"))


def _end_of(code: int, output: str, errors: str) -> str:
    """Describe how a process ended that gave no result."""
    steps = [line.removeprefix(STEP) for line in output.splitlines() if line.startswith(STEP)]
    last = next((line for line in reversed(errors.splitlines()) if line.strip()), "")
    if code < 0:
        try:
            how = signal.Signals(-code).name
        except ValueError:
            how = f"signal {-code}"
        what = f"it crashed ({how})"
    else:
        what = f"it ended with exit code {code}"
    if steps:
        what = f"{what} when it was to {steps[-1]}"
    return printable(f"{what}: {last}" if last else what, 400)
