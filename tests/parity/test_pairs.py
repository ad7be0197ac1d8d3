"""A user's own inputs and outputs are a reference: they need no checkpoint, and empty ones prove nothing."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

import pom_export
from pom_export.errors import InputError
from pom_export.parity.report import ParityReport
from tests.exports import Exported

TOKENS = np.random.default_rng(0).standard_normal((2, 5, 16)).astype(np.float32)
MASK = np.ones((2, 5), np.bool_)


@pytest.fixture(scope="module")
def mixer(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(tmp_path_factory.mktemp("mixer"), pom_export.PolynomialMixer(16, 2, 2), mask="padding", samples=2)


@pytest.fixture(scope="module")
def pair(mixer: Exported) -> dict[str, np.ndarray]:
    session = pom_export.inference_session(mixer.folder / "m.onnx", kernels=False)
    return {"x": TOKENS, "mask": MASK, "y": session.run(None, {"x": TOKENS, "mask": MASK})[0]}


def verify(mixer: Exported, arrays: dict[str, np.ndarray], folder: Path) -> ParityReport:
    np.savez(folder / "pair.npz", **arrays)
    return pom_export.verify(mixer.folder / "m.onnx", inputs=folder / "pair.npz")


def test_outputs_beside_the_inputs_are_the_reference(
    mixer: Exported, pair: dict[str, np.ndarray], tmp_path: Path
) -> None:
    report = verify(mixer, {**pair, "more": MASK}, tmp_path)
    assert report
    assert "pair.npz" in report.reference
    assert any("more was not used" in note for note in report.notes)
    assert pom_export.verify(mixer.folder / "m.onnx", inputs=pair)
    assert not verify(mixer, {**pair, "y": pair["y"] * 1.01}, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": None}, "hold none of the model's outputs, which are y"),
        ({"x": None}, "lack 'x'"),
        ({"x": TOKENS[:, :0], "mask": MASK[:, :0]}, "is empty"),
        ({"x": TOKENS * np.nan}, "NaN or infinity"),
        ({"mask": ~MASK}, "masks everything"),
        ({"y": TOKENS[..., :3]}, r"y is float32\[2, 5, 3\], but the model gives"),
        ({"y": MASK}, r"y is bool\[2, 5\]"),
        ({"y": TOKENS.astype(ml_dtypes.bfloat16)}, "the model gives"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(
    mixer: Exported, pair: dict[str, np.ndarray], change: dict[str, np.ndarray | None], message: str, tmp_path: Path
) -> None:
    arrays = {name: array for name, array in {**pair, **change}.items() if array is not None}
    with pytest.raises(InputError, match=message):
        verify(mixer, arrays, tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_outputs_without_a_finite_value_pass_nothing(
    mixer: Exported, pair: dict[str, np.ndarray], value: float, tmp_path: Path
) -> None:
    assert not verify(mixer, {**pair, "y": np.full_like(pair["y"], value)}, tmp_path)


def test_parity_data_of_the_export_serve_for_what_a_tool_made_of_it(mixer: Exported) -> None:
    model = onnx.load(mixer.folder / "m.onnx")
    model.producer_name = "another tool"
    onnx.save(model, mixer.folder / "rewritten.onnx")
    with pytest.raises(InputError, match="does not exist"):
        pom_export.verify(mixer.folder / "rewritten.onnx")
    report = pom_export.verify(mixer.folder / "rewritten.onnx", inputs=mixer.folder / "m.parity.npz")
    assert report
    assert len(report.comparisons[0].cases) == 2


def test_the_checkpoint_is_the_reference_where_both_are_given(
    mixer: Exported, pair: dict[str, np.ndarray], tmp_path: Path
) -> None:
    np.savez(tmp_path / "pair.npz", **{**pair, "y": pair["y"] * 2})
    report = pom_export.verify(mixer.folder / "m.onnx", checkpoint=mixer.checkpoint, inputs=tmp_path / "pair.npz")
    assert report
    assert any("y was not used" in note for note in report.notes)
