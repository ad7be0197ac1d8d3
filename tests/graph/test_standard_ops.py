"""The functions in exported files are standard ONNX: onnx's reference evaluator and other tools run every kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

import pom_export
from pom_export.graph.exported_model import is_past, read_model
from pom_export.graph.function_check import check_functions
from pom_export.graph.nodes import is_aggregation
from pom_export.parity.comparison import difference
from pom_export.parity.tolerances import MODELS
from tests.slow_cases import slow_cases

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
BATCH, TOKENS = 2, 6


class Kind(NamedTuple):
    case: str
    options: dict[str, Any]

    def __str__(self) -> str:
        return "-".join([self.case, *(str(v) if isinstance(v, str) else k for k, v in self.options.items())])


KINDS = [
    Kind("v2_no_heads", {"mask": "none"}),
    Kind("v2_heads", {"mask": "causal"}),
    Kind("v2_groups_bias", {"mask": "padding"}),
    Kind("v2_heads", {"mask": "full", "dtype": "float16"}),
    Kind("v2_cross", {"mask": "none", "cross": True}),
    Kind("rope1d", {"mask": "causal", "optimize": False}),
    Kind("rope2d_heads", {"mask": "padding", "positions": True}),
    Kind("v1_degree3", {"mask": "causal"}),
    Kind("v1_grouped", {"mask": "none"}),
    Kind("v2_heads", {"mask": "causal", "stateful": True, "opset": 18}),
    Kind("rope1d", {"mask": "padding", "stateful": True}),
    Kind("v1_degree2", {"mask": "none", "stateful": True, "block_causal": True}),
    Kind("gpt_pom", {}),
]


# Those that between them have every form, mode and rotation, a state and half precision.
QUICK = (
    "v2_groups_bias-padding",
    "v2_heads-full-float16",
    "rope1d-causal-optimize",
    "rope1d-padding-stateful",
    "v1_degree3-causal",
)


@pytest.fixture(scope="module", params=slow_cases(KINDS, lambda name: name not in QUICK))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kind") / "m.onnx"
    pom_export.export(GOLDEN / request.param.case, path, **request.param.options)
    return path


def feed_of(model: Path) -> dict[str, np.ndarray[Any, Any]]:
    generator, feed = np.random.default_rng(0), {}
    for spec in read_model(model).inputs:
        dynamic = {"batch": BATCH}
        shape = [axis if isinstance(axis, int) else dynamic.get(axis, TOKENS) for axis in spec.axes]
        if spec.dtype == bool:
            feed[spec.name] = np.arange(TOKENS) < np.array([[TOKENS], [TOKENS - 2]])
            feed[spec.name] = np.broadcast_to(feed[spec.name][:, None] if len(shape) > 2 else feed[spec.name], shape)
        elif is_past(spec.name):
            feed[spec.name] = np.full(shape, 3, spec.dtype)
        elif spec.dtype.kind == "i":
            feed[spec.name] = generator.integers(0, 4, shape)
        else:
            feed[spec.name] = generator.standard_normal(shape).astype(spec.dtype)
    return feed


def test_onnx_reference_gives_the_kernels_numbers(model: Path) -> None:
    feed = feed_of(model)

    made = ReferenceEvaluator(str(model)).run(None, feed)

    for array, expected in zip(made, pom_export.inference_session(model).run(None, feed), strict=True):
        assert array.dtype == expected.dtype
        assert difference(array, expected, MODELS["float16" if expected.dtype == np.float16 else "float32"])


def test_the_file_claims_the_least(model: Path) -> None:
    proto = onnx.load(model)
    opset = next(imported.version for imported in proto.opset_import if not imported.domain)
    assert proto.ir_version == {18: 8, 20: 9}[opset]
    for function in proto.functions:
        used = {name for node in function.node for name in node.input}
        assert set(function.input) <= used
        constants = {node.output[0]: node.attribute[0].t for node in function.node if node.op_type == "Constant"}
        for node in function.node:
            if node.op_type == "CumSum":
                assert list(constants[node.input[1]].dims) == []
                assert {attribute.name: attribute.i for attribute in node.attribute} == {"exclusive": 0, "reverse": 0}


def test_each_function_is_what_its_node_asks_for(model: Path) -> None:
    proto = onnx.load(model)
    assert any(is_aggregation(node) for node in proto.graph.node)
    check_functions(model)
