"""A pool that several threads use at once: every answer is the one that the stream has by itself."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pom_export import StreamingSession
from pom_export.errors import PoolFullError
from pom_export.runtime import PoolStream, StreamPool
from tests.streaming_graphs import VOCABULARY, running_sum_model

OWNERS, ACTS = 4, 300
# What prompts begin with, so that some are known.
BEGINNINGS = [np.random.default_rng(place).integers(0, VOCABULARY, 200) for place in range(3)]


@dataclass
class Account:
    """What a stream was given.

    Attributes:
        before: the tokens of the state that it was opened with.
        pieces: what it was given at once, and whether every token's output was asked for.
        forked_with: how many of them a stream was given that this one was forked from, which may have been answered.
        closed: whether it was closed, perhaps with tokens waiting.
    """

    before: list[int] = field(default_factory=list)
    pieces: list[tuple[list[int], bool]] = field(default_factory=list)
    forked_with: int = 0
    closed: bool = False


class Owner:
    """A thread that opens, continues, forks, and closes streams of its own.

    Args:
        pool: the pool.
        seed: what it does.
    """

    def __init__(self, pool: StreamPool, seed: int) -> None:
        self._pool = pool
        self._random = np.random.default_rng(seed)
        self._open: list[PoolStream] = []
        self.accounts: dict[PoolStream, Account] = {}
        self.refused = 0

    def act(self) -> None:
        """Do one thing."""
        actions: list[Callable[[], None]] = [self._begin] if not self._open else [
            self._begin, self._prompt, self._step, self._step, self._fork, self._close, self._move
        ]  # fmt: skip
        try:
            actions[self._random.integers(len(actions))]()
        except PoolFullError:
            self.refused += 1
            if self._open:
                self._close()

    def _any(self) -> PoolStream:
        return self._open[self._random.integers(len(self._open))]

    def _began(self, stream: PoolStream, account: Account) -> None:
        self._open.append(stream)
        self.accounts[stream] = account

    def _begin(self) -> None:
        self._began(self._pool.open(), Account())
        beginning = BEGINNINGS[self._random.integers(len(BEGINNINGS))][: self._random.integers(1, 201)]
        self._give(self._open[-1], beginning)

    def _prompt(self) -> None:
        self._give(self._any(), self._random.integers(0, VOCABULARY, self._random.integers(1, 60)))

    def _give(self, stream: PoolStream, tokens: Any) -> None:
        every = bool(self._random.integers(4) == 0)
        stream.give(tokens, every=every)
        self.accounts[stream].pieces.append((tokens.tolist(), every))

    def _step(self) -> None:
        streams = list(dict.fromkeys(self._any() for _ in range(4)))
        tokens = self._random.integers(0, VOCABULARY, len(streams))
        self._pool.step(streams, tokens)
        for stream, token in zip(streams, tokens.tolist(), strict=True):
            self.accounts[stream].pieces.append(([token], False))

    def _fork(self) -> None:
        stream = self._any()
        account = self.accounts[stream]
        self._began(stream.fork(), Account(account.before, list(account.pieces), len(account.pieces)))

    def _close(self) -> None:
        stream = self._open.pop(self._random.integers(len(self._open)))
        self.accounts[stream].closed = True
        stream.close()

    def _move(self) -> None:
        """Continue from a copy of a state, in another stream."""
        stream = self._any()
        state = stream.snapshot()
        read = [token for piece, _ in self.accounts[stream].pieces for token in piece]
        before = [*self.accounts[stream].before, *read]
        self._began(self._pool.open(state), Account(before[: int(state.lengths[0])]))


def check(account: Account, answers: list[Any], alone: StreamingSession) -> int:
    """Compare a stream's answers with those of a stream by itself; return how many there were."""
    alone.reset()
    if account.before:
        alone.prefill_last(account.before)
    outputs = [(alone.prefill(tokens)[0], every) for tokens, every in account.pieces]
    expected = [output if every else output[-1] for output, every in outputs]
    if account.closed:  # the last pieces may not be answered either
        shifts = range(account.forked_with + 1)
        assert any(_equal(expected[shift : shift + len(answers)], answers) for shift in shifts)
    else:
        assert len(account.pieces) - account.forked_with <= len(answers) <= len(account.pieces)
        assert _equal(expected[len(expected) - len(answers) :], answers)
    return len(answers)


def _equal(expected: list[Any], found: list[Any]) -> bool:
    return len(expected) == len(found) and all(map(np.array_equal, expected, found))


class Ticking:
    """Ticks a pool in a thread of its own, and keeps the answers of each stream in their order."""

    def __init__(self, pool: StreamPool) -> None:
        self._pool = pool
        self._ended = threading.Event()
        self.answers: dict[PoolStream, list[Any]] = defaultdict(list)
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Ticking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.is_set() or self._pool.waiting:
            answers = self._pool.tick()
            for stream, output in zip(answers.streams, answers.outputs, strict=True):
                self.answers[stream].append(answers.every.get(stream, output))


@pytest.mark.parametrize("prefix_bytes", [pytest.param(0, marks=pytest.mark.slow), 2**16])
def test_every_answer_is_the_streams_own(prefix_bytes: int, tmp_path: Path) -> None:
    path = running_sum_model(tmp_path / "m.onnx")
    pool = StreamPool(path, streams=24, prefix_bytes=prefix_bytes, most_waiting=1500)
    owners = [Owner(pool, seed) for seed in range(OWNERS)]

    def own(owner: Owner) -> None:
        for _ in range(ACTS):
            owner.act()
            time.sleep(1e-4)  # lets other threads run

    threads = [threading.Thread(target=own, args=[owner]) for owner in owners]
    with Ticking(pool) as ticking:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    alone, compared = StreamingSession(path), 0
    for owner in owners:
        for stream, account in owner.accounts.items():
            compared += check(account, ticking.answers[stream], alone)
    assert compared > 100
    assert sum(owner.refused for owner in owners) > 0
    metrics = pool.metrics()
    assert metrics.streams == sum(not account.closed for owner in owners for account in owner.accounts.values())
    assert metrics.waiting == 0
    assert (metrics.prefix_tokens > 0) == (prefix_bytes > 0)
