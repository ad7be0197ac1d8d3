"""`quantize` on files of other kinds: layers on rows, weights in other files, outputs elsewhere."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import pom_export
from pom_export.graph import saving
from pom_export.graph.exported_model import read_model

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("layer") / "m.onnx"
    pom_export.export(GOLDEN / "v2_base", path)
    return path


class Rows(torch.nn.Module):
    """A mixer, and two linear layers with biases on the mean of its outputs: Gemm in a file."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = pom_export.PolynomialMixer(16, degree=2, expand=2)
        self.up = torch.nn.Linear(16, 48)
        self.down = torch.nn.Linear(48, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(self.mixer(x).mean(1))))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "m.onnx"
    torch.manual_seed(0)
    pom_export.export(Rows().eval(), path, example_inputs={"x": torch.randn(2, 5, 16)})
    return path


@pytest.mark.parametrize(
    "options", [{}, {"weights": "int4"}, {"target": "prefill"}, {"activations": "int8"}, {"activations": "fp8"}]
)
def test_layers_on_rows_are_products_too(options: dict[str, str], rows: Path, tmp_path: Path) -> None:
    assert [node.op_type for node in onnx.load(rows).graph.node].count("Gemm") == 2
    result = pom_export.quantize(rows, tmp_path / "q.onnx", **options)
    assert sum(result.products.values()) == 5
    assert {each.name: each.weights for each in result.modules}["up"] != "float32"
    assert {each.name for each in result.modules if each.error_out is not None} >= {"up", "down"}
    nodes = {node.name: node.op_type for node in onnx.load(tmp_path / "q.onnx").graph.node}
    assert nodes["up/Gemm"] != "Gemm"
    assert nodes["up/Gemm.bias"] == "Add"
    assert "Transpose" not in nodes.values()
    names = {weight.name for weight in onnx.load(tmp_path / "q.onnx").graph.initializer}
    assert "up.bias" in names
    assert "up.weight" not in names


def test_a_layer_on_rows_that_is_kept_is_as_it_was(rows: Path, tmp_path: Path) -> None:
    pom_export.quantize(rows, tmp_path / "q.onnx", keep_float32=["up"])
    nodes = {node.name: node.op_type for node in onnx.load(tmp_path / "q.onnx").graph.node}
    assert nodes["up/Gemm"] == "Gemm"


def test_a_quantized_layer_on_rows_is_debugged_and_verified(rows: Path, tmp_path: Path) -> None:
    pom_export.quantize(rows, tmp_path / "q.onnx")
    found = pom_export.debug(tmp_path / "q.onnx", against=rows)
    assert found, found.cause
    torch.manual_seed(0)
    module, inputs = Rows().eval(), {"x": torch.randn(2, 5, 16)}
    report = pom_export.verify(tmp_path / "q.onnx", module=module, example_inputs=inputs)
    assert report
    assert report.quantized is not None
    assert all(each.parameter for each in report.quantized.products)


def test_activations_whose_squares_are_beyond_float32(rows: Path, tmp_path: Path) -> None:
    x = 1e25 * np.random.default_rng(0).standard_normal((8, 5, 16)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = pom_export.quantize(rows, tmp_path / "q.onnx", calibrate={"x": x})
    assert result.quality.rms_error < 0.15


class Branches(torch.nn.Module):
    """A mixer behind a layer that is in both branches of a condition."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = pom_export.PolynomialMixer(16, degree=2, expand=2)
        self.layer = torch.nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def positive(x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.layer(x))

        def negative(x: torch.Tensor) -> torch.Tensor:
            return 2 * self.layer(x)

        return self.mixer(torch.cond(x.sum() > 0, positive, negative, (x,)))


def test_products_in_branches_are_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pom_export.export(Branches().eval(), tmp_path / "m.onnx", example_inputs={"x": torch.randn(2, 5, 16)})
    result = pom_export.quantize(tmp_path / "m.onnx", tmp_path / "q.onnx")
    assert sum(result.products.values()) == 3
    assert any(note.startswith("2 other products stay as they are: only products x @ W") for note in result.notes)


def test_weights_too_small_for_scales_stay_in_float32(layer: Path, tmp_path: Path) -> None:
    """No float32 scale stands for weights of 1e-38: rounded, they would be 0, and the outputs 0 with them."""
    model = onnx.load(layer)
    for weight in model.graph.initializer:
        if weight.name == "ag_proj.weight_transposed":
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1e-38), weight.name))
    onnx.save(model, tmp_path / "tiny.onnx")
    result = pom_export.quantize(tmp_path / "tiny.onnx", tmp_path / "q.onnx")
    assert result.kept == {"ag_proj/MatMul": "float32"}
    assert result.quality.rms_error < 0.1
    assert any("nothing limited how far the outputs may be off" in note for note in result.notes)


def test_weights_in_other_files(layer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "EXTERNAL_DATA_BYTES", 100)
    result = pom_export.quantize(layer, tmp_path / "q.onnx")
    (weights,) = read_model(tmp_path / "q.onnx").weights
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["q.onnx", weights.name])
    assert weights.name.startswith("q.onnx.")
    assert result.bytes == weights.stat().st_size + (tmp_path / "q.onnx").stat().st_size
    pom_export.quantize(layer, tmp_path / "q.onnx", weights="int4")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.machine
def test_an_output_on_another_file_system(layer: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == Path(tempfile.gettempdir()).stat().st_dev:
        pytest.skip("there is no second file system")
    folder = Path(tempfile.mkdtemp(dir=other))
    try:
        pom_export.quantize(layer, folder / "q.onnx")
        assert [path.name for path in folder.iterdir()] == ["q.onnx"]
    finally:
        shutil.rmtree(folder)
