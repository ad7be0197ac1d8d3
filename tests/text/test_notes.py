"""A state's notes: what was written is read, and nothing else is accepted."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from pom_export import State, StreamingSession
from pom_export.errors import InputError
from pom_export.text.generation import Generation
from pom_export.text.notes import Settings, read_notes
from pom_export.text.sampling import Sampling
from pom_export.text.tokenizers import ByteTokenizer
from tests.streaming_graphs import running_sum_model

SETTINGS = Settings(Sampling(seed=5), "bytes", ("END",))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return running_sum_model(tmp_path / "m.onnx")


@pytest.fixture
def state(path: Path) -> State:
    generation = Generation(StreamingSession(path), ByteTokenizer(), SETTINGS)
    generation.prompt("Once")
    generation.read()
    return generation.state()


def test_what_was_written_is_read(state: State, tmp_path: Path) -> None:
    state.save(tmp_path / "state")
    for found in (state, State.load(tmp_path / "state")):
        notes = read_notes(found)
        assert (notes.settings, notes.pending, notes.chosen, notes.held, notes.ready) == (SETTINGS, (), 0, "", "")
        np.testing.assert_array_equal(notes.logits, state.extras["logits"])


def change(*place: str) -> Callable[[dict[str, Any], Any], None]:
    def set_value(notes: dict[str, Any], value: Any) -> None:
        for name in place[:-1]:
            notes = notes[name]
        notes[place[-1]] = value

    return set_value


DAMAGED: dict[str, tuple[Callable[[dict[str, Any], Any], None], list[Any], str]] = {
    "chosen": (change("chosen"), [-1, 2**63, 1.5, "1", None, True, []], "number of chosen tokens is"),
    "stream": (change("stream"), [None, [], {"a": [], "b": [], "c": []}], "held tokens is"),
    "tokens": (change("stream", "bytes"), ["a", [-1], ["a"], [2**31], [0] * 70_000, [True]], "held bytes is"),
    "bytes": (change("stream", "bytes"), [[256], [65], [0xE2, 0x82, 0xAC], [0xFF]], "not what a stream of the tok"),
    "no stream": (change("stream"), [{}, {"given": [], "open": []}], "not what a stream of the tokenizer bytes holds"),
    "held": (change("held"), [None, 1, "D", "END", "\ud800", "E" * 70_000], "held text is"),
    "ready": (change("ready"), [None, 1, "\ud800", ["a"]], "text is"),
    "settings": (change("settings"), [None, {}, [], {"sampling": {}}], "have another version"),
    "sampling": (change("settings", "sampling"), [None, {"k": 1}, []], "have another version"),
    "seed": (change("settings", "sampling", "seed"), [-1, 2**64, "5", None, 1.0, True], "damaged: seed must be"),
    "temperature": (change("settings", "sampling", "temperature"), [-1, "1", None, [], 10**400], "damaged: temp"),
    "top_k": (change("settings", "sampling", "top_k"), [0, "1", 1.5, True], "damaged: top_k must be"),
    "top_p": (change("settings", "sampling", "top_p"), [0, 2, "1", None], "damaged: top_p must be"),
    "tokenizer": (change("settings", "tokenizer"), [None, 5, "t" * 5000, "\udcff"], "damaged: the state's tokenizer"),
    "stops": (change("settings", "stop"), [None, "END", {}, ["a"] * 1001], "stops is"),
    "stop": (change("settings", "stop"), [[1], ["a", None], ["\ud800"]], "damaged: the state's stop is"),
    "empty stop": (change("settings", "stop"), [[""]], "damaged: a stop text is empty"),
    "long stops": (
        change("settings", "stop"),
        [["a" * 40_000, "b" * 40_000]],
        "damaged: there are 2 stop texts of 80000",
    ),
    "more": (change("more"), [1], "not saved by generate"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_what_was_not_written_is_refused_in_one_line(kind: str, state: State, path: Path) -> None:
    put, values, message = DAMAGED[kind]
    session = StreamingSession(path)
    for value in values:
        notes = copy.deepcopy(dict(state.notes))
        put(notes["generate"], value)
        with pytest.raises(InputError, match=message) as caught:
            Generation(session, ByteTokenizer(), SETTINGS, replace(state, notes=notes))
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600
        assert session.length == 0


@pytest.mark.parametrize("name", ["chosen", "stream", "held", "ready", "settings"])
def test_missing_notes_are_refused(name: str, state: State) -> None:
    notes = {key: value for key, value in state.notes["generate"].items() if key != name}
    with pytest.raises(InputError, match="not saved by generate"):
        read_notes(replace(state, notes={"generate": notes}))
    with pytest.raises(InputError, match="not saved by generate"):
        read_notes(replace(state, extras={}))
    with pytest.raises(InputError, match="not saved by generate"):
        read_notes(replace(state, notes={"generate": [name]}))


@pytest.mark.parametrize(
    ("extras", "message"),
    [
        ({"pending": np.array([1.0])}, r"pending is float64\[1\], not a row of tokens"),
        ({"pending": np.array([[1]])}, r"pending is int64\[1, 1\]"),
        ({"pending": np.array([-1])}, r"pending is int64\[1\]"),
        ({"pending": np.array([3, 256])}, "pending token is 256, not one of the model's 256"),
        ({"logits": np.zeros((1, 255), np.float32)}, r"logits is float32\[1, 255\], not of the model's 256 tokens"),
        ({"logits": np.zeros((2, 256), np.float32)}, r"logits is float32\[2, 256\], not one row of numbers"),
        ({"logits": np.zeros((1, 256), np.int64)}, r"logits is int64\[1, 256\]"),
        ({"logits": np.zeros((1, 256), "V2")}, r"logits is \|V2\[1, 256\]"),
        ({"logits": np.zeros(256, ml_dtypes.bfloat16)}, r"logits is bfloat16\[256\]"),
    ],
)
def test_arrays_that_are_no_generation_s_are_refused(
    extras: dict[str, Any], message: str, state: State, path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        Generation(StreamingSession(path), ByteTokenizer(), SETTINGS, replace(state, extras={**state.extras, **extras}))


def test_text_that_was_held_meets_other_stops(path: Path) -> None:
    """The beginning of one stop text may contain another, or begin none."""
    session = StreamingSession(path)
    generation = Generation(session, ByteTokenizer(), SETTINGS)
    generation.prompt("Once")
    generation._stops.push("EN")
    held = generation.state()
    for stop, text, stopped in (("END", "", False), ("N", "E", True), ("x", "EN", False)):
        continued = Generation(session, ByteTokenizer(), Settings(SETTINGS.sampling, "bytes", (stop,)), held)
        assert continued.take() == text
        assert continued.advance(0) is False
        assert continued.ended == ("stop" if stopped else "max_tokens")
        read_notes(continued.state())
