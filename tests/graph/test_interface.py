"""The inputs and outputs that files declare, and the types of their weights, whatever files claim."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper, numpy_helper

from pom_export.errors import InputError
from pom_export.graph.exported_model import TensorSpec, read_model
from pom_export.graph.interface import check_counts
from pom_export.graph.weight_types import precision_of, weight_types


def parse(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model('<ir_version: 10, opset_import: ["": 20]> ' + text)


GOOD = "g (float[N] x) => (float[N] y) { y = Relu(x) }"


def changed(**changes: object) -> onnx.ModelProto:
    """Return a whole model, with changes to its input's type or to other parts."""
    model = parse(GOOD)
    tensor = model.graph.input[0].type.tensor_type
    if "elem_type" in changes:
        tensor.elem_type = changes["elem_type"]
    if "dim_value" in changes:
        tensor.shape.dim[0].dim_value = changes["dim_value"]
    if "dims" in changes:
        tensor.shape.ClearField("dim")
        for size in changes["dims"]:
            tensor.shape.dim.add(dim_value=size)
    for name in changes.get("twice", ()):
        part = getattr(model.graph, name)
        part.add().CopyFrom(part[0])
    if "opsets" in changes:
        model.ClearField("opset_import")
        for domain, version in changes["opsets"]:
            model.opset_import.add(domain=domain, version=version)
    if changes.get("shapeless"):
        tensor.ClearField("shape")
    if changes.get("empty"):
        model.graph.ClearField("node")
        model.graph.output[0].name = "x"
    return model


@pytest.mark.parametrize(
    "model",
    [
        changed(elem_type=99),
        changed(elem_type=8),
        changed(elem_type=14),
        changed(elem_type=22),
        changed(dim_value=-2),
        changed(dim_value=0),
        changed(dims=[2**20, 2**20]),
        changed(dims=[2**62, 2**62]),
        changed(dims=[1] * 40),
        changed(shapeless=True),
        changed(twice=["input"]),
        changed(twice=["output"]),
        changed(opsets=[]),
        changed(opsets=[("pom", 1)]),
        changed(opsets=[("", 20), ("ai.onnx", 18)]),
        changed(opsets=[("", -3)]),
        changed(empty=True),
        parse("g () => (float[1] y) <float[1] w = {1}> { y = Relu(w) }"),
        parse("g (seq(float[N]) x) => (float[N] y) { i = Constant <value_int = 0> () y = SequenceAt(x, i) }"),
        parse("g (float[N] x) => (float[N] y) <float w = {1}, float w = {2}> { y = Add(x, w) }"),
    ],
)
def test_what_no_export_declares_is_refused_by_one_line(model: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(InputError) as raised:
        read_model(tmp_path / "m.onnx")
    assert "\n" not in str(raised.value)


def unnamed(text: str) -> onnx.ModelProto:
    """Return a model whose dimensions have lost the names that begin with "no"."""
    model = parse(text)
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param.startswith("no"):
                dim.Clear()
            elif dim.dim_param == "minus":
                dim.dim_value = -1
            elif dim.dim_param == "mark":
                dim.dim_param = "?"
    return model


@pytest.mark.parametrize(
    ("text", "axes"),
    [
        ("g (float[no, no, 4] x) => (float[no, B] y) { y = Relu(x) }", [("batch", "tokens", 4), ("y_0", "B")]),
        ("g (float[minus, mark] a) => (float[no] b) { b = Relu(a) }", [("a_0", "a_1"), ("b_0",)]),
        (
            "g (float[no, T, 4] x, float[no, no, 4] context, bool[no, no, no] mask) => (float[T] y) { y = Relu(x) }",
            [("batch", "T", 4), ("batch", "context_tokens", 4), ("batch", "tokens", "context_tokens"), ("T",)],
        ),
        (
            "g (int64[no, no] input_ids, float[no, 2, no, 8] v) => (float[1] y) { y = Cast <to = 1> (v) }",
            [("batch", "tokens"), ("v_0", 2, "v_2", 8), (1,)],
        ),
    ],
)
def test_dimensions_without_names_are_known_by_their_places(
    text: str, axes: list[tuple[str | int, ...]], tmp_path: Path
) -> None:
    onnx.save(unnamed(text), tmp_path / "m.onnx")
    model = read_model(tmp_path / "m.onnx")
    assert [spec.axes for spec in (*model.inputs, *model.outputs)] == axes


@pytest.mark.parametrize(
    ("values", "fits"),
    [({"p": [8]}, True), ({"p": [8, 9]}, True), ({"p": [8, 9, 10]}, False), ({"x": [8]}, False), ({"q": [8]}, True),
     ({"p": [2**40]}, False)],
)  # fmt: skip
def test_counts_of_values_are_those_of_an_input_of_integers(values: dict[str, list[int]], fits: bool) -> None:
    specs = [TensorSpec("x", np.dtype("float32"), ("n",)), TensorSpec("p", np.dtype("int32"), ("n", 2))]
    with nullcontext() if fits else pytest.raises(ValueError, match="do not fit: only an integer input"):
        check_counts(values, specs)


def test_the_domain_of_standard_ops_has_two_names(tmp_path: Path) -> None:
    onnx.save(changed(opsets=[("ai.onnx", 21)]), tmp_path / "m.onnx")
    assert read_model(tmp_path / "m.onnx").opset == 21


def test_a_long_name_with_escapes_is_shown_short_and_printable() -> None:
    text = str(TensorSpec("a\n\x1b[2J" + "b" * 10**6, np.dtype("float32"), ("n",)))
    assert text.isprintable()
    assert len(text) < 300


def weighted(body: str, **arrays: np.ndarray) -> dict[str, int]:
    """Return the types of the weights of a graph with `w` in float32, and others as given."""
    model = parse(f"g (float[N,64] x) => (float[N,64] y) {{ {body} }}")
    for name, array in {"w": np.ones((64, 64), np.float32), **arrays}.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return weight_types(model)


HALF = np.ones((64, 64), np.float16)


@pytest.mark.parametrize(
    ("body", "types"),
    [
        ("y = MatMul(x, w)", {"float32": 4096}),
        ("h = Cast<to = 10>(x) f = Cast<to = 1>(h) y = MatMul(f, w)", {"float32": 4096}),
        ("c = Cast<to = 10>(idle) d = MatMul(c, c) y = MatMul(x, w)", {"float32": 4096}),
        (
            "t = Transpose(w) h = Cast<to = 10>(t) x16 = Cast<to = 10>(x) z = MatMul(x16, h) y = Cast<to = 1>(z)",
            {"float32": 4096},
        ),
        ("x16 = Cast<to = 10>(x) z = MatMul(x16, idle) y = Cast<to = 1>(z)", {"float16": 4096}),
        ("y = Relu(x)", {}),
    ],
    ids=["float32", "a cast more", "idle half", "cast at run time", "half", "none"],
)
def test_the_weights_that_reach_an_output_are_counted(body: str, types: dict[str, int]) -> None:
    assert weighted(body, idle=HALF) == types


def test_weights_inside_of_nodes_are_counted_wherever_they_are() -> None:
    inner = helper.make_graph([], "inner", [], [helper.make_tensor_value_info("z", 1, [64, 64])])
    inner.initializer.append(numpy_helper.from_array(np.ones((64, 64), np.float32), "z"))
    model = parse("g (float[N] x) => (float[N] y) { y = Relu(x) }")
    model.graph.node[0].attribute.append(helper.make_attribute("body", inner))
    assert weight_types(model) == {"float32": 4096}


@pytest.mark.parametrize(
    ("counts", "otherwise", "expected"),
    [
        ({"float32": 10, "float16": 9}, [], "float32"),
        ({"float32": 10, "float16": 10}, [], "float16"),
        ({"float32": 1, "float16": 10, "bfloat16": 10}, [], "float16"),
        ({"float32": 1, "bfloat16": 10}, [], "bfloat16"),
        ({"float64": 10, "float16": 1}, [], "float32"),
        ({}, ["float16", "float16"], "float16"),
        ({}, ["float16", "float32"], "float32"),
        ({}, [], "float32"),
    ],
)
def test_most_of_the_weights_decide_the_precision(counts: dict[str, int], otherwise: list[str], expected: str) -> None:
    assert precision_of(counts, otherwise) == expected


@pytest.mark.parametrize(
    ("part", "shapeless", "message"),
    [
        ("output", True, "its output y has no shape. Save what onnx.shape_inference.infer_shapes makes of it"),
        ("output", False, "its output y has no type. Declare it"),
        ("input", True, "its input x has no shape. Declare it"),
    ],
)
def test_what_another_tool_left_undeclared_is_named(part: str, shapeless: bool, message: str, tmp_path: Path) -> None:
    model = parse(GOOD)
    value = getattr(model.graph, part)[0]
    if shapeless:
        value.type.tensor_type.ClearField("shape")
    else:
        value.ClearField("type")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=message):
        read_model(tmp_path / "m.onnx")
