"""Engines of every family, built by the real TensorRT for RTX with the plugin inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import pom_export

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
# Name of the golden case, options of its export, and how many aggregations it has.
CASES: list[tuple[str, dict[str, Any], int]] = [
    ("rope1d", {"mask": "causal"}, 1),
    ("rope1d_heads", {"mask": "padding", "positions": True, "dtype": "float16"}, 1),
    ("rope2d", {"mask": "full", "positions": True}, 1),
    ("v1_degree3", {"mask": "padding"}, 1),
    ("v1_cross", {"cross": True, "dtype": "bfloat16"}, 1),
    ("gpt_hybrid", {}, 4),
]


@pytest.mark.usefixtures("tensorrt_rtx")
@pytest.mark.parametrize(
    ("case", "options", "aggregations"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_aggregation_becomes_a_plugin_layer(
    case: str, options: dict[str, Any], aggregations: int, tmp_path: Path
) -> None:
    pom_export.export(GOLDEN / case, tmp_path / "m.onnx", **options)
    info = pom_export.build_engine(tmp_path / "m.onnx", tmp_path / "m.engine", backend="tensorrt-rtx", targets=["sm86"])
    assert info.plugin_layers == info.aggregations == aggregations
