"""Which of a file's inputs are tokens, contexts and masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pom_export.graph.exported_model import ExportedModel, TensorSpec
from pom_export.runtime.streaming.interface import stateful_interface

INT64 = np.dtype("int64")


@pytest.mark.parametrize(
    ("inputs", "tokens"),
    [
        ({"input_ids": ("batch", "tokens"), "mask": ("batch", "tokens")}, "input_ids"),
        ({"input_ids": (2, 12)}, "input_ids"),
        ({"src": ("batch", "src_tokens"), "tgt": ("batch", "tokens")}, "tgt"),
        # As Hugging Face's encoder-decoders name them.
        ({"input_ids": ("batch", "input_ids_tokens"), "decoder_input_ids": ("batch", "tokens")}, "decoder_input_ids"),
        ({"input_ids": ("batch", 7), "decoder_input_ids": ("batch", "tokens")}, "decoder_input_ids"),
        ({"label": ("batch", "tokens"), "input_ids": ("batch", "tokens")}, "input_ids"),
    ],
)
def test_the_tokens_of_a_call(inputs: dict[str, tuple[str | int, ...]], tokens: str) -> None:
    specs = [TensorSpec(name, INT64, axes) for name, axes in {**inputs, "past_length": ("batch",)}.items()]
    outputs = [TensorSpec(name, INT64, ("batch",)) for name in ("y", "present_length")]
    file = ExportedModel(Path("m.onnx"), specs, outputs, {"stateful": "causal"}, 20, ["a"])
    assert stateful_interface(file).tokens.name == tokens
