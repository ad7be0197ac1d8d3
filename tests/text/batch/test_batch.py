"""Texts that are continued together, each as it would be alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pom_export import State, StreamingSession, export
from pom_export.errors import InputError, PoolFullError
from pom_export.runtime import StreamPool
from pom_export.text.batch.batch import TextBatch
from pom_export.text.batch.pieces import Piece
from pom_export.text.batch.text import Text
from pom_export.text.generation import Generation
from pom_export.text.notes import Settings
from pom_export.text.sampling import Sampling
from pom_export.text.tokenizers import ByteTokenizer, Tokenizer, choose_tokenizer
from tests.streaming_graphs import running_sum_model

PROMPT = "Once upon a time"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return running_sum_model(tmp_path / "m.onnx")


def settings(stop: Sequence[str] = (), **sampling: Any) -> Settings:
    # So warm that any bytes occur, many of them parts of characters.
    return Settings(Sampling(**{"temperature": 60.0, **sampling}), "bytes", tuple(stop))


def batch_of(path: Path, ends: Sequence[int] = (), **options: Any) -> tuple[StreamPool, TextBatch]:
    pool = StreamPool(path, **options)
    return pool, TextBatch(pool, ByteTokenizer(), ends=ends)


def finish(pool: StreamPool, batch: TextBatch) -> None:
    while pool.waiting:
        batch.read(pool.tick())


def shown(text: Text) -> str:
    return "".join(piece.text for piece in text.take())


def alone(
    path: Path, prompt: str, wanted: Settings, most: int, state: State | None = None
) -> tuple[str, int, str, State]:
    """Return what `Generation` makes of a prompt: the text, how many tokens, why it ended, and the state."""
    generation = Generation(StreamingSession(path), ByteTokenizer(), wanted, state)
    generation.prompt(prompt)
    generation.read()
    text = ""
    while generation.advance(most):
        text += generation.take()
    state = generation.state()
    generation.finish()
    return text + generation.take(), generation.tokens, generation.ended, state


MIXED = [
    settings(seed=1),
    settings(temperature=0),
    settings(seed=3, top_k=5, temperature=2.0),
    settings(seed=2**64 - 1, top_p=0.7),
    settings(seed=4, stop=["\ufffd\ufffd\ufffd", "never"]),
    settings(seed=5, temperature=3.0, top_k=40, top_p=0.9, stop=["e"]),
    settings(seed=6),
]


def test_texts_that_come_and_go_are_those_of_each_alone(path: Path) -> None:
    pool, batch = batch_of(path, streams=4)
    prompts = [PROMPT, "a", "é" * 40, PROMPT + "!", "x" * 200, PROMPT, "tree"]
    mosts = [40, 25, 7, 60, 80, 33, 1]
    waiting = list(range(len(MIXED)))
    texts: dict[int, Text] = {}
    pieces = dict.fromkeys(waiting, "")
    while waiting or pool.waiting:
        while waiting:
            try:
                texts[waiting[0]] = batch.start(prompts[waiting[0]], MIXED[waiting[0]], most=mosts[waiting[0]])
            except PoolFullError:
                break
            waiting.pop(0)
        news = batch.read(pool.tick())
        for place, text in texts.items():
            if text in news:
                pieces[place] += shown(text)
    for place, text in texts.items():
        expected, tokens, ended, _ = alone(path, prompts[place], MIXED[place], mosts[place])
        assert (pieces[place], text.tokens, text.ended) == (expected, tokens, ended)
        assert text.prompt_tokens == len(prompts[place].encode())
    assert pool.metrics().rows > 1.5 * pool.metrics().calls
    assert pool.metrics().streams == 0


@pytest.mark.slow
def test_texts_of_a_real_model_are_those_of_each_alone(tmp_path: Path) -> None:
    """Its numbers are rounded, and those of larger calls otherwise: by too little to choose other tokens."""
    path = tmp_path / "m.onnx"
    export(Path(__file__).parents[3] / "samples" / "checkpoints" / "byte_lm.safetensors", path, stateful=True)
    pool, batch = batch_of(path, streams=24)
    prompts = ["The with statement", "A class", "def f(x):\n    " * 20]
    asked = [settings(seed=seed, temperature=(0, 0.7, 1.0)[seed % 3], top_p=(1, 0.9)[seed % 2]) for seed in range(24)]
    texts = [batch.start(prompts[place % 3], each, most=200) for place, each in enumerate(asked)]
    finish(pool, batch)
    for place, (text, each) in enumerate(zip(texts, asked, strict=True)):
        assert shown(text) == alone(path, prompts[place % 3], each, 200)[0]


def test_several_texts_read_one_prompt_once(path: Path) -> None:
    pool, batch = batch_of(path, prefix_bytes=0)
    variants = [Sampling(seed=2**64 - 2, temperature=60.0).variant(number) for number in range(4)]
    texts = batch.start_several(PROMPT, [Settings(each, "bytes") for each in variants], most=10)
    assert pool.metrics().streams == 4
    finish(pool, batch)
    assert pool.metrics().tokens == len(PROMPT) + 4 * 9
    assert [shown(text) for text in texts] == [
        alone(path, PROMPT, settings(seed=seed), 10)[0] for seed in (2**64 - 2, 2**64 - 1, 0, 1)
    ]


def test_the_reader_of_a_shared_prompt_may_leave(path: Path) -> None:
    pool, batch = batch_of(path, streams=3)
    texts = batch.start_several("x" * 5000, [settings(seed=seed) for seed in range(3)], most=5)
    pool.tick()
    texts[0].close()
    texts[1].close()
    texts[1].close()
    assert pool.metrics().streams == 1
    finish(pool, batch)
    assert [text.ended for text in texts] == ["closed", "closed", "max_tokens"]
    assert shown(texts[2]) == alone(path, "x" * 5000, settings(seed=2), 5)[0]
    assert shown(texts[0]) == ""


def test_a_closed_text_s_place_is_free_at_once(path: Path) -> None:
    pool, batch = batch_of(path, streams=2)
    first, second = (batch.start(PROMPT, settings(seed=seed), most=50) for seed in (1, 2))
    with pytest.raises(PoolFullError, match="all 2 streams"):
        batch.start(PROMPT, settings(), most=1)
    with pytest.raises(PoolFullError, match="all 2 streams"):
        batch.start_several(PROMPT, [settings()] * 2, most=1)
    batch.read(pool.tick())
    first.close()
    third = batch.start(PROMPT, settings(seed=3), most=5)
    finish(pool, batch)
    assert [text.ended for text in (first, second, third)] == ["closed", "max_tokens", "max_tokens"]
    assert shown(third) == alone(path, PROMPT, settings(seed=3), 5)[0]


@pytest.mark.parametrize("most", [0, 7])
def test_a_state_continues_the_text(most: int, path: Path, tmp_path: Path) -> None:
    """In a batch or a Generation, with and without more prompt."""
    pool, batch = batch_of(path)
    first = batch.start(PROMPT, settings(seed=1), most=most, keep=True)
    finish(pool, batch)
    assert first.state is not None
    first.state.save(tmp_path / "state")
    state = State.load(tmp_path / "state")
    whole = alone(path, PROMPT, settings(seed=1), most + 9)
    more = batch.start("", settings(seed=1), most=9, state=state)
    other = batch.start(", then", settings(seed=2), most=9, state=state)
    begun = batch.start(", then", settings(seed=1), most=9, state=state, anew=True)
    whole_prompt = [*PROMPT.encode(), *first.kept, *b", then"]
    expected = batch.start(whole_prompt, settings(seed=1), most=9)
    finish(pool, batch)
    assert shown(begun) == shown(expected)
    ids = [token.id for text in (first, more) for piece in text.take() for token in piece.tokens]
    assert bytes(ids).decode(errors="replace") == whole[0]
    assert shown(other) == alone(path, ", then", settings(seed=2), 9, state)[0]
    assert other.prompt_tokens == 6


@pytest.mark.parametrize("width", [1, 2, 5])
def test_the_state_after_a_stop_is_that_of_the_text_shown(width: int, path: Path) -> None:
    warm = {"seed": 5, "temperature": 3.0}
    free = alone(path, PROMPT, settings(**warm), 30)[0]
    stop = free[10 : 10 + width]
    pool, batch = batch_of(path)
    text = batch.start(PROMPT, settings([stop, "zzz"], **warm), most=100, keep=True)
    finish(pool, batch)
    answer = shown(text)
    assert text.ended == "stop"
    assert answer == free[: free.index(stop)]
    assert bytes(text.kept).decode(errors="replace") == answer
    assert text.state is not None
    later = batch.start(" and", settings(seed=9), most=10, state=text.state)
    finish(pool, batch)
    ids = [*PROMPT.encode(), *text.kept, *b" and"]
    again = batch.start(ids, settings(seed=9), most=10)
    finish(pool, batch)
    assert shown(later) == shown(again)


@pytest.fixture
def pairs(tmp_path: Path) -> Tokenizer:
    """A tokenizer with tokens of two letters."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(one, two) for one in "abcdefgh" for two in "abcdefgh"]
    vocabulary = {text: place for place, text in enumerate([*alphabet, *map("".join, merges)])}
    library: Any = Library(models.BPE(vocabulary, merges))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    library.save(str(tmp_path / "tokenizer.json"))
    return choose_tokenizer(str(tmp_path / "tokenizer.json"), 320)


@pytest.mark.parametrize(
    "stops",
    [
        ["ca", "fg", "db", "he", "ae", "ch"],
        pytest.param(["b"], marks=pytest.mark.slow),
        pytest.param(["\ufffdd", "ggg"], marks=pytest.mark.slow),
    ],
)
def test_a_stop_may_begin_and_end_inside_tokens(stops: list[str], pairs: Tokenizer, tmp_path: Path) -> None:
    pool = StreamPool(running_sum_model(tmp_path / "m.onnx", vocabulary=320), streams=128)
    batch, prompt = TextBatch(pool, pairs), pairs.encode(PROMPT)
    wanted = [settings(stops, seed=seed) for seed in range(30)]
    texts = [batch.start(PROMPT, each, most=100, keep=True) for each in wanted]
    finish(pool, batch)
    answers = [shown(text) for text in texts]
    parts = 0
    for text, answer in zip(texts, answers, strict=True):
        if text.ended != "stop":
            continue
        stream = pairs.stream(prompt)
        kept = "".join(map(stream.push, text.kept)) + stream.finish()
        assert kept == answer
        parts += bool(text.kept) and text.kept[-1] < 256
        assert text.state is not None
        later = batch.start([7], settings(seed=9), most=5, state=text.state, anew=True)
        again = batch.start([*prompt, *text.kept, 7], settings(seed=9), most=5)
        finish(pool, batch)
        assert [piece.tokens for piece in later.take()] == [piece.tokens for piece in again.take()]
    assert parts > 5
    # What another process has shown before the end is all that there is to know.
    for each, text, answer in list(zip(wanted, texts, answers, strict=True))[:3]:
        whole = batch.start(PROMPT, each, most=100)
        news: list[list[Piece]] = []
        while not whole.ended:
            batch.read(pool.tick())
            news.append(whole.take())
        for cut in range(len(news) - 1, 0, -9):
            pieces = [piece for each_news in news[:cut] for piece in each_news]
            chosen = [token.id for piece in pieces for token in piece.tokens]
            rest = batch.start(PROMPT, each, most=100, chosen=chosen, keep=True)
            finish(pool, batch)
            assert "".join(piece.text for piece in pieces) + shown(rest) == answer
            assert (rest.ended, rest.kept) == (text.ended, text.kept)


def test_a_token_that_ends_texts_is_no_part_of_them(path: Path) -> None:
    free = [*_tokens(path, settings(seed=1), 30)]
    pool, batch = batch_of(path, ends=[free[12], 300])
    count = free.index(free[12])
    text = batch.start(PROMPT, settings(seed=1), most=100, keep=True)
    finish(pool, batch)
    assert (text.ended, text.tokens, text.kept) == ("stop", count + 1, tuple(free[:count]))
    assert text.state is not None
    assert text.state.lengths.tolist() == [len(PROMPT) + count]
    # The logits that it was chosen by are there to choose another.
    again = batch.start("", settings(seed=8), most=3, state=text.state)
    assert again.tokens == 1
    finish(pool, batch)
    assert again.tokens == 3


def _tokens(path: Path, wanted: Settings, most: int) -> list[int]:
    pool, batch = batch_of(path)
    text = batch.start(PROMPT, wanted, most=most)
    finish(pool, batch)
    return [token.id for piece in text.take() for token in piece.tokens]


@pytest.mark.parametrize("stop", ["", "x"])
def test_what_another_process_chose_is_gone_on_from(stop: str, path: Path) -> None:
    warm = settings(seed=3)
    if stop:
        text = alone(path, PROMPT, warm, 30)[0]
        stop = text[14:17]
        warm = settings([stop], seed=3)
    pool, batch = batch_of(path)
    whole = batch.start(PROMPT, warm, most=30, keep=True)
    pieces, counts = [""], [0]
    while not whole.ended:
        batch.read(pool.tick())
        pieces.append(pieces[-1] + shown(whole))
        counts.append(whole.tokens)
    chosen = _tokens(path, settings(seed=3), 30)[: whole.tokens]
    for cut in range(len(chosen) + 1):
        text = batch.start(PROMPT, warm, most=30, chosen=chosen[:cut], keep=True)
        finish(pool, batch)
        assert (text.ended, text.tokens, text.kept) == (whole.ended, whole.tokens, whole.kept)
        if cut < len(chosen):  # otherwise the end was seen there
            assert pieces[counts.index(cut)] + shown(text) == pieces[-1]
        assert text.state is not None
        assert whole.state is not None
        np.testing.assert_array_equal(text.state.arrays["past_state"], whole.state.arrays["past_state"])


def test_other_threads_start_and_close_texts_meanwhile(path: Path) -> None:
    pool, batch = batch_of(path, streams=6)
    asked = {seed: settings(["q"], seed=seed) for seed in range(8)}
    expected = {seed: alone(path, PROMPT, wanted, 30)[0] for seed, wanted in asked.items()}
    found: list[tuple[int, str]] = []
    ended = threading.Event()

    def tick() -> None:
        while not ended.is_set():
            batch.read(pool.tick())
            if not pool.waiting:
                time.sleep(0.001)

    def ask(number: int) -> None:
        random = np.random.default_rng(number)
        for seed in random.integers(0, 8, 12).tolist():
            try:
                texts = batch.start_several(PROMPT, [asked[seed], asked[0]], most=30)
            except PoolFullError:
                continue
            if random.random() < 0.5:
                texts[int(random.integers(2))].close()  # while it waits, or while it is in a call
            for text, of in zip(texts, (seed, 0), strict=True):
                answer = ""
                while not text.ended:
                    answer += shown(text)
                    time.sleep(0.001)
                if text.ended != "closed":
                    found.append((of, answer + shown(text)))

    ticking = threading.Thread(target=tick)
    asking = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for thread in (ticking, *asking):
        thread.start()
    for thread in asking:
        thread.join()
    ended.set()
    ticking.join()
    assert len(found) > 20
    assert all(answer == expected[seed] for seed, answer in found)
    assert (pool.metrics().streams, pool.waiting) == (0, 0)


def test_logprobs(path: Path) -> None:
    pool, batch = batch_of(path)
    text = batch.start(PROMPT, settings(temperature=0), most=6, logprobs=3, prompt_logprobs=True)
    finish(pool, batch)
    tokens = [token for piece in text.take() for token in piece.tokens]
    ids = [*PROMPT.encode(), *(token.id for token in tokens)]
    logits = StreamingSession(path).prefill([ids])[0].astype(np.float64)
    expected = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
    expected -= logits.max(-1, keepdims=True)
    for place, token in enumerate([*text.prompt, *tokens]):
        assert token.id == ids[place]
        if not place:
            assert (token.logprob, token.likeliest) == (None, ())
            continue
        row = expected[place - 1]
        assert token.logprob == pytest.approx(row[token.id], abs=1e-9)
        best = np.argsort(-row, kind="stable")[:3]
        assert [each for each, _ in token.likeliest] == best.tolist()
        np.testing.assert_allclose([logprob for _, logprob in token.likeliest], row[best], atol=1e-9)
    assert [token.offset for token in text.prompt] == list(range(len(PROMPT)))
    assert tokens[0].likeliest[0][0] == tokens[0].id


def test_positions_end_texts(tmp_path: Path) -> None:
    path = running_sum_model(tmp_path / "m.onnx", tokens=20)
    pool, batch = batch_of(path)
    text = batch.start(PROMPT, settings(seed=1), most=100)
    finish(pool, batch)
    expected, tokens, ended, _ = alone(path, PROMPT, settings(seed=1), 100)
    assert (shown(text), text.tokens, text.ended) == (expected, tokens, ended)
    assert ended == "positions"
    with pytest.raises(InputError, match="the prompt ends at token 21, but the model has 20 positions"):
        batch.start("x" * 21, settings(), most=1)


def test_a_failed_call_ends_its_texts(path: Path) -> None:
    pool, batch = batch_of(path)
    texts = batch.start_several(PROMPT, [settings(), settings(seed=1)], most=5)
    error = InputError("the model cannot be run")
    assert batch.fail(error, [texts[0].stream]) == texts
    assert [(text.ended, text.error) for text in texts] == [("error", error)] * 2
    assert (pool.metrics().streams, pool.waiting) == (0, 0)


def test_bad_use_is_refused(path: Path, tmp_path: Path) -> None:
    pool, batch = batch_of(path)
    bad: list[tuple[Any, dict[str, Any], str]] = [
        ("", {}, "the prompt is empty"),
        ([], {}, "the prompt is empty"),
        ([256], {}, "256 is not one of the model's 256 tokens"),
        ([1, [2]], {}, r"\[2\] is not one of"),
        ([2**80, 1], {}, f"{2**80} is not one of"),
        ([1, "a"], {}, "'a' is not one of"),
        ([True], {}, "True is not one of"),
        ([1.5], {}, "1.5 is not one of the model's 256 tokens"),
        (PROMPT, {"most": -1}, "most is -1"),
        (PROMPT, {"logprobs": True}, "logprobs is True"),
        (PROMPT, {"chosen": [-1]}, "-1 is not one of"),
        (PROMPT, {"state": StreamingSession(path).snapshot()}, "the state was not saved by generate"),
    ]
    for prompt, options, message in bad:
        with pytest.raises(InputError, match=message):
            batch.start(prompt, settings(), **{"most": 5, **options})
    assert (pool.metrics().streams, pool.waiting) == (0, 0)
    with pytest.raises(InputError, match="takes no token ids"):
        batch_of(running_sum_model(tmp_path / "x.onnx", ids=False))
