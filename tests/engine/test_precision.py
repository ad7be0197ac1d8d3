"""A parsed network's types compared with the file's, and how layers are counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

import pom_export
from pom_export.engine import job
from pom_export.engine.precision import declared_types
from pom_export.errors import EngineError

CHECKPOINT = Path(__file__).parents[1] / "data" / "golden" / "v2_base" / "checkpoint.pt"

pytestmark = pytest.mark.usefixtures("tensorrt_rtx")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    pom_export.export(CHECKPOINT, path, mask="causal", dtype="float16")
    return path


def build(model: Path, folder: Path, **options: Any) -> pom_export.EngineInfo:
    return pom_export.build_engine(model, folder / "e", backend="tensorrt-rtx", targets=["sm86"], **options)


def tensors_of(model: Path) -> Iterator[tuple[str, str]]:
    for node in onnx.load(model).graph.node:
        yield node.op_type, node.output[0]


def test_the_exporter_declares_what_is_compared(model: Path) -> None:
    declared = declared_types(onnx.load(model).graph)
    products = [name for operator, name in tensors_of(model) if operator == "MatMul"]
    assert {declared[name] for name in [*products, "x", "y"]} == {"float16"}
    assert products


@pytest.mark.parametrize("use_plugin", [True, False])
@pytest.mark.parametrize("operator", ["MatMul", "GatedPolynomialAggregation", "x"])
def test_a_changed_precision_fails_the_build(
    operator: str, use_plugin: bool, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [name for found, name in tensors_of(model) if found == operator] or [operator]
    monkeypatch.setattr(job, "declared_types", lambda graph: {**declared_types(graph), names[0]: "bfloat16"})
    with pytest.raises(EngineError, match=f"precision of 1 tensors: {names[0]} is float16 and not bfloat16"):
        build(model, tmp_path, use_plugin=use_plugin)
    assert list(tmp_path.iterdir()) == []


def test_layers_are_counted_by_type(model: Path, tmp_path: Path) -> None:
    products = sum(operator == "MatMul" for operator, _ in tensors_of(model))
    plugin, functions = (build(model, tmp_path, use_plugin=use_plugin) for use_plugin in (True, False))
    assert plugin.matrix_products == functions.matrix_products == {"float16": products}
    # Functions compute in float32 whatever the model's type.
    assert functions.precisions["float32"] > plugin.precisions.get("float32", 0)
