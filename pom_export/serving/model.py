"""What reads the tokens of requests: a loaded model, here or elsewhere."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from pom_export.engine.streaming import tensorrt_backend
from pom_export.runtime.pool.pool import Answers, StreamPool
from pom_export.runtime.pool.stream import PoolStream
from pom_export.runtime.session import default_session_options
from pom_export.runtime.streaming.interface import read_stateful
from pom_export.runtime.streaming.state import State
from pom_export.serving.metrics import AnswerTimes, ModelMetrics
from pom_export.serving.places import Places
from pom_export.serving.settings import ServeSettings
from pom_export.serving.texts import News, TextJob, Texts
from pom_export.serving.words import tokenizer_of
from pom_export.serving.worker import Bridge, Worker
from pom_export.text.batch.batch import TextBatch
from pom_export.text.tokenizer_files import read_tokenizer_files

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Step:
    """What a stream gave.

    Attributes:
        outputs: (V,) or (d,) for the last token, or (tokens, ...) for every one.
        length: number of tokens that the stream has seen.
        state: the state after them.
    """

    outputs: Array
    length: int
    state: State


class Model(Protocol):
    """What reads tokens for a service.

    Attributes:
        alive: whether it answers.
    """

    @property
    def alive(self) -> bool: ...  # noqa: D102 (see above)

    def start(self) -> None:
        """Begin to answer. Called in the event loop that awaits the answers."""

    def stop(self) -> None:
        """End; whatever is not answered fails."""

    async def read(self, state: State | None, tokens: Array, *, every: bool, session: str | None) -> Step:
        """Read tokens.

        Args:
            state: the state to continue from; None: from the beginning.
            tokens: ids (tokens,), or vectors (tokens, d).
            every: whether every token's output is wanted.
            session: the session that they belong to.

        Returns:
            The outputs, and the state after the tokens.

        Raises:
            InputError: the tokens do not fit the model or the state.
            PoolFullError: the pool takes no more now.
            RequestError: too many requests wait.
        """

    def continued(
        self, jobs: Sequence[TextJob], *, session: str | None
    ) -> AbstractAsyncContextManager[AsyncIterator[News]]:
        """Continue texts: a block that holds what they take, with their news until all have ended.

        Args:
            jobs: prompts, and what is wanted of the texts that continue them; with a tokenizer only.
            session: the session that they belong to.

        Raises:
            InputError: on entering, a prompt does not fit the model or the state; in the news, what ended a text.
            PoolFullError: the pool takes no more now.
            RequestError: too many requests wait.
        """

    async def metrics(self) -> ModelMetrics:
        """Return what it has done and holds."""


class LocalModel:
    """A model in this process: a pool of streams, and the thread that runs it.

    Args:
        model: path of a stateful export, as for `StreamPool`.
        settings: limits, and what runs it.

    Attributes:
        pool: the streams.
        worker: the thread.
        places: which requests may open streams.

    Raises:
        InputError: `StreamPool` refuses the model, or the engine cannot be used.
        MissingDependencyError: onnxruntime, our library or TensorRT is not installed.
    """

    def __init__(self, model: str | os.PathLike[str], settings: ServeSettings) -> None:
        self.pool = _pool(model, settings)
        self._times = AnswerTimes()
        self.worker = Worker(self.pool, self._times)
        self.places = Places(settings.streams, settings.queue)
        self._bridge: Bridge | None = None
        interface = read_stateful(model)
        tokenizer = tokenizer_of(interface, settings.tokenizer)
        self._texts: Texts | None = None
        if tokenizer is not None:
            ends = read_tokenizer_files(tokenizer).ends
            self._texts = Texts(TextBatch(self.pool, tokenizer, ends=ends), self.worker)

    @property
    def bridge(self) -> Bridge:
        """The way from the worker's thread to the event loop that the model was started in."""
        assert self._bridge is not None, "it was not started"
        return self._bridge

    @property
    def alive(self) -> bool:
        """Whether it answers."""
        return self.worker.alive

    def start(self) -> None:  # noqa: D102 (the protocol says it)
        self._bridge = Bridge(asyncio.get_running_loop())
        if self._texts is not None:
            self._texts.bridge = self._bridge
        self.worker.start()

    def stop(self) -> None:  # noqa: D102
        self.worker.stop()

    async def read(  # noqa: D102
        self,
        state: State | None,
        tokens: Array,
        *,
        every: bool,
        session: str | None = None,  # noqa: ARG002
    ) -> Step:
        answered: asyncio.Queue[Array | Exception] = asyncio.Queue()
        async with self.places.taken(1):
            with self.pool.open(state) as stream:
                self.worker.assign(stream, _Once(self.bridge, answered))
                stream.give(tokens, every=every)
                self.worker.wake()
                answer = await answered.get()
                if isinstance(answer, Exception):
                    raise answer
                return Step(answer, stream.length, stream.snapshot())

    @asynccontextmanager
    async def continued(  # noqa: D102
        self,
        jobs: Sequence[TextJob],
        *,
        session: str | None = None,  # noqa: ARG002
    ) -> AsyncIterator[AsyncIterator[News]]:
        assert self._texts is not None, "it has no tokenizer"
        async with self.places.taken(sum(len(job.settings) for job in jobs)):
            with await self._texts.start(jobs) as asked:
                yield asked.news()

    async def metrics(self) -> ModelMetrics:  # noqa: D102
        return ModelMetrics(
            self.pool.metrics(), self.places.waiting, self._times.first_seconds, self._times.next_seconds
        )


class _Once:
    """Reads one answer of one stream.

    Args:
        bridge: the way to the queue.
        queue: gets the output, or the exception that came instead.
    """

    def __init__(self, bridge: Bridge, queue: asyncio.Queue[Array | Exception]) -> None:
        self._bridge = bridge
        self._queue = queue

    def read(self, answers: Answers) -> None:
        (stream,) = answers.streams
        self._bridge.deliver([(self._queue, answers.every.get(stream, answers.outputs[0]))])

    def fail(self, streams: Sequence[PoolStream], error: Exception) -> None:  # noqa: ARG002 (there is one)
        self._bridge.deliver([(self._queue, error)])


def _pool(model: str | os.PathLike[str], settings: ServeSettings) -> StreamPool:
    given: dict[str, Any] = {}
    if settings.engine is not None:
        given["backend"] = tensorrt_backend(settings.engine)
    elif settings.threads:
        given["session_options"] = default_session_options()
        given["session_options"].intra_op_num_threads = settings.threads
    return StreamPool(model, streams=settings.streams, prefix_bytes=settings.prefix_bytes, **given)
