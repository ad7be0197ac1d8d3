"""The report as a whole, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import pom_export
from pom_export.checkup import doctor as module
from pom_export.checkup.findings import BROKEN, NOT_INSTALLED, OK, DoctorReport, Finding
from pom_export.checkup.parts import PARTS
from pom_export.checkup.versions import is_older, oldest, required_packages
from pom_export.cli.main import run
from pom_export.errors import InputError


def test_a_report_is_truthy_if_something_works_and_nothing_needed_is_broken() -> None:
    works, missing = Finding("a", OK, "1.0"), Finding("b", NOT_INSTALLED, "no b")
    assert DoctorReport([works, missing])
    assert not DoctorReport([])
    assert not DoctorReport([missing])
    assert not DoctorReport([works, Finding("b", NOT_INSTALLED, "no b", needed=True)])
    broken = DoctorReport([works, Finding("b", BROKEN, "b fails", "mend b")])
    assert (bool(broken), [each.name for each in broken.faults]) == (False, ["b"])


@pytest.mark.parametrize(
    ("version", "than", "older"),
    [("1.9", "1.10", True), ("1.22.0", "1.22", False), ("2.13.0+cpu", "2.11", False), ("1", "1.0.1", True),
     ("1.0", "", False), ("", "1.0", True), ("10.15.1.29", "10.9", False)],
)  # fmt: skip
def test_versions_are_compared_by_their_numbers(version: str, than: str, older: bool) -> None:
    assert is_older(version, than) == older


def test_the_oldest_versions_are_those_of_the_package() -> None:
    assert {"torch", "onnx", "numpy"} <= set(required_packages())
    assert "onnxruntime" not in required_packages()
    assert oldest("onnxruntime") == "1.22"


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try only two parts of the installation."""
    trials = [module._probe("op", remedy="make setup"), module._package("no_such_package")]
    monkeypatch.setattr(module, "_of_installation", lambda: iter(trials))
    monkeypatch.setattr("pom_export.checkup.parts.PARTS", (*PARTS, "no_such_package"))
    monkeypatch.setattr(module, "PARTS", (*PARTS, "no_such_package"))


@pytest.mark.usefixtures("few")
def test_what_is_needed_must_be_there() -> None:
    report = pom_export.doctor(need=["no_such_package"])
    assert [each.name for each in report.faults] == ["no_such_package"]
    with pytest.raises(InputError, match=r"unknown part 'onnx-runtime'\. Did you mean 'onnxruntime'"):
        pom_export.doctor(need=["onnx-runtime"])


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_what_is_there_is_no_fault() -> None:
    assert pom_export.doctor()
    assert pom_export.doctor(need="op")
    report = pom_export.doctor("none.onnx")
    assert [each.name for each in report.faults] == ["none.onnx"]


@pytest.mark.usefixtures("few")
def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["healthy"] is True
    assert [each["state"] for each in result["findings"]] == [OK, NOT_INSTALLED]
    assert run(["doctor", "--need", "tensorrt-rtxx"]) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_the_command_tells_people_of_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", str(tmp_path / "none.onnx")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("op ")
    assert "does not exist" in lines[2]
    assert lines[3].strip().startswith("remedy: ")
    assert lines[-1].split() == ["result", "faults:", str(tmp_path / "none.onnx")]


@pytest.mark.slow
def test_this_installation_is_healthy(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--need", "onnxruntime,op,compiler"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert set(PARTS) <= set(names)
