"""What is shown of a running job: a spinner on a terminal, plain lines elsewhere, nothing with --quiet."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pom_export.cli.main import run
from pom_export.cli.progress import Progress, stages

CHECKPOINT = str(Path(__file__).parents[1] / "data" / "golden" / "v2_base" / "checkpoint.pt")
COMMAND = [sys.executable, "-m", "pom_export"]
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"
needs_rich = pytest.mark.skipif(importlib.util.find_spec("rich") is None, reason="rich is not installed")


def on_terminal(
    arguments: list[str], interrupt_after: str = "", close_after: str = "", **environment: str
) -> tuple[int, str, str]:
    """Run a command whose stderr is a terminal; return its exit code, stdout, and what the terminal got.

    Args:
        arguments: of the command.
        interrupt_after: it gets SIGINT when this has been written.
        close_after: the terminal is gone when this has been written.
        environment: variables besides those of this process.
    """
    ours, its = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if name not in {"CI", "NO_COLOR", "TERM"}}
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=its,
        text=True,
        env={**kept, "TERM": "xterm", **environment},
    )
    os.close(its)
    seen = b""
    while True:
        try:
            piece = os.read(ours, 1 << 16)
        except OSError:  # Linux's way to say that the other end is closed
            break
        seen += piece
        if not piece:
            break
        if close_after and close_after.encode() in seen:
            break
        if interrupt_after and interrupt_after.encode() in seen:
            process.send_signal(signal.SIGINT)
            interrupt_after = ""
    os.close(ours)
    assert process.stdout is not None
    with process.stdout:
        out = process.stdout.read()
    return process.wait(), out, seen.decode()


def left_of(seen: str) -> list[str]:
    """Return what a terminal finally shows: control sequences that erase a line are applied."""
    lines = [""]
    for part in re.split(r"(\r\n|\r|\n|\x1b\[2K|\x1b\[1A)", seen):
        if part in {"\r\n", "\n"}:
            lines.append("")
        elif part == "\x1b[2K":
            lines[-1] = ""
        elif part == "\x1b[1A":
            lines.pop()
        elif part != "\r":
            lines[-1] += CONTROL.sub("", part)
    return [line.rstrip() for line in lines if line.strip()]


@contextlib.contextmanager
def terminal_as_stderr(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Have Python's stderr be a terminal; yield what will hold all that the terminal got."""
    for name in ("CI", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    ours, its = pty.openpty()
    seen: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(all_of, ours)
        try:
            with open(its, "w") as stderr, monkeypatch.context() as patch:  # noqa: PTH123 (a descriptor)
                patch.setattr(sys, "stderr", stderr)
                yield seen
        finally:
            seen.append(reading.result().decode())
            os.close(ours)


def all_of(terminal: int) -> bytes:
    """Return what is written to a terminal until its other end is closed."""
    seen = b""
    with contextlib.suppress(OSError):  # Linux's way to say so
        while piece := os.read(terminal, 1 << 16):
            seen += piece
    return seen


@needs_rich
def test_a_terminal_shows_a_spinner_and_keeps_the_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with terminal_as_stderr(monkeypatch) as terminal:
        code = run(["export", CHECKPOINT, "-o", str(tmp_path / "m.onnx")])
    (seen,), out = terminal, capsys.readouterr().out
    assert code == 0
    assert "agrees with PyTorch on" in out
    assert "\x1b" not in out
    assert re.search(r"[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏] \S*reading .* \S*\d:\d\d:\d\d", CONTROL.sub("", seen))
    left = left_of(seen)
    assert all(re.match(r"\[ *\d+\.\ds\] ", line) for line in left)
    assert [re.sub(r"^\[.*?s\] ", "", line).split()[0] for line in left] == ["reading", "recognised", "tracing,", "1"]
    assert seen.rfind(SHOW) > seen.rfind(HIDE)


@pytest.mark.slow
@needs_rich
def test_an_interrupted_display_leaves_one_clear_line(tmp_path: Path) -> None:
    arguments = ["export", CHECKPOINT, "-o", str(tmp_path / "new" / "m.onnx")]
    code, out, seen = on_terminal(arguments, interrupt_after="tracing")
    assert code == 130
    assert out == ""
    assert left_of(seen)[-1] == "pom-export: interrupted"
    assert seen.rfind(SHOW) > seen.rfind(HIDE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@needs_rich
def test_a_terminal_that_is_gone_ends_no_job(tmp_path: Path) -> None:
    code, out, _ = on_terminal(["export", CHECKPOINT, "-o", str(tmp_path / "m.onnx")], close_after="reading")
    assert code == 0
    assert "agrees with PyTorch on" in out
    assert (tmp_path / "m.onnx").exists()


@pytest.mark.slow
@needs_rich
def test_an_error_follows_the_display(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_text("not a checkpoint")
    code, _, seen = on_terminal(["export", str(tmp_path / "m.pt"), "-o", str(tmp_path / "m.onnx")])
    assert code == 2
    reading, error = left_of(seen)
    assert "reading" in reading
    assert error.startswith("pom-export: error: ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "environment"),
    [([], {"NO_COLOR": "1"}), ([], {"CI": "true"}), ([], {"TERM": "dumb"}), (["-v", "--json"], {}), (["--debug"], {})],
)
def test_plain_lines_where_a_terminal_is_not_to_move(
    options: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    arguments = ["scan", "torch:nn.Identity", *options]
    code, _, seen = on_terminal(arguments, **environment)
    assert code == 0
    assert "\x1b" not in seen
    assert re.match(r"\[ *0\.0s\] building torch:nn\.Identity\r\n", seen)
    assert list(tmp_path.iterdir()) == []


def test_quiet_prints_results_and_errors_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", CHECKPOINT, "-o", str(tmp_path / "m.onnx"), "-q"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "aggregations" in printed.out
    assert run(["export", CHECKPOINT, "-o", str(tmp_path / "m.onnx"), "--quiet", "--degree", "9"]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("pom-export: error: ")


def test_stages_are_lines_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with stages("one", shown=True, moving=True) as tell:
        tell("two")
    with stages("three", shown=False, moving=True) as tell:
        tell("four")
    Progress(enabled=False)("five")
    assert [line.split("] ")[1] for line in capsys.readouterr().err.splitlines()] == ["one", "two"]
