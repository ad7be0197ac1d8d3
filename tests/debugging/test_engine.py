"""An engine is compared module by module: it is built again with the values between modules as outputs."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper

import pom_export
from pom_export.cli.main import run
from pom_export.debugging.tapped_engine import TappedEngine
from pom_export.engine.backend import gpu_present
from pom_export.engine.given import given_engine
from pom_export.errors import InputError
from pom_export.graph.exported_model import read_model
from pom_export.mixer import MixerConfig
from pom_export.models import LanguageModel, LanguageModelConfig

CONFIG = LanguageModelConfig(40, 2, 3, 24, MixerConfig(16, 2, 2))


def language_model() -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(CONFIG).eval()


@pytest.mark.usefixtures("tensorrt_rtx")
def test_values_between_modules_are_outputs(tmp_path: Path) -> None:
    file, engine = tmp_path / "m.onnx", tmp_path / "m.engine"
    pom_export.export(language_model(), file, dtype="float16")
    pom_export.build_engine(file, engine, backend="tensorrt-rtx", targets=["sm86"], max_shapes={"input_ids": (2, 64)})
    products = {str(node.outputs[0].name) for node in ir.load(file).graph if node.op_type == "MatMul"}
    stages: list[str] = []
    given = given_engine(engine, read_model(file))
    built = TappedEngine(given, products, stages.append).build()
    assert all(name.encode() in built for name in products)
    # TensorRT fuses what is no output, so that most names vanish.
    assert sum(name.encode() in engine.read_bytes() for name in products) < len(products) / 2
    assert any("for sm86" in stage for stage in stages)
    assert given.not_run == ("" if gpu_present() else "tensorrt-rtx: m.engine needs a GPU, and there is none here")


@pytest.mark.slow
@pytest.mark.machine
@pytest.mark.skipif(gpu_present(), reason="a CUDA device is here")
@pytest.mark.usefixtures("tensorrt_rtx")
def test_without_a_gpu_the_file_alone_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, engine, checkpoint = (str(tmp_path / name) for name in ("m.onnx", "m.engine", "c.pt"))
    model = language_model()
    torch.save(model.state_dict(), checkpoint)
    pom_export.export(model, file)
    pom_export.build_engine(file, engine, backend="tensorrt-rtx", targets=["sm86"])
    assert run(["debug", file, "--checkpoint", checkpoint, "--engine", engine]) == 0
    assert "tensorrt-rtx: m.engine needs a GPU" in capsys.readouterr().out
    assert run(["debug", file, "--checkpoint", checkpoint, "--engine", file]) == 2
    assert "by its name it is an ONNX model" in capsys.readouterr().err


def test_an_engine_needs_pytorch_as_the_reference() -> None:
    with pytest.raises(InputError, match="`engine` is compared with PyTorch, not with another file"):
        pom_export.debug("m.onnx", against="other.onnx", engine="m.engine")


@pytest.mark.gpu
@pytest.mark.skipif(not gpu_present(), reason="no CUDA device is here")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_changed_weight_is_found_in_an_engine(dtype: str, tmp_path: Path) -> None:
    model, file, engine = language_model(), tmp_path / "m.onnx", tmp_path / "m.engine"
    pom_export.export(model, file, dtype=dtype)
    pom_export.build_engine(file, engine)
    report = pom_export.debug(file, module=model, engine=engine)
    assert report, report.to_dict()
    assert any(each.backend.startswith("tensorrt") for each in report.runs)

    changed = onnx.load(file)
    (weight,) = (each for each in changed.graph.initializer if each.name.startswith("blocks.1.mlp_up"))
    array = numpy_helper.to_array(weight).copy()
    array[0] += 1
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    onnx.save(changed, file)
    pom_export.build_engine(file, engine)
    report = pom_export.debug(file, module=model, engine=engine)
    (run_of_engine,) = (each for each in report.runs if each.backend.startswith("tensorrt"))
    assert run_of_engine.first is not None
    assert run_of_engine.modules[run_of_engine.first].name == "blocks.1.mlp_up"
