"""In half precision a wrong file is told from a coarse one: faults smaller than what rounding does fail."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import pom_export
from pom_export.mixer import MixerConfig
from pom_export.models import LanguageModel, LanguageModelConfig
from pom_export.parity.candidates import UNROUNDED
from pom_export.parity.comparison import share_of_tolerance
from tests.exports import Edit, Exported, weight

CONFIG = LanguageModelConfig(61, n_layers=2, window=2, mlp_width=16, mixer=MixerConfig(16, 3, 2))


@pytest.fixture(scope="module", params=["bfloat16", "float16"])
def half(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(tmp_path_factory.mktemp(request.param), LanguageModel(CONFIG), dtype=request.param, stateful=True)


@pytest.fixture(scope="module")
def rotary(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    mixer = pom_export.RotaryPolynomialMixer(16, 2, 2, max_seq_len=1100)
    return Exported(tmp_path_factory.mktemp("rotary"), mixer, mask="causal", dtype="bfloat16")


def another_gate(model: onnx.ModelProto) -> None:
    node = [node for node in model.graph.node if node.op_type == "GatedPolynomialAggregation"][1]
    next(each for each in node.attribute if each.name == "gate_activation").s = b"sigmoid"


def test_a_right_file_is_far_within_its_bounds(half: Exported) -> None:
    report = half.verify()
    assert report
    assert {c.backend for c in report.comparisons} >= {UNROUNDED}
    for comparison in report.comparisons:
        share = share_of_tolerance(comparison.worst.difference)
        assert share < (0.2 if comparison.backend == UNROUNDED else 0.9), comparison


@pytest.mark.parametrize(
    "edit",
    [
        weight("blocks.0.mixer.se_bias", lambda array: array * 0),
        weight("blocks.1.mixer.po_coeff", lambda array: np.roll(array, 1, 0)),
        weight("blocks.1.mixer.po_coeff", lambda array: array * 1.02),
        weight("blocks.0.mlp_norm.weight", lambda array: array * 1.02),
        weight("blocks.1.mlp_down.weight", lambda array: array.astype(np.float32) * 1.02),
        another_gate,
    ],
    ids=["no gate bias", "coefficients of other channels", "coefficients", "norm", "matrix", "another gate"],
)
def test_a_fault_does_not_hide_behind_rounding(half: Exported, edit: Edit) -> None:
    report = half.verify(edit)
    assert not report
    broken = [c for c in report.comparisons if not c]
    assert any("times its bound" in c.worst.difference.broken for c in broken)


@pytest.mark.parametrize("table", ["cos", "sin"])
def test_a_rotation_that_is_two_percent_off_fails(rotary: Exported, table: str) -> None:
    assert rotary.verify()
    assert not rotary.verify(weight(f"freqs_{table}", lambda array: array * 1.02))


def test_bounds_of_ones_own_replace_those_of_rounding(half: Exported) -> None:
    report = half.verify(another_gate, rtol=0.9)
    assert report
    assert report.precision == "custom"
    assert not any(c.backend == UNROUNDED for c in report.comparisons)
