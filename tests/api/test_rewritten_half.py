"""Half-precision files that other tools have rewritten are judged in the type that they are computed in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime
import onnxscript.optimizer
import pytest
from onnx_ir.passes import common

import pom_export
from pom_export.graph.schema import register_schema
from tests.exports import Exported, prefixed, weight, without_types
from tests.small_models import fill, hybrid


def test_half_precision_is_emulated_of_rewritten_files_too(tmp_path: Path) -> None:
    half = Exported(tmp_path, pom_export.PolynomialMixer(16, 2, 2), mask="causal", dtype="float16")
    assert half.verify(prefixed)
    model = onnx.load(tmp_path / "m.onnx")
    onnx.save(model, tmp_path / "ext.onnx", save_as_external_data=True, location="ext.bin", size_threshold=0)
    report = pom_export.verify(tmp_path / "ext.onnx", checkpoint=half.checkpoint)
    assert report
    assert any("emulating" in comparison.backend for comparison in report.comparisons)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    module = pom_export.RotaryPolynomialMixer(16, 2, 2, max_seq_len=64)
    return Exported(tmp_path_factory.mktemp("half"), module, mask="causal", dtype="float16")


def test_half_precision_in_branches_is_judged_as_such(half: Exported) -> None:
    report = half.verify(without_types)
    assert report
    assert report.precision == "float16"
    assert not report.failed
    assert {"onnxruntime without rounding", "onnxruntime emulating float16"} < {c.backend for c in report.comparisons}
    assert not half.verify(weight("ag_proj.weight", lambda array: array * 1.05), without_types)


@pytest.mark.parametrize(("factor", "passes"), [pytest.param(1.0, True, marks=pytest.mark.slow), (1.05, False)])
def test_half_precision_that_onnxruntime_has_widened_is_judged_as_half(
    half: Exported, factor: float, passes: bool
) -> None:
    half.verify(weight("ag_proj.weight", lambda array: array * factor), file="changed.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(half.folder / "widened.onnx")
    pom_export.inference_session(half.folder / "changed.onnx", session_options=options)
    report = pom_export.verify(half.folder / "widened.onnx", checkpoint=half.checkpoint)
    assert bool(report) is passes
    assert report.precision == "float16"
    assert any("another tool has its weights in float32" in note for note in report.notes)


def fixed_and_folded(path: Path, sizes: Mapping[str, int], folded: Path) -> None:
    """Write a file with fixed sizes, in which whatever depends on them alone is stored as weights."""
    model = ir.load(path)
    for value in model.graph.inputs:
        assert value.shape is not None
        value.shape = ir.Shape([sizes.get(str(size), size) for size in value.shape])
    for node in model.graph:
        for value in node.outputs:
            value.shape = None
    register_schema()
    common.ShapeInferencePass(data_prop=True)(model)
    onnxscript.optimizer.fold_constants(model, onnx_shape_inference=True)
    common.RemoveUnusedNodesPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    ir.save(model, folded)


@pytest.mark.slow
def test_positions_are_judged_in_the_type_that_a_file_has_folded_them_in(tmp_path: Path) -> None:
    """A graph of dynamic sizes rotates by float32 angles; one exported with fixed sizes, by half-precision ones."""
    module = hybrid(layers=2)
    fill(module)
    pom_export.export(module, tmp_path / "fixed.onnx", dtype="float16", static=(2, 8))
    pom_export.export(module, tmp_path / "dynamic.onnx", dtype="float16")
    fixed_and_folded(tmp_path / "dynamic.onnx", {"batch": 2, "tokens": 8}, tmp_path / "folded.onnx")
    for name in ("fixed", "folded"):
        model = onnx.load(tmp_path / f"{name}.onnx")
        assert not any(node.op_type == "Cos" for node in model.graph.node)
        assert pom_export.verify(tmp_path / f"{name}.onnx", module=module)
        weight("mlp.c_fc.weight", lambda array: array * 1.02)(model)
        onnx.save(model, tmp_path / "spoiled.onnx")
        assert not pom_export.verify(tmp_path / "spoiled.onnx", module=module)
