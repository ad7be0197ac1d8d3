"""Standard streams that are full, closed by their reader, or lack a character of the text."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pom_export.cli.main import run

CHECKPOINT = str(Path(__file__).parents[1] / "data" / "golden" / "v2_base" / "checkpoint.pt")
FULL = Path("/dev/full")
COMMAND = [sys.executable, "-m", "pom_export"]


@pytest.mark.slow
@pytest.mark.skipif(not FULL.exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("arguments", [["inspect", CHECKPOINT], ["inspect", CHECKPOINT, "--json"], ["--help"]])
def test_a_full_stdout_is_one_line(arguments: list[str]) -> None:
    with FULL.open("w") as full:
        done = subprocess.run([*COMMAND, *arguments], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("pom-export: error: ")
    assert "No space left on device" in line
    assert "internal" not in line


@pytest.mark.slow
@pytest.mark.skipif(not FULL.exists(), reason="needs Linux's /dev/full")
def test_a_full_stderr_ends_no_job(tmp_path: Path) -> None:
    with FULL.open("w") as full:
        done = subprocess.run([*COMMAND, "export", CHECKPOINT, "-o", tmp_path / "m.onnx"], stdout=-1, stderr=full)
    assert done.returncode == 0
    assert (tmp_path / "m.onnx").exists()


@pytest.mark.slow
def test_a_reader_that_leaves_does_not_change_the_exit_code() -> None:
    for checkpoint, code in ((CHECKPOINT, 0), (f"{CHECKPOINT}.none", 2)):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run([*COMMAND, "inspect", checkpoint], stdout=writer, stderr=subprocess.PIPE, text=True)
        os.close(writer)
        assert done.returncode == code
        assert "Broken pipe" not in done.stderr


@pytest.mark.parametrize("arguments", [["inspect", b"c\xff"], ["export", CHECKPOINT, "-o", b"m\xff"], [b"c\xff"]])
@pytest.mark.parametrize("as_json", [False, True])
def test_names_that_are_no_text_are_one_line(
    arguments: list[str | bytes],
    as_json: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = spoiled_names(tmp_path)
    assert run([*map(os.fsdecode, arguments), *(["--json"] if as_json else [])]) == 2
    errors = capsys.readouterr().err
    assert r"\udcff" in errors
    assert "internal" not in errors
    assert list(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_a_name_that_is_no_text_comes_from_a_shell(tmp_path: Path) -> None:
    before = spoiled_names(tmp_path)
    done = subprocess.run([*COMMAND, "inspect", b"c\xff"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert r"\udcff" in done.stderr
    assert "internal" not in done.stderr
    assert list(tmp_path.iterdir()) == before


def spoiled_names(folder: Path) -> list[Path]:
    """Create a checkpoint whose name is not valid UTF-8, and return the folder's contents."""
    (folder / os.fsdecode(b"c\xff")).write_bytes(Path(CHECKPOINT).read_bytes())
    return list(folder.iterdir())


@pytest.mark.slow
def test_characters_that_stdout_lacks_are_escaped(tmp_path: Path) -> None:
    checkpoint = tmp_path / "модель.pt"
    checkpoint.write_bytes(Path(CHECKPOINT).read_bytes())
    done = subprocess.run(
        [*COMMAND, "inspect", str(checkpoint)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
    )
    assert done.returncode == 0
    assert r"\u044c.pt" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_signals_leave_nothing(number: int, code: int, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "export", CHECKPOINT, "-o", str(tmp_path / "m.onnx")],
        stderr=subprocess.PIPE,
        text=True,
        # A background job of a shell script ignores SIGINT, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "tracing" in line:
            break
    assert list(tmp_path.iterdir()) != []
    process.send_signal(number)
    # Impatience must not break what the first signal began.
    time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_a_file_size_limit_is_one_line(tmp_path: Path) -> None:
    import resource

    done = subprocess.run(
        [*COMMAND, "export", CHECKPOINT, "-o", str(tmp_path / "m.onnx")],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)),
    )
    assert done.returncode == 2
    assert "cannot write" in done.stderr.splitlines()[-1]
    assert "File too large" in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
