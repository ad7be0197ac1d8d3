"""What `make` passes on to the commands that it runs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_bytecode_is_written_also_where_the_environment_forbids_it() -> None:
    """Packages are installed without bytecode, so every process would compile them again."""
    shown = subprocess.run(
        ["make", "--no-print-directory", "--eval", 'shown: ; @echo "[$$PYTHONDONTWRITEBYTECODE]"', "shown"],
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--no-compile" in (ROOT / "Makefile").read_text()
    assert shown.stdout.splitlines()[-1] == "[]"
