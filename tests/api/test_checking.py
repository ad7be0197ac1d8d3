"""What an export compares before the file appears: for our own models, every dynamic dimension at two sizes."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pom_export
from pom_export.api.checking import CASES_AT_EXPORT
from pom_export.errors import ParityError
from pom_export.graph.options import GraphOptions
from pom_export.graph.programs import program_of
from pom_export.mixer import MixerConfig, PolynomialMixer, ProductMixer, RotaryPolynomialMixer
from pom_export.models import LanguageModel, LanguageModelConfig
from pom_export.parity.inputs import make_cases
from pom_export.parity.interface import program_spec

MODELS: dict[str, nn.Module] = {
    "mixer": PolynomialMixer(8, 2, 2),
    "product": ProductMixer(8, 2, 2),
    "rotary": RotaryPolynomialMixer(8, 2, 2, max_seq_len=12),
    "two positions": RotaryPolynomialMixer(8, 2, 2, max_seq_len=2),
    "language model": LanguageModel(LanguageModelConfig(32, 1, 2, 16, MixerConfig(8, 2, 2))),
}
CROSS = [GraphOptions(mask, cross=True) for mask in ("padding", "full")]
STATEFUL = [GraphOptions(stateful=True), GraphOptions("padding", stateful=True)]
OPTIONS = [
    *itertools.product(("mixer", "product"), (GraphOptions(), *CROSS)),
    *itertools.product(("mixer", "rotary", "language model"), STATEFUL),
    *(("rotary", GraphOptions(positions=positions)) for positions in (False, True)),
    ("rotary", GraphOptions(cross=True, positions=True)),
    ("two positions", GraphOptions()),
    ("mixer", GraphOptions("full")),
    ("mixer", GraphOptions(stateful=True, block_causal=True)),
    ("language model", GraphOptions()),
]


@pytest.mark.parametrize(("model", "options"), OPTIONS, ids=str)
def test_every_dynamic_dimension_has_two_sizes_one_of_them_1(model: str, options: GraphOptions) -> None:
    program = program_of(MODELS[model], options)
    specs = [program_spec(program, name) for name in program.inputs]
    sizes: dict[str, set[int]] = {}
    for case in itertools.islice(make_cases(specs, program.limits, seed=0), CASES_AT_EXPORT):
        for spec in specs:
            for axis, size in zip(spec.axes, case.feed[spec.name].shape, strict=True):
                if isinstance(axis, str):
                    sizes.setdefault(axis, set()).add(size)
    assert sizes
    for name, tried in sizes.items():
        assert len(tried) >= 2, (name, tried)
        assert 1 in tried or name == "past_tokens", (name, tried)


def test_an_export_reports_what_it_could_not_compare(tmp_path: Path) -> None:
    mixer = PolynomialMixer(8, 2, 2)
    nn.init.zeros_(mixer.ag_proj.weight)
    result = pom_export.export(mixer, tmp_path / "m.onnx")
    assert result.checked == []
    assert result.notes == [
        "the reference is zero everywhere, in every output and case, which proves nothing: this is not a pass"
    ]


class Gated(nn.Module):
    """A user's own mixer, with a bias that an adapter may forget."""

    def __init__(self, forgets: bool) -> None:
        super().__init__()
        self.forgets = forgets
        self.mixer = PolynomialMixer(16, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.mixer(x, mask="causal")
        return x + y


def adapted(module: Gated) -> nn.Module:
    """Return an adapter's mixer that computes the same, or one with other coefficients."""
    other = copy.deepcopy(module)
    other.mixer.po_coeff = nn.Parameter(module.mixer.po_coeff * (0.98 if module.forgets else 1.0))
    return other


@pytest.mark.parametrize("wrong", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_wrong_half_file_is_distinguished_from_a_coarse_one(wrong: bool, tmp_path: Path) -> None:
    """An error of two per cent in the coefficients would hide in the type's tolerance alone."""
    torch.manual_seed(0)
    options = {"example_inputs": (torch.randn(2, 5, 16),), "mixers": {Gated: adapted}, "dtype": "bfloat16"}
    if not wrong:
        result = pom_export.export(nn.Sequential(Gated(False)), tmp_path / "m.onnx", **options)
        assert "onnxruntime without rounding kernel" in result.checked
        return
    with pytest.raises(ParityError, match=r"differs from PyTorch by .* 0 was replaced by"):
        pom_export.export(nn.Sequential(Gated(True)), tmp_path / "n.onnx", **options)
