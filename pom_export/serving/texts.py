"""Texts that requests wait for: started in the worker's thread, awaited in the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from pom_export.runtime.pool.pool import Answers
from pom_export.runtime.pool.stream import PoolStream
from pom_export.runtime.streaming.state import State
from pom_export.serving.worker import Bridge, Worker
from pom_export.text.batch.batch import TextBatch
from pom_export.text.batch.pieces import Piece, Token
from pom_export.text.batch.text import Text
from pom_export.text.notes import Settings


@dataclass(frozen=True)
class TextJob:
    """A prompt, and what is wanted of the texts that continue it; see `TextBatch.start`. It can be sent elsewhere.

    Attributes:
        ids: the prompt's tokens, (tokens,) integers.
        settings: how each text is continued; several only without a state, and none of theirs is kept.
        most: the most tokens of each.
        logprobs: how many of the likeliest tokens to tell with each token and its logprob; None: no logprobs.
        prompt_logprobs: whether those of the prompt are wanted too.
        state: what the prompt follows.
        chosen: tokens of the answer that were chosen elsewhere: those of the pieces that came from there. The prompt
            has been told there too.
        keep: whether the state after the answer is wanted.
    """

    ids: npt.NDArray[Any]
    settings: Sequence[Settings]
    most: int
    logprobs: int | None = None
    prompt_logprobs: bool = False
    state: State | None = None
    chosen: Sequence[int] = ()
    keep: bool = False


@dataclass(frozen=True)
class End:
    """The end of a text; see `Text`.

    Attributes:
        reason: what ended it.
        tokens: number of tokens chosen.
        spared: number of the prompt's tokens that were not read, since the state after them was kept.
        kept: the answer's tokens that the state has.
        state: the state after the answer, if it was asked for.
    """

    reason: str
    tokens: int
    spared: int
    kept: Sequence[int]
    state: State | None


@dataclass(frozen=True)
class News:
    """What is new of a request's text. It can be sent elsewhere.

    Attributes:
        place: which of its texts, those of the first job first.
        pieces: the pieces that came.
        prompt: the prompt's tokens with their logprobs, with the first news, if they were asked for.
        end: the end; None: it goes on.
    """

    place: int
    pieces: Sequence[Piece]
    prompt: Sequence[Token] = ()
    end: End | None = None


class Asked:
    """The texts of a request. A `with` block closes them.

    Args:
        texts: the texts.
        arrived: gets an item when there is news.
        leave: ends one of them.
    """

    def __init__(self, texts: Sequence[Text], arrived: asyncio.Queue[None], leave: Callable[[Text], None]) -> None:
        self._texts = texts
        self._arrived = arrived
        self._leave = leave

    def __enter__(self) -> Asked:
        return self

    def __exit__(self, *_: object) -> None:
        for text in self._texts:
            self._leave(text)

    async def news(self) -> AsyncIterator[News]:
        """Yield what comes, until all texts have ended.

        Raises:
            Exception: what ended one of them.
        """
        going, told = dict(enumerate(self._texts)), set[int]()
        while going:
            for place, text in list(going.items()):
                pieces = text.take()
                end = _end(text) if text.ended else None
                if text.error is not None:
                    raise text.error
                if end is not None:
                    # The last pieces come with the end, so that whoever has not seen it can go on elsewhere.
                    pieces += text.take()
                    del going[place]
                if pieces or end is not None:
                    yield News(place, pieces, () if place in told else text.prompt, end)
                    told.add(place)
            if going:
                await self._arrived.get()
                while not self._arrived.empty():
                    self._arrived.get_nowait()


class Texts:
    """The texts of all requests, each told of its news: a `Reader` of the worker's.

    Args:
        batch: what continues them.
        worker: the thread that ticks its pool.

    Attributes:
        bridge: the way to the event loop that requests are answered in.
    """

    def __init__(self, batch: TextBatch, worker: Worker) -> None:
        self.bridge: Bridge | None = None
        self._batch = batch
        self._worker = worker
        self._arrived: dict[Text, asyncio.Queue[None]] = {}

    async def start(self, jobs: Sequence[TextJob]) -> Asked:
        """Start the texts of a request: all, or none.

        Raises:
            InputError: one cannot be started.
            PoolFullError: the pool has no place for them.
            StoppedError: the server ends.
        """
        arrived = asyncio.Queue[None]()
        future = self._worker.run(lambda: self._start(jobs, arrived))
        try:
            return Asked(await asyncio.wrap_future(future), arrived, self._leave)
        except asyncio.CancelledError:
            future.add_done_callback(_close)
            raise

    def read(self, answers: Answers) -> None:
        """Choose the answered texts' next tokens, and tell those who wait for them."""
        self._tell(self._batch.read(answers))

    def fail(self, streams: Sequence[PoolStream], error: Exception) -> None:
        """End the texts of streams that get no answer."""
        self._tell(self._batch.fail(error, streams))

    def _start(self, jobs: Sequence[TextJob], arrived: asyncio.Queue[None]) -> Sequence[Text]:
        texts: list[Text] = []
        try:
            for job in jobs:
                texts += _started(self._batch, job)
        except BaseException:
            for text in texts:
                text.close()
            raise
        for text in texts:
            if not text.ended:
                self._worker.assign(text.stream, self)
                self._arrived[text] = arrived
        return texts

    def _tell(self, texts: Sequence[Text]) -> None:
        assert self.bridge is not None
        queues = [self._arrived.get(text) for text in texts]  # (not there: its client has left)
        self.bridge.deliver([(queue, None) for queue in queues if queue is not None])
        for text in texts:
            if text.ended:
                self._arrived.pop(text, None)

    def _leave(self, text: Text) -> None:
        text.close()
        self._arrived.pop(text, None)


def _started(batch: TextBatch, job: TextJob) -> list[Text]:
    if len(job.settings) > 1:
        return batch.start_several(
            job.ids, job.settings, most=job.most, logprobs=job.logprobs, prompt_logprobs=job.prompt_logprobs
        )
    text = batch.start(
        job.ids,
        job.settings[0],
        most=job.most,
        state=job.state,
        chosen=job.chosen,
        logprobs=job.logprobs,
        prompt_logprobs=job.prompt_logprobs,
        keep=job.keep,
        # Each request begins its random numbers, so that its answer is the one to the whole text without a session.
        anew=True,
    )
    return [text]


def _end(text: Text) -> End:
    return End(text.ended, text.tokens, text.spared_tokens, text.kept, text.state)


def _close(future: Future[Sequence[Text]]) -> None:
    """Close texts that were started for a request whose client has left meanwhile."""
    if not future.cancelled() and future.exception() is None:
        for text in future.result():
            text.close()
