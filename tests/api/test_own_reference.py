"""A file is compared with the user's own module, at the sizes of the examples and at others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import pom_export
from pom_export.errors import InputError
from pom_export.parity.candidates import UNROUNDED
from tests.exports import Edit, Exported, weight


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.mixer = pom_export.PolynomialMixer(16, 2, 2)

    def forward(self, tokens: Tensor, keep: Tensor) -> dict[str, Tensor]:
        return {"mixed": tokens + self.mixer(self.norm(tokens), mask=keep)}


EXAMPLES = (torch.randn(2, 6, 16), torch.ones(2, 6, dtype=torch.bool))


class Own:
    """A block and its export, which tests modify."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.folder, self.module = folder, Block().eval()
        for parameter in self.module.parameters():
            nn.init.normal_(parameter, std=0.3)
        pom_export.export(self.module, folder / "m.onnx", example_inputs=EXAMPLES)

    def verify(self, *edits: Edit, **options: object) -> pom_export.api.ParityReport:
        """Return what verify says of the export after some edits."""
        model = onnx.load(self.folder / "m.onnx")
        for edit in edits:
            edit(model)
        onnx.save(model, self.folder / "changed.onnx")
        given = {"module": self.module, "example_inputs": EXAMPLES, **options}
        return pom_export.verify(self.folder / "changed.onnx", **given)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Own:
    return Own(tmp_path_factory.mktemp("own"))


def test_the_module_is_the_reference_at_other_sizes_too(own: Own) -> None:
    report = own.verify()
    assert report
    assert report.reference == "PyTorch in float64, Block"
    shapes = {case.shapes for comparison in report.comparisons for case in comparison.cases}
    assert "tokens 2x6x16, keep 2x6" in shapes
    assert len({text.split(",")[0] for text in shapes}) > 2
    assert not own.verify(weight("ag_proj.weight", lambda array: array * 1.01))


def test_a_fault_at_another_size_alone_is_found(own: Own) -> None:
    def scaled_by_tokens(model: onnx.ModelProto) -> None:
        """Multiply the output by the number of tokens over the example's."""
        make = onnx.helper.make_node
        last = next(node for node in model.graph.node if "mixed" in node.output)
        last.output[0] = "before"
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([6.0], np.float32), "six"))
        model.graph.node.extend(
            [
                make("Shape", ["tokens"], ["count"], start=1, end=2),
                make("Cast", ["count"], ["float_count"], to=onnx.TensorProto.FLOAT),
                make("Div", ["float_count", "six"], ["share"]),
                make("Mul", ["before", "share"], ["mixed"]),
            ]
        )

    report = own.verify(scaled_by_tokens)
    assert not report
    assert all(comparison.cases[0].difference for comparison in report.comparisons)


@pytest.mark.parametrize(
    "edit",
    [
        lambda model: model.CopyFrom(onnx.compose.add_prefix(model, "net.")),
        lambda model: model.ClearField("metadata_props"),
    ],
    ids=["renamed", "no metadata"],
)
def test_a_rewritten_file_is_compared_with_the_module(own: Own, edit: Edit) -> None:
    assert own.verify(edit)
    assert not own.verify(edit, weight("ag_proj.weight", lambda array: array * 1.01))


def test_inputs_of_the_users_go_through_the_module(own: Own) -> None:
    arrays = {"tokens": np.ones((1, 3, 16), np.float32), "keep": np.ones((1, 3), np.bool_)}
    report = own.verify(example_inputs=None, inputs=arrays)
    assert report
    assert {case.shapes for c in report.comparisons for case in c.cases} == {"tokens 1x3x16, keep 1x3"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"example_inputs": None}, "Block is not one of our models"),
        ({"example_inputs": (EXAMPLES[0],)}, "missing 1 required positional argument"),
        ({"example_inputs": (EXAMPLES[0][..., :9], EXAMPLES[1])}, "the model fails on the example inputs"),
        ({"checkpoint": "c.pt"}, "both a checkpoint and a module are given"),
        ({"module": None}, "example_inputs need a module"),
        ({"module": "Block"}, "the module is a str"),
        ({"degree": 3}, "`degree` is for checkpoints, and this is a module"),
    ],
)
def test_inconsistent_arguments_are_one_line(own: Own, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        own.verify(**options)
    assert "\n" not in str(raised.value)


def test_one_of_our_models_is_compared_as_its_checkpoint_would_be(tmp_path: Path) -> None:
    module = pom_export.PolynomialMixer(16, 2, 2)
    exported = Exported(tmp_path, module, mask="causal")
    report = pom_export.verify(tmp_path / "m.onnx", module=module)
    assert report
    assert [len(c.cases) for c in report.comparisons] == [len(c.cases) for c in exported.verify().comparisons]
    assert not pom_export.verify(tmp_path / "m.onnx", module=pom_export.PolynomialMixer(16, 2, 2))


@pytest.mark.parametrize("exported", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_program_of_torch_export_is_a_checkpoint(exported: bool, own: Own, tmp_path: Path) -> None:
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens")
    shapes = {"tokens": {0: batch, 1: tokens}, "keep": {0: batch, 1: tokens}}
    torch.export.save(torch.export.export(own.module, EXAMPLES, dynamic_shapes=shapes), tmp_path / "p.pt2")
    report = pom_export.verify(own.folder / "m.onnx", checkpoint=tmp_path / "p.pt2")
    assert report
    assert report.reference.endswith("p.pt2")
    if exported:
        pom_export.export(tmp_path / "p.pt2", tmp_path / "p.onnx")
        assert pom_export.verify(tmp_path / "p.onnx", checkpoint=tmp_path / "p.pt2")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_parity_data_of_a_half_module_know_what_rounding_does(dtype: str, own: Own, tmp_path: Path) -> None:
    file, recorded = tmp_path / "m.onnx", tmp_path / "m.parity.npz"
    pom_export.export(own.module, file, example_inputs=EXAMPLES, dtype=dtype, samples=2)
    report = pom_export.verify(file)
    assert report
    assert {c.backend for c in report.comparisons} >= {UNROUNDED}
    assert not any("is not known" in note for note in report.notes)
    assert pom_export.verify(file, inputs=recorded)
    model = onnx.load(file)
    weight("po_coeff", lambda array: np.roll(array, 1, 0))(model)
    onnx.save(model, tmp_path / "spoiled.onnx")
    assert not pom_export.verify(tmp_path / "spoiled.onnx", inputs=recorded)


class Scaled(nn.Module):
    """A mixer whose outputs are doubled beyond some number of tokens, which a file cannot express."""

    def __init__(self, longest: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mixer, self.longest = pom_export.PolynomialMixer(16, 2, 1), longest

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(x) if x.shape[1] <= self.longest else 2 * self.mixer(x)


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scaled") / "m.onnx"
    pom_export.export(Scaled(8), path, example_inputs=(EXAMPLES[0],))
    return path


def test_a_module_is_compared_within_the_sizes_that_the_file_takes(scaled: Path) -> None:
    report = pom_export.verify(scaled, module=Scaled(8), example_inputs=(EXAMPLES[0],))
    assert report
    assert {case.case for case in report.comparisons[0].cases} >= {"tokens 1", "tokens 8"}
    assert any(note.startswith("tokens must be at most 8") for note in report.notes)


def test_a_file_that_takes_more_than_the_module_computes_alike_is_found(scaled: Path) -> None:
    report = pom_export.verify(scaled, module=Scaled(7), example_inputs=(EXAMPLES[0],))
    assert not report
    assert {comparison.worst.case for comparison in report.comparisons} <= {"tokens 8", "other sizes", "other values"}


def test_examples_beyond_the_files_sizes_are_refused(scaled: Path) -> None:
    with pytest.raises(InputError, match="example inputs: tokens is 9 in x, but the model takes at most 8"):
        pom_export.verify(scaled, module=Scaled(8), example_inputs=(torch.randn(2, 9, 16),))
