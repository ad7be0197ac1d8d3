"""Weights beside a graph: named by their content, and never another graph's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from pom_export.errors import InputError
from pom_export.files import sha256_of, staged_output
from pom_export.graph import saving
from pom_export.graph.weights_file import check_weights, own_weights, weights_name
from tests.files.killing import killed_at_every_moment

SIZE = 100


@pytest.fixture(autouse=True)
def _large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "EXTERNAL_DATA_BYTES", 0)


def model(value: float) -> ir.Model:
    """Return a graph that outputs its weights, all of one value, from both branches of a condition."""
    weights = np.full(SIZE, value, np.float32)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [SIZE])
    branches = [
        helper.make_graph([helper.make_node("Identity", [name], ["y"])], name, [], [output], inner)
        for name, inner in (("w", []), ("v", [numpy_helper.from_array(weights, "v")]))
    ]
    node = helper.make_node("If", ["first"], ["y"], then_branch=branches[0], else_branch=branches[1])
    first = helper.make_tensor_value_info("first", TensorProto.BOOL, [])
    graph = helper.make_graph([node], "g", [first], [output], [numpy_helper.from_array(weights, "w")])
    opsets = [helper.make_opsetid("", 20)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=9))


def save(value: float, path: Path) -> None:
    with staged_output(path, stale=lambda: own_weights(path)) as staged:
        saving.save_model(model(value), staged)


def values(path: Path) -> set[float]:
    """Return what plain ONNX Runtime computes with a model."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return {float(y) for first in (True, False) for y in session.run(None, {"first": np.array(first)})[0]}


def test_weights_are_named_by_their_content(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        save(value, tmp_path / "m.onnx")
        assert values(tmp_path / "m.onnx") == {value}
        graph, weights = sorted(tmp_path.iterdir())
        assert (graph.name, weights.name) == ("m.onnx", weights_name("m.onnx", sha256_of(weights)))
        check_weights(weights, sha256_of(weights))
        onnx.checker.check_model(graph)


def test_a_kill_at_any_moment_leaves_a_model_and_its_own_weights(tmp_path: Path) -> None:
    path, seen = tmp_path / "m.onnx", set()
    save(1.0, path)
    for _ in killed_at_every_moment(lambda: save(2.0, path)):
        (value,) = values(path)
        seen.add(value)
        save(1.0, path)
        assert values(path) == {1.0}
        assert len(list(tmp_path.iterdir())) == 2
    assert seen == {1.0, 2.0}


def test_other_content_than_the_name_says_is_refused(tmp_path: Path) -> None:
    save(1.0, tmp_path / "m.onnx")
    (weights,) = own_weights(tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"are not the model's: their sha256 begins with 0000000000000000"):
        check_weights(weights, "0" * 64)
    check_weights(tmp_path / "weights.bin", "0" * 64)


def test_small_weights_stay_in_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "EXTERNAL_DATA_BYTES", 10**6)
    save(1.0, tmp_path / "m.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]
