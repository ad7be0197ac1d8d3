"""The command line as a user sees it: what it prints, its exit codes, and what it leaves behind."""

from __future__ import annotations

import json
import re
import shutil
from datetime import datetime, timedelta, timezone
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from safetensors.torch import load_file, save_file

import pom_export
from pom_export.cli.main import _COMMANDS, run
from pom_export.files import sha256_of

GOLDEN_FOLDER = Path(__file__).parents[1] / "data" / "golden"
CHECKPOINT = str(GOLDEN_FOLDER / "v2_base" / "checkpoint.pt")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("cli") / "m.onnx"
    pom_export.export(CHECKPOINT, path, mask="padding", samples=2)
    return str(path)


def test_export_prints_one_json_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", CHECKPOINT, "-o", str(tmp_path / "m.onnx"), "--mask", "causal", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["aggregations"] == 1
    assert result["opset"] == 20
    assert result["bytes"] == (tmp_path / "m.onnx").stat().st_size
    assert result["inputs"] == ["x float32[batch, tokens, 32]"]
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_export_speaks_to_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", CHECKPOINT, "-o", str(tmp_path / "m.onnx"), "--static", "1x16"]) == 0
    printed = capsys.readouterr()
    assert "x float32[1, 16, 32]" in printed.out
    assert "onnxruntime kernel, onnxruntime function" in printed.out
    assert "recognised a mixer (pom-v2): dim 32, degree 3" in printed.err


def test_verify_passes_and_writes_a_page(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "report.html"
    assert run(["verify", model, "--checkpoint", CHECKPOINT, "--json", "--report", str(page)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["passed"] is True
    keys = {"backend", "path", "output", "max_abs", "max_rel", "cosine", "tolerance", "passed"}
    assert all(keys <= comparison.keys() for comparison in result["comparisons"])
    assert {comparison["path"] for comparison in result["comparisons"]} == {"kernel", "function"}
    cases = {case["case"] for case in result["comparisons"][0]["cases"]}
    assert {"one token", "odd sizes", "beyond both clamps", "a fully masked row"} <= cases
    html = page.read_text()
    assert "passed" in html
    assert "a fully masked row" in html
    assert not re.search(r"(src|href)=", html), "the page must stand alone"
    sha256 = {file: sha256_of(Path(file)) for file in (model, CHECKPOINT)}
    assert result["sha256"] == sha256
    assert all(value in html for value in sha256.values())
    assert abs(datetime.now(timezone.utc) - datetime.fromisoformat(result["date"])) < timedelta(hours=1)
    assert result["date"] in html
    versions = {"pom-export": pom_export.__version__, "torch": version("torch"), "onnx": version("onnx")}
    assert versions.items() <= result["versions"].items()
    assert f"torch {version('torch')}" in html
    assert '<meta name="viewport" content="width=device-width' in html
    assert "no engine was given (<code>engine</code>)" in html
    assert "tensorrt: no engine was given (--engine)" in result["not_run"]


def test_verify_fails_with_exit_code_1(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = torch.load(CHECKPOINT, weights_only=True)
    save_file({**weights, "po_coeff": weights["po_coeff"] * 1.01}, tmp_path / "c.safetensors")
    page = tmp_path / "r.html"
    assert run(["verify", model, "--checkpoint", str(tmp_path / "c.safetensors"), "--report", str(page)]) == 1
    assert "FAILED" in capsys.readouterr().out
    assert "FAILED" in page.read_text()
    assert run(["verify", model, "--checkpoint", str(tmp_path / "c.safetensors"), "--rtol", "0.5"]) == 0


def test_verify_takes_inputs_of_the_users(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = tmp_path / "in.npz"
    np.savez(inputs, x=np.ones((2, 3, 32), np.float32), mask=np.ones((2, 3), bool))
    assert run(["verify", model, "--checkpoint", CHECKPOINT, "--inputs", str(inputs), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["comparisons"][0]["cases"][0]["shapes"] == "x 2x3x32, mask 2x3"
    assert run(["verify", model, "--checkpoint", CHECKPOINT, "--inputs", str(inputs)]) == 0
    assert f", one case: {inputs}\n" in capsys.readouterr().out
    np.savez(inputs, x=np.ones((2, 3, 31), np.float32), mask=np.ones((2, 3), bool))
    assert run(["verify", model, "--checkpoint", CHECKPOINT, "--inputs", str(inputs)]) == 2
    assert "x is float32[2, 3, 31], but the model takes float32[batch, tokens, 32]" in capsys.readouterr().err


@pytest.mark.usefixtures("tensorrt_rtx")
def test_build_prints_one_json_object(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = tmp_path / "m.engine"
    options = ["--backend", "tensorrt-rtx", "--targets", "sm86", "--maxShapes", "x:4x512x32", "--json"]
    assert run(["build", model, "-o", str(engine), *options]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["plugin_layers"] == result["aggregations"] == 1
    assert result["targets"] == ["sm86"]
    assert result["profiles"]["mask"]["max"] == [4, 512]
    assert result["bytes"] == engine.stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.engine", "m.engine.json"]
    assert run(["verify", model, "--engine", str(engine), "--json"]) == 0


NO_AGGREGATION = '<ir_version: 10, opset_import: ["": 20]> g (float[N] x) => (float[N] y) { y = Relu(x) }'
BAD_COMMANDS = {
    "no checkpoint": (["export", "{tmp}/none.pt", "-o", "{tmp}/o"], "does not exist"),
    "no checkpoint, old output": (["export", "{tmp}/none.pt", "-o", "{text}"], "does not exist"),
    "empty": (["export", "{empty}", "-o", "{tmp}/o"], "is empty"),
    "text": (["export", "{text}", "-o", "{tmp}/o"], "is not a checkpoint"),
    "NaN": (["export", "{nan}", "-o", "{tmp}/o"], "NaN"),
    "unknown mask": (["export", CHECKPOINT, "-o", "{tmp}/o", "--mask", "diagonal"], "'diagonal'"),
    "unknown dtype": (["export", CHECKPOINT, "-o", "{tmp}/o", "--dtype", "float8"], "'float8'"),
    "old opset": (["export", CHECKPOINT, "-o", "{tmp}/o", "--opset", "9"], "'9' is not one of 18, 19"),
    "odd static": (["export", CHECKPOINT, "-o", "{tmp}/o", "--static", "16"], "BATCHxTOKENS"),
    "huge static": (["export", CHECKPOINT, "-o", "{tmp}/o", "--static", "999999999999x1"], "999999999999 tokens"),
    "static of 5000 digits": (["export", CHECKPOINT, "-o", "{tmp}/o", "--static", "9" * 5000 + "x1"], "BATCHxTOKENS"),
    "long output": (["export", CHECKPOINT, "-o", "{tmp}/" + "o" * 300], "File name too long"),
    "long name beside": (["export", CHECKPOINT, "-o", "{tmp}/" + "o" * 250, "--samples", "1"], "File name too long"),
    "long checkpoint": (["export", "{tmp}/" + "c" * 300, "-o", "{tmp}/o"], "File name too long"),
    "target twice": (["build", "{model}", "-o", "{tmp}/o", "--targets", "sm86,sm86"], "sm86 is given twice"),
    "shape twice": (["build", "{model}", "-o", "{tmp}/o", "--minShapes", "x:1x1x32,x:1x2x32"], "names 'x' twice"),
    "huge shape": (
        ["build", "{model}", "-o", "{tmp}/o", "--maxShapes", "x:1x9999999999x32"],
        "more than a GPU can hold",
    ),
    "huge volume": (["build", "{model}", "-o", "{tmp}/o", "--maxShapes", "x:9999999x9999999x32"], "a GPU can hold"),
    "shape of 5000 digits": (["build", "{model}", "-o", "{tmp}/o", "--maxShapes", "x:" + "9" * 5000], "NAME:AxBxC"),
    "no such folder": (["export", CHECKPOINT, "-o", "{tmp}/none/none/o"], "nor does"),
    "no checkpoint, new folder": (["export", "{tmp}/none.pt", "-o", "{tmp}/new/o"], "does not exist"),
    "no model, new folder": (["build", "{tmp}/none.onnx", "-o", "{tmp}/new/o"], "does not exist"),
    "folder in a file": (["export", CHECKPOINT, "-o", "{text}/new/o"], "cannot create folder"),
    "no page": (["verify", "{model}", "--report", "{tmp}/none/none/page.html"], "nor does"),
    "output is a folder": (["export", CHECKPOINT, "-o", "{tmp}"], "is a folder"),
    "unwritable": (["export", CHECKPOINT, "-o", "/proc/o"], "cannot write"),
    "no output": (["export", CHECKPOINT], "--output"),
    "model is no ONNX": (["verify", "{text}", "--checkpoint", CHECKPOINT], "not a complete ONNX model"),
    "build of no ONNX": (["build", "{text}", "-o", "{tmp}/o"], "not a complete ONNX model"),
    "output is the checkpoint": (["export", "{copy}", "-o", "{copy}"], "is the input itself"),
    "no aggregation": (["build", "{other}", "-o", "{other}"], "holds no PoM aggregation"),
    "negative bound": (["verify", "{model}", "--checkpoint", CHECKPOINT, "--rtol", "-1"], "got -1.0"),
    "bound that is no number": (["verify", "{model}", "--checkpoint", CHECKPOINT, "--atol", "nan"], "got nan"),
    "unknown command": (["exprot"], "exprot"),
    "unknown option": (["export", CHECKPOINT, "-o", "{tmp}/o", "--fast"], "--fast"),
}


@pytest.mark.parametrize("kind", BAD_COMMANDS)
@pytest.mark.parametrize("as_json", [False, True])
def test_bad_input_ends_in_one_clear_line(
    kind: str, as_json: bool, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, bad = tmp_path / "out", tmp_path / "bad"
    output.mkdir()
    bad.mkdir()
    (bad / "empty").touch()
    (bad / "text").write_text("no model at all, just text")
    save_file({**torch.load(CHECKPOINT, weights_only=True), "se_bias": torch.full((64,), torch.nan)}, bad / "nan")
    shutil.copy(CHECKPOINT, bad / "copy")
    onnx.save(onnx.parser.parse_model(NO_AGGREGATION), bad / "other")
    places = {"tmp": output, "model": model, **{file.name: file for file in bad.iterdir()}}
    before = {file.name: file.read_bytes() for file in bad.iterdir()}
    arguments, message = BAD_COMMANDS[kind]

    code = run([argument.format(**places) for argument in arguments] + (["--json"] if as_json else []))

    printed = capsys.readouterr()
    assert code == 2
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert list(output.iterdir()) == []
    assert {file.name: file.read_bytes() for file in bad.iterdir()} == before
    if as_json:
        assert message in json.loads(printed.out)["error"]
    else:
        assert printed.out == ""
        last = printed.err.strip().splitlines()[-1]
        assert "error: " in last.lower()


def test_debug_shows_the_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", str(tmp_path / "none"), "-o", str(tmp_path / "o"), "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    printed = capsys.readouterr().out
    for name in ("export", "verify", "build"):
        assert name in printed
        assert run([name, "--help"]) == 0
        assert "--json" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert pom_export.__version__ in capsys.readouterr().out


def test_the_checkpoint_of_the_demo_is_small() -> None:
    checkpoint = Path(__file__).parents[2] / "samples" / "checkpoints" / "byte_lm.safetensors"
    assert checkpoint.stat().st_size < 4_000_000
    assert load_file(checkpoint)["embedding.weight"].shape == (256, 128)


def test_every_command_that_a_message_or_a_page_names_is_there() -> None:
    root = Path(__file__).parents[2]
    pages = [*root.glob("pom_export/**/*.py"), root / "README.md", root / "CONTRIBUTING.md", *root.glob("docs/*.md")]
    named = {name for page in pages for name in re.findall(r"[`$] ?pom-export ([a-z]+)", page.read_text())}
    assert {"export", "verify", "build"} <= named <= set(_COMMANDS)
