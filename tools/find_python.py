#!/usr/bin/env python3
"""Run an interpreter of a certain version, wherever it is installed.

    python tools/find_python.py 3.10                    # prints its path
    python tools/find_python.py 3.10 -m venv .venv      # runs it with these arguments

Looks at the folders of the PATH and at pyenv's versions. Each interpreter found is asked for its version: pyenv's
commands on the PATH fail for a version that is installed but not chosen. Needs only the standard library.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# venv needs ensurepip, which Debian has in a package of its own.
_QUESTION = "import ensurepip, sys; print('%d.%d' % sys.version_info[:2])"


def candidates(version: str) -> Iterator[Path]:
    """Yield where an interpreter of a version may be."""
    name = f"python{version}"
    yield from (Path(folder, name) for folder in os.get_exec_path() if folder)
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from sorted((pyenv / "versions").glob(f"{version}.*/bin/{name}"), reverse=True)


def answers(interpreter: Path, version: str) -> bool:
    """Return whether an interpreter is there, starts, and is of the version."""
    try:
        done = subprocess.run([interpreter, "-c", _QUESTION], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return done.returncode == 0 and done.stdout.strip() == version


def find_python(version: str) -> Path | None:
    """Return the first interpreter of a version that works, None if there is none."""
    return next((path for path in candidates(version) if answers(path, version)), None)


def main() -> int:
    if len(sys.argv) < 2 or not re.fullmatch(r"3\.\d+", sys.argv[1]):
        sys.exit(__doc__)
    version, *arguments = sys.argv[1:]
    found = find_python(version)
    if found is None:
        sys.exit(f"Python {version} with venv was found neither on the PATH nor among pyenv's versions: install it")
    if not arguments:
        print(found)
        return 0
    return subprocess.run([found, *arguments], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
