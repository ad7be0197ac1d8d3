"""Logs are shown beside a command's stages: each line once."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from pom_export import PolynomialMixer
from pom_export.cli.logs import logs_on_stderr
from pom_export.cli.main import run

LOGGER = logging.getLogger("pom_export")


def test_warnings_are_shown_and_nothing_stays_behind(capsys: pytest.CaptureFixture[str]) -> None:
    before = LOGGER.level, list(LOGGER.handlers)
    with logs_on_stderr(debug=False):
        LOGGER.getChild("graph").warning("torch %s is new\n\x1b[2J", "9.9")
        LOGGER.getChild("graph").debug("of no use")
    assert (LOGGER.level, LOGGER.handlers) == before
    assert capsys.readouterr().err == "pom_export.graph: torch 9.9 is new\\n\\x1b[2J\n"


def test_an_error_that_a_command_survives_is_shown_with_its_trace(capsys: pytest.CaptureFixture[str]) -> None:
    with logs_on_stderr(debug=False):
        LOGGER.error("internal error", exc_info=ValueError("why"))
        LOGGER.warning("it goes on", exc_info=ValueError("no matter"))
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["pom_export: internal error", "ValueError: why", "pom_export: it goes on"]


@pytest.mark.parametrize("options", [[], ["-v"], ["--debug"], ["-v", "--debug"]], ids=" ".join)
def test_each_line_is_shown_once(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "m.pt"
    torch.save(PolynomialMixer(4, 2, 1).state_dict(), file)
    assert run(["export", str(file), "-o", str(tmp_path / "m.onnx"), *options]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert sum("tracing" in line for line in lines) == 1
    sessions = [line for line in lines if line.startswith("pom_export.runtime.session: session of ")]
    assert bool(sessions) == ("--debug" in options)
    assert len(lines) == len(set(lines))
