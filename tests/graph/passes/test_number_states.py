"""A state's interface for servers: names that sort alike, and no tensor of one axis."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pom_export
from pom_export.graph.passes import NumberStatesPass
from pom_export.graph.passes.number_states import numbered_names
from tests.streaming_graphs import running_sum_model

NAMES = st.one_of(
    st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1, max_size=20),
    st.sampled_from(["past_length", "past_state", "past_state.10", "past_conv.0", "past_key_values.0.key", "past"]),
)


@given(st.lists(NAMES, min_size=1, max_size=1100, unique=True))
def test_sorted_inputs_pair_with_sorted_outputs(pasts: list[str]) -> None:
    names = numbered_names(pasts)
    inputs, outputs = zip(*names, strict=True)
    assert len(set(inputs) | set(outputs)) == 2 * len(pasts)
    assert list(zip(sorted(inputs), sorted(outputs), strict=True)) == names


def test_the_names_of_exports_do_not_pair_as_they_are() -> None:
    """This is what the pass is for: a server would swap these two."""
    pairs = [("past_conv.0", "present_conv.0"), ("past_key_values.3.key", "present.3.key")]
    assert list(zip(*map(sorted, zip(*pairs, strict=True)), strict=True)) != pairs


@pytest.mark.parametrize("mask", [False, True])
def test_the_numbers_stay(mask: bool, tmp_path: Path) -> None:
    path = running_sum_model(tmp_path / "m.onnx", mask=mask)
    states = [("past_state", "present_state"), ("past_length", "present_length")]
    model = ir.load(path)
    assert NumberStatesPass(states)(model).modified
    ir.save(model, tmp_path / "n.onnx")
    onnx.checker.check_model(tmp_path / "n.onnx", full_check=True)
    before, after = (pom_export.inference_session(tmp_path / name) for name in ("m.onnx", "n.onnx"))
    shapes = {each.name: each.shape for each in (*after.get_inputs(), *after.get_outputs())}
    assert shapes["past.1.length"] == shapes["present.1.length"] == ["batch", 1]
    assert "past_length" not in shapes
    ids = np.random.default_rng(0).integers(0, 256, (3, 5))
    others = {"input_ids": ids} | ({"mask": np.ones((3, 5), bool)} if mask else {})
    state = {s.name: np.zeros([3, *s.shape[1:]], np.float32) for s in before.get_inputs() if s.name == "past_state"}
    length = np.array([0, 2, 4])
    expected = before.run(["logits", "present_state", "present_length"], {**others, **state, "past_length": length})
    feed = {"past.0.state": state["past_state"], "past.1.length": length[:, np.newaxis]}
    got = after.run(["logits", "present.0.state", "present.1.length"], {**others, **feed})
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(got[1], expected[1])
    np.testing.assert_array_equal(got[2], expected[2][:, np.newaxis])


def test_the_metadata_names_the_pairs_and_claims_no_stream(tmp_path: Path) -> None:
    model = ir.load(running_sum_model(tmp_path / "m.onnx"))
    NumberStatesPass([("past_state", "present_state"), ("past_length", "present_length")])(model)
    assert "pom_export.stateful" not in model.metadata_props
    pairs = json.loads(model.metadata_props["pom_export.server_states"])
    assert pairs == {"past.0.state": "present.0.state", "past.1.length": "present.1.length"}
