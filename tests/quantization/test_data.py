"""The calls that a file is quantized and measured on, where it does not take any."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pom_export
from pom_export.errors import InputError
from pom_export.graph.exported_model import ExportedModel, read_model
from pom_export.models import GPT, GPTConfig
from pom_export.quantization.data import data_for

VOCABULARY = 256


@pytest.fixture(scope="module", params=[(3, 16), (2, 1)])
def static(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ExportedModel:
    path = tmp_path_factory.mktemp("static") / "m.onnx"
    sizes = {"vocab_size": VOCABULARY, "n_layer": 1, "n_head": 2, "n_embd": 16, "mlp_width": 32}
    model = GPT(GPTConfig(**sizes, mixer_heads=2, attention_heads=4, degree=2, expand=2)).eval()
    pom_export.export(model, path, stateful=True, static=request.param)
    return read_model(path)


def test_calls_of_a_file_with_fixed_sizes_are_whole(static: ExportedModel, tmp_path: Path) -> None:
    rows, tokens = static.inputs[0].axes
    (tmp_path / "t.txt").write_text("some text, which is long enough. " * 20)
    ids = np.zeros((3 * rows + 1, tokens), np.int64)
    for calibrate in (tmp_path / "t.txt", {"input_ids": ids}):
        data = data_for(static, calibrate, "auto", 0, lambda _: None)
        assert data.calibration
        assert data.held_out
        assert {call["input_ids"].shape for call in (*data.calibration, *data.held_out)} == {(rows, tokens)}
        assert data.is_text == (tokens > 1)
    with pytest.raises(InputError, match=f"Give at least {2 * rows}"):
        data_for(static, {"input_ids": ids[: 2 * rows - 1]}, "auto", 0, lambda _: None)


def test_a_file_with_fixed_sizes_is_quantized(static: ExportedModel, tmp_path: Path) -> None:
    """One that takes several tokens at once can't write text, so its inputs are random."""
    result = pom_export.quantize(static.path, tmp_path / "q.onnx")
    assert result.measured_on == {1: "text that the model wrote itself", 16: "random inputs"}[static.inputs[0].axes[1]]
    assert sum(result.products.values()) > 3
