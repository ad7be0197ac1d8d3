"""Stages are reported to the caller, and logged."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

import pom_export
from pom_export import PolynomialMixer
from pom_export.stages import STAGE, logged


def test_a_stage_is_reported_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    shown: list[str] = []
    with caplog.at_level(logging.INFO, "pom_export"):
        logged(shown.append, logging.getLogger("pom_export.api.exporting"))("100 % done")
    assert shown == ["100 % done"]
    (record,) = caplog.records
    assert (record.name, record.levelname, record.getMessage()) == ("pom_export.api.exporting", "INFO", "100 % done")
    assert hasattr(record, STAGE)


def test_an_export_logs_its_stages(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shown: list[str] = []
    with caplog.at_level(logging.DEBUG, "pom_export"):
        pom_export.export(PolynomialMixer(8, 2, 1), tmp_path / "m.onnx", progress=shown.append)
    assert shown
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.INFO] == shown
    loggers = {record.name for record in caplog.records if record.levelno == logging.DEBUG}
    assert "pom_export.runtime.session" in loggers


def test_nothing_is_shown_to_those_who_ask_for_no_logs() -> None:
    script = "import logging, pom_export; logging.getLogger('pom_export.graph').warning('seen')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
