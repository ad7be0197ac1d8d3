"""Engines by the real TensorRT for RTX, whose builder needs no GPU."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import onnx
import pytest

import pom_export
from pom_export.engine import parse_targets
from pom_export.engine.backend import TENSORRT_RTX
from pom_export.errors import EngineError, InputError
from pom_export.files import sha256_of
from pom_export.graph import exporter

GOLDEN_FOLDER = Path(__file__).parents[1] / "data" / "golden"
CHECKPOINT = GOLDEN_FOLDER / "v2_heads" / "checkpoint.pt"

pytestmark = pytest.mark.usefixtures("tensorrt_rtx")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tmp_path_factory.mktemp("model") / "m.onnx"
    pom_export.export(CHECKPOINT, model, mask="padding")
    return model


@pytest.mark.parametrize("mask", ["none", "causal", "padding", "full"])
def test_every_aggregation_becomes_a_plugin_layer(mask: str, tmp_path: Path) -> None:
    pom_export.export(CHECKPOINT, tmp_path / "m.onnx", mask=mask)

    info = pom_export.build_engine(tmp_path / "m.onnx", tmp_path / "m.engine", backend=TENSORRT_RTX, targets=["sm86"])

    assert info.plugin_layers == info.aggregations == 1
    assert info.bytes == (tmp_path / "m.engine").stat().st_size > pom_export.plugin_library().stat().st_size
    assert json.loads((tmp_path / "m.engine.json").read_text()) == info.to_dict()
    assert info.sha256 == sha256_of(tmp_path / "m.engine")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_models_build(dtype: str, tmp_path: Path) -> None:
    pom_export.export(CHECKPOINT, tmp_path / "m.onnx", dtype=dtype, mask="causal")
    info = pom_export.build_engine(tmp_path / "m.onnx", tmp_path / "m.engine", backend=TENSORRT_RTX, targets=["sm89"])
    assert info.plugin_layers == 1


def test_without_embedding_the_engine_is_smaller(exported: Path, tmp_path: Path) -> None:
    sizes = [
        pom_export.build_engine(
            exported, tmp_path / "m.engine", backend=TENSORRT_RTX, targets=["sm120"], embed_plugin=embed
        ).bytes
        for embed in (True, False)
    ]
    assert sizes[0] - sizes[1] >= pom_export.plugin_library().stat().st_size


def test_unknown_targets_are_refused(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not build for sm12"):
        pom_export.build_engine(exported, tmp_path / "e", backend=TENSORRT_RTX, targets=["sm12"])
    with pytest.raises(InputError, match="'86'"):
        parse_targets("86")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_tensorrt_refuses_leaves_nothing(exported: Path, tmp_path: Path) -> None:
    model = onnx.load(exported)
    node = next(node for node in model.graph.node if node.op_type == "MatMul")
    node.op_type, node.domain = "Unheard", "of"
    model.opset_import.append(onnx.helper.make_opsetid("of", 1))
    onnx.save(model, tmp_path / "bad.onnx")
    with pytest.raises(EngineError, match="Unheard"):
        pom_export.build_engine(tmp_path / "bad.onnx", tmp_path / "e", backend=TENSORRT_RTX, targets=["sm86"])
    assert [path.name for path in tmp_path.iterdir()] == ["bad.onnx"]


def test_an_aggregation_that_is_no_plugin_layer_fails_the_build(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the override flag the parser would take the function; the builder must notice."""
    from pom_export.engine import builder

    original = builder.read_model

    def with_one_more(path: Path) -> object:
        model = original(path)
        object.__setattr__(model, "aggregations", [*model.aggregations, "another"])
        return model

    monkeypatch.setattr(builder, "read_model", with_one_more)
    with pytest.raises(EngineError, match="1 of 2 aggregations"):
        pom_export.build_engine(exported, tmp_path / "e", backend=TENSORRT_RTX, targets=["sm86"])
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_replaces_no_other_file(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text('{"degree": 2}')
    with pytest.raises(InputError, match="where the manifest would go"):
        pom_export.build_engine(exported, tmp_path / "m", backend=TENSORRT_RTX, targets=["sm86"])
    assert [path.read_text() for path in tmp_path.iterdir()] == ['{"degree": 2}']


def test_the_engine_replaces_no_file_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "_EXTERNAL_DATA_BYTES", 0)
    model, weights = tmp_path / "m.onnx", tmp_path / "m.onnx.data"
    pom_export.export(CHECKPOINT, model)
    for output in (model, weights):
        with pytest.raises(InputError, match="is the input itself"):
            pom_export.build_engine(model, output, backend=TENSORRT_RTX, targets=["sm86"])
    info = pom_export.build_engine(model, tmp_path / "e", backend=TENSORRT_RTX, targets=["sm86"])
    assert info.weights_sha256 == {"m.onnx.data": sha256_of(weights)}
    assert info.model_sha256 == sha256_of(model)


def test_ctrl_c_stops_the_build_and_leaves_nothing(exported: Path, tmp_path: Path) -> None:
    def interrupt(stage: str) -> None:
        if stage.startswith("Building"):
            os.kill(os.getpid(), signal.SIGINT)

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            pom_export.build_engine(
                exported, tmp_path / "e", backend=TENSORRT_RTX, targets=["sm86", "sm89"], progress=interrupt
            )
    finally:
        signal.signal(signal.SIGINT, previous)
    assert list(tmp_path.iterdir()) == []
