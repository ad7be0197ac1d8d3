"""Text from files reaches the terminal as printable text, one line each."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
import torch

from pom_export.cli.main import run
from pom_export.cli.output import print_result, say, terminal_text
from pom_export.cli.progress import Progress
from pom_export.errors import InputError, ParityError, printable
from pom_export.mixer import PolynomialMixer

FORGED = "name\nresult  passed\r\x1b[2J\u202e"
SHOWN = r"name\nresult  passed\r\x1b[2J\u202e"


def test_printable() -> None:
    assert printable(FORGED) == SHOWN
    assert printable("plain, é 字 and spaces") == "plain, é 字 and spaces"
    assert printable("\udcff\x00\u2028") == r"\udcff\x00\u2028"
    cut = printable("a" * 600 + "b" * 10**6)
    assert len(cut) == 1000
    assert cut.startswith("a" * 600)
    assert cut.endswith(" [...] " + "b" * 331)


@pytest.mark.parametrize("error", [InputError, ParityError])
def test_errors_are_one_line(error: type[InputError]) -> None:
    raised = error(f"what {FORGED}", f"hint {FORGED}")
    assert str(raised) == f"what {SHOWN}. hint {SHOWN}"
    assert str(error("It failed.", "Try again")) == "It failed. Try again"
    assert raised.args == (raised.what,)


def test_results_are_lines_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    print_result({}, False, [("inputs", FORGED), (FORGED, "x" * 10**6)])
    say(FORGED, FORGED)
    Progress(enabled=True)(FORGED)
    captured = capsys.readouterr()
    first, second, *others = captured.out.splitlines()
    assert first.split("  ", 1)[1].strip() == SHOWN
    assert second.startswith(SHOWN)
    assert len(second) < 9000
    assert others == [SHOWN, SHOWN]
    assert captured.err.endswith(f"] {SHOWN}\n")


def test_a_files_name_forges_no_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / FORGED.replace("/", "")
    torch.save(PolynomialMixer(2, 2, 2).state_dict(), file)
    assert run(["inspect", str(file)]) == 0
    assert SHOWN in capsys.readouterr().out.splitlines()[0]
    file.write_bytes(b"nothing")
    assert run(["inspect", str(file)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert SHOWN in line
    assert run(["inspect", str(file), FORGED]) == 2
    assert all(line.isprintable() for line in capsys.readouterr().err.splitlines())


def test_a_models_text_only_shows_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert terminal_text("a\x1b[2Jb\n") == "a\x1b[2Jb\n"
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdout", terminal)
    assert terminal_text("a\x1b[2Jb\n\t字") == "a\\x1b[2Jb\n\t字"
