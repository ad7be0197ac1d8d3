"""Arguments that a model would not use are refused, not ignored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import pom_export
from pom_export import PolynomialMixer
from pom_export.errors import InputError

CHECKPOINT = Path(__file__).parents[1] / "data" / "golden" / "v2_base" / "checkpoint.pt"
X = torch.ones(1, 5, 8)


def mixer() -> PolynomialMixer:
    return PolynomialMixer(8, 2, 2).eval()


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (
            CHECKPOINT.absolute,
            {"example_inputs": (X,)},
            r"^example_inputs is for a module, and .*checkpoint\.pt is a path",
        ),
        (CHECKPOINT.absolute, {"dynamic_shapes": {"x": {1: "tokens"}}}, "^dynamic_shapes is for a module with example"),
        (CHECKPOINT.absolute, {"mixers": {PolynomialMixer: mixer}}, "^mixers is for a module with example_inputs"),
        (mixer, {"dynamic_shapes": {"x": {1: "tokens"}}}, "^dynamic_shapes is for a module with example_inputs"),
        (mixer, {"mixers": {PolynomialMixer: mixer}}, "^mixers is for a module with example_inputs"),
    ],
)
def test_what_would_not_be_used_is_refused(
    model: Callable[[], Any], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        pom_export.export(model(), tmp_path / "m.onnx", **options)
    assert not list(tmp_path.iterdir())
