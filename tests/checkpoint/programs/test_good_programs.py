"""Programs are read as torch reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pom_export.checkpoint.exported_program import read_exported_program
from pom_export.mixer import MixerConfig, PolynomialMixer
from pom_export.models import LanguageModel, LanguageModelConfig
from tests import pt2_files
from tests.pt2_files import edited, replaced
from tests.slow_cases import slow_cases


class Various(nn.Module):
    """A mixer, and much of what users' models have around one."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = PolynomialMixer(8, 2, 2)
        self.head = nn.Linear(8, 8, bias=False)
        self.tied = nn.Linear(8, 8, bias=False)
        self.tied.weight = self.head.weight
        self.relu, self.dropout = nn.ReLU(inplace=True), nn.Dropout(0.1)
        self.register_buffer("table", torch.randn(64, 8))
        self.register_buffer("scale", torch.ones(1), persistent=False)

    @torch.no_grad()
    def angles(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            return torch.outer(torch.arange(x.shape[1]).float(), torch.ones(8)).cos()

    def forward(self, inputs: dict[str, torch.Tensor], *, more: list[torch.Tensor]) -> dict[str, Any]:
        x = inputs["x"] + self.angles(inputs["x"]) + self.table[: inputs["x"].shape[1]]
        mixed = self.dropout(self.relu(self.mixer(x, causal=True))) * self.scale + more[0]
        filled = nn.functional.scaled_dot_product_attention(mixed, mixed, mixed, is_causal=True).clone()
        filled[:, 0] = 1
        return {"a": self.tied(self.head(filled)), "b": [mixed / x.shape[1], None, 3]}


AUTO = torch.export.Dim.AUTO


def various() -> tuple[Any, ...]:
    dynamic = {0: AUTO, 1: AUTO}
    examples = ({"x": torch.randn(2, 5, 8)},), {"more": [torch.ones(2, 5, 8)]}
    return Various(), *examples, {"inputs": {"x": dynamic}, "more": [dynamic]}


def language_model(dtype: torch.dtype) -> tuple[Any, ...]:
    model = LanguageModel(LanguageModelConfig(32, 2, 3, 16, MixerConfig(8, 2, 2))).to(dtype)
    return model, (torch.randint(0, 32, (2, 5)),), {}, ({0: AUTO, 1: AUTO},)


GOOD: dict[str, Callable[[], tuple[Any, ...]]] = {
    "various": various,
    "language model": lambda: language_model(torch.float32),
    "bfloat16": lambda: language_model(torch.bfloat16),
    "float16": lambda: (nn.Sequential(PolynomialMixer(8, 2, 2)).half(), (torch.randn(2, 5, 8).half(),), {}, None),
    "attention": lambda: (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (torch.randn(2, 5, 8),), {}, None),
}


@pytest.mark.parametrize("kind", slow_cases(GOOD, {"bfloat16", "attention"}.__contains__))
def test_programs_are_read_as_torch_reads_them(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, arguments, keywords, dynamic = GOOD[kind]()
    traced = torch.export.export(model.eval(), arguments, keywords, dynamic_shapes=dynamic)
    torch.export.save(traced, tmp_path / "m.pt2", extra_files={"notes": "of the user"})
    ours, theirs = read_exported_program(tmp_path / "m.pt2"), torch.export.load(tmp_path / "m.pt2")
    for part in ("graph_signature", "call_spec", "range_constraints"):
        assert getattr(ours, part) == getattr(theirs, part)
    assert ours.graph_module.code == theirs.graph_module.code
    for name, value in theirs.state_dict.items():
        mine = ours.state_dict[name]
        assert (type(mine), mine.dtype, mine.stride()) == (type(value), value.dtype, value.stride())
        assert torch.equal(mine, value)
    results = [
        program.module(check_guards=False)(*program.example_inputs[0], **program.example_inputs[1])
        for program in (ours, theirs)
    ]
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    model, arguments, keywords, _ = various()
    torch.export.save(torch.export.export(model.eval(), arguments, keywords), tmp_path / "m.pt2")
    weights = read_exported_program(tmp_path / "m.pt2").state_dict
    assert weights["head.weight"].data_ptr() == weights["tied.weight"].data_ptr()


def test_derived_sizes_are_read(tmp_path: Path) -> None:
    class Halved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixer = PolynomialMixer(8, 2, 2)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.mixer(x)[:, ::2] + y

    half = torch.export.Dim("half", min=1, max=64)
    dynamic = ({1: 2 * half}, {1: half})
    traced = torch.export.export(Halved(), (torch.randn(2, 6, 8), torch.randn(2, 3, 8)), dynamic_shapes=dynamic)
    torch.export.save(traced, tmp_path / "m.pt2")
    program = read_exported_program(tmp_path / "m.pt2")
    shapes = [node.meta["val"].shape for node in program.graph.nodes if node.name in {"x", "y"}]
    assert str(shapes[0][1]) == f"2*{shapes[1][1]}"


def test_a_program_of_another_device_is_read_on_the_cpu(program: tuple[nn.Module, Path], tmp_path: Path) -> None:
    move = replaced('"type": "cpu", "index": null', '"type": "cuda", "index": 3')
    edited(edited(program[1], tmp_path / "half.pt2", move), tmp_path / "m.pt2", move, pt2_files.WEIGHTS)
    moved, here = read_exported_program(tmp_path / "m.pt2"), read_exported_program(program[1])
    assert moved.graph_module.code == here.graph_module.code
    assert {value.device.type for value in moved.state_dict.values()} == {"cpu"}
