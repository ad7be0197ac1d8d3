"""The public image model from the trainer's file to ONNX Runtime: the official images, and that verify looks at it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import pom_export
from pom_export.parity.comparison import difference
from pom_export.parity.tolerances import GOLDEN

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exported(golden_jit: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("jit") / "m.onnx"
    result = pom_export.export(golden_jit.checkpoint, path)
    assert result.aggregations == golden_jit.config["depth"]
    assert any("the weights are ema1" in note for note in result.notes)
    return path


@pytest.mark.parametrize("kernels", [True, False], ids=["kernel", "function"])
def test_gives_the_official_images_of_the_first_average(exported: Path, golden_jit: Any, kernels: bool) -> None:
    feed = {name: golden_jit.arrays[name] for name in ("x", "t", "y")}
    (image,) = pom_export.inference_session(exported, kernels=kernels).run(None, feed)
    assert difference(image, golden_jit.arrays["out_ema1"], GOLDEN)
    assert not difference(image, golden_jit.arrays["out"], GOLDEN)


def test_verify_compares_batches_ends_of_the_time_and_every_label(exported: Path, golden_jit: Any) -> None:
    report = pom_export.verify(exported, checkpoint=golden_jit.checkpoint)
    assert report
    cases = {case.case for comparison in report.comparisons for case in comparison.cases}
    assert {"typical", "one row", "every value of y"} <= cases
    assert not pom_export.verify(exported, checkpoint=golden_jit.checkpoint, weights="model")


def test_verify_finds_a_wrong_row_of_the_last_label(exported: Path, golden_jit: Any, tmp_path: Path) -> None:
    model = onnx.load(exported)
    (table,) = [tensor for tensor in model.graph.initializer if tensor.name == "y_embedder.embedding_table.weight"]
    array = numpy_helper.to_array(table).copy()
    array[-1] += 1
    table.CopyFrom(numpy_helper.from_array(array, table.name))
    onnx.save(model, tmp_path / "m.onnx")
    report = pom_export.verify(tmp_path / "m.onnx", checkpoint=golden_jit.checkpoint)
    assert not report
    wrong = {case.case for comparison in report.comparisons for case in comparison.cases if not case.difference}
    assert "every value of y" in wrong


def test_verify_takes_a_users_own_inputs(exported: Path, golden_jit: Any, tmp_path: Path) -> None:
    feed = {name: golden_jit.arrays[name] for name in ("x", "t", "y")}
    np.savez(tmp_path / "i.npz", **feed)
    assert pom_export.verify(exported, checkpoint=golden_jit.checkpoint, inputs=tmp_path / "i.npz")
    np.savez(tmp_path / "i.npz", **{**feed, "y": np.full(3, golden_jit.config["num_classes"] + 1)})
    with pytest.raises(pom_export.PomExportError, match="y holds 11, but the model has 0 to 10"):
        pom_export.verify(exported, checkpoint=golden_jit.checkpoint, inputs=tmp_path / "i.npz")
