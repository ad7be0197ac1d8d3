"""Which of several files is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from pom_export.quantization.candidates import Candidate, most_suitable
from pom_export.quantization.choosing import Choice
from pom_export.quantization.quality import Quality
from pom_export.quantization.recipes import recipes_for
from pom_export.quantization.speed import Speed


def candidate(name: str, error: float, time: float) -> Candidate:
    quality = Quality("", None, None, None, error, error)
    recipe = recipes_for("int8", None, "onnxruntime", "both", stateful=True)[0]
    return Candidate(Path(name), recipe, Choice({}, quality), quality, [Speed("call", 1.0, time)])


@pytest.mark.parametrize(
    ("times", "kept"),
    [((1.0, 0.97), "accurate"), ((1.0, 0.91), "accurate"), ((1.0, 0.85), "rough"), ((0.5, 1.0), "accurate")],
)
def test_speed_has_to_be_worth_an_error(times: tuple[float, float], kept: str) -> None:
    """Times of the same file differ by a few percent, so they don't decide between forms that are as fast."""
    made = [candidate("accurate", 0.01, times[0]), candidate("rough", 0.02, times[1])]
    assert most_suitable(made, "both").file.name == kept
    assert most_suitable(made[::-1], "both").file.name == kept
