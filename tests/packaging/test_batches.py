"""Requests of a model without a state share calls, and an error is that of one request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pom_export import inference_session
from pom_export.errors import InputError
from pom_export.graph.exported_model import read_model
from pom_export.packaging.triton.batch_sizes import preferred_sizes
from pom_export.packaging.triton.batches import Batches


class Counted:
    """A session that counts its calls."""

    def __init__(self, session: Any) -> None:
        self.session, self.calls = session, 0

    def run(self, outputs: Any, feed: Any) -> Any:
        self.calls += 1
        return self.session.run(outputs, feed)


def write_table_model(path: Path, batch: str | int = "batch") -> None:
    """Write a model that gives x + 1 and the sum of x over tokens; ids beyond 3 have no entry in its table."""
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, "tokens", 2]),
        helper.make_tensor_value_info("ids", TensorProto.INT64, [batch]),
    ]
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, "tokens", 2]),
        helper.make_tensor_value_info("sums", TensorProto.FLOAT, [batch, 2]),
        helper.make_tensor_value_info("entries", TensorProto.FLOAT, [batch]),
    ]
    nodes = [
        helper.make_node("Add", ["x", "one"], ["y"]),
        helper.make_node("ReduceSum", ["x", "axis"], ["sums"], keepdims=0),
        helper.make_node("Gather", ["table", "ids"], ["entries"]),
    ]
    weights = [
        helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0]),
        helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
        helper.make_tensor("table", TensorProto.FLOAT, [4], [0.0, 1.0, 2.0, 3.0]),
    ]
    graph = helper.make_graph(nodes, "g", values, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)


def batches(tmp_path: Path, batch: str | int = "batch") -> tuple[Batches, Counted]:
    write_table_model(tmp_path / "m.onnx", batch)
    session = Counted(inference_session(tmp_path / "m.onnx"))
    return Batches(session, read_model(tmp_path / "m.onnx")), session


def request(rows: int, tokens: int, start: float = 0, ids: int = 1) -> dict[str, Any]:
    x = start + np.arange(rows * tokens * 2, dtype=np.float32).reshape(rows, tokens, 2)
    return {"x": x, "ids": np.full(rows, ids)}


def check(answer: Any, asked: dict[str, Any]) -> None:
    np.testing.assert_array_equal(answer["y"], asked["x"] + 1)
    np.testing.assert_array_equal(answer["sums"], asked["x"].sum(1))
    np.testing.assert_array_equal(answer["entries"], asked["ids"])


def test_requests_of_equal_shapes_share_a_call(tmp_path: Path) -> None:
    model, session = batches(tmp_path)
    asked = [request(1, 3), request(2, 3, 10), request(1, 5), request(3, 3, 20)]
    for answer, each in zip(model.run(asked, ["y", "sums", "entries"]), asked, strict=True):
        check(answer, each)
    assert session.calls == 2


@pytest.mark.parametrize("ids", [np.array([9]), np.array([1.0])])
def test_a_faulty_request_harms_no_other(ids: Any, tmp_path: Path) -> None:
    """One fails in the call that it shares, one before."""
    model, _ = batches(tmp_path)
    asked = [request(1, 3), {**request(1, 3), "ids": ids}, request(1, 3, 20)]
    first, wrong, last = model.run(asked, ["y", "sums", "entries"])
    check(first, asked[0])
    check(last, asked[2])
    assert isinstance(wrong, InputError)


def test_a_fixed_batch_is_not_joined(tmp_path: Path) -> None:
    model, session = batches(tmp_path, batch=2)
    asked = [request(2, 3), request(2, 3, 5)]
    for answer, each in zip(model.run(asked, ["y", "sums", "entries"]), asked, strict=True):
        check(answer, each)
    assert session.calls == 2


def results(path: Path, medians: dict[tuple[int, int], float]) -> Path:
    points = [
        {"batch": batch, "tokens": tokens, "timings": {"kernel": {"median_ms": median}}}
        for (batch, tokens), median in medians.items()
    ]
    path.write_text(json.dumps({"points": points}))
    return path


def test_the_batches_that_deliver_most_are_preferred(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    # Rows a millisecond at 64 tokens: 1, 2, 4, 4; at 256: 1, 2, 3.9, 4.
    short = {(1, 64): 1.0, (4, 64): 2.0, (16, 64): 4.0, (32, 64): 8.0}
    long = {(1, 256): 1.0, (4, 256): 2.0, (16, 256): 16 / 3.9, (32, 256): 8.0}
    assert preferred_sizes(results(file, short | long), "kernel") == [16, 32]
    assert preferred_sizes(results(file, short | long | {(16, 256): 16 / 3}), "kernel") == [32]
    # No batch is nearly best at both lengths.
    assert preferred_sizes(results(file, {(1, 64): 1.0, (2, 64): 9.0, (1, 256): 9.0, (2, 256): 1.0}), "kernel") == [2]


@pytest.mark.parametrize("text", ["[]", "{}", '{"points": [{"timings": {"kernel": 1}}]}', "no"])
def test_other_files_than_results_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(InputError, match="is not a result of bench"):
        preferred_sizes(tmp_path / "r.json", "kernel")
    with pytest.raises(InputError, match="batch 4 alone"):
        preferred_sizes(results(tmp_path / "r.json", {(4, 64): 1.0}), "kernel")
