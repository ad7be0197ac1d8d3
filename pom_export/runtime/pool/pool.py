"""Continuous batching: streams that come and go share the calls of one loaded model."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pom_export.errors import InputError, kind_of
from pom_export.graph.exported_model import BATCH, BLOCK_CAUSAL, TOKENS, ExportedModel, TensorSpec
from pom_export.runtime.pool.calls import BackendCalls, Calls, OnnxRuntimeCalls
from pom_export.runtime.pool.pace import Pace
from pom_export.runtime.pool.stream import PoolStream
from pom_export.runtime.pool.table import Finished, StreamTable, Work
from pom_export.runtime.providers import Provider
from pom_export.runtime.session import inference_session
from pom_export.runtime.streaming.backend import BackendFactory, check_backend
from pom_export.runtime.streaming.inputs import fitting_state
from pom_export.runtime.streaming.interface import StatefulModel, read_stateful
from pom_export.runtime.streaming.state import ModelFiles, State
from pom_export.values import is_whole

Array = npt.NDArray[Any]

# Size of the outputs of a call, of which mostly the last token's is used.
_OUTPUT_BYTES: Final = 64 * 2**20
_MOST_WAITING: Final = 2**22


@dataclass(frozen=True)
class Answers:
    """What a tick has finished: for each stream, the output for the last token that it was given.

    Attributes:
        streams: the streams, each with all that it was given at once read. Each is there once: what it was given after
            that is answered by later ticks.
        outputs: (streams, V) or (streams, d), the output for the last token of each.
        every: (tokens, ...) by stream, for those that asked for every token's output.
    """

    streams: Sequence[PoolStream]
    outputs: Array
    every: Mapping[PoolStream, Array]


class CallError(InputError):
    """A call of the model failed, of some of a pool's streams; the others go on.

    Args:
        error: why.
        streams: the streams of the call, whose states are unchanged, and whose tokens still wait: close them, or tick
            again to try again.
    """

    def __init__(self, error: InputError, streams: Sequence[PoolStream]) -> None:
        super().__init__(error.what, error.hint)
        self.streams = tuple(streams)


@dataclass(frozen=True)
class PoolMetrics:
    """What a pool has done since it was created, and holds now.

    Attributes:
        streams: open streams.
        most_streams: the most there can be.
        waiting: tokens that were given and not read.
        tokens: tokens that the model has read.
        calls: calls of the model.
        rows: rows of all calls together; by `calls`, the mean batch.
        batches: number of calls, by their rows.
        prefixes: states kept for streams that begin alike.
        prefix_bytes: their size.
        prefix_tokens: tokens that were not read because their state was kept.
        state_bytes: size of one stream's state.
    """

    streams: int
    most_streams: int
    waiting: int
    tokens: int
    calls: int
    rows: int
    batches: Mapping[int, int]
    prefixes: int
    prefix_bytes: int
    prefix_tokens: int
    state_bytes: int


class StreamPool:
    """Runs many streams of one model, and lets them share its calls (continuous batching).

    Streams are opened and given tokens at any time, from any thread. `tick` runs the model: one token of each stream
    that waits for one, all in one call, then as much of the others' prompts as takes about as long. So a long prompt
    delays no other stream by more than one such piece. Streams of equal pieces share a call; none is padded. A
    stream's numbers are those that it would have by itself, but for the rounding of products of another size. Quantized
    files may round activations too, and with one scale per call (`inspect` tells) their streams affect each other.

        pool = StreamPool("stream.onnx")
        streams = [pool.open() for _ in prompts]
        for stream, ids in zip(streams, prompts):
            stream.give(ids)
        while ...:
            answers = pool.tick()
            pool.step(answers.streams, answers.outputs.argmax(-1))  # the next token of each

    The state after the beginning of a sequence is kept, for as many as `prefix_bytes` hold, the least recently used
    dropped first: what several streams begin with is read once.

    Args:
        model: path of an ONNX file exported with `stateful=True`, whose state has a constant size: caches of keys and
            values grow with every token, so a hybrid with attention runs in StreamingSessions instead.
        streams: the most streams at a time; their states are allocated at once.
        prefix_bytes: memory for kept beginnings; 0 keeps none.
        most_waiting: the most tokens that may wait, of all streams together.
        providers: execution providers, as for `inference_session`. States are on the CPU.
        session_options: an onnxruntime.SessionOptions to start from.
        kernels: False omits our library.
        backend: creates the backend that runs the model instead of ONNX Runtime, such as `tensorrt_backend(engine)`: an
            engine for 1 to `streams` rows. States are copied to it and back in each call.

    Attributes:
        model: the file's interface.

    Raises:
        InputError: the file cannot be read or loaded, has no state or one that grows, takes other inputs than tokens,
            or does not fit the backend, or an option is out of range.
        MissingDependencyError: onnxruntime or our library is not installed.
    """

    model: ExportedModel

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        streams: int = 64,
        prefix_bytes: int = 64 * 2**20,
        most_waiting: int = _MOST_WAITING,
        providers: Sequence[Provider] | None = None,
        session_options: Any = None,
        kernels: bool = True,
        backend: BackendFactory | None = None,
    ) -> None:
        for name, value, least in (
            ("streams", streams, 1), ("prefix_bytes", prefix_bytes, 0), ("most_waiting", most_waiting, 1)
        ):  # fmt: skip
            if not (is_whole(value) and value >= least):
                raise InputError(f"{name} is {value!r}, not a whole number of at least {least}", "Choose another")
        check_backend(backend, providers, session_options, kernels=kernels)
        interface = read_stateful(model)
        check_poolable(interface)
        self.model = interface.file
        self._interface = interface
        self._identity = ModelFiles((interface.file.path, *interface.file.weights))
        if backend is None:
            session = inference_session(model, providers, kernels=kernels, session_options=session_options)
            self._calls: Calls = OnnxRuntimeCalls(session, interface)
        else:
            self._calls = BackendCalls(backend(interface, streams), interface)
            _check_takes_one(self._calls, interface)
        self._table = StreamTable(
            interface, self._identity, streams, prefix_bytes, most_waiting, self._calls.most_tokens
        )
        self._pace = Pace(_most_tokens(interface))
        self._ticking = threading.Lock()
        # What calls have finished and no tick has returned, since a later call of the same tick failed.
        self._finished = Finished()

    def open(self, state: State | None = None) -> PoolStream:
        """Return a new stream.

        Args:
            state: a state of this model to continue from, of one row; None: from the first token.

        Raises:
            InputError: the state is of another kind or belongs to another model.
            PoolFullError: as many streams are open as there can be.
        """
        arrays = None
        if state is not None:
            if not isinstance(state, State):
                raise InputError(f"the state is {kind_of(state)}", "Give what `snapshot()` or State.load returned")
            state.model.check_same(self._identity)
            arrays = fitting_state(self._interface, state.arrays, 1)
        return self._table.open(arrays)

    def step(self, streams: Sequence[PoolStream], tokens: Any) -> None:
        """Give one token to each of several streams, as `PoolStream.give` does for one.

        Args:
            streams: open streams.
            tokens: ids (streams,), or vectors (streams, d).

        Raises:
            InputError: as for `PoolStream.give`; no stream has been given anything then.
            PoolFullError: too many tokens wait: `most_waiting` and one for each of the pool's streams.
        """
        if streams:
            self._table.give_one(streams, tokens)

    def tick(self) -> Answers:
        """Run the model once for every stream that waits for one token, and on pieces of the longer prompts.

        Returns:
            What has been finished. It may be empty, also while streams wait: then a prompt is not read to its end.

        Raises:
            CallError: the model cannot be run for some streams. What the others' calls have finished, the next tick
                returns.
            InputError: another thread is in `tick`.
        """
        if not self._ticking.acquire(blocking=False):
            raise InputError("another thread is in tick()", "Call it from one thread")
        try:
            finished = self._finished
            steps = self._table.steps(finished)
            if steps is not None:
                self._pace.stepped(self._run(steps, finished))
            left = self._pace.tokens(others_wait=steps is not None)
            while left > 0 and (prompts := self._table.prompts(left, finished)) is not None:
                self._pace.read(prompts.tokens.shape[0] * prompts.count, self._run(prompts, finished))
                left -= prompts.tokens.shape[0] * prompts.count
            self._finished = Finished()
            return self._answers(finished)
        finally:
            self._ticking.release()

    def metrics(self) -> PoolMetrics:
        """Return what the pool has done and holds."""
        table = self._table
        batches = dict(table.batches)
        return PoolMetrics(
            streams=table.streams,
            most_streams=table.most_streams,
            waiting=table.waiting,
            tokens=table.tokens,
            calls=sum(batches.values()),
            rows=sum(rows * calls for rows, calls in batches.items()),
            batches=batches,
            prefixes=len(table.prefixes),
            prefix_bytes=table.prefixes.nbytes,
            prefix_tokens=table.spared,
            state_bytes=table.row_bytes,
        )

    @property
    def tokens(self) -> TensorSpec:
        """The input that takes the tokens."""
        return self._interface.tokens

    @property
    def takes_ids(self) -> bool:
        """Whether tokens are ids, as in a language model."""
        return self._interface.takes_ids

    @property
    def streams(self) -> int:
        """Number of open streams."""
        return self._table.streams

    @property
    def waiting(self) -> int:
        """Number of tokens that were given and not read; with 0, a tick has nothing to do."""
        return self._table.waiting

    def _run(self, work: Work, finished: Finished) -> float:
        """Run a call, and return the seconds it took."""
        started = time.perf_counter()
        try:
            outputs = self._calls.run(work.tokens, work.past, work.present, work.bank)
        except InputError as error:
            raise CallError(error, work.streams) from error
        seconds = time.perf_counter() - started
        self._table.finish(work, outputs, finished)
        return seconds

    def _answers(self, finished: Finished) -> Answers:
        if len(finished.outputs) == 1:
            return Answers(finished.streams, finished.outputs[0], finished.every)
        shape = [axis if isinstance(axis, int) else 0 for axis in self._interface.output.axes[2:]]
        none = np.empty((0, *shape), self._interface.output.dtype)
        outputs = np.concatenate(finished.outputs) if finished.outputs else none
        return Answers(finished.streams, outputs, finished.every)


def _most_tokens(model: StatefulModel) -> int:
    """Return how many tokens' outputs fit into a call's."""
    return max(1, _OUTPUT_BYTES // (math.prod(model.output.token_shape) * model.output.dtype.itemsize))


def _check_takes_one(calls: Calls, model: StatefulModel) -> None:
    """Raise InputError if a backend cannot run a single token of one stream, of which an engine may need more."""
    past = model.empty(1)
    present = {part.present: past[part.spec.name].copy() for part in model.past}
    calls.run(np.zeros((1, 1, *model.tokens.token_shape), model.tokens.dtype), past, present)


def check_poolable(model: StatefulModel) -> None:
    """Raise InputError for a model whose streams cannot share calls."""
    name = model.name
    if model.file.stateful == BLOCK_CAUSAL:
        raise InputError(f"{name} is block-causal: what shares a call sees each other", "Use a StreamingSession")
    if model.others:
        raise InputError(f"{name} takes {min(model.others)} besides tokens", "Use a StreamingSession for each stream")
    for part in model.past:
        if part.grows:
            raise InputError(
                f"{name} keeps {part.spec.name}, which grows with every token, so streams of different lengths cannot "
                "share a call",
                "Use a StreamingSession for each stream",
            )
    for spec in (model.tokens, *(part.spec for part in model.past)):
        wanted = (BATCH, TOKENS) if spec is model.tokens else (BATCH,)
        if spec.axes[: len(wanted)] != wanted or not all(isinstance(axis, int) for axis in spec.axes[len(wanted) :]):
            raise InputError(f"{name} takes calls of one size: {spec}", "Export it with dynamic dimensions")
