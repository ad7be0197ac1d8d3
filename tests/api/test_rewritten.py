"""Verify compares what other tools have made of an export on every path that is left, and names what is gone."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import inliner, numpy_helper

import pom_export
from tests.exports import Exported


@pytest.fixture(scope="module")
def mixer(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(tmp_path_factory.mktemp("mixer"), pom_export.PolynomialMixer(16, 2, 2), mask="causal")


def inline(model: onnx.ModelProto) -> None:
    model.CopyFrom(inliner.inline_local_functions(model))


def drop_functions(model: onnx.ModelProto) -> None:
    model.ClearField("functions")


def into_branches(model: onnx.ModelProto, *, taken: onnx.ModelProto, other: onnx.ModelProto) -> None:
    """Put the nodes of two files into the branches of an If, of which one is always taken."""
    graph = model.graph
    then, orelse = (
        onnx.helper.make_graph(list(given.graph.node), "branch", [], [graph.output[0]]) for given in (taken, other)
    )
    graph.ClearField("node")
    graph.initializer.extend(weight for weight in taken.graph.initializer if weight not in graph.initializer)
    graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    graph.node.append(onnx.helper.make_node("If", ["always"], ["y"], then_branch=then, else_branch=orelse))


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def test_a_file_without_nodes_of_ours_runs_on_standard_operators(mixer: Exported) -> None:
    report = mixer.verify(inline)
    assert report
    assert [comparison.path for comparison in report.comparisons] == ["standard operators"]
    assert "no node of the file is one of our ops: it computes by standard operators alone" in report.notes
    assert not any("kernel" in line for line in (*report.not_run, *report.notes))


def test_a_file_that_lost_its_function_is_compared_on_our_kernel(mixer: Exported) -> None:
    report = mixer.verify(drop_functions)
    assert report
    assert [comparison.path for comparison in report.comparisons] == ["kernel"]
    assert any("(function): the file has lost the function of" in line for line in report.not_run)


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


def test_without_docstrings_everything_runs(mixer: Exported) -> None:
    command = [sys.executable, "-OO", "-m", "pom_export", "verify", "m.onnx", "--checkpoint", "c.pt"]
    done = subprocess.run(command, cwd=mixer.folder, capture_output=True, text=True, check=False)
    assert (done.returncode, "passed" in done.stdout) == (0, True), done.stderr
