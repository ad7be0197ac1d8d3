"""An interpreter of a certain version, wherever it is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[1] / "tools" / "find_python.py"
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, TOOL, *arguments]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Among pyenv's versions, while what is on the PATH under that name refuses or is another version."""
    script(tmp_path / "shims" / f"python{HERE}", f"echo 'pyenv: python{HERE}: command not found'; exit 127")
    script(tmp_path / "bin" / f"python{HERE}", "echo 2.7")
    return script(
        tmp_path / "pyenv" / "versions" / f"{HERE}.1" / "bin" / f"python{HERE}", f'exec {sys.executable} "$@"'
    )


def test_what_only_pyenv_has_is_found_and_run(installed: Path, tmp_path: Path) -> None:
    places = {"PATH": f"{tmp_path}/none:{tmp_path}/shims:{tmp_path}/bin", "PYENV_ROOT": f"{tmp_path}/pyenv"}
    assert run(HERE, **places).stdout == f"{installed}\n"
    done = run(HERE, "-c", "import sys; print(sys.argv[1:]); sys.exit(3)", "an argument", **places)
    assert (done.stdout, done.returncode) == ("['an argument']\n", 3)


def test_the_path_comes_first(installed: Path, tmp_path: Path) -> None:
    first = script(tmp_path / "first" / f"python{HERE}", f'exec {sys.executable} "$@"')
    done = run(HERE, PATH=f"{tmp_path}/shims:{first.parent}", PYENV_ROOT=f"{tmp_path}/pyenv")
    assert done.stdout == f"{first}\n"
    assert installed.exists()


def test_none_is_one_line(tmp_path: Path) -> None:
    done = run(HERE, "-m", "venv", "here", PATH=str(tmp_path), PYENV_ROOT=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == (
        f"Python {HERE} with venv was found neither on the PATH nor among pyenv's versions: install it\n"
    )
