"""Signals end a command in the same way wherever they arrive."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pom_export import interrupts
from pom_export.cli.main import cli, run
from pom_export.files import staged_output
from tests.conftest import SIGNALS

pytestmark = pytest.mark.usefixtures("listening")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_a_third_party_swallows_still_prevents_the_output(number: int, tmp_path: Path) -> None:
    def work() -> None:
        with staged_output(tmp_path / "m") as staged:
            staged.write_text("whole")
            with contextlib.suppress(KeyboardInterrupt):
                os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert interrupts.received() == number
    assert list(tmp_path.iterdir()) == []


def test_files_are_moved_together_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    move = Path.replace

    def interrupted_move(file: Path, place: Path) -> Path:
        os.kill(os.getpid(), signal.SIGINT)
        return move(file, place)

    monkeypatch.setattr(Path, "replace", interrupted_move)
    with staged_output(tmp_path / "m") as staged:
        staged.write_text("m")
        staged.with_name("m.json").write_text("{}")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m", "m.json"]
    with pytest.raises(KeyboardInterrupt):
        interrupts.check()


@pytest.mark.parametrize(
    ("number", "code", "word"), [(2, 130, "interrupted"), (15, 143, "terminated"), (1, 129, "term")]
)
def test_the_exit_code_names_the_signal_whatever_error_it_became(
    number: int, code: int, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(*_: object, **__: object) -> None:
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt:
            raise ImportError("a lazy import failed") from None

    monkeypatch.setattr(cli, "main", main)
    assert run([]) == code
    assert word in capsys.readouterr().err


COMMAND = """
import os, signal
from pom_export.cli.main import cli, main
cli.main = lambda *_, **__: exec("os.kill(os.getpid(), signal.SIGTERM)")
main()
"""


def test_python_does_not_end_the_process_by_another_signal(tmp_path: Path) -> None:
    """With `python -m`, it does so after a plain KeyboardInterrupt that passed through `exec`."""
    (tmp_path / "command.py").write_text(COMMAND)
    done = subprocess.run([sys.executable, "-m", "command"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (143, "pom-export: terminated\n")


def test_signals_that_the_process_is_to_ignore_stay_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    interrupts.listen()
    os.kill(os.getpid(), signal.SIGHUP)
    assert interrupts.received() is None


def raising(*_: object) -> None:
    """Interrupt as a program's own handler may, for example asyncio's."""
    raise KeyboardInterrupt


@pytest.mark.parametrize("handler", [None, signal.default_int_handler, raising], ids=["ours", "Python's", "another"])
def test_deferred_signals_interrupt_once_and_at_the_end(handler: Any) -> None:
    if handler is not None:
        signal.signal(signal.SIGINT, handler)
    before = signal.getsignal(signal.SIGINT)
    pending = []

    def work() -> None:
        with interrupts.deferred() as interrupted:
            pending.append(interrupted())
            for _ in range(100):
                os.kill(os.getpid(), signal.SIGINT)
            pending.append(interrupted())

    with pytest.raises(KeyboardInterrupt):
        work()
    assert pending == [False, True]
    assert signal.getsignal(signal.SIGINT) is before
    assert interrupts.received() == (signal.SIGINT if handler is None else None)


def test_an_error_of_a_deferring_block_is_what_is_raised() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def work() -> None:
        with interrupts.deferred():
            os.kill(os.getpid(), signal.SIGINT)
            raise ValueError("of the block")

    with pytest.raises(ValueError, match="of the block"):
        work()
    with interrupts.deferred() as interrupted:
        assert not interrupted()
