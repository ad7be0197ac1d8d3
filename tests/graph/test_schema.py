"""The op's ONNX schema: attributes, defaults, and inference where little is known."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import onnx
import pytest
from onnx import TensorProto, TypeProto, helper

from pom_export import contract
from pom_export.graph.schema import attributes, register_schema

RANK_UNKNOWN = None
MASK_TYPES = (TensorProto.BOOL, TensorProto.FLOAT)


def one_node_model(
    mode: str, x_shape: Sequence[int | str] | None, x_type: int, mask_type: int | None
) -> onnx.ModelProto:
    """Return a model whose output's type and shape must be inferred."""
    inputs = [
        helper.make_tensor_value_info("x", x_type, x_shape),
        helper.make_tensor_value_info("coefficients", TensorProto.FLOAT, [8, 3]),
    ]
    if mask_type is not None:
        inputs.append(helper.make_tensor_value_info("mask", mask_type, ["batch", "tokens"]))
    names = [value.name for value in inputs]
    node = helper.make_node(contract.OP_NAME, names, ["y"], domain=contract.DOMAIN, **attributes(mode))
    graph = helper.make_graph([node], "graph", inputs, [onnx.ValueInfoProto(name="y")])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(contract.DOMAIN, contract.OP_VERSION)]
    return helper.make_model(graph, opset_imports=opsets)


def inferred_type(model: onnx.ModelProto) -> TypeProto.Tensor:
    register_schema()
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    return inferred.graph.output[0].type.tensor_type


@pytest.mark.parametrize("x_type", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16])
@pytest.mark.parametrize(("mode", "mask_type"), [("mean", None), ("mean", MASK_TYPES[0]), ("causal", MASK_TYPES[1])])
def test_infers_named_dimensions_and_the_type(mode: str, mask_type: int | None, x_type: int) -> None:
    y = inferred_type(one_node_model(mode, ["batch", "tokens", 8], x_type, mask_type))

    assert y.elem_type == x_type
    batch, tokens, channels = y.shape.dim
    assert (batch.dim_param, channels.dim_value) == ("batch", 8)
    assert (tokens.dim_value, tokens.dim_param) == ((1, "") if mode == "mean" else (0, "tokens"))


def test_infers_the_type_where_the_rank_is_unknown() -> None:
    y = inferred_type(one_node_model("mean", RANK_UNKNOWN, TensorProto.FLOAT16, None))

    assert y.elem_type == TensorProto.FLOAT16
    assert not y.HasField("shape")


def test_refuses_a_type_that_no_kernel_takes() -> None:
    with pytest.raises(onnx.shape_inference.InferenceError, match="typestr"):
        inferred_type(one_node_model("mean", [2, 5, 8], TensorProto.DOUBLE, None))


def test_a_node_carries_every_attribute_in_order() -> None:
    written = attributes("causal", 1e-7)

    assert tuple(written) == contract.ATTRIBUTES
    assert (written["mode"], written["epsilon"]) == ("causal", 1e-7)
    assert attributes("mean")["epsilon"] == contract.DEFAULT_EPSILON


def test_the_schema_states_the_contract() -> None:
    schema = register_schema()

    assert schema is register_schema()
    assert tuple(value.name for value in schema.inputs) == contract.INPUTS
    assert schema.min_input == contract.REQUIRED_INPUTS
    assert tuple(value.name for value in schema.outputs) == contract.OUTPUTS
    assert schema.attributes.keys() == set(contract.ATTRIBUTES)
    # Only the mode is required; the other defaults are those that `attributes` would write.
    assert [name for name, attribute in schema.attributes.items() if attribute.required] == ["mode"]
    for name, value in attributes("mean").items():
        if name != "mode":
            default = helper.get_attribute_value(schema.attributes[name].default_value)
            assert (default.decode() if isinstance(default, bytes) else default) == value


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mode", ["mean"], "mode must be of type STRING, got STRINGS"),
        ("mode", "median", "mode must be one of mean, causal, features, got 'median'"),
        ("mode", None, "the attribute mode is missing|Required attribute 'mode' is missing"),
        ("degree", [3], "degree must be of type INT, got INTS"),
        ("degree", 3.0, "degree must be of type INT, got FLOAT"),
        ("degree", 3, "must be 0 in form"),
        ("form", "product", "needs a degree of 1 to 16, got 0"),
        ("form", "cube", "form must be one of"),
        ("epsilon", [1.0], "epsilon must be of type FLOAT, got FLOATS"),
        ("epsilon", 1, "epsilon must be of type FLOAT, got INT"),
        ("epsilon", float("nan"), "epsilon must be finite and not negative, got nan"),
        ("epsilon", -0.5, "epsilon must be finite and not negative, got -0.5"),
        ("rotary_blocks", 3, "rotary_blocks must be 1 or 2, got 3"),
        ("stateful", 2, "stateful must be 0 or 1, got 2"),
        ("plugin_version", 1, "plugin_version must be of type STRING, got INT"),
    ],
)
def test_an_attribute_that_is_not_the_contracts_is_an_error(name: str, value: object, message: str) -> None:
    model = one_node_model("mean", ["batch", "tokens", 8], TensorProto.FLOAT, None)
    node = model.graph.node[0]
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
    if value is not None:
        node.attribute.append(helper.make_attribute(name, value))
    with pytest.raises(onnx.shape_inference.InferenceError, match=message):
        inferred_type(model)


@pytest.mark.parametrize(("rank", "message"), [(2, "x must have 3 dimensions, got 2"), (4, "got 4"), (0, "got 0")])
def test_an_x_of_another_rank_is_an_error(rank: int, message: str) -> None:
    with pytest.raises(onnx.shape_inference.InferenceError, match=message):
        inferred_type(one_node_model("mean", [8] * rank, TensorProto.FLOAT, None))


def test_an_unknown_attribute_is_no_valid_model() -> None:
    model = one_node_model("mean", [2, 5, 8], TensorProto.FLOAT, None)
    model.graph.node[0].attribute.append(helper.make_attribute("power", 2))
    model.graph.output[0].type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, [2, 1, 8]))
    register_schema()
    with pytest.raises(onnx.checker.ValidationError, match="power"):
        onnx.checker.check_model(model)


def test_a_process_that_registered_it_ends() -> None:
    """onnx 1.19 released the inference function after Python's end: a crash, or a process that never ended."""
    script = "from pom_export.graph.schema import register_schema; register_schema()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
