"""In half precision, a wrong file is distinguished from a coarse one: faults smaller than rounding errors fail."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pom_export
from pom_export.mixer import MixerConfig
from pom_export.models import LanguageModel, LanguageModelConfig
from pom_export.parity.candidates import UNROUNDED
from pom_export.parity.comparison import share_of_tolerance
from tests.exports import Edit, Exported, weight

CONFIG = LanguageModelConfig(61, n_layers=2, window=2, mlp_width=16, mixer=MixerConfig(16, 3, 2))


@pytest.fixture(scope="module", params=["float16", pytest.param("bfloat16", marks=pytest.mark.slow)])
def half(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(
        tmp_path_factory.mktemp(request.param), LanguageModel(CONFIG), dtype=request.param, stateful=True, samples=2
    )


@pytest.fixture(scope="module")
def rotary(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    mixer = pom_export.RotaryPolynomialMixer(16, 2, 2, max_seq_len=1100)
    exported = Exported(tmp_path_factory.mktemp("rotary"), mixer, mask="causal", dtype="bfloat16", samples=1)
    assert exported.verify(inputs=exported.recorded())
    return exported


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
        pytest.param(weight("blocks.0.mixer.se_bias", lambda array: array * 0), marks=pytest.mark.slow),
        pytest.param(weight("blocks.1.mixer.po_coeff", lambda array: np.roll(array, 1, 0)), marks=pytest.mark.slow),
        weight("blocks.1.mixer.po_coeff", lambda array: array * 1.02),
        pytest.param(weight("blocks.0.mlp_norm.weight", lambda array: array * 1.02), marks=pytest.mark.slow),
        weight("blocks.1.mlp_down.weight", lambda array: array.astype(np.float32) * 1.02),
    ],
    ids=["no gate bias", "coefficients of other channels", "coefficients", "norm", "matrix"],
)
def test_a_fault_does_not_hide_behind_rounding(half: Exported, edit: Edit) -> None:
    report = half.verify(edit, inputs=half.recorded())
    assert not report
    broken = [c for c in report.comparisons if not c]
    assert any("times its bound" in c.worst.difference.broken for c in broken)


@pytest.mark.parametrize("table", ["cos", pytest.param("sin", marks=pytest.mark.slow)])
def test_a_rotation_that_is_two_percent_off_fails(rotary: Exported, table: str) -> None:
    assert not rotary.verify(weight(f"freqs_{table}", lambda array: array * 1.02), inputs=rotary.recorded())


def test_the_users_own_bounds_replace_those_of_rounding(half: Exported) -> None:
    report = half.verify(weight("blocks.0.mixer.se_bias", lambda array: array * 0), rtol=0.9, inputs=half.recorded())
    assert report
    assert report.precision == "custom"
    assert not any(c.backend == UNROUNDED for c in report.comparisons)


def test_parity_data_know_what_rounding_does(half: Exported) -> None:
    """Parity data also reveal that a file was changed after they were recorded."""
    recorded = half.folder / "m.parity.npz"
    assert pom_export.verify(half.folder / "m.onnx")
    assert pom_export.verify(half.folder / "m.onnx", inputs=recorded)
    spoiled = half.spoil(weight("blocks.1.mixer.po_coeff", lambda array: array * 1.02))
    assert not pom_export.verify(spoiled, inputs=recorded)


@pytest.mark.parametrize(
    ("heads", "dtype"),
    [
        (4, "bfloat16"),
        pytest.param(4, "float16", marks=pytest.mark.slow),
        pytest.param(0, "bfloat16", marks=pytest.mark.slow),
        pytest.param(0, "float16", marks=pytest.mark.slow),
    ],
)
def test_tables_that_a_file_holds_in_both_types_are_known(heads: int, dtype: str, tmp_path: Path) -> None:
    """Features are rotated by float32 tables, and a gate of heads by columns of them in half precision."""
    mixer = pom_export.RotaryPolynomialMixer(16, 2, 2, n_sel_heads=heads, max_h=8, max_w=8, rope_2d=True)
    exported = Exported(tmp_path, mixer, positions=True, dtype=dtype, samples=1)
    report = exported.verify(inputs=exported.recorded())
    found = [c.worst.difference for c in report.comparisons if c.backend == UNROUNDED]
    assert found
    assert max(map(share_of_tolerance, found)) < 0.2
