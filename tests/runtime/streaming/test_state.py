"""States in files, and merged states."""

from __future__ import annotations

import pickle
import zipfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pom_export import State, StreamingSession, merge_states
from pom_export.errors import InputError
from pom_export.runtime.streaming.state import ModelFiles
from tests.streaming_graphs import VOCABULARY, running_sum_model

LONGEST = 2**63 - 1
IDS = np.random.default_rng(2).integers(0, VOCABULARY, (1, 20))


@pytest.mark.parametrize("attention", [False, True])
def test_a_saved_state_goes_on_in_another_process_of_the_same_model(attention: bool, tmp_path: Path) -> None:
    path = running_sum_model(tmp_path / "m.onnx", attention=attention)
    session = StreamingSession(path)
    expected = session.prefill(IDS)
    session.reset()
    session.prefill(IDS[:, :8])
    session.snapshot().save(tmp_path / "state")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.onnx", "state"]

    loaded = State.load(tmp_path / "state")
    assert loaded.nbytes == session.state_bytes
    for name, array in session.snapshot().arrays.items():
        assert loaded.arrays[name].dtype == array.dtype
    other = StreamingSession(path)
    other.restore(loaded)
    np.testing.assert_array_equal(other.prefill(IDS[:, 8:]), expected[:, 8:])


def test_a_pickled_state_goes_on_on_another_machine(tmp_path: Path) -> None:
    """There, the model's file is a copy and may be anywhere."""
    path = running_sum_model(tmp_path / "m.onnx")
    session = StreamingSession(path)
    session.prefill(IDS)
    sent = pickle.dumps(session.snapshot())
    path.rename(tmp_path / "copy.onnx")
    other = StreamingSession(tmp_path / "copy.onnx")
    other.restore(pickle.loads(sent))
    assert other.length == session.length


def test_types_that_numpy_lacks_survive(tmp_path: Path) -> None:
    arrays = {
        "past_length": np.array([3]),
        "past_key_values.0.key": np.arange(6).reshape(1, 1, 2, 3).astype(ml_dtypes.bfloat16),
        "past_key_values.0.value": np.arange(6).reshape(1, 1, 2, 3).astype(np.float16),
        "past_key_values.1.key": np.zeros((1, 1, 0, 3), ml_dtypes.bfloat16),
    }
    State(arrays, ModelFiles(sha256="00"), {"seed": 2**64 - 1}, {"more": np.array([1.5])}).save(tmp_path / "s.npz")
    loaded = State.load(tmp_path / "s.npz")
    for name, array in arrays.items():
        assert loaded.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded.arrays[name], array)
    assert loaded.notes == {"seed": 2**64 - 1}
    assert loaded.extras["more"] == [1.5]


def test_another_model_s_state_is_refused(tmp_path: Path) -> None:
    one = StreamingSession(running_sum_model(tmp_path / "one.onnx"))
    other = StreamingSession(running_sum_model(tmp_path / "other.onnx", seed=1))
    with pytest.raises(
        InputError, match=r"the state belongs to another model \(sha256 [0-9a-f]{12}\), not to this one"
    ):
        other.restore(one.snapshot())
    # A copy of the file is the same model.
    (tmp_path / "copy.onnx").write_bytes((tmp_path / "one.onnx").read_bytes())
    StreamingSession(tmp_path / "copy.onnx").restore(one.snapshot())
    with pytest.raises(InputError, match=r"past_state has the shape \[1, 1, 2, 8\], not \[2, 1, 2, 8\]"):
        StreamingSession(tmp_path / "one.onnx", batch=2).restore(one.snapshot())


def test_a_model_s_hash_is_taken_once_and_only_of_what_was_loaded(tmp_path: Path) -> None:
    path = running_sum_model(tmp_path / "m.onnx")
    session, early = StreamingSession(path), StreamingSession(path)
    early.snapshot().save(tmp_path / "early")
    running_sum_model(path, seed=1)
    early.snapshot().save(tmp_path / "late")
    with pytest.raises(InputError, match="has changed since it was loaded"):
        session.snapshot().save(tmp_path / "state")
    assert not (tmp_path / "state").exists()


def damaged(kind: str, folder: Path) -> Path:
    """Write a file that is not a complete state."""
    session = StreamingSession(running_sum_model(folder / "m.onnx"))
    session.prefill(IDS)
    file = folder / "state.npz"
    session.snapshot().save(file)
    whole = file.read_bytes()
    if kind == "cut off":
        file.write_bytes(whole[: len(whole) // 2])
    elif kind == "a byte":
        # In the last array's values, before the archive's directory.
        place = whole.index(b"PK\x01\x02") - 1
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    elif kind == "text":
        file.write_text("no state at all")
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "other arrays":
        np.savez(file, x=np.zeros(3))
    elif kind == "an array":
        with file.open("wb") as stream:
            np.save(stream, np.zeros(3))
    elif kind == "a pickle":
        with file.open("wb") as stream:
            np.savez(stream, header=np.array([{}], dtype=object))
    elif kind == "another format":
        with file.open("wb") as stream:
            np.savez(stream, header=np.frombuffer(b'{"format": "2"}', np.uint8))
    elif kind == "a missing array":
        kept = folder / "kept.npz"
        with zipfile.ZipFile(file) as archive, zipfile.ZipFile(kept, "w") as copy:
            for name in archive.namelist()[:-1]:
                copy.writestr(name, archive.read(name))
        return kept
    return file


KINDS = [
    "cut off", "a byte", "text", "empty", "other arrays", "an array", "a pickle", "another format", "a missing array",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_whole_state_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    file = damaged(kind, tmp_path)
    with pytest.raises(InputError, match=r"not a complete state file|is empty|is of format") as caught:
        State.load(file)
    assert "\n" not in str(caught.value)


def test_lengths_beyond_the_model_are_refused(tmp_path: Path) -> None:
    session = StreamingSession(running_sum_model(tmp_path / "m.onnx", tokens=10))
    arrays = dict(session.snapshot().arrays)
    for length in (11, -1):
        arrays["past_length"] = np.array([length])
        with pytest.raises(InputError, match="exceed the model's positions"):
            session.restore(State(arrays, session.snapshot().model))
    del arrays["past_length"]
    with pytest.raises(InputError, match="the state has no past_length"):
        session.restore(State(arrays, session.snapshot().model))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("past_state", lambda a: a * np.float32("nan"), "past_state holds a number that is not finite"),
        ("past_state", lambda a: a + np.float32("inf"), "past_state holds a number that is not finite"),
        ("past_conv.0", lambda a: -a / np.float32(0), "past_conv.0 holds a number that is not finite"),
        ("past_key_values.0.key", lambda a: a * np.float16("inf"), "past_key_values.0.key holds a number that is not"),
        ("past_key_values.0.key", lambda a: a[:, :, 1:], "holds 19 tokens, but its lengths are 20"),
        ("past_key_values.0.key", lambda a: np.concatenate([a, a], 2), "holds 40 tokens, but its lengths are 20"),
        ("past_key_values.0.key", lambda a: a[:, :, :, :1], "the state's past_key_values.0.key has the shape"),
        ("past_length", lambda a: a + 1, "holds 20 tokens, but its lengths are 21"),
        ("past_length", lambda a: a + 2**53, "exceed the model's positions"),
        ("past_length", lambda a: a - 21, "exceed the model's positions"),
        ("past_length", lambda a: a.astype(np.float64), "the state has no past_length"),
        ("past_length", lambda a: a[:, np.newaxis], "the state has no past_length"),
    ],
)
def test_arrays_that_no_stream_leaves_are_refused(name: str, change: Any, message: str, tmp_path: Path) -> None:
    session = StreamingSession(running_sum_model(tmp_path / "m.onnx", attention=True))
    session.prefill(IDS)
    state = session.snapshot()
    with np.errstate(all="ignore"):
        arrays = {**state.arrays, name: change(state.arrays[name])}
    with pytest.raises(InputError, match=message):
        session.restore(State(arrays, state.model))
    session.restore(state)


def test_large_sums_are_no_damage(tmp_path: Path) -> None:
    """Their own sum is beyond their type."""
    session = StreamingSession(running_sum_model(tmp_path / "m.onnx"))
    state = session.snapshot()
    arrays = {**state.arrays, "past_state": np.full_like(state.arrays["past_state"], 3e38)}
    session.restore(State(arrays, state.model))


def test_a_stream_ends_before_it_cannot_count(tmp_path: Path) -> None:
    session = StreamingSession(running_sum_model(tmp_path / "m.onnx"))
    state = session.snapshot()
    session.restore(State({**state.arrays, "past_length": np.array([2**53 - 3])}, state.model))
    session.prefill(IDS[:, :3])
    with pytest.raises(InputError, match=r"9007199254740993 tokens are more than .*9007199254740992 positions"):
        session.step([1])


def test_a_state_is_not_written_where_it_cannot_be(tmp_path: Path) -> None:
    session = StreamingSession(running_sum_model(tmp_path / "m.onnx"))
    for place, message in (("no/state", "does not exist"), (".", "is a folder")):
        with pytest.raises(InputError, match=message):
            session.snapshot().save(tmp_path / place)


def test_merged_states_are_the_state_of_all_tokens(tmp_path: Path) -> None:
    path = running_sum_model(tmp_path / "m.onnx")
    session = StreamingSession(path)
    session.prefill(IDS)
    expected = session.snapshot()
    parts = []
    for part in (IDS[:, :3], IDS[:, 3:12], IDS[:, 12:]):
        shard = StreamingSession(path)
        shard.prefill(part)
        parts.append(shard.snapshot())
    merged = merge_states(*parts)
    assert isinstance(merged, State)
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(merged.arrays[name], array)
        assert merged.arrays[name].dtype == array.dtype
    session.restore(merged)
    assert session.length == 20


def pair_of(number: float) -> Any:
    """Return a state (1, 1, 2, 1) that holds a number as two floats, and its length."""
    first = np.float32(number)
    rest = np.float32(number - float(first))
    return np.array([[[[first], [rest]]]], np.float32), np.array([1])


@given(st.lists(st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-6), min_size=1, max_size=8))
def test_merged_sums_have_twice_the_digits_of_a_float(numbers: list[float]) -> None:
    pairs = [pair_of(number) for number in numbers]
    (merged, lengths) = merge_states(*pairs)
    exact = sum((Fraction(float(value)) for sums, _ in pairs for value in sums.flat), Fraction(0))
    scale = sum(abs(Fraction(float(value))) for sums, _ in pairs for value in sums.flat)
    assert abs(Fraction(float(merged[0, 0, 0, 0])) + Fraction(float(merged[0, 0, 1, 0])) - exact) <= scale / 2**47
    # The second float is the first one's rounding error, not more.
    assert merged[0, 0, 0, 0] == np.float32(merged[0, 0].astype(np.float64).sum())
    assert lengths == [len(numbers)]


def test_sums_that_are_not_finite_stay_what_they_are() -> None:
    sums = np.array([[[[np.inf, np.nan, 3e38]], [[0, 0, 0]]]], np.float32).reshape(1, 1, 2, 3)
    with np.errstate(over="ignore", invalid="ignore"):
        merged, _ = merge_states((sums, np.array([1])), (sums, np.array([1])))
    np.testing.assert_array_equal(merged[0, 0, 0], [np.inf, np.nan, np.inf])
    np.testing.assert_array_equal(merged[0, 0, 1], [0, 0, 0])


def test_what_does_not_add_up_is_refused(tmp_path: Path) -> None:
    one, two = pair_of(1.0), pair_of(2.0)
    hybrid = StreamingSession(running_sum_model(tmp_path / "h.onnx", attention=True)).snapshot()
    plain = StreamingSession(running_sum_model(tmp_path / "m.onnx")).snapshot()
    other = StreamingSession(running_sum_model(tmp_path / "o.onnx", seed=1)).snapshot()
    wide = (np.zeros((1, 1, 2, 3), np.float32), np.array([1]))
    cases: list[tuple[tuple[Any, ...], str]] = [
        ((), "no states"),
        ((one, wide), r"shapes \[1, 1, 2, 1\] and \[1, 1, 2, 3\]"),
        ((one, plain), "States and pairs"),
        ((plain, other), "to another model"),
        ((hybrid, hybrid), "a state with past_conv.0, which is no sum"),
        ((State({"past_length": np.array([1])}, plain.model),), "a state with no past_state"),
        ((one, two[0]), "given a ndarray"),
        (((one[0].astype(np.float64), one[1]),), r"past_state is float64\[1, 1, 2, 1\]"),
        (((one[0], np.array([1, 2])),), r"past_length is int64\[2\]"),
        (((one[0][:, :, :1], one[1]),), r"past_state is float32\[1, 1, 1, 1\]"),
    ]
    for states, message in cases:
        with pytest.raises(InputError, match=message):
            merge_states(*states)


def pair(*lengths: int, dtype: Any = np.int64) -> tuple[Any, Any]:
    return np.ones((len(lengths), 1, 2, 4), np.float32), np.array(lengths, dtype)


def test_lengths_add_up_exactly() -> None:
    _, lengths = merge_states(pair(2**53, 0), pair(1, LONGEST - 3), pair(2, 3))
    assert lengths.tolist() == [2**53 + 3, LONGEST]
    assert lengths.dtype == np.int64
    assert merge_states(pair())[1].shape == (0,)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([pair(LONGEST), pair(1)], "states of 9223372036854775808 tokens cannot be merged"),
        ([pair(2**64 - 1, dtype=np.uint64)], "states of 18446744073709551615 tokens"),
        ([pair(5), pair(-1)], "past_length has -1"),
    ],
)
def test_lengths_that_no_state_has_are_refused(pairs: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        merge_states(*pairs)
