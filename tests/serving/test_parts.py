"""The parts of a server by themselves: sessions, places, the worker's thread."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pom_export import StreamingSession
from pom_export.runtime import State, StreamPool
from pom_export.runtime.pool.pool import Answers
from pom_export.runtime.pool.stream import PoolStream
from pom_export.serving.errors import RequestError
from pom_export.serving.model import LocalModel
from pom_export.serving.places import Places
from pom_export.serving.ray.keeper import Keeper
from pom_export.serving.sessions import GoneError, MemoryStore, size_of
from pom_export.serving.settings import ServeSettings
from pom_export.serving.worker import StoppedError, Worker
from tests.serving.running import wait_until
from tests.streaming_graphs import running_sum_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return running_sum_model(tmp_path / "m.onnx")


@pytest.fixture
def state(model: Path) -> State:
    return StreamingSession(model).snapshot()


@pytest.mark.parametrize("limit", ["number", "bytes"])
def test_the_sessions_used_least_recently_are_dropped_and_the_next_request_is_told(limit: str, state: State) -> None:
    bounds = (2, 10**9) if limit == "number" else (100, 2 * size_of(state))

    async def use() -> None:
        store = MemoryStore(*bounds, 10)
        await store.put("a", state)
        await store.put("b", state)
        assert await store.get("a") is state
        await store.put("c", state)
        assert await store.sizes() == (2, 2 * size_of(state))
        with pytest.raises(GoneError, match="session b was dropped"):
            await store.get("b")
        assert await store.get("b") is None
        assert [name for name, _ in store.items()] == ["a", "c"]

    asyncio.run(use())


def test_sessions_are_kept_for_a_time_after_their_last_use(state: State) -> None:
    now = [0.0]

    async def use() -> None:
        store = MemoryStore(10, 10**9, 10, clock=lambda: now[0])
        await store.put("a", state)
        await store.put("b", state)
        now[0] = 8.0
        assert await store.get("a") is state
        now[0] = 11.0
        with pytest.raises(GoneError):
            await store.get("b")
        assert await store.get("a") is state
        assert await store.drop("a")
        assert not await store.drop("a")
        assert await store.sizes() == (0, 0)

    asyncio.run(use())


def test_places_are_taken_in_turn_and_given_back_by_those_that_leave() -> None:
    async def use() -> None:
        places, order = Places(3, 10), []
        held = AsyncExitStack()

        async def take(name: str, count: int, ends: asyncio.Event) -> None:
            async with places.taken(count):
                order.append(name)
                await ends.wait()

        async def settle() -> None:
            for _ in range(10):
                await asyncio.sleep(0)

        rest = asyncio.Event()
        tasks: dict[str, asyncio.Task[None]] = {}
        await held.enter_async_context(places.taken(2))
        for name, count in (("b", 3), ("c", 1), ("d", 1)):
            tasks[name] = asyncio.create_task(take(name, count, rest))
            await settle()
        assert (order, places.waiting) == ([], 3)  # c and d would fit, but b is before them
        tasks["b"].cancel()
        await settle()
        assert order == ["c"]
        await held.aclose()
        tasks["d"].cancel()  # its turn has come, but it does not know yet
        await settle()
        tasks["e"] = asyncio.create_task(take("e", 2, rest))
        await settle()
        assert order == ["c", "e"]
        rest.set()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        async with places.taken(3):
            assert places.waiting == 0
        with pytest.raises(RequestError, match="4 streams are more than the server's 3"):
            async with places.taken(4):
                pass

    asyncio.run(use())


class Collected:
    """A reader that keeps what it gets, and asks for more of each stream."""

    def __init__(self, more: int = 0) -> None:
        self.lengths: dict[PoolStream, list[int]] = {}
        self.failed: list[PoolStream] = []
        self._more = more

    def read(self, answers: Answers) -> None:
        assert len(answers.streams) == len(answers.outputs)
        for stream in answers.streams:
            self.lengths.setdefault(stream, []).append(stream.length)
            if len(self.lengths[stream]) <= self._more:
                stream.give([1])

    def fail(self, streams: Sequence[PoolStream], error: Exception) -> None:  # noqa: ARG002
        self.failed += streams


class Faulty(Collected):
    def read(self, answers: Answers) -> None:  # noqa: ARG002
        raise ValueError("a fault of ours")


def test_each_reader_gets_the_answers_of_its_streams_and_one_that_fails_harms_no_other(model: Path) -> None:
    pool = StreamPool(model)
    worker = Worker(pool)
    readers: list[Any] = [Collected(more=2), Faulty(), Collected()]
    streams = [pool.open() for _ in range(6)]
    for place, stream in enumerate(streams):
        worker.assign(stream, readers[place % 3])
        stream.give(np.arange(place + 1))
    worker.start()
    wait_until(lambda: pool.waiting == 0 and len(readers[2].lengths) == 2)
    worker.run(lambda: None).result()
    assert readers[0].lengths == {streams[0]: [1, 2, 3], streams[3]: [4, 5, 6]}
    assert readers[2].lengths == {streams[2]: [3], streams[5]: [6]}
    assert sorted(readers[1].failed, key=streams.index) == [streams[1], streams[4]]
    assert all(stream.closed for stream in readers[1].failed)
    worker.stop()


def test_jobs_run_in_the_thread_until_it_ends(model: Path) -> None:
    worker = Worker(StreamPool(model))
    early: Future[int] = worker.run(lambda: 1)
    assert not early.done()
    worker.start()
    assert early.result(30) == 1
    with pytest.raises(ZeroDivisionError):
        worker.run(lambda: 1 // 0).result(30)
    worker.stop()
    with pytest.raises(StoppedError):
        worker.run(lambda: 1).result(30)
    worker.stop()


def test_a_keeper_adds_up_what_replicas_report_and_forgets_what_the_dead_held(model: Path, state: State) -> None:
    now = [0.0]

    async def use() -> None:
        keeper = Keeper(ServeSettings(sessions=1), clock=lambda: now[0])
        assert await keeper.metrics() is None
        replicas = {name: LocalModel(model, ServeSettings(streams=4)) for name in "ab"}
        for name, replica in replicas.items():
            replica.start()
            await replica.read(None, np.ones(10, int), every=False)
            held = replica.pool.open()
            await keeper.report(name, await replica.metrics())
            held.close()
            replica.stop()
        total = await keeper.metrics()
        assert total is not None
        assert (total.pool.tokens, total.pool.streams, total.pool.most_streams) == (20, 2, 8)
        now[0] = 8.0
        await keeper.report("b", await replicas["b"].metrics())
        total = await keeper.metrics()
        assert total is not None
        assert (total.pool.tokens, total.pool.streams, total.pool.most_streams) == (20, 0, 4)
        assert (sum(total.first_seconds.counts), total.pool.batches) == (2, {1: 2})
        for name in "xy":
            await keeper.put(name, state)
        assert await keeper.get("x") == (None, True)
        assert await keeper.get("y") == (state, False)
        assert await keeper.items() == [("y", state)]

    asyncio.run(use())
