"""Texts that replicas continue, and that go on elsewhere when a replica dies."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

from ray.exceptions import RayActorError

from pom_export.serving.ray.answers import Deaths, answer_of, resubmitted
from pom_export.serving.texts import News, TextJob
from pom_export.text.batch.pieces import Piece


class _Going:
    """A text that goes on, and what has been told of it.

    Args:
        place: which of the request's texts it is.
        job: what was asked, of this text alone.
    """

    def __init__(self, place: int, job: TextJob) -> None:
        self.place = place
        self._job = job
        self._chosen: list[int] = []
        # Pieces of what the session had left, which come first and again from each replica.
        self._left_over = 0
        self._skipped = 0
        self._begun = False

    @property
    def job(self) -> TextJob:
        """What to ask another replica."""
        return replace(self._job, chosen=tuple(self._chosen))

    def resumed(self) -> None:
        """Record that another replica continues the text."""
        self._skipped = self._left_over

    def new(self, pieces: Sequence[Piece]) -> Sequence[Piece]:
        """Return those of a replica's pieces that have not been told yet, which they are now."""
        skipped = min(self._skipped, len(pieces))
        self._skipped -= skipped
        told = pieces[skipped:]
        if told and not self._begun:
            self._begun = True
            self._left_over = sum(1 for _ in takewhile(lambda piece: not piece.tokens, told))
        self._chosen += [token.id for piece in told for token in piece.tokens]
        return told


class RemoteTexts:
    """The texts of a request. When the replica that continues them dies, another goes on after the tokens it has told.

    Args:
        replicas: a handle of their deployment, for answers in parts.
        jobs: the prompts, and what is wanted.
    """

    def __init__(self, replicas: Any, jobs: Sequence[TextJob]) -> None:
        self._replicas = replicas
        self._jobs = jobs
        alone = [replace(job, settings=(settings,)) for job in jobs for settings in job.settings]
        self._going = [_Going(place, job) for place, job in enumerate(alone)]
        # By the place that the replica knows them by.
        self._there = dict(enumerate(self._going))
        self._answers: Any = None
        self._deaths = Deaths()

    async def begin(self) -> None:
        """Have a replica start the texts.

        Raises:
            InputError: they do not fit the model.
            RequestError: there is no place for them, or replicas die again and again.
        """
        await resubmitted(self._submit, self._deaths)

    def leave(self) -> None:
        """End the texts that go on."""
        if self._answers is not None and self._going:
            self._answers.cancel()

    async def news(self) -> AsyncIterator[News]:
        """Yield what comes, until all texts have ended.

        Raises:
            InputError: what ended one of them.
            RequestError: likewise.
        """
        while self._going:
            try:
                news = answer_of(await anext(self._answers))
            except RayActorError:
                await self._deaths.another()
                await self._resume()
                continue
            self._deaths.forget()
            text = self._there[news.place]
            if news.end is not None:
                self._going.remove(text)
            pieces = text.new(news.pieces)
            if pieces or news.end is not None:
                yield replace(news, place=text.place, pieces=pieces)

    async def _submit(self) -> None:
        self._answers = self._replicas.texts.remote(self._jobs)
        answer_of(await anext(self._answers))

    async def _resume(self) -> None:
        self._jobs = [text.job for text in self._going]
        self._there = dict(enumerate(self._going))
        for text in self._going:
            text.resumed()
        await resubmitted(self._submit, self._deaths)
