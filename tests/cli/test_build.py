"""`pom-export build` as a user meets it."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import time
from pathlib import Path

import pytest

import pom_export
from pom_export.cli.main import run
from pom_export.cli.progress import Progress

CHECKPOINT = str(Path(__file__).parents[1] / "data" / "golden" / "v2_base" / "checkpoint.pt")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

pytestmark = pytest.mark.usefixtures("tensorrt_rtx")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("build") / "m.onnx"
    pom_export.export(CHECKPOINT, path, mask="causal", dtype="float16")
    return str(path)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "m.engine"


def build(model: str, output: Path, *options: str) -> int:
    return run(["build", model, "-o", str(output), "--backend", "tensorrt-rtx", "--targets", "sm86", *options])


def test_it_says_what_was_built(model: str, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(model, output) == 0
    printed = capsys.readouterr()
    shown = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in printed.out.splitlines())
    assert shown["plugin layers"] == "1 of 1 aggregations"
    assert shown["plugin"] == "embedded"
    assert shown["matrix products"] == "float16: 3"
    assert f"--saveEngine={output}" in shlex.split(shown["command line"])
    stages = printed.err.splitlines()
    assert all(re.match(r"\[ *\d+\.\ds\] \w", stage) for stage in stages)
    assert len(stages) < 12


def test_functions_instead_of_the_plugin(model: str, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(model, output, "--no-plugin") == 0
    printed = capsys.readouterr().out
    assert "0 of 1 aggregations" in printed
    assert "not used: the aggregations are standard ops" in printed


def test_a_second_build_takes_the_engine_from_the_cache(
    model: str, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = str(output.with_name("cache"))
    for cached in (False, True):
        assert build(model, output, "--cache", cache, "--json") == 0
        assert json.loads(capsys.readouterr().out)["cached"] is cached
    assert build(model, output, "--cache", cache) == 0
    assert "(from the cache)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cache", "file"], "cache file is not a folder"),
        (["--cache", "file/cache"], "folder file does not exist"),
        (["--cache", "none/cache"], "folder none does not exist"),
        (["--cache", ""], "an empty name"),
        (["--cache", "m.engine"], "cache m.engine is the output itself"),
        (["--cache", "./m.engine.json"], "cache m.engine.json is the output itself"),
        (["--cache", "c" * 300], "cannot be used: "),
        (["--timing-cache", "t"], "keeps no timing cache"),
        (["--no-plugin", "--targets", "sm10"], "does not build for sm10"),
        (["--targets", ""], "--targets names no GPU architecture, got ''"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    options: list[str],
    message: str,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("a file")
    assert build(model, Path("m.engine"), *options, "--json") == 2
    printed = capsys.readouterr()
    assert message in json.loads(printed.out)["error"]
    assert printed.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.usefixtures("listening")
@pytest.mark.parametrize("options", [[], ["--no-plugin"]], ids=["plugin", "functions"])
@pytest.mark.parametrize("moment", ["reading", "parsing", "building", "Cloning"])
def test_ctrl_c_leaves_nothing(
    moment: str,
    options: list[str],
    model: str,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    say = Progress.__call__

    def interrupt(progress: Progress, stage: str) -> None:
        say(progress, stage)
        if stage.startswith(moment):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)  # the main thread sees it before TensorRT is done

    monkeypatch.setattr(Progress, "__call__", interrupt)
    assert build(model, output, "--cache", str(output.with_name("cache")), *options) == 130
    assert capsys.readouterr().err.endswith("pom-export: interrupted\n")
    assert list(output.parent.iterdir()) == []
