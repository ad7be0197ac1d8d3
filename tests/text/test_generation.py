"""Texts that are generated, stopped anywhere, and continued."""

from __future__ import annotations

from pathlib import Path

import pytest

from pom_export import State, StreamingSession
from pom_export.errors import InputError
from pom_export.text import generation as module
from pom_export.text.generation import Generation
from pom_export.text.notes import Settings, read_notes
from pom_export.text.sampling import Sampling
from pom_export.text.tokenizers import ByteTokenizer
from tests.streaming_graphs import running_sum_model

PROMPT = "Once upon a time"
# Warm enough that any bytes occur, so that many are incomplete characters.
SETTINGS = Settings(Sampling(seed=5, temperature=60.0), "bytes")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return running_sum_model(tmp_path / "m.onnx")


def start(path: Path, settings: Settings = SETTINGS, state: State | None = None) -> Generation:
    return Generation(StreamingSession(path), ByteTokenizer(), settings, state)


def run(generation: Generation, most: int, taken: list[str] | None = None) -> str:
    pieces = [] if taken is None else taken
    pieces.append(generation.take())
    while generation.advance(most):
        pieces.append(generation.take())
    return "".join(pieces)


def whole_run(path: Path, most: int, settings: Settings = SETTINGS) -> str:
    generation = start(path, settings)
    generation.prompt(PROMPT)
    return run(generation, most) + rest(generation)


def rest(generation: Generation) -> str:
    generation.finish()
    return generation.take()


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("cut", [0, 1, 2, 3, 17, 40])
def test_a_stop_anywhere_changes_nothing(cut: int, attention: bool, path: Path, tmp_path: Path) -> None:
    running_sum_model(path, attention=attention)
    expected = whole_run(path, 60)
    assert len(set(expected)) > 10
    generation = start(path)
    generation.prompt(PROMPT)
    text = run(generation, cut)
    if cut % 2 == 0:
        generation.read()  # the last token too
    generation.state().save(tmp_path / "state")
    state = State.load(tmp_path / "state")
    assert read_notes(state).settings == SETTINGS
    continued = start(path, SETTINGS, state)
    assert text + run(continued, 60 - cut) + rest(continued) == expected


def test_an_interrupt_anywhere_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal arrives during any call of the model; the interrupt is checked for between two calls."""
    monkeypatch.setattr(module, "CHUNK", 3)
    monkeypatch.setattr(module, "_FEWEST", 3)
    expected = whole_run(path, 20)
    for place in range(30):
        left = [place]

        def check(left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt

        monkeypatch.setattr(module.interrupts, "check", check)
        generation, taken = start(path), list[str]()
        generation.prompt(PROMPT)
        with pytest.raises(KeyboardInterrupt):
            run(generation, 20, taken)
        monkeypatch.setattr(module.interrupts, "check", lambda: None)
        continued = start(path, SETTINGS, generation.state())
        assert "".join(taken) + run(continued, 20 - generation.tokens) + rest(continued) == expected


def test_what_was_not_taken_is_in_the_state(path: Path) -> None:
    generation = start(path)
    generation.prompt(PROMPT)
    while generation.advance(10):
        pass
    continued = start(path, SETTINGS, generation.state())
    assert run(continued, 10) + rest(continued) == whole_run(path, 20)


def test_a_stop_s_beginning_is_held_in_the_state(path: Path) -> None:
    plain = Settings(Sampling(seed=5, temperature=3.0), "bytes")
    expected = whole_run(path, 30, plain)
    stop = expected[10:14]
    settings = Settings(plain.sampling, "bytes", (stop,))
    assert whole_run(path, 30, settings) == expected[: expected.index(stop)]
    generation = start(path, settings)
    generation.prompt(PROMPT)
    text = run(generation, 12)
    continued = start(path, settings, generation.state())
    assert text + run(continued, 100) == expected[: expected.index(stop)]
    assert continued.ended == "stop"
    assert not continued.advance(200)


def test_what_was_held_back_comes_before_what_follows_another_prompt(path: Path) -> None:
    settings = Settings(Sampling(temperature=0), "bytes")
    generation = start(path, settings)
    generation.prompt(PROMPT)
    text = run(generation, 5)
    held = Settings(settings.sampling, "bytes", (text + "!",))
    generation = start(path, held)
    generation.prompt(PROMPT)
    assert run(generation, 5) == ""
    continued = start(path, held, generation.state())
    continued.prompt(" and")
    assert continued.take() == text


def test_a_saved_prompt_can_be_continued_many_times(path: Path) -> None:
    generation = start(path)
    generation.prompt(PROMPT)
    generation.read()
    state = generation.state()
    assert state.lengths.tolist() == [len(PROMPT)]
    for seed in (1, 2):
        settings = Settings(Sampling(seed=seed, temperature=60.0), "bytes")
        continued = start(path, settings, state)
        assert run(continued, 20) + rest(continued) == whole_run(path, 20, settings)
    more = start(path, SETTINGS, state)
    more.prompt(", there")
    both = start(path)
    both.prompt(PROMPT + ", there")
    assert run(more, 10) == run(both, 10)
    assert (more.prompt_tokens, both.prompt_tokens) == (7, 23)


def test_counts_and_ends(path: Path) -> None:
    running_sum_model(path, tokens=20)
    generation = start(path)
    generation.prompt(PROMPT)
    run(generation, 3)
    assert (generation.tokens, generation.prompt_tokens, generation.ended) == (3, len(PROMPT), "max_tokens")
    run(generation, 100)
    # The last token was chosen from the last position's logits, and has none of its own.
    assert (generation.tokens, generation.ended) == (5, "positions")
    assert generation.seconds > 0
    assert generation.prompt_seconds > 0


def test_tokens_that_the_tokenizer_lacks_are_not_chosen(path: Path) -> None:
    running_sum_model(path, vocabulary=300)
    generation = start(path)
    generation.prompt(PROMPT)
    run(generation, 200)
    assert generation.tokens == 200


def test_bad_use_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the prompt is empty"):
        start(path).advance(1)
    running_sum_model(path, vocabulary=100)
    with pytest.raises(InputError, match="the tokenizer gives token 116, but the model has 100"):
        start(path).prompt("art")
    running_sum_model(path, tokens=5)
    with pytest.raises(InputError, match="the prompt ends at token 6, but the model has 5 positions"):
        start(path).prompt("abcdef")
    session = StreamingSession(path)
    with pytest.raises(InputError, match="the state was not saved by generate"):
        start(path, SETTINGS, session.snapshot())
    with pytest.raises(InputError, match="2 rows"):
        Generation(StreamingSession(path, batch=2), ByteTokenizer(), SETTINGS)
    mixer = running_sum_model(tmp_path / "x.onnx", ids=False)
    with pytest.raises(InputError, match="takes no token ids"):
        start(mixer)
