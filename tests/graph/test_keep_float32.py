"""Modules of a half-precision file that are computed in float32 because the user asked for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

import pom_export
from pom_export.cli.main import run
from pom_export.errors import InputError
from pom_export.graph.exported_model import read_model
from pom_export.graph.module_names import is_inside, matching
from pom_export.graph.rounding import RoundedModule, Rounding
from tests.debugging.faulty_files import examples_of, model_named
from tests.small_models import hybrid

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


class Two(nn.Module):
    """Two mixers between linear layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(6, 8)
        self.blocks = nn.ModuleList(pom_export.PolynomialMixer(8, 2, 2) for _ in range(2))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


X = torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(1))


def test_named_modules_are_computed_in_float32(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    result = pom_export.export(
        Two(), file, example_inputs=(X,), dtype="float16", keep_float32=["blocks.1", "head"], samples=1
    )
    assert set(result.kept_in_float32) == {"blocks.1", "head"}
    assert (result.inputs, result.outputs) == (["x float16[batch, tokens, 6]"], ["y float32[batch, tokens, 4]"])
    assert "onnxruntime emulating float16 kernel" in result.checked
    found: dict[bool, set[ir.DataType | None]] = {True: set(), False: set()}
    for node in ir.load(file).graph:
        kept = is_inside((node.name or "").partition("/")[0], ["blocks.1", "head"])
        if node.op_type in {"MatMul", "PolynomialAggregation", "GatedPolynomialAggregation"}:
            found[kept].update(value.dtype for value in (*node.inputs[:1], *node.outputs) if value is not None)
    assert found == {True: {FLOAT}, False: {HALF}}
    model = read_model(file)
    assert (model.precision, model.keep_float32) == ("float16", ("blocks.1", "head"))
    assert pom_export.verify(file)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep_float32": ["block.1"]}, "called 'block.1'. Did you mean 'blocks.1'"),
        ({"keep_float32": ["tail.*"]}, r"called 'tail\.\*'. The modules are blocks, head, stem, blocks\.0, blocks\.1"),
        ({"keep_float32": "head"}, "must be a list of modules' names, got 'head'"),
        ({"keep_float32": ["head"], "dtype": "float32"}, "is for a file in half precision, and this one is float32"),
    ],
    ids=["misspelt", "unknown", "no list", "float32"],
)
def test_what_keeps_nothing_is_refused(arguments: dict[str, object], message: str, tmp_path: Path) -> None:
    given = {"dtype": "bfloat16", **arguments}
    with pytest.raises(InputError, match=message):
        pom_export.export(Two(), tmp_path / "m.onnx", example_inputs=(X,), **given)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_the_command_refuses_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.pt").touch()
    arguments = ["export", str(tmp_path / "c.pt"), "-o", str(tmp_path / "m.onnx"), "--keep-float32", "head"]
    assert run(arguments) == 2
    assert "--keep-float32 is for a file in half precision" in capsys.readouterr().err


def test_patterns_choose_the_outermost_modules() -> None:
    names = ["a", "a.0", "a.0.mixer", "a.1", "a.1.mixer", "ab"]
    assert matching(["a.*.mixer"], names) == ["a.0.mixer", "a.1.mixer"]
    assert matching(["a.*", "a.0.mixer"], names) == ["a.0", "a.1"]
    assert matching(["a", "ab"], names) == ["a", "ab"]
    assert matching([], names) == []
    shared = [["a.0", "a.1"], ["a.0.mixer", "a.1.mixer"]]
    assert matching(["a.1.mixer"], names, shared) == ["a.0.mixer", "a.1.mixer"]
    assert matching(["a.0"], names, shared) == ["a.0", "a.1"]
    assert matching(["ab"], names, shared) == ["ab"]


class Shared(nn.Module):
    """A linear layer that is called by two names."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mixer, self.first = pom_export.PolynomialMixer(6, 2, 2), nn.Linear(6, 6)
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.mixer(self.first(x)))


@pytest.mark.slow
def test_a_module_of_two_names_is_kept_under_both(tmp_path: Path) -> None:
    result = pom_export.export(
        Shared(), tmp_path / "m.onnx", example_inputs=(X,), dtype="bfloat16", keep_float32=["second"]
    )
    assert set(result.kept_in_float32) == {"first", "second"}


@pytest.mark.slow
def test_a_program_without_names_is_refused(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(Two().eval(), (X,)), tmp_path / "c.pt2")
    with pytest.raises(InputError, match="no operator in the graph has the name of a module"):
        pom_export.export(tmp_path / "c.pt2", tmp_path / "m.onnx", dtype="float16", keep_float32=["head"])


@pytest.mark.slow
def test_a_weight_that_does_not_fit_is_kept(tmp_path: Path) -> None:
    model = Two()
    with torch.no_grad():
        model.blocks[1].ag_proj.weight[0, 0] = 1e5
    with pytest.raises(InputError, match=r"Export with another dtype, or .*`keep_float32=\['blocks\.1\.ag_proj'\]`"):
        pom_export.export(model, tmp_path / "m.onnx", example_inputs=(1e-3 * X,), dtype="float16")
    result = pom_export.export(
        model, tmp_path / "m.onnx", example_inputs=(1e-3 * X,), dtype="float16", keep_float32=["blocks.1.ag_proj"]
    )
    assert result.kept_in_float32["blocks.1.ag_proj"] == "it was asked for"


@torch.no_grad()
def test_the_reference_rounds_nothing_in_them() -> None:
    model, x = Two().eval(), X.to(torch.bfloat16).double()
    expected = Two().double()(x)
    for values in (True, False):
        every = RoundedModule(model, Rounding("bfloat16", single=["stem", "blocks", "head"]), values=values)(x)
        some = RoundedModule(model, Rounding("bfloat16", single=["stem", "blocks.0"]), values=values)(x)
        torch.testing.assert_close(every, expected, rtol=1e-12, atol=1e-12)
        assert 1e-4 < (some - expected).abs().max() < 0.05


MODELS = [
    ("own", "float16", ["body.2", "head"]),
    ("gpt", "float16", ["lm_head", "transformer.h.2"]),
    ("gpt", "float16", ["lm_head"]),  # tied to the embedding, which is rounded
    ("gpt", "bfloat16", ["transformer.wte"]),
    ("gpt", "bfloat16", ["transformer", "lm_head"]),
    ("language model", "float16", ["*"]),  # the model itself uses the embedding once more
    ("own", "bfloat16", ["*"]),
    ("own", "bfloat16", ["body.*.mix"]),
    ("image model", "bfloat16", ["blocks.1", "blocks.2.mlp"]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype", "keep"), MODELS)
def test_any_part_of_any_model_is_kept(name: str, dtype: str, keep: Sequence[str], tmp_path: Path) -> None:
    file, model, examples = tmp_path / "m.onnx", model_named(name), examples_of(name)
    pom_export.export(model, file, example_inputs=examples, dtype=dtype, keep_float32=keep)
    report = pom_export.verify(file, module=model, example_inputs=examples)
    assert report.precision == dtype
    assert report
    assert pom_export.debug(file, module=model, example_inputs=examples)


@pytest.mark.slow
def test_a_file_that_claims_more_than_it_keeps_is_wrong(tmp_path: Path) -> None:
    file, model = tmp_path / "m.onnx", model_named("gpt")
    pom_export.export(model, file, dtype="bfloat16")
    changed = onnx.load(file)
    changed.metadata_props.add(key="pom_export.keep_float32", value='["transformer.h.2"]')
    onnx.save(changed, file)
    report = pom_export.verify(file, module=model)
    assert not report
    assert {each.backend for each in report.comparisons if not each} == {"onnxruntime without rounding"}


@pytest.mark.slow
def test_a_kept_module_stays_in_a_stream_and_inlined(tmp_path: Path) -> None:
    model, file, plain = hybrid(), tmp_path / "m.onnx", tmp_path / "plain.onnx"
    keep = ["lm_head", "transformer.h.0"]
    pom_export.export(model, file, dtype="float16", stateful=True, keep_float32=keep)
    assert pom_export.verify(file, module=model)
    logits = pom_export.StreamingSession(file).step(np.zeros((1, 1), np.int64))
    assert logits.dtype == np.float32
    pom_export.inline(file, plain)
    assert read_model(plain).keep_float32 == tuple(keep)
    assert pom_export.verify(plain, module=model)


@pytest.mark.usefixtures("tensorrt_rtx")
@pytest.mark.slow
def test_an_engine_computes_them_in_float32(tmp_path: Path) -> None:
    pom_export.export(
        Two(), tmp_path / "m.onnx", example_inputs=(X,), dtype="float16", keep_float32=["blocks.1", "head"]
    )
    engine = pom_export.build_engine(
        tmp_path / "m.onnx", tmp_path / "m.engine", backend="tensorrt-rtx", targets=["sm86"]
    )
    assert engine.matrix_products == {"float16": 4, "float32": 4}  # stem and blocks.0, blocks.1 and head
