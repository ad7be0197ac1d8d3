"""What libraries write to stderr by themselves is not part of the command's output."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import os, sys
from pom_export.cli import main as module

def work(*_, **__):
    os.write(2, b"of a library\\n")
    print("of Python", file=sys.stderr)
    os.write(1, b"result\\n")

module.cli.main = work
module.main()
"""


@pytest.mark.parametrize("options", [[], ["--debug"]])
def test_libraries_are_heard_with_debug_only(options: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, *options], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "result\n")
    assert done.stderr == ("of a library\n" if options else "") + "of Python\n"


def test_a_crash_is_still_reported() -> None:
    script = SCRIPT.replace("os.write(1", "os.abort(); os.write(1")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode < 0
    assert "Fatal Python error: Aborted" in done.stderr


def test_a_closed_stderr_is_no_failure() -> None:
    script = SCRIPT.replace('os.write(2, b"of a library\\n")', "pass")
    done = subprocess.run(["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, script], stdout=subprocess.PIPE)
    assert done.returncode == 0
    assert b"result\n" in done.stdout


def test_no_file_takes_the_place_of_a_closed_stream() -> None:
    script = SCRIPT.replace('print("of Python", file=sys.stderr)', "assert os.open(os.devnull, os.O_RDONLY) > 2")
    for closed in ("2>&-", "<&- 2>&-", "<&- >&- 2>&-"):
        done = subprocess.run(["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, script])
        assert done.returncode == 0
