"""Verify judges by the reference and the graph: a file's claims about itself loosen nothing and hide nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, inliner, numpy_helper

import pom_export
from pom_export.api.expecting import _reach
from pom_export.errors import InputError
from pom_export.graph.options import GraphOptions
from pom_export.graph.programs import program_of
from pom_export.mixer import MixerConfig, RotaryPolynomialMixer
from pom_export.models import LanguageModel, LanguageModelConfig
from tests.exports import Edit, Exported, claim, weight

VOCABULARY = 300


@pytest.fixture(scope="module")
def mixer(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(tmp_path_factory.mktemp("mixer"), pom_export.PolynomialMixer(16, 2, 2), mask="padding", samples=2)


@pytest.fixture(scope="module")
def rotary(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    module = pom_export.RotaryPolynomialMixer(16, 2, 2, max_seq_len=1600)
    return Exported(tmp_path_factory.mktemp("rotary"), module, mask="causal")


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    module = pom_export.RotaryPolynomialMixer(16, 2, 2, max_h=40, max_w=30, rope_2d=True)
    exported = Exported(tmp_path_factory.mktemp("grid"), module, positions=True)
    assert exported.verify()
    return exported


@pytest.fixture(scope="module")
def stateful(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    exported = Exported(tmp_path_factory.mktemp("stateful"), pom_export.PolynomialMixer(16, 2, 2), stateful=True)
    assert exported.verify()
    return exported


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    config = LanguageModelConfig(VOCABULARY, n_layers=1, window=2, mlp_width=16, mixer=MixerConfig(16, 2, 2))
    return Exported(tmp_path_factory.mktemp("language_model"), LanguageModel(config))


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(tmp_path_factory.mktemp("half"), pom_export.PolynomialMixer(16, 2, 2), dtype="float16")


def scaled(factor: float) -> Edit:
    return weight("ag_proj.weight", lambda array: array * factor)


def idle_half_weights(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.ones((99, 99), np.float16), "idle"))


def a_cast_to_bfloat16(model: onnx.ModelProto) -> None:
    """Round an activation to bfloat16 and back, just before the last product."""
    node = next(node for node in model.graph.node if any(name.startswith("ag_proj.weight") for name in node.input))
    narrow = helper.make_node("Cast", [node.input[0]], ["narrow"], to=TensorProto.BFLOAT16)
    wide = helper.make_node("Cast", ["narrow"], ["wide"], to=TensorProto.FLOAT)
    node.input[0] = "wide"
    place = list(model.graph.node).index(node)
    model.graph.node.insert(place, wide)
    model.graph.node.insert(place, narrow)


def half_products_of_nothing(model: onnx.ModelProto) -> None:
    """Add a large half-precision product, times 0, to the output."""
    model.graph.initializer.extend(
        numpy_helper.from_array(array, name)
        for name, array in (
            ("big", np.ones((16, 4096), np.float16)),
            ("back", np.ones((4096, 16), np.float16)),
            ("nothing", np.zeros(1, np.float32)),
        )
    )
    for name, width in (("x16", 16), ("much", 4096), ("more", 16)):
        shape = ["batch", "tokens", width]
        model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape))
    last = next(node for node in model.graph.node if "y" in node.output)
    last.output[0] = "before"
    make = helper.make_node
    model.graph.node.extend(
        [
            make("Cast", ["x"], ["x16"], to=TensorProto.FLOAT16),
            make("MatMul", ["x16", "big"], ["much"]),
            make("MatMul", ["much", "back"], ["more"]),
            make("Cast", ["more"], ["more32"], to=TensorProto.FLOAT),
            make("Mul", ["more32", "nothing"], ["none"]),
            make("Add", ["before", "none"], ["y"]),
        ]
    )


@pytest.mark.parametrize(
    "edits",
    [
        [claim("dtype", "bfloat16")],
        [claim("dtype", "float16")],
        [claim("dtype", None)],
        [claim("dtype", "bfloat16"), idle_half_weights],
        [claim("dtype", "float16"), half_products_of_nothing],
    ],
    ids=["bfloat16", "float16", "nothing", "idle weights", "products of nothing"],
)
def test_a_claim_does_not_loosen_the_tolerance(mixer: Exported, edits: list[Edit]) -> None:
    assert not mixer.verify(scaled(1.002), *edits)


def test_one_rounding_in_half_does_not_make_a_graph_half(mixer: Exported) -> None:
    assert not mixer.verify(a_cast_to_bfloat16, claim("dtype", "bfloat16"))


def test_a_claim_that_the_graph_contradicts_is_noted(mixer: Exported) -> None:
    report = mixer.verify(claim("dtype", "float16"))
    assert report
    assert report.precision == "float32"
    assert "the file says float16, but its weights are float32: judged as float32" in report.notes


def test_the_graph_shows_half_precision_and_a_stricter_claim_counts(half: Exported) -> None:
    assert half.verify().precision == "float16"
    assert half.verify(claim("dtype", None)).precision == "float16"
    strict = half.verify(claim("dtype", "float32"))
    assert not strict
    assert strict.precision == "float32"


def test_parity_data_are_judged_by_the_graph_too(mixer: Exported, tmp_path: Path) -> None:
    shutil.copy(mixer.folder / "m.onnx", tmp_path / "m.onnx")
    shutil.copy(mixer.folder / "m.parity.npz", tmp_path / "m.parity.npz")
    report = pom_export.verify(tmp_path / "m.onnx")
    assert report
    assert any("without `checkpoint`" in note for note in report.notes)


@pytest.mark.parametrize("row", [20, 1500, 1599])
def test_every_row_of_a_position_table_is_compared(rotary: Exported, row: int) -> None:
    assert not rotary.verify(weight("freqs_cos", lambda array: array.__setitem__(row, 0)))


@pytest.mark.parametrize(("table", "row"), [("row", 39), ("row", 17), ("col", 29)])
def test_every_row_and_column_is_compared(grid: Exported, table: str, row: int) -> None:
    sizes = {"row": 40, "col": 30}

    def edit(model: onnx.ModelProto) -> None:
        tables = [t for t in model.graph.initializer if len(t.dims) == 2 and t.dims[0] == sizes[table]]
        assert tables
        for tensor in tables:
            array = numpy_helper.to_array(tensor).copy()
            array[row] = 0
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    assert not grid.verify(edit)


@pytest.mark.parametrize("row", [0, 171, 299])
def test_every_row_of_an_embedding_is_compared(language_model: Exported, row: int) -> None:
    def one_input_row(model: onnx.ModelProto) -> None:
        """Give the lookup a table of its own, so that the output projection does not reveal the change."""
        node = next(node for node in model.graph.node if node.op_type == "Gather" and "input_ids" in node.input)
        table = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[0])
        array = numpy_helper.to_array(table).copy()
        array[row] *= 1.5
        model.graph.initializer.append(numpy_helper.from_array(array, "own"))
        node.input[0] = "own"

    assert not language_model.verify(one_input_row)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"values":{},"tokens":16,"scale":null}', r"says that its inputs' tokens are limited to"),
        ('{"values":{},"tokens":9999,"scale":null}', r"says that its inputs' tokens are limited to"),
        ('{"values":{"x":[2]}}', r"its limits for x do not fit: only an integer input has them"),
    ],
)
def test_limits_other_than_the_references_are_refused(rotary: Exported, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rotary.verify(claim("limits", text))


def test_without_limits_of_the_file_the_references_are_taken(rotary: Exported) -> None:
    zeroed = weight("freqs_cos", lambda array: array.__setitem__(1500, 0))
    report = rotary.verify(claim("limits", None), zeroed)
    assert not report
    assert "the file does not say what its inputs may hold" in report.notes


def pin(name: str, axis: int, size: int) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        value = next(value for value in model.graph.input if value.name == name)
        value.type.tensor_type.shape.dim[axis].dim_value = size

    return edit


def test_a_dimension_that_the_file_pins_is_reported(rotary: Exported) -> None:
    report = rotary.verify(pin("x", 1, 1))
    assert "the file fixes tokens at 1, which the reference leaves open: no other sizes were compared" in report.notes


DEFAULT_MASK = numpy_helper.from_array(np.ones((1, 1), np.bool_), "mask")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (pin("x", 2, 17), "dimension 2 differs"),
        (lambda m: m.graph.input.add().CopyFrom(helper.make_tensor_value_info("more", 1, [1])), "has the input more"),
        (
            lambda m: m.graph.initializer.append(numpy_helper.from_array(np.ones((1, 1), bool), "mask")),
            "lacks the input mask",
        ),
        (claim("mask", "none"), "has the input mask"),
        (lambda m: m.graph.output.add().CopyFrom(m.graph.output[0]), "output 'y' twice"),
        (claim("spec", "{}"), "exported from another"),
    ],
    ids=["another width", "an input more", "a mask of its own", "another mask", "an output twice", "another spec"],
)
def test_another_interface_is_refused(mixer: Exported, edit: Edit, message: str) -> None:
    with pytest.raises(InputError, match=message):
        mixer.verify(edit)


def drop_output(name: str) -> Edit:
    return lambda model: model.graph.output.remove(next(o for o in model.graph.output if o.name == name))


@pytest.mark.parametrize("name", ["present_length", "present_state", "y"])
def test_a_missing_output_is_reported(stateful: Exported, name: str) -> None:
    with pytest.raises(InputError, match=f"lacks the output {name}; the reference has y, present_state"):
        stateful.verify(drop_output(name))


@pytest.mark.parametrize(("axis", "size"), [(0, 1), (1, 3), (2, 5)])
def test_a_size_that_an_output_does_not_have_is_reported(mixer: Exported, axis: int, size: int) -> None:
    """A caller who trusts the interface would allocate by it; ONNX Runtime only warns."""

    def edit(model: onnx.ModelProto) -> None:
        declared = model.graph.output[0].type.tensor_type.shape.dim[axis]
        declared.Clear()
        declared.dim_value = size

    with pytest.raises(InputError, match=r"gives y float32\[.*\], where the reference gives one of shape \("):
        mixer.verify(edit)


def before_output(name: str, *operators: tuple[str, np.ndarray]) -> Edit:
    """Return an edit that inserts operators, with a constant each, before an output."""

    def edit(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if name in node.output)
        given = f"{name}_0"
        node.output[list(node.output).index(name)] = given
        for number, (operator, constant) in enumerate(operators, 1):
            made = name if number == len(operators) else f"{name}_{number}"
            model.graph.initializer.append(numpy_helper.from_array(constant, f"{made}_by"))
            model.graph.node.append(helper.make_node(operator, [given, f"{made}_by"], [made]))
            given = made

    return edit


@pytest.mark.parametrize(
    ("name", "operator", "constant"),
    [
        ("present_state", "Mul", np.array([[1.0], [0.0]], np.float32)),
        ("present_state", "Mul", np.array([[1.0], [-1.0]], np.float32)),
        ("present_length", "Add", np.array([1])),
        ("present_length", "Mul", np.array([0])),
    ],
    ids=["no second float", "second float of the other sign", "one token more", "no tokens"],
)
def test_a_wrong_state_fails(stateful: Exported, name: str, operator: str, constant: np.ndarray) -> None:
    report = stateful.verify(before_output(name, (operator, constant)))
    assert {c.output for c in report.comparisons if not c} >= {name}


def test_a_file_that_declares_more_than_it_computes_is_one_line(mixer: Exported) -> None:
    def huge(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.array([10**12]), "much"))
        last = next(node for node in model.graph.node if "y" in node.output)
        last.output[0] = "before"
        model.graph.node.append(helper.make_node("ConstantOfShape", ["much"], ["zeros"]))
        model.graph.node.append(helper.make_node("ReduceSum", ["zeros"], ["zero"], keepdims=0))
        model.graph.node.append(helper.make_node("Add", ["before", "zero"], ["y"]))

    with pytest.raises(InputError, match="failed") as raised:
        mixer.verify(huge)
    assert "\n" not in str(raised.value)


def test_sizes_that_no_comparison_takes_are_refused(mixer: Exported, rotary: Exported) -> None:
    with pytest.raises(InputError, match="too many to compare"):
        mixer.verify(pin("x", 1, 2**25), pin("mask", 1, 2**25))
    with pytest.raises(InputError, match="fixes 1601 tokens; the reference has positions for 1600"):
        rotary.verify(pin("x", 1, 1601))


@pytest.mark.parametrize(("positions", "tokens"), [(2048, 4100), (9000, 9000), (40_000, 16_384)])
def test_the_longest_case_is_as_long_as_the_table(positions: int, tokens: int) -> None:
    mixer = RotaryPolynomialMixer(8, 2, 2, max_seq_len=positions)
    assert _reach(program_of(mixer, GraphOptions("causal"))).tokens == tokens


def the_first_rows_length(model: onnx.ModelProto) -> None:
    """Give every row of a batch the first row's number of tokens."""
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name == "past_length":
                node.input[place] = "of_the_first"
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "first"))
    make = helper.make_node
    for node in (
        make("Expand", ["length", "rows"], ["of_the_first"]),
        make("Shape", ["past_length"], ["rows"]),
        make("Gather", ["past_length", "first"], ["length"], axis=0),
    ):
        model.graph.node.insert(0, node)


def test_rows_of_a_batch_are_independent_streams(stateful: Exported) -> None:
    assert not stateful.verify(the_first_rows_length)


def a_mask_by_multiplication(model: onnx.ModelProto) -> None:
    """A masked token's values then reach the others if they are NaN."""
    (function,) = model.functions
    where = next(node for node in function.node if node.op_type == "Where")
    weights = helper.make_node("Cast", [where.input[0]], ["weights"], to=TensorProto.FLOAT)
    where.CopyFrom(helper.make_node("Mul", ["weights", where.input[1]], where.output))
    function.node.insert(list(function.node).index(where), weights)


def a_node_of_another_mode(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.domain == "pom")
    next(each for each in node.attribute if each.name == "mode").s = b"causal"


@pytest.mark.parametrize("edit", [a_mask_by_multiplication, a_node_of_another_mode])
def test_a_function_that_its_node_does_not_ask_for_is_refused(mixer: Exported, edit: Edit) -> None:
    with pytest.raises(InputError, match=r"node \S*PolynomialAggregation and its function pom::\w+ do not match"):
        mixer.verify(edit)


def a_mask_that_multiplies(model: onnx.ModelProto) -> None:
    """Weigh masked tokens by 0 instead of leaving them out, in a file of standard operators."""
    model.CopyFrom(inliner.inline_local_functions(model))
    node = next(node for node in model.graph.node if node.op_type == "Where")
    counts, tokens, _ = node.input
    place = list(model.graph.node).index(node)
    model.graph.node.insert(place, helper.make_node("Cast", [counts], ["weights"], to=TensorProto.FLOAT))
    node.op_type = "Mul"
    node.input[:] = [tokens, "weights"]


def test_a_token_that_is_left_out_may_hold_anything(mixer: Exported) -> None:
    report = mixer.verify(a_mask_that_multiplies)
    assert not report
    assert all(c.worst.case.startswith("NaN") for c in report.comparisons if not c)
    assert all(each.difference for c in report.comparisons for each in c.cases if not each.case.startswith("NaN"))
