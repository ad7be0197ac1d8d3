"""Servers of many streams: a run gives each stream its next token, the likeliest one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pom_export.bench.runners import Array, Bound, Runner, SessionRunner, session_settings
from pom_export.runtime import PoolStream, StreamingSession, StreamPool
from pom_export.runtime.streaming.interface import IDS


class PoolRunner(Runner):
    """A StreamPool with all streams.

    Args:
        model: a stateful export.
        streams: how many there can be.
        threads: threads of ONNX Runtime.
    """

    def __init__(self, model: Path, streams: int, threads: int) -> None:
        self._pool = StreamPool(model, streams=streams, session_options=session_settings(threads))
        self._streams: list[PoolStream] = []

    def bind(self, feed: Mapping[str, Array]) -> Bound:  # noqa: D102
        for stream in self._streams:
            stream.close()
        self._streams = [self._pool.open() for _ in feed[IDS]]
        self._pool.step(self._streams, feed[IDS][:, 0])

        def run() -> Array:
            answers = self._pool.tick()
            self._pool.step(answers.streams, answers.outputs.argmax(-1))
            return answers.outputs

        return Bound([run()], run, feed)


class SessionsRunner(Runner):
    """A StreamingSession for each stream, one after the other, on the same loaded weights.

    Args:
        model: a stateful export.
        threads: threads of ONNX Runtime.
    """

    def __init__(self, model: Path, threads: int) -> None:
        self._empty = StreamingSession(model, session_options=session_settings(threads))

    def bind(self, feed: Mapping[str, Array]) -> Bound:  # noqa: D102
        tokens = feed[IDS][:, 0].copy()
        sessions = [self._empty.fork() for _ in tokens]

        def run() -> list[Array]:
            outputs = [session.step(token) for session, token in zip(sessions, tokens[:, np.newaxis], strict=True)]
            tokens[:] = [output[0].argmax() for output in outputs]
            return outputs

        return Bound([np.concatenate(run())], run, feed)


class CacheRunner(Runner):
    """Attention in one batch, whose caches of keys and values are written in place.

    Args:
        session: an onnxruntime.InferenceSession.
        in_place: the inputs of the caches, by output.
    """

    def __init__(self, session: Any, in_place: Mapping[str, str]) -> None:
        self._runner = SessionRunner(session, in_place)

    def bind(self, feed: Mapping[str, Array]) -> Bound:  # noqa: D102
        bound, tokens = self._runner.bind(feed), feed[IDS]

        def run() -> None:
            bound.run()
            tokens[:, 0] = bound.outputs[0][:, 0].argmax(-1)

        return Bound([bound.outputs[0][:, 0].copy()], run, feed)
