"""Engines of every kind of model, for four architectures, with the plugin and with functions instead."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import pytest
from torch import nn

import pom_export
from pom_export import contract
from pom_export.engine.precision import declared_types
from pom_export.graph.exported_model import PRECISIONS
from pom_export.graph.nodes import op_of
from tests.slow_cases import slow_cases
from tests.small_models import hybrid, image_model

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
TARGETS = ["sm80", "sm86", "sm89", "sm120"]
STATIC = (2, 16)


class Kind(NamedTuple):
    """A model, how it is exported, and how many gated and plain aggregations the export has."""

    family: str
    case: str
    mask: str
    dtype: str
    static: bool = False
    options: dict[str, Any] = {}  # noqa: RUF012 (of a tuple, never changed)
    gated: int = 1
    plain: int = 0

    def __str__(self) -> str:
        stateful = [name for name in ("stateful",) if name in self.options]
        return "-".join([self.case, self.mask, self.dtype, *["static"] * self.static, *stateful])


POSITIONS = {"positions": True}
CROSS = {"cross": True}
STATEFUL = {"stateful": True}
BLOCK_CAUSAL = {**STATEFUL, "block_causal": True}
# Every family with every mask that it takes, and every pair of a mask, a type and shapes.
KINDS = [
    Kind("v2", "v2_bias", "none", "float16"),
    Kind("v2", "v2_base", "causal", "float32", static=True, options={"optimize": False}, gated=0, plain=1),
    Kind("v2", "v2_groups_heads", "padding", "bfloat16", gated=0, plain=1),
    Kind("v2", "v2_heads", "full", "float32", gated=0, plain=1),
    Kind("rope1d", "rope1d", "none", "bfloat16", static=True),
    Kind("rope1d", "rope1d_heads", "causal", "float16", options=POSITIONS),
    Kind("rope1d", "rope1d_heads", "padding", "float32", options=POSITIONS, gated=0, plain=1),
    Kind("rope1d", "rope1d", "full", "float16", static=True, options=POSITIONS, gated=0, plain=1),
    Kind("rope2d", "rope2d", "none", "float32", options=POSITIONS),
    Kind("rope2d", "rope2d_heads", "padding", "float16", static=True, options=POSITIONS),
    Kind("rope2d", "rope2d", "full", "bfloat16", options=POSITIONS, gated=0, plain=1),
    Kind("v1", "v1_degree5", "none", "float32", static=True),
    Kind("v1", "v1_degree3", "causal", "bfloat16"),
    Kind("v1", "v1_degree2", "padding", "float16"),
    Kind("v1", "v1_degree4", "full", "float32", static=True, gated=0, plain=1),
    Kind("v1-grouped", "v1_grouped", "causal", "bfloat16"),
    Kind("cross", "v1_cross", "none", "bfloat16", options=CROSS),
    Kind("cross", "v2_cross", "full", "float16", options=CROSS, gated=0, plain=1),
    Kind("gpt", "hybrid", "causal", "float16", static=True),
    Kind("jit", "jit", "none", "float16", gated=2),
    Kind("jit", "jit", "none", "float32", static=True, gated=0, plain=2),
    Kind("stateful", "v2_heads", "causal", "float16", options=STATEFUL),
    Kind("stateful", "rope1d", "padding", "float32", options=STATEFUL),
    Kind("stateful", "v1_grouped", "none", "bfloat16", static=True, options=BLOCK_CAUSAL, gated=0, plain=1),
    Kind("gpt", "hybrid", "causal", "bfloat16", options=STATEFUL),
]  # fmt: skip
MASKS_OF = {
    "v2": {"none", "causal", "padding", "full"},
    "rope1d": {"none", "causal", "padding", "full"},
    "rope2d": {"none", "padding", "full"},
    "v1": {"none", "causal", "padding", "full"},
}


def source(kind: Kind) -> Path | nn.Module:
    models = {"hybrid": lambda: hybrid(layers=2), "jit": image_model}
    return models[kind.case]() if kind.case in models else GOLDEN / kind.case


def test_every_pair_of_choices_is_in_the_table() -> None:
    values = {"mask": sorted(MASKS_OF["v2"]), "dtype": PRECISIONS, "static": (False, True)}
    for one, other in combinations(values, 2):
        present = {(getattr(kind, one), getattr(kind, other)) for kind in KINDS}
        assert present == set(product(values[one], values[other]))
    for family, masks in MASKS_OF.items():
        assert {kind.mask for kind in KINDS if kind.family == family} == masks


# These contain every mask, type and kind of shapes at least once; all others are slow.
ALWAYS = {
    "v2_groups_heads-padding-bfloat16",
    "v2_heads-full-float32",
    "rope1d-none-bfloat16-static",
    "rope2d_heads-padding-float16-static",
    "v1_grouped-causal-bfloat16",
}


def test_every_choice_is_always_built() -> None:
    always = [kind for kind in KINDS if str(kind) in ALWAYS]
    assert len(always) == len(ALWAYS)
    for choice in ("mask", "dtype", "static"):
        missing = {getattr(kind, choice) for kind in KINDS} - {getattr(kind, choice) for kind in always}
        assert not missing, choice
    assert {kind.gated > 0 for kind in always} == {kind.plain > 0 for kind in always} == {True, False}


@pytest.mark.usefixtures("tensorrt_rtx")
@pytest.mark.parametrize(
    "kind",
    slow_cases(KINDS, lambda name: name not in ALWAYS),
)
def test_every_kind_builds_with_the_plugin_and_with_functions(kind: Kind, tmp_path: Path) -> None:
    model, engine = tmp_path / "m.onnx", tmp_path / "m.engine"
    mask = {} if kind.family in {"gpt", "jit"} else {"mask": kind.mask}
    static = STATIC if kind.static else None
    pom_export.export(source(kind), model, **mask, dtype=kind.dtype, static=static, **kind.options)
    graph = onnx.load(model).graph
    nodes = graph.node
    ops = [op_of(node) for node in nodes]
    assert (ops.count(contract.GATED_OP_NAME), ops.count(contract.OP_NAME)) == (kind.gated, kind.plain)

    declared = declared_types(graph)
    products = Counter(declared[node.output[0]] for node in nodes if node.op_type in {"MatMul", "Conv", "Gemm"})
    for use_plugin in (True, False):
        info = pom_export.build_engine(model, engine, backend="tensorrt-rtx", targets=TARGETS, use_plugin=use_plugin)

        assert info.targets == TARGETS
        assert info.aggregations == kind.gated + kind.plain
        assert info.plugin_layers == (info.aggregations if use_plugin else 0)
        # A function's mean is one more product, in float32 whatever the model's type.
        assert (Counter(info.matrix_products) - products).keys() <= (set() if use_plugin else {"float32"})
        assert not products - Counter(info.matrix_products)
        sizes = {shapes["min"] == shapes["max"] for shapes in info.profiles.values()}
        assert sizes == {kind.static}
