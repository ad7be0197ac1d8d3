"""What a comparison covers: every id and position, the end of every table, long pasts, and several calls."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from pom_export.graph.exported_model import InputLimits, TensorSpec
from pom_export.parity.case import Case, run_case
from pom_export.parity.coverage import LONGER, Coverage, Reach, make_coverage
from pom_export.parity.inputs import make_cases
from pom_export.parity.interface import Interface

REACH = Reach(LONGER, 10_000_003)
FLOAT, INT64 = np.dtype("float32"), np.dtype("int64")
IDS = TensorSpec("input_ids", INT64, ("batch", "tokens"))
TOKENS = TensorSpec("x", FLOAT, ("batch", "tokens", 4))
PLACES = TensorSpec("positions", INT64, ("tokens", 2))
STATE = TensorSpec("past_state", FLOAT, ("batch", 1, 2, 8))
LENGTH = TensorSpec("past_length", INT64, ("batch",))
KEYS = TensorSpec("past_key_values.0.key", FLOAT, ("batch", 2, "past_tokens", 4))


def cover(
    *specs: TensorSpec, limits: InputLimits, reach: Reach = REACH, pinned: Mapping[str, int] | None = None
) -> Coverage:
    return make_coverage(Interface(specs, pinned or {}), limits, reach, 0, causal=True)


def values(found: Coverage, name: str) -> np.ndarray:
    return np.concatenate([case.feed[name].reshape(-1, *case.feed[name].shape[2:]) for case in found.cases])


@pytest.mark.parametrize("pinned", [{}, {"tokens": 7}, {"batch": 2, "tokens": 7}])
def test_every_id_is_there(pinned: Mapping[str, int]) -> None:
    found = cover(IDS, limits=InputLimits({"input_ids": (300,)}), pinned=pinned)
    assert set(values(found, "input_ids").tolist()) == set(range(300))
    assert not [note for note in found.notes if "values" in note]


def test_ids_beyond_what_is_affordable_are_spread_and_that_is_reported() -> None:
    found = cover(IDS, limits=InputLimits({"input_ids": (50_257,)}), reach=Reach(300, 1))
    seen = np.unique(next(case for case in found.cases if case.name.startswith("values")).feed["input_ids"])
    assert len(seen) == 300
    assert seen[0] == 0
    assert seen[-1] == 50_256
    assert "300 of 50257 values of input_ids were compared, spread evenly" in found.notes
    assert "sequences of more than 1030 tokens were not compared" in found.notes


LABELS = [TensorSpec("x", FLOAT, ("batch", 3, 4, 4)), TensorSpec("y", INT64, ("batch",))]


@pytest.mark.parametrize("pinned", [{}, {"batch": 2}])
def test_every_label_is_there_row_by_row(pinned: Mapping[str, int]) -> None:
    found = cover(*LABELS, limits=InputLimits({"y": (11,)}), pinned=pinned, reach=Reach(LONGER, 1, row=16))
    assert {case.feed["x"].shape[0] for case in found.cases} == {pinned.get("batch", 11)}
    assert set(values(found, "y").tolist()) == set(range(11))
    assert not found.notes


def test_labels_beyond_what_is_affordable_are_spread() -> None:
    found = cover(*LABELS, limits=InputLimits({"y": (1001,)}), reach=Reach(1000, 1, row=256))
    (case,) = found.cases
    assert case.feed["y"].tolist() == [0, 500, 1000]
    assert found.notes == ["3 of 1001 values of y were compared, spread evenly"]


def test_every_row_and_column_is_there() -> None:
    found = cover(TOKENS, PLACES, limits=InputLimits({"positions": (64, 9)}))
    places = next(case for case in found.cases if case.name.startswith("every")).feed["positions"]
    assert set(places[:, 0].tolist()) == set(range(64))
    assert set(places[:, 1].tolist()) == set(range(9))


@pytest.mark.parametrize(("tokens", "expected"), [(2048, 2048), (None, LONGER)])
def test_the_longest_case_ends_where_the_table_does(tokens: int | None, expected: int) -> None:
    found = cover(TOKENS, limits=InputLimits(tokens=tokens))
    assert max(case.feed["x"].shape[1] for case in found.cases) == expected
    assert found.notes == []


def test_a_table_whose_end_is_out_of_reach_is_reported() -> None:
    found = cover(TOKENS, limits=InputLimits(tokens=100_000), reach=Reach(3000, 1))
    assert found.notes == ["positions from 3000 to 99999 were not compared"]


@pytest.mark.parametrize(
    ("limits", "specs", "length"),
    [
        (InputLimits(), (TOKENS, STATE, LENGTH), 10_000_003),
        (InputLimits(), (TOKENS, KEYS, LENGTH), 5003),
        (InputLimits(tokens=2048), (TOKENS, STATE, LENGTH), 2043),
    ],
)
def test_a_state_goes_on_from_a_long_past(limits: InputLimits, specs: tuple[TensorSpec, ...], length: int) -> None:
    found = cover(*specs, limits=limits)
    pasts = [case.feed["past_length"].max() for case in found.cases]
    assert length in pasts
    if limits.tokens is not None:
        assert all(case.feed["past_length"].max() + case.feed["x"].shape[1] <= limits.tokens for case in found.cases)


def running_sum(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the running sums of the tokens, and the state after them."""
    sums = feed["past_state"].sum((1, 2))[:, None, :4] + feed["x"].cumsum(1)
    state = np.zeros_like(feed["past_state"])
    state[:, 0, 0, :4] = sums[:, -1]
    return {"y": sums, "present_state": state, "present_length": feed["past_length"] + feed["x"].shape[1]}


@pytest.mark.parametrize("pinned", [{}, {"batch": 1, "tokens": 1}])
def test_calls_are_given_the_state_that_they_left(pinned: Mapping[str, int]) -> None:
    found = cover(TOKENS, STATE, LENGTH, limits=InputLimits(), pinned=pinned)
    (case,) = (case for case in found.cases if case.cuts)
    seen = []

    def infer(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        seen.append(feed["x"].shape[1])
        return running_sum(feed)

    whole, pieces = running_sum(case.feed), run_case(infer, case)
    assert seen == [pinned.get("tokens", 5)] * 3
    for name, expected in whole.items():
        np.testing.assert_allclose(pieces[name], expected, rtol=1e-5)


def test_a_state_that_is_lost_between_calls_shows() -> None:
    case = Case(
        "calls",
        {"x": np.ones((1, 4, 4), np.float32), "past_state": np.zeros((1, 1, 2, 8)), "past_length": np.zeros(1)},
        (2,),
        {"x": 1},
    )

    def forgetful(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {**running_sum(feed), "present_state": np.zeros((1, 1, 2, 8))}

    assert run_case(forgetful, case)["y"].max() == 2
    assert run_case(running_sum, case)["y"].max() == 4


MASK = TensorSpec("mask", np.dtype("bool"), ("batch", "tokens"))


@pytest.mark.parametrize("specs", [(TOKENS, STATE, LENGTH), (TOKENS, MASK, KEYS, LENGTH)])
def test_rows_of_a_batch_are_of_different_age(specs: tuple[TensorSpec, ...]) -> None:
    """One of them is new, in a batch with others that are not."""
    found = [*make_cases(specs, InputLimits(), 0), *cover(*specs, limits=InputLimits()).cases]
    ages = [case.feed["past_length"].tolist() for case in found]
    assert all(len(set(row)) == len(row) for row in ages if max(row))
    assert any(0 in row and max(row) for row in ages)
    for feed in (case.feed for case in found if "past_state" in case.feed):
        assert not feed["past_state"][feed["past_length"] == 0].any()


def test_rows_are_of_one_age_where_keys_fill_the_past() -> None:
    """Without a mask, a row has seen as many tokens as it has keys."""
    for case in cover(TOKENS, KEYS, LENGTH, limits=InputLimits()).cases:
        assert set(case.feed["past_length"].tolist()) == {case.feed["past_key_values.0.key"].shape[2]}


def test_no_common_case_is_longer_than_this_machine_takes() -> None:
    cases = make_cases((IDS,), InputLimits({"input_ids": (300_000,)}), 0, longest=100)
    assert max(case.feed["input_ids"].shape[1] for case in cases) == 100
    found = cover(IDS, limits=InputLimits({"input_ids": (300_000,)}), reach=Reach(50, 1, 100))
    assert "sequences of more than 100 tokens were not compared" in found.notes


@pytest.mark.parametrize("specs", [(TOKENS, MASK), (TOKENS, MASK, STATE, LENGTH)])
def test_what_a_mask_leaves_out_is_nan(specs: tuple[TensorSpec, ...]) -> None:
    (case,) = (case for case in cover(*specs, limits=InputLimits()).cases if case.partial)
    absent = ~case.feed["mask"]
    assert absent.any()
    np.testing.assert_array_equal(np.isnan(case.feed["x"]), np.repeat(absent[..., None], 4, axis=2))


def test_nothing_is_nan_where_a_mask_is_of_pairs_of_tokens() -> None:
    pairs = TensorSpec("mask", np.dtype("bool"), ("batch", "tokens", "tokens"))
    assert not any(case.partial for case in cover(TOKENS, pairs, limits=InputLimits()).cases)
