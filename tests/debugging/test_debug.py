"""Faults put anywhere into exported files are named by the module that they are in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import pom_export
from pom_export.cli.main import run
from pom_export.errors import InputError
from pom_export.mixer import PolynomialMixer
from tests.debugging.faulty_files import LAYERS, Fault, examples_of, faults_for, model_named, module_of, put
from tests.slow_cases import slow_cases

FAST = ("language model", "float32")
FILES = [("language model", "float32"), ("language model", "float16"), ("gpt", "float32"), ("image model", "float32"),
         ("own", "float32"), ("own", "float16")]  # fmt: skip
PLACES = [(*file, fault, seed) for file in FILES for fault in faults_for(*file) for seed in range(2)]
# Faults of the other kinds are found in the file alone.
QUICK = ("language model float32 epsilon 0", "language model float32 gate 0")


def _text(parts: tuple[Any, ...]) -> str:
    return " ".join(map(str, parts))


class Files:
    """Exports each model once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, name: str, dtype: str) -> Path:
        path = self._folder / f"{name} {dtype}.onnx"
        if not path.exists():
            pom_export.export(model_named(name), path, example_inputs=examples_of(name), dtype=dtype)
        return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("files"))


@pytest.fixture
def plain(files: Files) -> Path:
    return files.get(*FAST)


@pytest.mark.parametrize("place", slow_cases(PLACES, lambda name: name not in QUICK, _text))
def test_a_fault_is_named(files: Files, place: tuple[str, str, str, int], tmp_path: Path) -> None:
    name, dtype, fault, seed = place
    made = put(fault, files.get(name, dtype), tmp_path / "faulty.onnx", seed)
    report = pom_export.debug(tmp_path / "faulty.onnx", module=model_named(name), example_inputs=examples_of(name))
    assert not report
    assert report.first == (made.module or report.modules[-1].name)
    assert made.mentions in report.cause


@pytest.mark.parametrize("file", slow_cases(FILES, lambda name: name != " ".join(FAST), _text))
def test_a_clean_file_names_none(files: Files, file: tuple[str, str]) -> None:
    name, dtype = file
    report = pom_export.debug(files.get(name, dtype), module=model_named(name), example_inputs=examples_of(name))
    assert report, (report.first, report.cause)
    assert report.first is None
    assert not report.cause
    assert not report.differences
    assert sum(module.compared for module in report.modules) > 6 * LAYERS
    assert {run.path for run in report.runs} == {"kernel", "function"}


@pytest.mark.parametrize("fault", slow_cases(faults_for(*FAST), lambda name: name != "halves"))
def test_a_fault_is_named_without_the_model(plain: Path, fault: str, tmp_path: Path) -> None:
    made = put(fault, plain, tmp_path / "faulty.onnx", seed=5)
    report = pom_export.debug(tmp_path / "faulty.onnx", against=plain)
    assert not report
    assert report.first == made.module
    assert made.mentions in report.cause


def test_a_file_is_like_itself(plain: Path) -> None:
    report = pom_export.debug(plain, against=plain)
    assert report
    assert {module.error for module in report.modules if module.compared} == {0.0}


def test_only_the_faulty_module_fails(plain: Path, tmp_path: Path) -> None:
    made = _in_place(plain, tmp_path / "faulty.onnx", "blocks.1.mlp_up", lambda array: array * 1.5)
    report = pom_export.debug(tmp_path / "faulty.onnx", module=model_named(FAST[0]))
    assert [module.name for module in report.modules if not module.passed] == [made.module]
    behind = next(module for module in report.modules if module.name == "blocks.2.mixer")
    assert behind.error_in is not None
    assert behind.error_in > 1e-3
    assert behind.error is not None
    assert behind.error < 1e-6


def test_two_faults_are_both_found(plain: Path, tmp_path: Path) -> None:
    _in_place(plain, tmp_path / "one.onnx", "blocks.2.mlp_down", lambda array: array * 1.5)
    _in_place(tmp_path / "one.onnx", tmp_path / "two.onnx", "blocks.0.mlp_up", lambda array: array * 1.5)
    report = pom_export.debug(tmp_path / "two.onnx", against=plain)
    assert report.first == "blocks.0.mlp_up"
    wrong = [module.name for module in report.modules if not module.passed]
    assert wrong == ["blocks.0.mlp_up", "blocks.2.mlp_down"]


def test_a_fault_too_small_for_any_tolerance_is_found(plain: Path, tmp_path: Path) -> None:
    def changed(array: Any) -> Any:
        array = array.copy()
        array[0, 0] = np.nextafter(array[0, 0], np.float32(np.inf))
        return array

    made = _in_place(plain, tmp_path / "faulty.onnx", "blocks.2.mlp_up", changed)
    assert pom_export.verify(tmp_path / "faulty.onnx", module=model_named(FAST[0]))
    report = pom_export.debug(tmp_path / "faulty.onnx", module=model_named(FAST[0]))
    assert not report
    assert report.first == made.module
    assert "1 of 384 values" in report.cause


def test_an_axis_is_named(tmp_path: Path) -> None:
    """Reversed channels look like any other wrong numbers."""

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = PolynomialMixer(8, 2, 2)
            self.out = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.mix(x))

    torch.manual_seed(0)
    model, example = Turned().eval(), torch.randn(2, 5, 8)
    pom_export.export(model, tmp_path / "m.onnx", example_inputs=(example,))
    proto = onnx.load(tmp_path / "m.onnx")
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    for name in ("out.weight_transposed", "out.bias"):
        array = numpy_helper.to_array(weights[name])
        weights[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array[..., ::-1]), name))
    onnx.save(proto, tmp_path / "m.onnx")
    report = pom_export.debug(tmp_path / "m.onnx", module=model, example_inputs=(example,))
    assert report.first == "out"
    assert next(each for each in report.modules if each.name == "out").axes == "its output is reversed along axis 2"


def test_a_wrong_function_body_is_named(plain: Path, tmp_path: Path) -> None:
    proto = onnx.load(plain)
    for node in proto.functions[0].node:
        if node.op_type == "HardSigmoid":
            next(each for each in node.attribute if each.name == "alpha").f = 0.25
    onnx.save(proto, tmp_path / "faulty.onnx")
    report = pom_export.debug(tmp_path / "faulty.onnx", module=model_named(FAST[0]))
    assert not report
    assert report.first == "blocks.0.mixer"
    assert report.run is not None
    assert report.run.path == "function"
    assert "function" in report.cause
    verified = pom_export.verify(tmp_path / "faulty.onnx", module=model_named(FAST[0]), locate=True)
    assert not verified
    assert verified.to_dict()["first"] == "blocks.0.mixer"
    assert any("do not match: on small inputs" in each for each in verified.failed)


class Shared(nn.Module):
    """Calls one block twice, and contains what leaves nothing in a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.LayerNorm(8), PolynomialMixer(8, 2, 2), nn.Dropout(0.5))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.block(x + self.block(x)))


def test_each_call_of_a_shared_module_is_compared(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, example = Shared().eval(), torch.randn(2, 5, 8)
    pom_export.export(model, tmp_path / "m.onnx", example_inputs=(example,))
    proto = onnx.load(tmp_path / "m.onnx")
    norms = [node for node in proto.graph.node if node.op_type == "LayerNormalization"]
    next(each for each in norms[1].attribute if each.name == "epsilon").f = 0.1
    onnx.save(proto, tmp_path / "faulty.onnx")
    report = pom_export.debug(tmp_path / "faulty.onnx", module=model, example_inputs=(example,))
    assert report.first == "block.0"
    calls = {(each.name, each.call): each for each in report.modules}
    assert calls["block.0", 0].passed
    assert not calls["block.0", 1].passed
    assert calls["block.1", 1].passed
    left_out = [each for each in report.modules if not each.compared]
    assert {each.name for each in left_out} == {"block.2"}
    assert {each.reason for each in left_out} == {"not in the graph"}


@pytest.mark.slow
def test_a_stateful_file(tmp_path: Path) -> None:
    model = model_named(FAST[0])
    pom_export.export(model, tmp_path / "m.onnx", stateful=True)
    assert pom_export.debug(tmp_path / "m.onnx", module=model)
    made = put("gate", tmp_path / "m.onnx", tmp_path / "faulty.onnx", seed=3)
    report = pom_export.debug(tmp_path / "faulty.onnx", module=model)
    assert report.first == made.module


@pytest.mark.slow
def test_quantized_weights_do_not_hide_a_fault_beside_them(plain: Path, tmp_path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(plain, tmp_path / "q.onnx", weight_type=QuantType.QInt8)
    assert pom_export.debug(tmp_path / "q.onnx", module=model_named(FAST[0]))
    made = put("gate", tmp_path / "q.onnx", tmp_path / "faulty.onnx", seed=0)
    report = pom_export.debug(tmp_path / "faulty.onnx", module=model_named(FAST[0]))
    assert report.first == made.module
    assert "gate_activation" in report.cause


@pytest.mark.slow
def test_an_inlined_file(plain: Path, tmp_path: Path) -> None:
    pom_export.inline(plain, tmp_path / "inlined.onnx")
    assert pom_export.debug(tmp_path / "inlined.onnx", module=model_named(FAST[0]))
    made = put("weight", tmp_path / "inlined.onnx", tmp_path / "faulty.onnx", seed=3)
    assert pom_export.debug(tmp_path / "faulty.onnx", module=model_named(FAST[0])).first == made.module


@pytest.mark.slow
def test_a_module_that_gives_no_number_is_not_compared(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = PolynomialMixer(8, 2, 2)
            self.log = nn.LogSigmoid()
            self.root = Root()

        def forward(self, x: Tensor) -> Tensor:
            x = self.mix(x)
            return torch.where(torch.isnan(self.root(x)), self.log(x), self.log(x) * 2)

    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sqrt(-1 - x * x)

    torch.manual_seed(0)
    model, example = Odd().eval(), torch.randn(2, 5, 8)
    pom_export.export(model, tmp_path / "m.onnx", example_inputs=(example,))
    report = pom_export.debug(tmp_path / "m.onnx", module=model, example_inputs=(example,))
    assert report
    assert {module.name: module.compared for module in report.modules}["root"] is False


def test_references_that_do_not_fit(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no reference"):
        pom_export.debug(plain)
    with pytest.raises(InputError, match="more than one reference"):
        pom_export.debug(plain, against=plain, module=model_named(FAST[0]))
    proto = onnx.load(plain)
    for index, node in enumerate(proto.graph.node):
        node.name = f"n{index}"
    onnx.save(proto, tmp_path / "renamed.onnx")
    with pytest.raises(InputError, match="named after the same module"):
        pom_export.debug(tmp_path / "renamed.onnx", against=plain)
    report = pom_export.debug(tmp_path / "renamed.onnx", module=model_named(FAST[0]))
    assert [module.name for module in report.modules if module.compared] == ["LanguageModel"]
    assert any("no module inside the model was compared" in note for note in report.notes)


def test_verify_locates(plain: Path, tmp_path: Path) -> None:
    made = put("weight", plain, tmp_path / "faulty.onnx", seed=4)
    page = tmp_path / "page.html"
    report = pom_export.verify(tmp_path / "faulty.onnx", module=model_named(FAST[0]), locate=True, report=page)
    assert not report
    assert report.located is not None
    assert report.to_dict()["first"] == made.module
    assert made.module in page.read_text()
    assert '<svg class="depth"' in page.read_text()


def test_the_command(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = put("weight", plain, tmp_path / "faulty.onnx", seed=1)
    page = tmp_path / "page.html"
    arguments = ["debug", str(tmp_path / "faulty.onnx"), "--against", str(plain), "--report", str(page)]
    assert run([*arguments, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["first"] == made.module
    assert {"name", "error_in", "error_out"} <= set(found["modules"][0])
    assert run(["debug", str(plain), "--against", str(plain)]) == 0
    assert "no module is out of tolerance" in capsys.readouterr().out
    assert page.read_text().count("<svg") == 2


def _in_place(source: Path, path: Path, module: str, change: Any) -> Fault:
    """Write a copy of a file with a weight of one module changed."""
    proto = onnx.load(source)
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in _of(proto, module):
        for name in node.input:
            if name in weights and node.op_type == "MatMul":
                array = np.ascontiguousarray(change(numpy_helper.to_array(weights[name])))
                weights[name].CopyFrom(numpy_helper.from_array(array, name))
    onnx.save(proto, path)
    return Fault(module, "weight")


def _of(proto: onnx.ModelProto, module: str) -> Iterator[onnx.NodeProto]:
    return (node for node in proto.graph.node if module_of(node) == module)
