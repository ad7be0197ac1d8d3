"""A stream's outputs, its state, and what may go wrong during a call."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pom_export
from pom_export import StreamingSession
from pom_export.errors import InputError
from tests.streaming_graphs import CHANNELS, VOCABULARY, running_sum_model

IDS = np.random.default_rng(1).integers(0, VOCABULARY, (2, 40))
KINDS: dict[str, dict[str, Any]] = {
    "sums": {},
    "mask": {"mask": True},
    "hybrid": {"attention": True},
    "hybrid and mask": {"attention": True, "mask": True},
}


@pytest.fixture
def session(tmp_path: Path) -> StreamingSession:
    return StreamingSession(running_sum_model(tmp_path / "m.onnx"))


def whole(session: StreamingSession, tokens: Any) -> Any:
    """Return the outputs of one pass over all tokens."""
    session.reset()
    outputs = session.prefill(tokens)
    session.reset()
    return outputs


@pytest.mark.parametrize("kind", KINDS)
def test_any_split_is_one_pass(kind: str, tmp_path: Path) -> None:
    session = StreamingSession(running_sum_model(tmp_path / "m.onnx", **KINDS[kind]), batch=2)
    expected = whole(session, IDS)
    assert expected.shape == (2, 40, VOCABULARY)
    outputs = [session.prefill(IDS[:, :7])]
    outputs += [session.step(IDS[:, place])[:, np.newaxis].copy() for place in range(7, 12)]
    outputs += [session.prefill(IDS[:, 12:13]), session.prefill(IDS[:, 13:])]
    np.testing.assert_array_equal(np.concatenate(outputs, 1), expected)
    assert session.lengths.tolist() == [40, 40]
    assert session.length == 40


@pytest.mark.parametrize("chunk", [1, 7, 40, 2048])
def test_a_long_prompt_goes_in_parts(chunk: int, tmp_path: Path) -> None:
    session = StreamingSession(running_sum_model(tmp_path / "m.onnx", mask=True), batch=2)
    expected = whole(session, IDS)
    np.testing.assert_array_equal(session.prefill_last(IDS, chunk=chunk), expected[:, -1])
    session.reset()
    last = session.prefill_last(IDS, lengths=[3, 29], chunk=chunk)
    np.testing.assert_array_equal(last, [expected[0, 2], expected[1, 28]])
    assert session.lengths.tolist() == [3, 29]


def test_rows_have_lengths_of_their_own(tmp_path: Path) -> None:
    session = StreamingSession(running_sum_model(tmp_path / "m.onnx", mask=True), batch=2)
    expected = whole(session, IDS)
    np.testing.assert_array_equal(session.prefill(IDS[:, :9], lengths=[4, 9])[0, :4], expected[0, :4])
    assert session.lengths.tolist() == [4, 9]
    # The first row catches up while the second one waits.
    for place in range(4, 9):
        session.step(IDS[:, place], mask=[True, False])
    np.testing.assert_array_equal(session.step(IDS[:, 9]), expected[:, 9])
    session.reset()
    session.prefill(IDS[:, :9], mask=np.arange(9) < np.array([[4], [9]]))
    assert session.lengths.tolist() == [4, 9]


def test_vectors_and_other_inputs(tmp_path: Path) -> None:
    path = running_sum_model(tmp_path / "m.onnx", ids=False, positions=True, kind="block-causal")
    session = StreamingSession(path)
    x = np.random.default_rng(0).integers(-2, 3, (1, 6, CHANNELS))
    places = np.arange(6)
    expected = session.prefill(x.astype(np.float64), positions=places)
    session.reset()
    # A single row may be given without its axis.
    session.prefill(x[0, :4].astype(np.float16), positions=places[:4])
    for place in (4, 5):
        given = x[0, place].astype(np.float32)
        output = session.step(given, positions=places[place : place + 1])
        np.testing.assert_array_equal(output, expected[:, place])
    with pytest.raises(InputError, match="positions is missing from a call"):
        session.step(x[:, 0].astype(np.float32))
    with pytest.raises(InputError, match=r"place is no input of a call.*It takes x, positions"):
        session.step(x[:, 0].astype(np.float32), positions=places[:1], place=places)
    for lost in (np.nan, np.inf, -np.inf, 1e300):
        with pytest.raises(InputError, match="x holds a number that is not finite in float32"):
            session.step(np.where(np.arange(CHANNELS) == 1, lost, x[:, 0]), positions=places[:1])


def test_steps_write_to_two_sets_of_buffers_by_turns(session: StreamingSession) -> None:
    def address() -> int:
        return session._backend._turns[session._now.past.turn]["past_state"].data_ptr()  # type: ignore[attr-defined]

    addresses, outputs, inputs = [], set(), set()
    for token in range(100):
        output = session.step(token)
        addresses.append(address())
        outputs.add(output.ctypes.data)
        inputs |= {value.data_ptr() for value in session._backend._inputs.values()}  # type: ignore[attr-defined]
    assert len(set(addresses)) == 2
    assert all(now != before for now, before in itertools.pairwise(addresses))
    assert len(outputs) == 2
    assert len(inputs) == 1


def test_caches_are_handed_on_without_a_copy(tmp_path: Path) -> None:
    session = StreamingSession(running_sum_model(tmp_path / "m.onnx", attention=True))
    session.prefill(IDS[0])
    given: list[Any] = []
    bind = session._backend._bind  # type: ignore[attr-defined]

    def spying(past: Any, *others: Any) -> Any:
        given.append(past.grown["past_key_values.0.key"].data_ptr())
        return bind(past, *others)

    session._backend._bind = spying  # type: ignore[attr-defined]
    session.step(1)
    made = session._now.past.grown["past_key_values.0.key"].data_ptr()
    session.step(1)
    assert given[1] == made
    assert session.state_bytes == 8 + 2 * CHANNELS * 4 + 2 * CHANNELS * 4 + 42 * CHANNELS * 2


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_memory_does_not_grow_with_tokens(session: StreamingSession) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    for token in range(2000):
        session.step(token % VOCABULARY)
    before = resident()
    for token in range(20000):
        session.step(token % VOCABULARY)
    assert resident() - before < 2**20
    assert session.length == 22000


def test_an_output_of_a_step_is_read_only_and_lives_through_the_next_call(session: StreamingSession) -> None:
    first = session.step(5)
    kept = first.copy()
    session.prefill(IDS[:1, :3])
    np.testing.assert_array_equal(first, kept)
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0] = 1
    prefilled = session.prefill([7])
    kept = prefilled.copy()
    for token in range(3):
        session.step(token)
    np.testing.assert_array_equal(prefilled, kept)


@pytest.mark.parametrize("kind", KINDS)
def test_forks_and_snapshots_are_independent(kind: str, tmp_path: Path) -> None:
    session = StreamingSession(running_sum_model(tmp_path / "m.onnx", **KINDS[kind]))
    expected = whole(session, IDS[:1])
    session.prefill(IDS[:1, :9])
    fork, state = session.fork(), session.snapshot()
    assert fork._backend._session is session._backend._session  # type: ignore[attr-defined]
    for token in range(5):
        session.step(token)
    for place in range(9, 14):
        np.testing.assert_array_equal(fork.step(IDS[:1, place]), expected[:, place])
    session.restore(state)
    assert session.lengths.tolist() == [9]
    np.testing.assert_array_equal(session.prefill(IDS[:1, 9:]), expected[:, 9:])
    np.testing.assert_array_equal(state.lengths, [9])


def test_forks_run_in_parallel(session: StreamingSession) -> None:
    expected = whole(session, IDS[:1])
    results: dict[int, Any] = {}

    def run(fork: StreamingSession, number: int) -> None:
        results[number] = [fork.step(token).copy() for token in IDS[0]]

    threads = [threading.Thread(target=run, args=(session.fork(), number)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        np.testing.assert_array_equal(np.stack(results[number], 1), expected)


def test_a_second_thread_is_told(session: StreamingSession, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = whole(session, IDS[:1])
    inside, go_on = threading.Event(), threading.Event()
    run = session._backend.run

    def slow(*arguments: Any) -> Any:
        inside.set()
        assert go_on.wait(30)
        return run(*arguments)

    monkeypatch.setattr(session._backend, "run", slow)
    outputs: list[Any] = []
    thread = threading.Thread(target=lambda: outputs.append(session.prefill(IDS[:1])))
    thread.start()
    assert inside.wait(30)
    for call in (lambda: session.step(1), session.reset, session.snapshot, session.fork):
        with pytest.raises(InputError, match=r"in use by another thread. Give each thread its own: fork"):
            call()
    go_on.set()
    thread.join()
    np.testing.assert_array_equal(outputs[0], expected)
    session.step(1)
    assert session.length == 41


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("after", [False, True])
def test_an_interrupted_call_leaves_the_state(
    kind: str, after: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = StreamingSession(running_sum_model(tmp_path / "m.onnx", **KINDS[kind]))
    expected = whole(session, IDS[:1])
    session.prefill(IDS[:1, :4])
    call = session._backend._call  # type: ignore[attr-defined]

    def interrupted(binding: Any) -> None:
        if after:
            call(binding)
        raise KeyboardInterrupt

    for tokens in (IDS[:1, 9:10], IDS[:1, 9:20]):
        monkeypatch.setattr(session._backend, "_call", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.prefill(tokens)
        monkeypatch.undo()
        assert session.length == 4
    np.testing.assert_array_equal(session.prefill(IDS[:1, 4:]), expected[:, 4:])


def test_a_failed_reset_leaves_the_state(session: StreamingSession, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = whole(session, IDS[:1])
    session.prefill(IDS[:1, :4])
    write = session._backend.write

    def interrupted(*arguments: Any) -> Any:
        write(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(session._backend, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.reset()
    np.testing.assert_array_equal(session.prefill(IDS[:1, 4:]), expected[:, 4:])


BAD_CALLS: dict[str, tuple[str, Any, str]] = {
    "id too large": ("step", [256], "input_ids holds 256, beyond the model's 256 values"),
    "negative id": ("prefill", [[3, -1]], "input_ids holds -1"),
    "floats as ids": ("step", [1.0], "input_ids is float64, not int64"),
    "text": ("step", "a", "not int64"),
    "two rows": ("step", [1, 2], r"input_ids has the shape \[2, 1\], not \[1, 1\]. Give it that shape"),
    "no tokens": ("prefill", np.zeros((1, 0), np.int64), r"has the shape \[1, 0\].*No axis may be empty"),
    "two tokens of a step": ("step", [[1, 2]], r"has the shape \[1, 2\], not \[1, 1\]"),
    "three axes": ("prefill", np.zeros((1, 2, 3), np.int64), r"has the shape \[1, 2, 3\]"),
    "too many tokens": ("prefill", np.zeros((1, 13), np.int64), "16 tokens are more than .*15 positions"),
    "too many tokens in parts": ("prefill_last", np.zeros((1, 13), np.int64), "16 tokens are more than"),
}


@pytest.mark.parametrize("kind", BAD_CALLS)
def test_bad_input_is_refused_before_it_is_in_the_state(kind: str, tmp_path: Path) -> None:
    session = StreamingSession(running_sum_model(tmp_path / "m.onnx", tokens=15))
    session.prefill([1, 2, 3])
    before = session.snapshot().arrays
    method, given, message = BAD_CALLS[kind]
    with pytest.raises(InputError, match=message):
        getattr(session, method)(given)
    assert session.length == 3
    for name, array in session.snapshot().arrays.items():
        np.testing.assert_array_equal(array, before[name])


def test_what_is_no_state_is_not_restored(session: StreamingSession) -> None:
    with pytest.raises(InputError, match="the state is a bytes"):
        session.restore(b"a state")  # type: ignore[arg-type]


def test_bad_masks_are_refused(tmp_path: Path) -> None:
    session = StreamingSession(running_sum_model(tmp_path / "m.onnx", mask=True), batch=2)
    for given, message in (
        ({"mask": np.ones((2, 4), np.bool_)}, r"mask has the shape \[2, 4\], not \[2, 3\]"),
        ({"mask": np.ones((2, 3))}, "mask is float64, not bool"),
        ({"mask": [[True, False, True]] * 2}, "leaves out tokens before others"),
        ({"lengths": [4, 1]}, "lengths must be 0 to 3"),
        ({"lengths": [1.0, 1.0]}, "lengths must be 2 whole numbers"),
        ({"lengths": [1, 2], "mask": np.ones((2, 3), np.bool_)}, "both given"),
    ):
        with pytest.raises(InputError, match=message):
            session.prefill(IDS[:, :3], **given)
    with pytest.raises(InputError, match="a row without tokens"):
        session.prefill_last(IDS, lengths=[0, 3])
    with pytest.raises(InputError, match="chunk must be at least 1"):
        session.prefill_last(IDS, chunk=0)
    unmasked = StreamingSession(running_sum_model(tmp_path / "u.onnx"), batch=2)
    with pytest.raises(InputError, match="takes no mask"):
        unmasked.prefill(IDS, lengths=[1, 2])
    assert session.lengths.tolist() == unmasked.lengths.tolist() == [0, 0]


def test_models_that_do_not_stream_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"keeps no state. Export it with `stateful=True`"):
        StreamingSession(running_sum_model(tmp_path / "m.onnx", kind=None))
    with pytest.raises(InputError, match="does not exist"):
        StreamingSession(tmp_path / "none.onnx")
    path = running_sum_model(tmp_path / "m.onnx")
    for batch in (0, 1.5, "2", True):
        with pytest.raises(InputError, match=f"batch is {batch!r}, not a whole number of at least 1"):
            StreamingSession(path, batch=batch)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="backend is a str"):
        StreamingSession(path, backend="m.engine")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"provider|execution"):
        StreamingSession(path, providers=["NoSuchExecutionProvider"])


def test_what_the_runtime_refuses_is_one_line(session: StreamingSession) -> None:
    session._interface.limits.values.clear()  # type: ignore[attr-defined]  # so that only the model's table says it
    with pytest.raises(InputError, match=r"ONNX Runtime cannot run m.onnx: ") as caught:
        session.step(VOCABULARY)
    assert "\n" not in str(caught.value)
    assert session.length == 0


def test_public_names() -> None:
    assert pom_export.runtime.StreamingSession is pom_export.StreamingSession
    assert pom_export.runtime.merge_states is pom_export.merge_states
    with pytest.raises(AttributeError, match="no attribute 'Stream'"):
        _ = pom_export.runtime.Stream
