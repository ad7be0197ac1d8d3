"""`verify` on other runtimes: OpenVINO, and ONNX Runtime's package for JavaScript."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import pom_export
from pom_export.cli.main import run
from pom_export.errors import InputError
from tests.other_runtimes import javascript_folder, run_with_openvino

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
CHECKPOINT = GOLDEN / "v2_heads"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    pom_export.export(CHECKPOINT, path, mask="causal", stateful=True)
    return path


@pytest.fixture(scope="module")
def spoiled(model: Path) -> Path:
    """The same file with one weight changed by one per cent."""
    path = model.with_name("spoiled.onnx")
    proto = onnx.load(model)
    weight = max(proto.graph.initializer, key=lambda each: np.prod(each.dims))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.01), weight.name))
    onnx.save(proto, path)
    return path


def test_what_is_not_installed_is_named_only_if_asked_for(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("openvino") is not None:
        pytest.skip("OpenVINO is installed")
    monkeypatch.chdir(tmp_path)
    assert [line for line in pom_export.verify(model, checkpoint=CHECKPOINT).not_run if "tensorrt" not in line] == []
    asked = ["onnxruntime", "openvino", "onnxruntime-web"]
    report = pom_export.verify(model, checkpoint=CHECKPOINT, backends=asked)
    assert report
    openvino, web = (line for line in report.not_run if "tensorrt" not in line)
    assert openvino == "openvino: OpenVINO is not installed. Install it: pip install 'openvino>=2026.4'"
    assert web.startswith("onnxruntime-web: onnxruntime-web ")
    with pytest.raises(InputError, match=r"no backend here can run .*: openvino: OpenVINO is not installed"):
        pom_export.verify(model, checkpoint=CHECKPOINT, backends=["openvino"])


@pytest.mark.parametrize(
    ("backends", "message"), [("openvino", "must be a list"), ([], "must be a list"), (["openvin"], "unknown backend")]
)
def test_unknown_backends_are_refused(backends: Any, message: str, model: Path) -> None:
    with pytest.raises(InputError, match=message):
        pom_export.verify(model, checkpoint=CHECKPOINT, backends=backends)


def test_the_command_line_takes_a_list(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["verify", str(model), "--checkpoint", str(CHECKPOINT), "--backends"]
    assert run([*given, "onnxruntime", "-q"]) == 0
    assert "onnxruntime (kernel)" in capsys.readouterr().out
    assert run([*given, "onnxruntime,openvno"]) == 2
    assert "openvino" in capsys.readouterr().err


def openvino_report(model: Path, *options: str) -> tuple[int, dict[str, Any]]:
    arguments = ["verify", str(model), "--checkpoint", str(CHECKPOINT), "--backends", "openvino", "--json", *options]
    done = run_with_openvino("-m", "pom_export", *arguments)
    return done.returncode, json.loads(done.stdout)


@pytest.mark.slow
def test_openvino_runs_an_inlined_copy_in_float32(model: Path) -> None:
    code, report = openvino_report(model)
    assert (code, report["passed"]) == (0, True)
    assert [each["output"] for each in report["comparisons"]] == ["y", "present_state", "present_length"]
    assert {(each["backend"], each["path"]) for each in report["comparisons"]} == {("openvino", "inlined")}
    assert len(report["comparisons"][0]["cases"]) > 5
    notes = "\n".join(report["notes"])
    assert "computed in float32, by INFERENCE_PRECISION_HINT f32" in notes
    assert "it ran an inlined copy of the file" in notes
    assert report["versions"]["openvino"].startswith("2026")
    if "bfloat16" in notes:  # on processors that have it
        assert "INFERENCE_PRECISION_HINT, openvino computes in bfloat16 on this processor: " in notes
        assert "WRONG: set INFERENCE_PRECISION_HINT to f32" in notes
    else:
        assert "openvino computes in float32 on this processor too" in notes


@pytest.mark.slow
def test_openvino_finds_a_changed_weight(spoiled: Path) -> None:
    code, report = openvino_report(spoiled)
    assert (code, report["passed"]) == (1, False)
    assert not report["comparisons"][0]["passed"]


@pytest.mark.machine
@pytest.mark.slow
def test_onnxruntime_web_runs_files_with_functions_and_inlined_ones(
    model: Path, spoiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(javascript_folder())
    report = pom_export.verify(model, checkpoint=CHECKPOINT, backends=["onnxruntime-web"])
    assert report
    assert {(each.backend, each.path) for each in report.comparisons} == {("onnxruntime-web", "function")}
    assert len(report.comparisons) == 3
    assert any(note.startswith("onnxruntime-web 1.") and "WebAssembly" in note for note in report.notes)

    pom_export.inline(model, tmp_path / "in.onnx")
    inlined = pom_export.verify(tmp_path / "in.onnx", checkpoint=CHECKPOINT, backends=["onnxruntime-web"])
    assert inlined
    assert inlined.comparisons[0].path == "standard operators"
    assert not pom_export.verify(spoiled, checkpoint=CHECKPOINT, backends=["onnxruntime-web"])


@pytest.mark.machine
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_on_other_runtimes(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pom_export.export(CHECKPOINT, tmp_path / "m.onnx", mask="padding", dtype=dtype)
    code, report = openvino_report(tmp_path / "m.onnx")
    assert (code, report["precision"]) == (0, dtype)
    monkeypatch.chdir(javascript_folder())
    report = pom_export.verify(
        tmp_path / "m.onnx", checkpoint=CHECKPOINT, backends=["onnxruntime", "onnxruntime-web"]
    ).to_dict()
    assert report["passed"]
    if dtype == "bfloat16":
        assert "onnxruntime-web: JavaScript has no bfloat16" in report["not_run"]
    else:
        assert any(each["backend"] == "onnxruntime-web" for each in report["comparisons"])


@pytest.mark.machine
@pytest.mark.slow
def test_weights_in_a_file_of_their_own(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = onnx.load(model)
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=64)
    code, report = openvino_report(tmp_path / "m.onnx")
    assert (code, report["passed"]) == (0, True)
    monkeypatch.chdir(javascript_folder())
    assert pom_export.verify(tmp_path / "m.onnx", checkpoint=CHECKPOINT, backends=["onnxruntime-web"])


@pytest.mark.slow
def test_what_openvino_refuses_is_one_line(model: Path, tmp_path: Path) -> None:
    proto = onnx.load(model)
    for node in proto.graph.node:
        node.input[:] = ["scaled" if name == "x" else name for name in node.input]
    proto.graph.initializer.append(numpy_helper.from_array(np.eye(3, dtype=np.float32), "square"))
    proto.graph.node.insert(0, onnx.helper.make_node("Mul", ["x", "one"], ["scaled"]))
    proto.graph.node.insert(0, onnx.helper.make_node("Det", ["square"], ["one"]))
    onnx.save(proto, tmp_path / "m.onnx")
    arguments = [
        "verify",
        str(tmp_path / "m.onnx"),
        "--checkpoint",
        str(CHECKPOINT),
        "--backends",
        "onnxruntime,openvino",
    ]
    done = run_with_openvino("-m", "pom_export", *arguments, "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert report["failed"] == [
        "openvino (inlined): openvino (f32) failed: No conversion rule found for operations: Det-20"
    ]
