"""A loaded model, and all that requests to it share."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pom_export.engine.streaming import tensorrt_backend
from pom_export.errors import InputError
from pom_export.graph.exported_model import ExportedModel
from pom_export.runtime.pool.pool import Answers, StreamPool
from pom_export.runtime.pool.stream import PoolStream
from pom_export.runtime.session import default_session_options
from pom_export.runtime.streaming.interface import StatefulModel, stateful_interface
from pom_export.runtime.streaming.state import State
from pom_export.serving.metrics import ServeMetrics
from pom_export.serving.places import Places
from pom_export.serving.sessions import MemoryStore, Sessions, SessionStore
from pom_export.serving.settings import ServeSettings
from pom_export.serving.worker import Bridge, Worker
from pom_export.text.tokenizers import AUTO, Tokenizer, choose_tokenizer

Array = npt.NDArray[Any]


class Service:
    """A model that answers requests: its pool, the thread that runs it, its sessions and metrics.

    Args:
        model: path of a stateful export, as for `StreamPool`.
        settings: options and limits.
        store: where sessions are kept; None: in memory.

    Attributes:
        name: the model's name, that of its file without the suffix.
        file: the model's interface.
        tokenizer: its tokenizer; None: it takes vectors, or ids of no text.
        draining: whether new requests are refused, since the server ends.
        requests: number of requests that are being answered.

    Raises:
        InputError: `StreamPool` refuses the model, or the tokenizer is not the model's.
        MissingDependencyError: onnxruntime, our library, TensorRT or the tokenizer's is not installed.
    """

    def __init__(
        self, model: str | os.PathLike[str], settings: ServeSettings, store: SessionStore | None = None
    ) -> None:
        self.settings = settings
        self.pool = _pool(model, settings)
        self.file: ExportedModel = self.pool.model
        self.interface: StatefulModel = stateful_interface(self.file)
        self.name = self.file.path.stem
        self.tokenizer = _tokenizer(self.interface, settings.tokenizer)
        self.metrics = ServeMetrics()
        self.worker = Worker(self.pool, self.metrics)
        self.places = Places(settings.streams, settings.queue)
        self.sessions = Sessions(
            store or MemoryStore(settings.sessions, settings.session_bytes, settings.session_seconds)
        )
        self.draining = False
        self.requests = 0
        self._bridge: Bridge | None = None

    @property
    def bridge(self) -> Bridge:
        """The way from the worker's thread to the event loop that the service was started in."""
        assert self._bridge is not None, "the service was not started"
        return self._bridge

    @property
    def vocabulary(self) -> int | None:
        """Number of ids that the model takes; None: it takes vectors, or does not say."""
        return _vocabulary(self.interface)

    def start(self) -> None:
        """Start the worker. Called in the event loop that answers the requests."""
        self._bridge = Bridge(asyncio.get_running_loop())
        self.worker.start()

    def stop(self) -> None:
        """End the worker; whatever is not answered fails."""
        self.worker.stop()

    async def read(self, state: State | None, tokens: Array, *, every: bool) -> Step:
        """Read tokens in a stream of their own.

        Args:
            state: the state to continue from; None: from the beginning.
            tokens: ids (tokens,), or vectors (tokens, d).
            every: whether every token's output is wanted.

        Returns:
            The outputs, and the state after the tokens.

        Raises:
            InputError: the tokens do not fit the model or the state.
            PoolFullError: the pool takes no more now.
        """
        answered: asyncio.Queue[Array | Exception] = asyncio.Queue()
        with self.pool.open(state) as stream:
            self.worker.assign(stream, _Once(self.bridge, answered))
            stream.give(tokens, every=every)
            self.worker.wake()
            answer = await answered.get()
            if isinstance(answer, Exception):
                raise answer
            return Step(answer, stream.length, stream.snapshot())


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


def _vocabulary(model: StatefulModel) -> int | None:
    values = model.limits.values.get(model.tokens.name)
    return None if values is None or not model.takes_ids else int(np.prod(values[:1]))


def _tokenizer(model: StatefulModel, name: str) -> Tokenizer | None:
    """Return a model's tokenizer; None if none is named, and none is known for it.

    Raises:
        InputError: it has ids that the model lacks, or the model takes no ids.
    """
    vocabulary = _vocabulary(model)
    if vocabulary is None:
        if name == AUTO:
            return None
        raise InputError(f"{model.name} takes no ids of a vocabulary that it names", "Leave `tokenizer` out")
    try:
        tokenizer = choose_tokenizer(name, vocabulary)
    except InputError:
        if name == AUTO:
            return None
        raise
    if tokenizer.size > vocabulary:
        raise InputError(
            f"the tokenizer {tokenizer.name} has {tokenizer.size} tokens, but {model.name} has {vocabulary}",
            "Name the model's own: `tokenizer=PATH`",
        )
    return tokenizer
