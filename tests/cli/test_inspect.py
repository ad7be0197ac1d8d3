"""`pom-export inspect`, as a person and as a program."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import onnx.parser
import pytest

import pom_export
from pom_export.cli.main import run
from pom_export.engine.manifest import EngineInfo, manifest_path
from pom_export.files import sha256_of

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


def test_says_what_a_checkpoint_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(GOLDEN / "gpt_hybrid")]) == 0
    out = capsys.readouterr().out
    assert "nanogpt-pom (pom-v1-grouped): vocabulary 97, 6 layers (2 layers of full self-attention, 4 heads)" in out
    assert "33 tensors of float32" in out


def test_json_holds_the_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(GOLDEN / "rope2d" / "checkpoint.pt"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["architecture"], result["family"]) == ("mixer", "pom-v2")
    assert result["config"]["rotary"] == {"max_seq_len": 0, "max_h": 8, "max_w": 8}
    assert result["dtypes"] == {"float32": 8}
    assert len(result["sha256"]) == 64


def test_what_is_missing_is_reported_with_the_option_that_gives_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(GOLDEN / "v1_degree3" / "checkpoint.pt", tmp_path / "m.pt")
    assert run(["inspect", str(tmp_path / "m.pt")]) == 2
    assert "--degree 1, 2, 3 or 6" in capsys.readouterr().err
    assert run(["inspect", str(tmp_path / "m.pt"), "--degree", "3"]) == 0
    assert "degree 3, expand 2" in capsys.readouterr().out


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inspect") / "m.onnx"
    pom_export.export(GOLDEN / "v2_base" / "checkpoint.pt", path, mask="causal", stateful=True, dtype="half")
    return path


def test_says_what_a_model_holds(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(model), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["kind"], result["model"], result["family"]) == ("model", str(model), "pom-v2")
    assert result["aggregations"] == 1
    (kind,) = result["aggregation_kinds"]
    assert (kind["op"], kind["count"]) == ("GatedPolynomialAggregation", 1)
    assert (kind["form"], kind["mode"], kind["stateful"]) == ("power", "causal", 1)
    assert result["inputs"][0] == "x float16[batch, tokens, 32]"
    assert "past_length int64[batch]" in result["inputs"]
    assert "present_length int64[batch]" in result["outputs"]
    assert (result["state"], result["dtype"], result["opset"]) == ("causal", "float16", 20)
    assert result["metadata"]["mask"] == "causal"
    assert result["bytes"] == model.stat().st_size
    assert result["sha256"] == sha256_of(model)
    assert run(["inspect", str(model)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"1 x +GatedPolynomialAggregation: form power, mode causal, rotary_blocks 1", out)
    assert re.search(r"exported from +mixer \(pom-v2\)\n", out)


def test_a_model_of_any_name_and_of_other_tools_is_known(model: Path, tmp_path: Path) -> None:
    shutil.copy(model, tmp_path / "renamed.pt")
    assert isinstance(pom_export.inspect(tmp_path / "renamed.pt"), pom_export.ModelInspection)
    other = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g (float[N] x) => (float[N] y) { y = Relu(x) }'
    )
    onnx.save_model(other, tmp_path / "other")
    found = pom_export.inspect(tmp_path / "other")
    assert isinstance(found, pom_export.ModelInspection)
    assert (found.aggregations, found.aggregation_kinds, found.architecture, found.state) == (0, [], None, None)
    assert isinstance(pom_export.inspect(GOLDEN / "v2_base" / "checkpoint.pt"), pom_export.CheckpointInspection)


def test_says_what_an_engine_is_for(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = tmp_path / "m.engine"
    engine.write_bytes(b"vtrt, an engine")
    info = EngineInfo(
        backend="tensorrt-rtx", backend_version="1.7", targets=["sm86"], gpu=None, path="plugin", plugin_embedded=True,
        plugin_sha256="0", profiles={"x": {"min": [1, 1], "opt": [1, 2], "max": [4, 8]}}, model_sha256=sha256_of(model),
        weights_sha256={}, toolkit_version="0.1", packages={"onnx": "1.23"}, engine="elsewhere/m.engine",
        manifest="elsewhere/m.engine.json", aggregations=1, plugin_layers=1, precisions={"float16": 3},
        matrix_products={"int8": 2}, engine_products={"int8": 1, "float16": 1},
        not_as_asked={"proj/MatMul": "int8 asked for, float16 got"},
        inspected={"layers": 9, "plugin_layers": 1, "formats": {}},
        inputs=["x float16[batch, 2]"], outputs=["y float16[batch, 2]"], bytes=engine.stat().st_size, cached=False,
        seconds=1.0, sha256=sha256_of(engine), command_line="trtexec",
    )  # fmt: skip
    manifest_path(engine).write_text(json.dumps(info.to_dict()))
    assert run(["inspect", str(engine), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["kind"], result["engine"], result["targets"]) == ("engine", str(engine), ["sm86"])
    assert result["profiles"]["x"]["max"] == [4, 8]
    assert run(["inspect", str(engine)]) == 0
    out = capsys.readouterr().out
    products = (
        "products +int8: 2",
        "as built +int8: 1, float16: 1",
        "as asked +proj/MatMul: int8 asked for, float16 got",
    )
    for line in (
        "backend +tensorrt-rtx 1.7",
        "plugin layers +1 of 1",
        "x 1x1 / 1x2 / 4x8",
        "inspector.layers +9",
        *products,
    ):
        assert re.search(line, out)
    engine.write_bytes(b"vtrt, another one")
    assert run(["inspect", str(engine)]) == 2
    assert "not what" in capsys.readouterr().err
    manifest_path(engine).unlink()
    assert run(["inspect", str(engine)]) == 2
    assert "m.engine.json does not exist. The build wrote it beside the engine: copy it too" in capsys.readouterr().err


def test_a_checkpoints_options_are_no_models(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(model), "--degree", "3"]) == 2
    assert f"--degree 3 is for a checkpoint, and {model} is a model" in capsys.readouterr().err


def test_only_checkpoints_need_torch(model: Path) -> None:
    check = f"import sys; from pom_export.cli.main import run; run(['inspect', {str(model)!r}, '-q'])"
    done = subprocess.run([sys.executable, "-c", f"{check}; sys.exit('torch' in sys.modules)"], capture_output=True)
    assert done.returncode == 0


def test_a_models_own_names_forge_no_line(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forged = onnx.load(model)
    spec = next(entry for entry in forged.metadata_props if entry.key.endswith("spec"))
    spec.value = json.dumps({**json.loads(spec.value), "config": {"sha256": "0" * 64, "dim": 8}})
    onnx.save(forged, tmp_path / "m.onnx")

    assert run(["inspect", str(tmp_path / "m.onnx")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("sha256 ") for line in lines) == 1
    assert any(line.split() == ["config.sha256", "0" * 64] for line in lines)
