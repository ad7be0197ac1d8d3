"""Verify compares an export that other tools have rewritten on every path that is left, and names what is gone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import inliner, numpy_helper

import pom_export
from pom_export.errors import InputError
from pom_export.mixer import MixerConfig
from pom_export.models import LanguageModel, LanguageModelConfig
from tests.exports import Edit, Exported, claim, copied, into_function, prefixed, weight, without_types
from tests.slow_cases import slow_cases

VOCABULARY = 61


@pytest.fixture(scope="module")
def mixer(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(tmp_path_factory.mktemp("mixer"), pom_export.PolynomialMixer(16, 2, 2), mask="causal")


@pytest.fixture(scope="module")
def crossed(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """An export whose inputs x and context have the same type and shape, with a mask."""
    module = pom_export.PolynomialMixer(16, 2, 2)
    return Exported(tmp_path_factory.mktemp("crossed"), module, mask="padding", cross=True)


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    config = LanguageModelConfig(VOCABULARY, n_layers=1, window=2, mlp_width=16, mixer=MixerConfig(16, 2, 2))
    return Exported(tmp_path_factory.mktemp("language_model"), LanguageModel(config), stateful=True)


@pytest.fixture(scope="module")
def block_causal(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    module = pom_export.PolynomialMixer(16, 2, 2)
    return Exported(tmp_path_factory.mktemp("block"), module, stateful=True, block_causal=True)


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(tmp_path_factory.mktemp("v1"), pom_export.ProductMixer(16, 2, 2), degree=2)


def inline(model: onnx.ModelProto) -> None:
    model.CopyFrom(inliner.inline_local_functions(model))


def drop_functions(model: onnx.ModelProto) -> None:
    model.ClearField("functions")


def into_branches(model: onnx.ModelProto, *, taken: onnx.ModelProto, other: onnx.ModelProto) -> None:
    """Move the nodes of two files into the branches of an If, one of which is always taken."""
    graph = model.graph
    then, orelse = (
        onnx.helper.make_graph(
            list(given.graph.node), "branch", [], [graph.output[0]], value_info=list(given.graph.value_info)
        )
        for given in (taken, other)
    )
    graph.ClearField("node")
    graph.initializer.extend(weight for weight in taken.graph.initializer if weight not in graph.initializer)
    graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    graph.node.append(onnx.helper.make_node("If", ["always"], ["y"], then_branch=then, else_branch=orelse))


def test_a_file_without_nodes_of_ours_runs_on_standard_operators(mixer: Exported) -> None:
    report = mixer.verify(inline)
    assert report
    assert [comparison.path for comparison in report.comparisons] == ["standard operators"]
    assert "no node in the file is one of our ops: it uses only standard operators" in report.notes
    assert not any("kernel" in line for line in (*report.not_run, *report.notes))


def test_a_file_that_lost_its_function_is_compared_on_our_kernel(mixer: Exported) -> None:
    report = mixer.verify(drop_functions)
    assert report
    assert [comparison.path for comparison in report.comparisons] == ["kernel"]
    assert any("(function): the file has lost the functions of" in line for line in report.not_run)


def test_nodes_in_branches_are_ours_too(mixer: Exported) -> None:
    def both(model: onnx.ModelProto) -> None:
        whole = copied(model)
        into_branches(model, taken=whole, other=whole)

    report = mixer.verify(both)
    assert report
    assert {comparison.path for comparison in report.comparisons} == {"kernel", "function"}
    assert "onnxruntime: of 2 aggregations, 1 ran in our kernels" in report.notes


def test_a_node_that_does_not_run_makes_no_kernel(mixer: Exported) -> None:
    def one(model: onnx.ModelProto) -> None:
        whole = copied(model)
        into_branches(model, taken=inliner.inline_local_functions(whole), other=whole)

    report = mixer.verify(one)
    assert report
    assert {comparison.path for comparison in report.comparisons} == {"standard operators", "function"}


@pytest.mark.parametrize("name", ["Block", "PolynomialAggregation"])
def test_nodes_in_functions_of_others_are_ours_too(mixer: Exported, name: str) -> None:
    def of_another_mode(model: onnx.ModelProto) -> None:
        (node,) = (node for node in model.graph.node if node.domain == "pom")
        next(each for each in node.attribute if each.name == "mode").s = b"mean"

    report = mixer.verify(into_function("user", name))
    assert report
    assert {comparison.path for comparison in report.comparisons} == {"kernel", "function"}
    with pytest.raises(InputError, match=r"its function .* do not match"):
        mixer.verify(of_another_mode, into_function("user", name))


def test_what_is_imported_twice_is_imported(mixer: Exported) -> None:
    """As onnx.compose writes it."""
    assert mixer.verify(lambda model: model.opset_import.extend(copied(model).opset_import))


def test_onnxruntimes_operators_in_the_standard_domain_are_taken(mixer: Exported) -> None:
    def normalized(model: onnx.ModelProto, epsilon: float) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.ones(16, np.float32), "ones"))
        model.graph.node[0].input[0] = "normalized"
        make = onnx.helper.make_node
        model.graph.node.insert(
            0, make("SimplifiedLayerNormalization", ["x", "ones"], ["normalized"], axis=-1, epsilon=epsilon)
        )

    # The input's root mean square is 1 already.
    x = np.sign(np.random.default_rng(0).standard_normal((2, 5, 16))).astype(np.float32)
    assert mixer.verify(lambda model: normalized(model, 0.0), inputs={"x": x})
    assert not mixer.verify(lambda model: normalized(model, 1.0), inputs={"x": x})


@pytest.mark.slow
def test_without_docstrings_everything_runs(mixer: Exported) -> None:
    command = [sys.executable, "-OO", "-m", "pom_export", "verify", "m.onnx", "--checkpoint", "c.pt"]
    done = subprocess.run(command, cwd=mixer.folder, capture_output=True, text=True, check=False)
    assert (done.returncode, "passed" in done.stdout) == (0, True), done.stderr


def without_metadata(model: onnx.ModelProto) -> None:
    model.ClearField("metadata_props")


def renamed(**names: str) -> Edit:
    """Return an edit that renames inputs and outputs."""

    def edit(model: onnx.ModelProto) -> None:
        for value in (*model.graph.input, *model.graph.output):
            value.name = names.get(value.name, value.name)
        for node in model.graph.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]

    return edit


def with_dimensions(change: Callable[[onnx.TensorShapeProto.Dimension], object]) -> Edit:
    """Return an edit of every dynamic dimension of inputs and outputs."""

    def edit(model: onnx.ModelProto) -> None:
        for value in (*model.graph.input, *model.graph.output):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param:
                    change(dim)

    return edit


UNNAMED = {
    "no names": with_dimensions(lambda dim: dim.Clear()),
    "-1": with_dimensions(lambda dim: setattr(dim, "dim_value", -1)),
    "?": with_dimensions(lambda dim: setattr(dim, "dim_param", "?")),
    "other names": with_dimensions(lambda dim: setattr(dim, "dim_param", dim.dim_param[0].upper())),
}


def default_domain(model: onnx.ModelProto) -> None:
    next(imported for imported in model.opset_import if not imported.domain).domain = "ai.onnx"


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(edit, id=name, marks=[pytest.mark.slow] if name in {"-1", "?"} else [])
        for name, edit in {**UNNAMED, "ai.onnx": default_domain}.items()
    ],
)
def test_what_only_has_other_names_is_compared(mixer: Exported, edit: Edit) -> None:
    assert mixer.verify(edit)
    assert not mixer.verify(edit, weight("ag_proj.weight", lambda array: array * 1.01))


@pytest.mark.parametrize(
    "edit",
    [prefixed, renamed(context="context:0", x="x:0", mask="mask:0", y="out"), renamed(mask="keep", y="z")],
    ids=["prefix", "suffix", "a mask of another name"],
)
def test_inputs_and_outputs_of_other_names_are_named(crossed: Exported, edit: Edit) -> None:
    report = crossed.verify(edit)
    assert report
    assert any("the file calls the input mask" in note for note in report.notes)
    assert any("the file calls the output y" in note for note in report.notes)
    assert not crossed.verify(edit, weight("ag_proj.weight", lambda array: array * 1.01))


def test_names_that_could_be_either_are_refused(crossed: Exported) -> None:
    with pytest.raises(InputError, match="inputs a, b, the reference x, context: unclear which belongs to which"):
        crossed.verify(renamed(x="a", context="b"))


def test_limits_of_a_renamed_input_are_still_its_own(language_model: Exported) -> None:
    assert language_model.verify(renamed(input_ids="ids"))
    limits = claim("limits", '{"values": {"input_ids": [60]}}')
    with pytest.raises(InputError, match="values are limited to"):
        language_model.verify(renamed(input_ids="ids"), limits)


@pytest.mark.parametrize(
    "name",
    slow_cases(
        ["mixer", "crossed", "language_model", "block_causal", "product"],
        {"mixer", "product", "block_causal"}.__contains__,
    ),
)
def test_without_metadata_nodes_and_inputs_say_how_it_was_exported(name: str, request: pytest.FixtureRequest) -> None:
    exported: Exported = request.getfixturevalue(name)
    report = exported.verify(without_metadata)
    assert report
    assert report.reference == exported.verify().reference
    assert "the file has no metadata of an export: what it was exported from is not known" in report.notes
    assert not exported.verify(without_metadata, weight("ag_proj.weight", lambda array: array * 1.01))


@pytest.mark.parametrize("name", ["mixer", pytest.param("block_causal", marks=pytest.mark.slow)])
def test_without_nodes_too_the_nearest_way_is_taken(name: str, request: pytest.FixtureRequest) -> None:
    exported: Exported = request.getfixturevalue(name)
    report = exported.verify(without_metadata, inline)
    assert report
    assert report.reference == exported.verify().reference
    assert any("does not say how it was exported; its outputs are closer to" in note for note in report.notes)
    spoiled = exported.verify(without_metadata, inline, weight("po_coeff", lambda array: array * 1.01))
    assert not spoiled
    assert spoiled.reference == report.reference


def test_what_neither_the_checkpoint_nor_the_file_shows_is_asked_for(product: Exported) -> None:
    with pytest.raises(InputError, match="`degree`"):
        product.verify(without_metadata, inline)
    assert product.verify(without_metadata, inline, degree=2)


def test_a_state_that_is_not_claimed_is_seen(language_model: Exported) -> None:
    assert language_model.verify(claim("stateful", None))


@pytest.mark.parametrize(("kernels", "path"), [(True, "kernel"), (False, "standard operators")])
def test_a_file_of_onnxruntimes_own_format_is_compared(mixer: Exported, kernels: bool, path: str) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(mixer.folder / "m.ort")
    pom_export.inference_session(mixer.folder / "m.onnx", kernels=kernels, session_options=options)
    report = pom_export.verify(mixer.folder / "m.ort", checkpoint=mixer.checkpoint)
    assert report
    assert [comparison.path for comparison in report.comparisons] == [path]
    assert any("ONNX Runtime's own format" in note for note in report.notes)
    with pytest.raises(InputError, match=r"is in ONNX Runtime's own format. Give the \.onnx"):
        pom_export.build_engine(mixer.folder / "m.ort", mixer.folder / "e")


def test_branches_without_types_are_compared(language_model: Exported) -> None:
    report = language_model.verify(without_types)
    assert report
    assert {comparison.path for comparison in report.comparisons} == {"kernel", "function"}
    assert not language_model.verify(weight("ag_proj.weight", lambda array: array * 1.01), without_types)


def test_a_float32_file_does_not_become_half_by_saying_so(mixer: Exported) -> None:
    report = mixer.verify(claim("dtype", "float16"), weight("ag_proj.weight", lambda array: array * 1.001))
    assert not report
    assert report.precision == "float32"


def with_an_op_that_onnxruntime_lacks(model: onnx.ModelProto) -> None:
    """Add a zero to a function's result, computed by an operator that has no kernel for its type."""
    (function,) = model.functions
    make, result = onnx.helper.make_node, function.output[0]
    last = next(node for node in function.node if result in node.output)
    last.output[:] = ["whole" if name == result else name for name in last.output]
    function.node.extend(
        [
            make("Cast", ["coefficients"], ["narrow"], to=onnx.TensorProto.BFLOAT16),
            make("Cos", ["narrow"], ["cosines"]),
            make("Cast", ["cosines"], ["wide"], to=onnx.TensorProto.FLOAT),
            make("ReduceSum", ["wide"], ["number"], keepdims=0),
            make("Sub", ["number", "number"], ["zero"]),
            make("Add", ["whole", "zero"], [result]),
        ]
    )


def test_a_path_that_cannot_be_loaded_fails_and_the_others_are_compared(mixer: Exported) -> None:
    report = mixer.verify(with_an_op_that_onnxruntime_lacks)
    assert not report
    assert [(comparison.path, bool(comparison)) for comparison in report.comparisons] == [("kernel", True)]
    (reason,) = report.failed
    assert reason.startswith("onnxruntime (function): ONNX Runtime cannot load")
    assert report.to_dict()["failed"] == [reason]


def test_zeros_everywhere_do_not_pass(mixer: Exported) -> None:
    shape = (2, 3, 16)
    report = mixer.verify(inputs={"x": np.zeros(shape, np.float32)})
    assert not report
    assert any("the reference is zero everywhere" in note for note in report.notes)
    assert mixer.verify(inputs={"x": np.ones(shape, np.float32)})
