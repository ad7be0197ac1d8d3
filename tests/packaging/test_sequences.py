"""Sequences in pieces, as a server brings them: their numbers, and what becomes of faulty ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pom_export import StreamingSession
from pom_export.errors import InputError
from pom_export.packaging.triton.open_sequences import Piece, Reader
from pom_export.packaging.triton.readers import check_sequences, reader_of
from pom_export.packaging.triton.sequences import PooledSequences
from pom_export.packaging.triton.sessions import SessionSequences
from pom_export.runtime import StreamPool
from pom_export.runtime.streaming.interface import read_stateful
from tests.streaming_graphs import VOCABULARY, running_sum_model

RANDOM = np.random.default_rng(3)
TEXTS = RANDOM.integers(0, VOCABULARY, (3, 40))


@pytest.fixture(params=["pooled", "sessions"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model whose streams can share calls, and one whose state grows."""
    return running_sum_model(tmp_path / "m.onnx", attention=request.param == "sessions")


def opened(model: Path, most: int) -> Reader:
    return reader_of(read_stateful(model), most)


def one_pass(model: Path, ids: Any) -> Any:
    return StreamingSession(model).prefill(ids)[0]


def read(sequences: Reader, *pieces: Piece) -> list[Any]:
    answers = sequences.read(pieces)
    assert len(answers) == len(pieces)
    return answers


def test_uneven_pieces_of_several_sequences(model: Path) -> None:
    sequences, got = opened(model, 3), {row: [] for row in range(3)}
    cuts = {0: [0, 7, 8, 40], 1: [0, 1, 2, 40], 2: [0, 30, 39, 40]}
    for turn in range(3):
        pieces = [
            Piece(row, TEXTS[row][cuts[row][turn] : cuts[row][turn + 1]], start=turn == 0, end=turn == 2)
            for row in range(3)
        ]
        for row, answer in enumerate(read(sequences, *pieces)):
            got[row].append(answer)
    for row in range(3):
        np.testing.assert_array_equal(np.concatenate(got[row]), one_pass(model, TEXTS[row]))


def test_pieces_share_calls_and_ended_sequences_leave_the_pool(tmp_path: Path) -> None:
    pool = StreamPool(running_sum_model(tmp_path / "m.onnx"), streams=3)
    sequences = PooledSequences(pool)
    read(sequences, *(Piece(row, TEXTS[row][: 2 + row], start=True) for row in range(3)))
    read(sequences, *(Piece(row, TEXTS[row][:1], end=row > 0) for row in range(3)))
    metrics = pool.metrics()
    assert metrics.streams == 1
    assert metrics.batches[3] >= 1


def test_the_last_output_alone(model: Path) -> None:
    sequences = opened(model, 1)
    (last,) = read(sequences, Piece(1, TEXTS[0], start=True, every=False))
    np.testing.assert_array_equal(last, one_pass(model, TEXTS[0])[-1])


def test_two_pieces_of_one_sequence_at_once(model: Path) -> None:
    sequences = opened(model, 2)
    first, other, second = read(
        sequences, Piece(1, TEXTS[0][:9], start=True), Piece(2, TEXTS[1], start=True), Piece(1, TEXTS[0][9:], end=True)
    )
    np.testing.assert_array_equal(np.concatenate([first, second]), one_pass(model, TEXTS[0]))
    np.testing.assert_array_equal(other, one_pass(model, TEXTS[1]))


def test_a_start_begins_anew(model: Path) -> None:
    sequences = opened(model, 1)
    read(sequences, Piece(1, TEXTS[0], start=True))
    (again,) = read(sequences, Piece(1, TEXTS[1], start=True))
    np.testing.assert_array_equal(again, one_pass(model, TEXTS[1]))


def test_a_faulty_piece_ends_its_sequence_and_no_other(model: Path) -> None:
    sequences = opened(model, 2)
    read(sequences, Piece(1, TEXTS[0][:5], start=True), Piece(2, TEXTS[1][:5], start=True))
    wrong, right = read(sequences, Piece(1, np.array([VOCABULARY])), Piece(2, TEXTS[1][5:]))
    assert isinstance(wrong, InputError)
    np.testing.assert_array_equal(right, one_pass(model, TEXTS[1])[5:])
    (after,) = read(sequences, Piece(1, TEXTS[0][5:]))
    assert "sequence 1 is not open" in after.what
    (unknown,) = read(sequences, Piece(7, TEXTS[0]))
    assert "sequence 7 is not open" in unknown.what


def test_a_call_that_fails_ends_its_sequences_alone(tmp_path: Path) -> None:
    """The model claims a larger vocabulary than it has."""
    model = running_sum_model(tmp_path / "m.onnx", vocabulary=8, claimed=9)
    sequences = opened(model, 2)
    (begun,) = read(sequences, Piece("good", np.array([1, 2, 3]), start=True))
    np.testing.assert_array_equal(begun, one_pass(model, [1, 2, 3]))
    (wrong,) = read(sequences, Piece("bad", np.array([8, 8]), start=True))
    assert isinstance(wrong, InputError)
    ended, going = read(sequences, Piece("bad", np.array([1])), Piece("good", np.array([4]), end=True))
    assert "not open" in ended.what
    np.testing.assert_array_equal(going, one_pass(model, [1, 2, 3, 4])[3:])


def test_a_block_causal_model_sees_each_piece_as_a_block(tmp_path: Path) -> None:
    model = running_sum_model(tmp_path / "m.onnx", kind="block-causal")
    sequences, alone = opened(model, 2), StreamingSession(model)
    assert isinstance(sequences, SessionSequences)
    (every,) = read(sequences, Piece(1, TEXTS[0], start=True))
    np.testing.assert_array_equal(every, alone.prefill(TEXTS[0])[0])
    (last,) = read(sequences, Piece(1, TEXTS[1], every=False))
    np.testing.assert_array_equal(last, alone.prefill(TEXTS[1])[0, -1])


@pytest.mark.parametrize("attention", [False, True])
def test_a_model_that_takes_more_than_tokens_is_refused(attention: bool, tmp_path: Path) -> None:
    model = running_sum_model(tmp_path / "m.onnx", positions=True, attention=attention)
    with pytest.raises(InputError, match="takes positions besides tokens"):
        check_sequences(read_stateful(model))


def test_a_full_pool_drops_what_was_idle_longest(model: Path) -> None:
    sequences = opened(model, 2)
    read(sequences, Piece(1, TEXTS[0][:5], start=True))
    read(sequences, Piece(2, TEXTS[1][:5], start=True))
    read(sequences, Piece(1, TEXTS[0][5:6]))
    read(sequences, Piece(3, TEXTS[2], start=True))
    kept, dropped = read(sequences, Piece(1, TEXTS[0][6:]), Piece(2, TEXTS[1][5:]))
    np.testing.assert_array_equal(kept, one_pass(model, TEXTS[0])[6:])
    assert "sequence 2 is not open" in dropped.what
