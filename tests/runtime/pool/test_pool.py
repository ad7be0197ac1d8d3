"""Streams of a pool: their numbers, who waits for whom, and what is refused."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pom_export import StreamingSession
from pom_export.errors import InputError, PoolFullError
from pom_export.runtime import CallError, PoolStream, StreamPool
from tests.streaming_graphs import CHANNELS, VOCABULARY, running_sum_model

RANDOM = np.random.default_rng(7)
LENGTHS = (1, 2, 3, 16, 40, 64, 65, 130, 300)
PROMPTS = [RANDOM.integers(0, VOCABULARY, length) for length in LENGTHS]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return running_sum_model(tmp_path / "m.onnx")


def greedy(session: StreamingSession, prompt: Any, count: int) -> list[int]:
    """Return the tokens that a stream by itself continues a prompt with."""
    session.reset()
    output, tokens = session.prefill_last(prompt), []
    while True:
        tokens.append(int(output[0].argmax()))
        if len(tokens) == count:
            return tokens
        output = session.step([tokens[-1]])


def generate(pool: StreamPool, counts: dict[PoolStream, int]) -> dict[PoolStream, list[int]]:
    """Continue streams that were given prompts, each by a number of tokens."""
    texts: dict[PoolStream, list[int]] = {stream: [] for stream in counts}
    while pool.waiting:
        answers = pool.tick()
        tokens = answers.outputs.argmax(-1)
        for stream, token in zip(answers.streams, tokens, strict=True):
            texts[stream].append(int(token))
        going = [place for place, s in enumerate(answers.streams) if len(texts[s]) < counts[s]]
        pool.step([answers.streams[place] for place in going], tokens[going])
    return texts


def finish(pool: StreamPool) -> dict[PoolStream, Any]:
    """Tick until nothing waits; return the last output of each stream."""
    outputs: dict[PoolStream, Any] = {}
    while pool.waiting:
        answers = pool.tick()
        outputs |= dict(zip(answers.streams, answers.outputs, strict=True))
    return outputs


def opened(pool: StreamPool, prompts: Sequence[Any]) -> list[PoolStream]:
    streams = [pool.open() for _ in prompts]
    for stream, prompt in zip(streams, prompts, strict=True):
        stream.give(prompt)
    return streams


@pytest.mark.parametrize("mask", [False, True])
def test_streams_give_what_each_gives_by_itself(mask: bool, tmp_path: Path) -> None:
    path = running_sum_model(tmp_path / "m.onnx", mask=mask)
    pool, alone = StreamPool(path), StreamingSession(path)
    streams = opened(pool, PROMPTS)
    counts = {stream: 3 + place for place, stream in enumerate(streams)}
    texts = generate(pool, counts)
    for stream, prompt in zip(streams, PROMPTS, strict=True):
        assert texts[stream] == greedy(alone, prompt, counts[stream])
        assert stream.length == len(prompt) + counts[stream] - 1
        assert stream.waiting == 0
    metrics = pool.metrics()
    assert metrics.tokens + metrics.prefix_tokens == sum(stream.length for stream in streams)
    assert metrics.calls < metrics.rows
    pool.step(streams, [1] * len(streams))
    pool.tick()
    assert pool.metrics().batches[len(streams)] == metrics.batches.get(len(streams), 0) + 1


def test_vectors_and_every_output(tmp_path: Path) -> None:
    path = running_sum_model(tmp_path / "m.onnx", ids=False)
    x = RANDOM.integers(-3, 4, (2, 70, CHANNELS)).astype(np.float32)
    expected = StreamingSession(path, batch=2).prefill(x)
    pool = StreamPool(path, streams=2)
    first, second = pool.open(), pool.open()
    first.give(x[0], every=True)
    second.give(x[1, :5], every=True)
    second.give(x[1, 5:6])
    second.give(x[1, 6:])
    got: list[Any] = []
    answers = pool.tick()
    np.testing.assert_array_equal(answers.every[first], expected[0])
    while pool.waiting:
        got += [answers]
        answers = pool.tick()
    outputs = [o for a in [*got, answers] for s, o in zip(a.streams, a.outputs, strict=True) if s is second]
    np.testing.assert_array_equal(outputs, expected[1, [4, 5, 69]])
    pool.step([second, first], x[:, 0])
    assert finish(pool)[first].shape == (VOCABULARY,)


def test_each_tick_has_one_answer_of_a_stream(model: Path) -> None:
    """A stream's outputs are found by the stream, so a second answer would hide the first."""
    pool = StreamPool(model)
    stream, ids = pool.open(), PROMPTS[-1]
    expected = StreamingSession(model).prefill(ids)[0]
    for start, stop in ((0, 1), (1, 3), (3, 40), (40, 41), (41, 300)):
        stream.give(ids[start:stop], every=True)
    read = []
    while pool.waiting:
        answers = pool.tick()
        assert len(set(answers.streams)) == len(answers.streams)
        read += [answers.every[stream]] if stream in answers.every else []
    np.testing.assert_array_equal(np.concatenate(read), expected)


def test_what_is_given_may_change_afterwards(model: Path) -> None:
    pool = StreamPool(model)
    ids = PROMPTS[-1].copy()
    (stream,) = opened(pool, [ids])
    ids[:] = 0
    np.testing.assert_array_equal(finish(pool)[stream], StreamingSession(model).prefill_last(PROMPTS[-1])[0])


def test_a_tick_without_work_is_empty(model: Path) -> None:
    pool = StreamPool(model)
    pool.open()
    pool.step([], [])
    answers = pool.tick()
    assert (len(answers.streams), answers.outputs.shape, answers.every) == (0, (0, VOCABULARY), {})
    assert pool.metrics().calls == 0


def test_a_long_prompt_delays_nobody(model: Path) -> None:
    pool = StreamPool(model)
    (short,) = opened(pool, [PROMPTS[0]])
    finish(pool)
    for _ in range(3):  # steps and prompts have been timed
        pool.step([short], [1])
        finish(pool)
    long = pool.open()
    long.give(RANDOM.integers(0, VOCABULARY, 100_000))
    ticks = 0
    while long.waiting:
        pool.step([short], [2])
        answers = pool.tick()
        assert short in answers.streams
        ticks += 1
    assert ticks > 40  # 2,048 tokens at most in each


def test_the_same_prompt_is_read_once(model: Path) -> None:
    prompt = PROMPTS[-1]
    expected = StreamingSession(model).prefill_last(prompt)[0]
    pool = StreamPool(model)
    for _ in range(2):  # at the same time, and later
        streams = opened(pool, [prompt] * 3)
        outputs = finish(pool)
        for stream in streams:
            np.testing.assert_array_equal(outputs[stream], expected)
        assert pool.metrics().tokens == len(prompt)
    assert pool.metrics().prefix_tokens == 5 * len(prompt)
    assert [stream.spared for stream in streams] == [len(prompt)] * 3


def test_a_shared_beginning_is_read_once(model: Path) -> None:
    shared = RANDOM.integers(0, VOCABULARY, 128)
    prompts = [np.concatenate([shared, RANDOM.integers(0, VOCABULARY, count)]) for count in (9, 30, 77)]
    pool, alone = StreamPool(model), StreamingSession(model)
    # The second occurrence shows that it is shared, and the third profits.
    for prompt, spared in zip(prompts, (0, 0, 128), strict=True):
        before = pool.metrics()
        (stream,) = opened(pool, [prompt])
        assert generate(pool, {stream: 4})[stream] == greedy(alone, prompt, 4)
        assert pool.metrics().tokens - before.tokens == len(prompt) + 3 - spared
        assert pool.metrics().prefix_tokens - before.prefix_tokens == spared
    long = np.tile(shared, 5)
    for prompt, spared in zip((long, np.append(long, 7), np.append(long, [8, 9])), (128, 640, 640), strict=True):
        before = pool.metrics()
        (stream,) = opened(pool, [prompt])
        assert generate(pool, {stream: 2})[stream] == greedy(alone, prompt, 2)
        assert pool.metrics().prefix_tokens - before.prefix_tokens == spared


def test_a_conversation_continues_where_it_stopped(model: Path) -> None:
    pool, alone = StreamPool(model), StreamingSession(model)
    (stream,) = opened(pool, [PROMPTS[-2]])
    text = generate(pool, {stream: 10})[stream]
    pool.step([stream], [text[-1]])
    finish(pool)
    stream.close()
    before = pool.metrics().tokens
    longer = np.concatenate([PROMPTS[-2], text, PROMPTS[3]])
    (again,) = opened(pool, [longer])
    assert generate(pool, {again: 5})[again] == greedy(alone, longer, 5)
    assert pool.metrics().tokens - before == len(PROMPTS[3]) + 4


def test_other_tokens_in_the_same_pieces_are_not_mistaken(model: Path) -> None:
    pool = StreamPool(model)
    alone = StreamingSession(model)
    prompts = [np.full(64, value) for value in (1, 2, 1)]
    prompts[2] = prompts[2].copy()
    prompts[2][-1] = 3
    for prompt in prompts:
        (stream,) = opened(pool, [prompt])
        np.testing.assert_array_equal(finish(pool)[stream], alone.prefill_last(prompt)[0])
        alone.reset()
    assert pool.metrics().prefix_tokens == 0


def test_kept_beginnings_fit_their_bytes(model: Path) -> None:
    # A state, and the output after it.
    pool = StreamPool(model, prefix_bytes=3 * (StreamPool(model).metrics().state_bytes + 4 * VOCABULARY))
    prompts = [np.full(40, value) for value in range(5)]
    for prompt in prompts:
        opened(pool, [prompt])
        finish(pool)
    assert pool.metrics().prefixes == 3
    assert pool.metrics().prefix_bytes <= 3 * (pool.metrics().state_bytes + 4 * VOCABULARY)
    for prompt, tokens in ((prompts[0], 40), (prompts[4], 0), (prompts[3], 0), (prompts[2], 40)):
        before = pool.metrics().tokens
        opened(pool, [prompt])
        finish(pool)
        assert pool.metrics().tokens - before == tokens

    without = StreamPool(model, prefix_bytes=0)
    opened(without, [prompts[0]] * 2)
    finish(without)
    assert (without.metrics().tokens, without.metrics().prefixes) == (80, 0)


def test_forks_go_their_own_ways(model: Path) -> None:
    pool, alone = StreamPool(model), StreamingSession(model)
    (stream,) = opened(pool, [PROMPTS[4]])
    finish(pool)
    twin = stream.fork()
    stream.give([1, 2])
    twin.give([3])
    third = stream.fork()  # its tokens wait as well
    fourth = pool.open()
    assert stream.fork(fourth) is fourth
    with pytest.raises(InputError, match="the stream to fork into has been given tokens"):
        stream.fork(twin)
    outputs = finish(pool)
    for of, tokens in ((stream, [1, 2]), (third, [1, 2]), (fourth, [1, 2]), (twin, [3])):
        alone.reset()
        np.testing.assert_array_equal(outputs[of], alone.prefill_last(np.concatenate([PROMPTS[4], tokens]))[0])


def test_states_move_to_and_from_sessions(model: Path) -> None:
    pool, session = StreamPool(model), StreamingSession(model)
    session.prefill(PROMPTS[5])
    stream = pool.open(session.snapshot())
    assert stream.length == 64
    stream.give(PROMPTS[4])
    expected = StreamingSession(model).prefill_last(np.concatenate([PROMPTS[5], PROMPTS[4], [9]]))[0]
    finish(pool)
    session.restore(stream.snapshot())
    np.testing.assert_array_equal(session.step([9])[0], expected)
    stream.give([9])
    np.testing.assert_array_equal(finish(pool)[stream], expected)


def test_a_closed_stream_leaves_its_place_at_any_tick(model: Path) -> None:
    pool = StreamPool(model, streams=2, prefix_bytes=0)
    first, second = opened(pool, [np.tile(PROMPTS[-1], 20), PROMPTS[0]])
    pool.tick()
    with pytest.raises(PoolFullError, match="all 2 streams of the pool are in use"):
        pool.open()
    first.close()
    first.close()
    assert pool.waiting == second.waiting
    with pytest.raises(InputError, match="the stream is closed"):
        first.give([1])
    with pytest.raises(InputError, match="the stream is closed"):
        first.fork()
    with pytest.raises(InputError, match="the stream is closed"):
        first.snapshot()
    with pool.open() as third:
        third.give(PROMPTS[1])
        expected = StreamingSession(model).prefill_last(PROMPTS[1])[0]
        np.testing.assert_array_equal(finish(pool)[third], expected)
    assert third.closed
    assert pool.metrics().streams == 1


def test_other_threads_open_and_close_streams_meanwhile(model: Path) -> None:
    pool, alone = StreamPool(model, streams=8), StreamingSession(model)
    expected = {place: greedy(alone, prompt, 1)[0] for place, prompt in enumerate(PROMPTS)}
    found: list[tuple[int, int]] = []
    answered: dict[PoolStream, Any] = {}
    changed = threading.Condition()
    ended = threading.Event()

    def tick() -> None:
        while not ended.is_set():
            answers = pool.tick()
            with changed:
                answered.update(zip(answers.streams, answers.outputs, strict=True))
                changed.notify_all()

    def ask(seed: int) -> None:
        random = np.random.default_rng(seed)
        for place in random.integers(0, len(PROMPTS), 40):
            with pool.open() as stream, changed:
                stream.give(PROMPTS[place])
                if random.random() < 0.3:
                    continue  # it is closed while it waits, or while it is in a call
                assert changed.wait_for(lambda: stream in answered, timeout=60)
                found.append((int(place), int(answered[stream].argmax())))

    ticking = threading.Thread(target=tick)
    asking = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in (ticking, *asking):
        thread.start()
    for thread in asking:
        thread.join()
    ended.set()
    ticking.join()
    assert len(found) > 80
    assert all(token == expected[place] for place, token in found)
    assert (pool.metrics().streams, pool.waiting) == (0, 0)


def test_bad_tokens_change_nothing(tmp_path: Path) -> None:
    pool = StreamPool(running_sum_model(tmp_path / "m.onnx", tokens=50), most_waiting=60)
    first, second = pool.open(), pool.open()
    for tokens, message in (
        ([VOCABULARY], f"input_ids holds {VOCABULARY}"),
        ([0.5], "input_ids is float64, not int64"),
        ([], "input_ids has the shape"),
        (np.zeros((2, 3), np.int64), "input_ids has the shape"),
        (np.zeros(51, np.int64), "51 tokens are more than m.onnx's 50 positions"),
    ):
        with pytest.raises(InputError, match=message):
            first.give(tokens)
    first.give(np.zeros(40, np.int64))
    with pytest.raises(PoolFullError, match="40 tokens wait in the pool, which takes 60: 30 more are too many"):
        second.give(np.zeros(30, np.int64))
    second.give(np.zeros(20, np.int64))
    pool.step([pool.open()], [1])  # there is room for the next token of each stream
    with pytest.raises(InputError, match="51 tokens are more"):
        first.give(np.zeros(11, np.int64))
    with pytest.raises(InputError, match="the stream belongs to another pool"):
        StreamPool(tmp_path / "m.onnx").step([second], [1])
    with pytest.raises(InputError, match="input_ids"):
        pool.step([first, second], [1, VOCABULARY])
    assert pool.waiting == 61


def test_a_failing_call_leaves_the_others_answers_for_the_next_tick(tmp_path: Path) -> None:
    path = running_sum_model(tmp_path / "m.onnx", claimed=2 * VOCABULARY)
    pool = StreamPool(path)
    good, bad = opened(pool, [[1], [2, VOCABULARY]])
    with pytest.raises(CallError, match=r"ONNX Runtime cannot run m\.onnx: .*idx=256") as caught:
        pool.tick()
    assert caught.value.streams == (bad,)
    assert (bad.length, bad.waiting) == (0, 2)
    bad.close()
    answers = pool.tick()
    assert answers.streams == [good]
    np.testing.assert_array_equal(answers.outputs, StreamingSession(path).prefill_last([1]))
    assert pool.metrics().batches == {1: 1}


def test_one_thread_ticks(model: Path) -> None:
    pool = StreamPool(model)
    (stream,) = opened(pool, [np.tile(PROMPTS[-1], 300)])
    errors: list[InputError] = []

    def tick() -> None:
        while stream.waiting and not errors:
            try:
                pool.tick()
            except InputError as error:
                errors.append(error)

    threads = [threading.Thread(target=tick) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors[0].what == "another thread is in tick()"


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ({"attention": True}, r"m.onnx keeps past_key_values.0.key, which grows with every token"),
        ({"positions": True}, "m.onnx takes positions besides tokens"),
        ({"kind": "block-causal"}, "m.onnx is block-causal"),
        ({"kind": None}, "m.onnx keeps no state"),
    ],
)
def test_models_that_cannot_share_calls_are_refused(graph: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        StreamPool(running_sum_model(tmp_path / "m.onnx", **graph))


def test_options_and_states_are_checked(model: Path, tmp_path: Path) -> None:
    options: list[tuple[str, Any]] = [("streams", 0), ("streams", 1.5), ("prefix_bytes", -1), ("most_waiting", 0)]
    for option, value in options:
        with pytest.raises(InputError, match=f"{option} is {value}, not a whole number"):
            StreamPool(model, **{option: value})
    pool = StreamPool(model, streams=1)
    wrong: Any = {}
    with pytest.raises(InputError, match="the state is a dict"):
        pool.open(wrong)
    other = StreamingSession(running_sum_model(tmp_path / "other.onnx", seed=1))
    with pytest.raises(InputError, match="the state belongs to another model"):
        pool.open(other.snapshot())
    with pytest.raises(InputError, match="may belong to another batch"):
        pool.open(StreamingSession(model, batch=2).snapshot())
    assert pool.metrics().streams == 0


def test_several_tokens_for_one_stream_in_a_step(tmp_path: Path) -> None:
    path = running_sum_model(tmp_path / "m.onnx", tokens=6)
    pool = StreamPool(path)
    first, second = pool.open(), pool.open()
    pool.step([first, second, first], [1, 2, 3])
    twin = first.fork()
    with pytest.raises(InputError, match="7 tokens are more than"):
        pool.step([second, *[first] * 5], [1] * 6)
    assert (first.waiting, second.waiting, twin.waiting, pool.waiting) == (2, 1, 2, 5)
    outputs = finish(pool)
    for stream, tokens in ((first, [1, 3]), (twin, [1, 3]), (second, [2])):
        np.testing.assert_array_equal(outputs[stream], StreamingSession(path).prefill_last(tokens)[0])


def test_a_step_is_read_before_what_is_given_after_it(model: Path) -> None:
    pool = StreamPool(model)
    stream = pool.open()
    pool.step([stream], [5])
    stream.give(PROMPTS[4])
    stream.give([7])
    expected = StreamingSession(model).prefill_last(np.concatenate([[5], PROMPTS[4], [7]]))[0]
    np.testing.assert_array_equal(finish(pool)[stream], expected)
