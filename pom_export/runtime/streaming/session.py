"""Run a stateful export token by token."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, NoReturn

import numpy as np
import numpy.typing as npt

from pom_export.errors import InputError, kind_of
from pom_export.graph.exported_model import PAST_LENGTH, ExportedModel, TensorSpec
from pom_export.runtime.providers import Provider
from pom_export.runtime.session import inference_session
from pom_export.runtime.streaming.backend import BackendFactory, Past, StreamingBackend, check_backend
from pom_export.runtime.streaming.inputs import (
    call_mask,
    call_others,
    call_part,
    call_tokens,
    fitting_state,
    step_tokens,
)
from pom_export.runtime.streaming.interface import MASK, StatefulModel, read_stateful
from pom_export.runtime.streaming.onnxruntime import OnnxRuntimeBackend
from pom_export.runtime.streaming.state import ModelFiles, State
from pom_export.values import is_whole

Array = npt.NDArray[Any]
# Tokens per call for a long prompt: enough for full speed, few enough to save memory.
CHUNK: Final = 2048


@dataclass(frozen=True)
class _Now:
    """The position of a stream, replaced as a whole so that an interrupt leaves it either before or after a call."""

    past: Past
    lengths: Array


class StreamingSession:
    """A stream of tokens through a model whose state has a constant size, however many tokens it has seen.

    A call takes any number of tokens: `prefill` and then `step` give the same as one pass over all of them. The state
    is not copied between calls, and a step with one token allocates none of it, except for the caches of a hybrid's
    attention layers, which grow with every token.

    A stream can be used by one thread at a time; a second one gets an error. `fork` creates streams that run in
    parallel and share the model's weights. A call that raises, even KeyboardInterrupt, leaves the state unchanged.

    In a process created by os.fork, a stream continues from its position. If another thread was running the model at
    that moment, no call can be made in the new process; load a session there and restore a `snapshot`. A stream cannot
    be pickled, but its snapshot can.

    Args:
        model: path of an ONNX file exported with `stateful=True`.
        batch: number of rows, each a separate sequence.
        providers: execution providers, as for `inference_session`.
        session_options: an onnxruntime.SessionOptions to start from.
        kernels: False omits our library.
        backend: creates the backend that runs the model instead of ONNX Runtime, such as `tensorrt_backend(engine)`.

    Attributes:
        model: the file's interface.
        batch: number of rows.

    Raises:
        InputError: the file cannot be read or loaded, has no state, or does not fit the backend.
        MissingDependencyError: onnxruntime or our library is not installed.
    """

    model: ExportedModel
    batch: int

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        batch: int = 1,
        providers: Sequence[Provider] | None = None,
        session_options: Any = None,
        kernels: bool = True,
        backend: BackendFactory | None = None,
    ) -> None:
        check_backend(backend, providers, session_options, kernels=kernels)
        interface = read_stateful(model)
        _check_batch(interface, batch)
        identity = ModelFiles((interface.file.path, *interface.file.weights))
        if backend is None:
            session = inference_session(model, providers, kernels=kernels, session_options=session_options)
            runner: StreamingBackend = OnnxRuntimeBackend(session, interface, batch)
        else:
            runner = backend(interface, batch)
        past = runner.write(interface.empty(batch), None)
        self._set_up(interface, identity, runner, _Now(past, np.zeros(batch, np.int64)), Exclusive())

    def _set_up(
        self,
        interface: StatefulModel,
        identity: ModelFiles,
        backend: StreamingBackend,
        now: _Now,
        exclusive: Exclusive,
    ) -> None:
        self.model = interface.file
        self.batch = len(now.lengths)
        self._interface = interface
        self._identity = identity
        self._backend = backend
        self._now = now
        self._exclusive = exclusive

    def __reduce__(self) -> NoReturn:
        raise InputError(
            "a StreamingSession cannot be copied or pickled",
            "Use fork(), or send its snapshot() to a session that is loaded there",
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
    def contexts(self) -> frozenset[str]:
        """The inputs that only the first call gets."""
        return self._interface.contexts

    def inputs_of_call(self, others: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of the model's other inputs that the next call gets: a context only if it is the first."""
        begun = bool(self._now.lengths.any())
        return {name: value for name, value in others.items() if not (begun and name in self._interface.contexts)}

    @property
    def lengths(self) -> Array:
        """The number of tokens each row has seen, (batch,) int64."""
        return self._now.lengths.copy()

    @property
    def length(self) -> int:
        """The number of tokens the longest row has seen."""
        return int(self._now.lengths.max())

    @property
    def most_tokens(self) -> int | None:
        """The most tokens that a call can take, as the engine was built; None: no limit."""
        return self._backend.most_tokens

    @property
    def state_bytes(self) -> int:
        """Size of the state in bytes, for all rows together."""
        return self._backend.nbytes(self._now.past)

    def prefill(self, tokens: Any, *, mask: Any = None, lengths: Any = None, **others: Any) -> Array:
        """Process any number of tokens in one call.

        Args:
            tokens: ids (batch, tokens), or vectors (batch, tokens, d); with a single row, the batch axis may be
                missing.
            mask: valid tokens, (batch, tokens) bool, if the model has that input. Padding comes last.
            lengths: number of valid tokens in each row, (batch,), instead of a mask.
            **others: the model's other inputs by name, such as positions. A context, which an encoder reads, is given
                in the first call only.

        Returns:
            The model's output for each token, (batch, tokens, V) or (batch, tokens, d). The array belongs to the
            caller.

        Raises:
            InputError: an input does not fit, or there are more tokens than the model has positions.
        """
        with self._exclusive:
            array = call_tokens(self._interface, tokens, self.batch)
            output = self._advance(array, mask, lengths, others)
            return output.copy() if array.shape[1] == 1 else output

    def prefill_last(self, tokens: Any, *, lengths: Any = None, chunk: int = CHUNK, **others: Any) -> Array:
        """Process a long prompt, `chunk` tokens per call, and return only each row's last output.

        If a chunk fails, the state includes the chunks before it. A block-causal model sees each chunk as a block.

        Args:
            tokens: as for `prefill`.
            lengths: as for `prefill`, each at least 1.
            chunk: the most tokens per call; fewer if the backend takes no more.
            **others: as for `prefill`.

        Returns:
            (batch, V) or (batch, d). The array belongs to the caller.

        Raises:
            InputError: as for `prefill`.
        """
        with self._exclusive:
            array = call_tokens(self._interface, tokens, self.batch)
            count = array.shape[1]
            if chunk < 1:
                raise InputError(f"chunk must be at least 1, got {chunk}", f"Such as {CHUNK}")
            chunk = min(chunk, self.most_tokens or chunk)
            ends = self._ends(lengths, count)
            self._check_positions(ends)
            last: Array | None = None
            for start in range(0, count, chunk):
                part = array[:, start : start + chunk]
                here = None if lengths is None else np.clip(ends - start, 0, part.shape[1])
                its = call_part(self._interface, others, start, start + part.shape[1])
                output = self._advance(np.ascontiguousarray(part), None, here, its)
                last = np.zeros((self.batch, *output.shape[2:]), output.dtype) if last is None else last
                rows = np.flatnonzero((ends > start) & (ends <= start + part.shape[1]))
                last[rows] = output[rows, ends[rows] - start - 1]
            assert last is not None
            return last

    def step(self, tokens: Any, *, mask: Any = None, **others: Any) -> Array:
        """Process one token per row.

        Args:
            tokens: ids (batch,) or (batch, 1), vectors (batch, d) or (batch, 1, d); with a single row, the batch axis
                may be missing.
            mask: (batch,) bool, if the model has that input: False for rows that wait.
            **others: as for `prefill`.

        Returns:
            (batch, V) or (batch, d), read-only. It is a view of a buffer that stays valid during the next call and is
            overwritten by the one after it.

        Raises:
            InputError: as for `prefill`.
        """
        with self._exclusive:
            return self._advance(step_tokens(self._interface, tokens, self.batch), mask, None, others)[:, 0]

    def reset(self) -> None:
        """Forget all tokens."""
        with self._exclusive:
            past = self._backend.write(self._interface.empty(self.batch), self._now.past)
            self._now = _Now(past, np.zeros(self.batch, np.int64))

    def snapshot(self) -> State:
        """Return a copy of the state."""
        with self._exclusive:
            return State(self._backend.read(self._now.past), self._identity)

    def restore(self, state: State) -> None:
        """Continue from a state of this model.

        Raises:
            InputError: it is not a `State`, belongs to another model, or has another batch size.
        """
        if not isinstance(state, State):
            raise InputError(f"the state is {kind_of(state)}", "Give what `snapshot()` or State.load returned")
        with self._exclusive:
            state.model.check_same(self._identity)
            arrays = fitting_state(self._interface, state.arrays, self.batch)
            past = self._backend.write(arrays, self._now.past)
            self._now = _Now(past, arrays[PAST_LENGTH].astype(np.int64))

    def fork(self) -> StreamingSession:
        """Return an independent stream on the same loaded model that continues from here."""
        with self._exclusive:
            self._exclusive.check_runnable()
            backend, past = self._backend.fork(self._now.past)
            twin = object.__new__(type(self))
            now = _Now(past, self._now.lengths)
            twin._set_up(self._interface, self._identity, backend, now, Exclusive(self._exclusive))
            return twin

    def _advance(self, tokens: Array, mask: Any, lengths: Any, others: dict[str, Any]) -> Array:
        """Run checked tokens, move on to the state after them, and return the output."""
        self._exclusive.check_runnable()
        count = tokens.shape[1]
        present = call_mask(self._interface, mask, lengths, self.batch, count)
        after = self._now.lengths + (count if present is None else present.sum(1))
        self._check_positions(after - self._now.lengths)
        feed = {self._interface.tokens.name: tokens}
        if present is not None:
            feed[MASK] = present
        feed |= call_others(self._interface, others, self.batch, count, begun=bool(self._now.lengths.any()))
        output, past = self._backend.run(self._now.past, feed)
        self._now = _Now(past, after)
        return output

    def _ends(self, lengths: Any, count: int) -> Array:
        """Return the number of valid tokens in each row."""
        if lengths is None:
            return np.full(self.batch, count)
        present = call_mask(self._interface, None, lengths, self.batch, count)
        assert present is not None
        if not present[:, 0].all():
            raise InputError("a row without tokens has no last output", "Use prefill, or give every row a token")
        return present.sum(1)

    def _check_positions(self, more: Array) -> None:
        most = self._interface.positions
        after = int((self._now.lengths + more).max())
        if after > most:
            raise InputError(f"{after} tokens are more than {self._interface.name}'s {most} positions", "Reset it")


def _check_batch(model: StatefulModel, batch: int) -> None:
    """Raise InputError for a number of rows that a model does not take."""
    if not (is_whole(batch) and batch >= 1):
        raise InputError(f"batch is {batch!r}, not a whole number of at least 1", "Give the number of rows")
    for part in model.past:
        pinned = part.spec.axes[0]
        if isinstance(pinned, int) and pinned != batch:
            raise InputError(f"batch is {batch}, but {model.name} takes {pinned} rows", "Choose another batch")


class Exclusive:
    """A block that one thread at a time can enter; any other thread gets an error instead of waiting.

    A lock would not do: an interrupt after the lock is taken but before this is recorded would leave it locked forever.
    Here, the interrupted thread can enter the block again.

    A forked process has a copy of the records, but only the thread that forked. Each record therefore belongs to a
    process, and a record of another process stands for a call that will never end in this one.

    Args:
        fellow: the block of another stream of the same loaded model.
    """

    def __init__(self, fellow: Exclusive | None = None) -> None:
        # The thread in the block, by process and stream, for all streams of a loaded model.
        self._users: dict[tuple[int, int], int] = {} if fellow is None else fellow._users

    def __enter__(self) -> None:
        thread = threading.get_ident()
        # A single atomic operation, so that one of two threads sees the other.
        if self._users.setdefault((os.getpid(), id(self)), thread) != thread:
            raise InputError("this StreamingSession is in use by another thread", "Give each thread its own: fork()")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._users.pop((os.getpid(), id(self)), None)

    def check_runnable(self) -> None:
        """Raise InputError in a process that was forked while another thread was in a block.

        Whatever that thread held in the runtime is held forever there, and a call that needs it would never end. The
        state is intact, because a call only replaces it when it is finished.
        """
        here = os.getpid()
        if any(process != here for process, _ in list(self._users)):
            raise InputError(
                "the model cannot be run in this process: it was forked while another thread ran the model",
                "Load the model again here, and restore a snapshot() of this stream",
            )
