"""What differs between two graphs is described; a graph that a tool has rewritten is not compared."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from pom_export.debugging.differences import differences
from pom_export.graph.module_values import ModuleValues

WEIGHT = np.arange(8, dtype=np.float32) + 1


def model(*, op: str = "Relu", alpha: float = 0.2, weight: np.ndarray = WEIGHT, source: str = "a", cast: bool = True,
          prefix: str = "") -> ModuleValues:  # fmt: skip
    nodes = [
        helper.make_node(op, ["x"], ["a"], name=f"{prefix}m.one/Relu"),
        helper.make_node("HardSigmoid", [source], ["b"], name=f"{prefix}m.two/HardSigmoid", alpha=alpha),
        helper.make_node("Mul", ["b", "m.two.weight"], ["c"], name=f"{prefix}m.two/Mul"),
        *([helper.make_node("Cast", ["c"], ["d"], name=f"{prefix}m/Cast", to=TensorProto.FLOAT)] if cast else []),
        helper.make_node("Abs", ["d" if cast else "c"], ["y"], name=f"{prefix}m/Abs"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [8]) for name in ("x", "y")]
    made = helper.make_graph(nodes, "g", values[:1], values[1:], [numpy_helper.from_array(weight, "m.two.weight")])
    return ModuleValues(ir.from_proto(helper.make_model(made)), {"m", "m.one", "m.two"})


def changed(at: int, by: float) -> np.ndarray:
    weight = WEIGHT.copy()
    weight[at] += by
    return weight


@pytest.mark.parametrize(
    ("given", "module", "kind", "text"),
    [
        ({"op": "Neg"}, "m.one", "operator", "the operator m.one/Relu is Neg in the file"),
        ({"alpha": 0.25}, "m.two", "attribute", "alpha is 0.25, not 0.2, in the operator m.two/HardSigmoid"),
        ({"weight": changed(2, 0.8)}, "m.two", "weight",
         "the weight m.two.weight differs: 1 of 8 values, by at most 0.8, 0.1 of the largest"),
        ({"weight": changed(0, np.nan)}, "m.two", "weight", "1 of 8 values"),
        ({"source": "x"}, "m.two", "input", "it comes from x, not from m.one/Relu"),
        ({"cast": False}, "m", "operator", "the operator m/Cast is missing"),
    ],
)  # fmt: skip
def test_a_difference_is_described(given: dict[str, object], module: str, kind: str, text: str) -> None:
    found = differences(model(**given), model())  # type: ignore[arg-type]
    assert found
    assert (found[0].module, found[0].kind) == (module, kind)
    assert text in found[0].what


def test_the_first_is_first() -> None:
    found = differences(model(op="Neg", weight=changed(1, 1)), model())
    assert found is not None
    assert [each.module for each in found] == ["m.one", "m.two"]


def test_equal_graphs() -> None:
    assert differences(model(), model()) == []


def test_a_rewritten_graph_is_not_compared() -> None:
    many = [helper.make_node("Abs", ["x"], [f"v{i}"], name=f"n{i}") for i in range(20)]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [8])
    proto = helper.make_model(helper.make_graph(many, "g", [value], [onnx.ValueInfoProto(name="v0")]))
    assert differences(ModuleValues(ir.from_proto(proto), {"m"}), model()) is None
