"""Engines of every family, built by the real TensorRT for RTX with the plugin inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

import pom_export
from pom_export import contract

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
# Name of the golden case, options of its export, and how many aggregations it has, with a gate fused and without.
CASES: list[tuple[str, dict[str, Any], int, int]] = [
    ("rope1d", {"mask": "causal"}, 1, 0),
    ("rope1d_heads", {"mask": "causal", "positions": True, "dtype": "float16"}, 1, 0),
    ("rope1d_heads", {"mask": "padding", "positions": True, "dtype": "float16"}, 1, 0),
    ("rope1d_heads", {"mask": "padding", "positions": True}, 0, 1),
    ("rope2d", {"mask": "full", "positions": True}, 0, 1),
    ("v2_base", {"mask": "causal", "optimize": False}, 0, 1),
    ("v1_degree3", {"mask": "padding"}, 1, 0),
    ("v1_cross", {"cross": True, "dtype": "bfloat16"}, 1, 0),
    ("gpt_hybrid", {}, 4, 0),
]


@pytest.mark.usefixtures("tensorrt_rtx")
@pytest.mark.parametrize(
    ("case", "options", "gated", "plain"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_aggregation_becomes_a_plugin_layer(
    case: str, options: dict[str, Any], gated: int, plain: int, tmp_path: Path
) -> None:
    pom_export.export(GOLDEN / case, tmp_path / "m.onnx", **options)
    ops = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node if node.domain == contract.DOMAIN]
    assert (ops.count(contract.GATED_OP_NAME), ops.count(contract.OP_NAME)) == (gated, plain)

    info = pom_export.build_engine(tmp_path / "m.onnx", tmp_path / "m.engine", backend="tensorrt-rtx", targets=["sm86"])
    assert info.plugin_layers == info.aggregations == gated + plain
