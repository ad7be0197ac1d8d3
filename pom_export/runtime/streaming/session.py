"""Run a stateful export token by token."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, NoReturn

import numpy as np
import numpy.typing as npt

from pom_export.errors import InputError
from pom_export.graph.exported_model import PAST_LENGTH, ExportedModel
from pom_export.runtime.session import Provider, inference_session
from pom_export.runtime.streaming.backend import BackendFactory, Past, StreamingBackend
from pom_export.runtime.streaming.inputs import call_mask, call_others, call_tokens, fitting_state, step_tokens
from pom_export.runtime.streaming.interface import MASK, StatefulModel, read_stateful
from pom_export.runtime.streaming.onnxruntime import OnnxRuntimeBackend
from pom_export.runtime.streaming.state import ModelFiles, State

Array = npt.NDArray[Any]
# Tokens a call of a long prompt: enough for full speed, few enough for memory.
CHUNK: Final = 2048


@dataclass(frozen=True)
class _Now:
    """Where a stream is: changed as a whole, so that an interrupt leaves it before a call or after it."""

    past: Past
    lengths: Array


class StreamingSession:
    """A stream of tokens through a model whose state has one size however many tokens came.

    A call takes any number of tokens: `prefill` and then `step` give what one pass over all of them gives. Nothing of
    the state is copied between calls, and a step of one token allocates none of it (but for caches of a hybrid's
    attention layers, which grow by nature).

    A stream is used by one thread at a time; a second one gets an error. `fork` makes streams that run in parallel
    and share the model's weights. A call that raises, KeyboardInterrupt too, leaves the state as it was.

    In a process that os.fork made, a stream goes on from where it was. If another thread was in a call of the model
    then, no call can be run there: what `snapshot` returns goes on in a session that is loaded there. A stream cannot
    be pickled; its snapshot can.

    Args:
        model: path of an ONNX file exported with `stateful=True`.
        batch: rows, each a sequence of its own.
        providers: as for `inference_session`.
        session_options: an onnxruntime.SessionOptions to start from.
        kernels: False leaves our library out.
        backend: what runs it instead of ONNX Runtime, such as `tensorrt_backend(engine)`.

    Attributes:
        model: the file's interface.
        batch: rows.

    Raises:
        InputError: the file cannot be read or loaded, keeps no state, or the backend does not take it.
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
        if backend is not None and not (providers is None and session_options is None and kernels):
            raise InputError(
                "providers, session_options and kernels are for ONNX Runtime", "Leave out either these or backend"
            )
        interface = read_stateful(model)
        for part in interface.past:
            pinned = part.spec.axes[0] if isinstance(part.spec.axes[0], int) else batch
            if batch < 1 or pinned != batch:
                raise InputError(
                    f"batch is {batch}, {interface.name} takes {max(pinned, 1)} rows", "Choose another batch"
                )
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
    def lengths(self) -> Array:
        """How many tokens each row has taken in, (batch,) int64."""
        return self._now.lengths.copy()

    @property
    def length(self) -> int:
        """How many tokens the longest row has taken in."""
        return int(self._now.lengths.max())

    @property
    def most_tokens(self) -> int | None:
        """How many tokens one call can take, as an engine was built; None: any number."""
        return self._backend.most_tokens

    @property
    def state_bytes(self) -> int:
        """Bytes of the state, all rows together."""
        return self._backend.nbytes(self._now.past)

    def prefill(self, tokens: Any, *, mask: Any = None, lengths: Any = None, **others: Any) -> Array:
        """Take in any number of tokens at once.

        Args:
            tokens: ids (batch, tokens), or vectors (batch, tokens, d); of one row, also without the axis of rows.
            mask: (batch, tokens) bool, where the model has that input: which tokens are there. Padding comes last.
            lengths: (batch,) instead of a mask: how many of each row's tokens are there.
            **others: the model's other inputs by name, such as positions.

        Returns:
            What the model computes of each token, (batch, tokens, V) or (batch, tokens, d); the caller's own.

        Raises:
            InputError: an input does not fit, or the model has fewer positions.
        """
        with self._exclusive:
            array = call_tokens(self._interface, tokens, self.batch)
            output = self._advance(array, mask, lengths, others)
            return output.copy() if array.shape[1] == 1 else output

    def prefill_last(self, tokens: Any, *, lengths: Any = None, chunk: int = CHUNK) -> Array:
        """Take in a long prompt, `chunk` tokens a call, and keep each row's last output only.

        When a chunk fails, the chunks before it are in the state. Not for models with other inputs. A block-causal
        model sees each chunk as a block.

        Args:
            tokens: as for `prefill`.
            lengths: as for `prefill`, each at least 1.
            chunk: most tokens a call; fewer where the backend takes no more.

        Returns:
            (batch, V) or (batch, d); the caller's own.

        Raises:
            InputError: as `prefill`.
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
                output = self._advance(np.ascontiguousarray(part), None, here, {})
                last = np.zeros((self.batch, *output.shape[2:]), output.dtype) if last is None else last
                rows = np.flatnonzero((ends > start) & (ends <= start + part.shape[1]))
                last[rows] = output[rows, ends[rows] - start - 1]
            assert last is not None
            return last

    def step(self, tokens: Any, *, mask: Any = None, **others: Any) -> Array:
        """Take in one token a row.

        Args:
            tokens: ids (batch,) or (batch, 1), vectors (batch, d) or (batch, 1, d); of one row, also without its axis.
            mask: (batch,) bool, where the model has that input: rows that wait have False.
            **others: as for `prefill`.

        Returns:
            (batch, V) or (batch, d), read-only. It is a view of a buffer: whole during the next call, overwritten by
            the one after it.

        Raises:
            InputError: as `prefill`.
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
        """Go on from a state that this model had.

        Raises:
            InputError: it is another model's, or of another batch.
        """
        with self._exclusive:
            state.model.check_same(self._identity)
            arrays = fitting_state(self._interface, state.arrays, self.batch)
            past = self._backend.write(arrays, self._now.past)
            self._now = _Now(past, arrays[PAST_LENGTH].astype(np.int64))

    def fork(self) -> StreamingSession:
        """Return a stream that goes on from here on its own, on the same loaded model."""
        with self._exclusive:
            self._exclusive.check_runnable()
            backend, past = self._backend.fork(self._now.past)
            twin = object.__new__(type(self))
            now = _Now(past, self._now.lengths)
            twin._set_up(self._interface, self._identity, backend, now, Exclusive(self._exclusive))
            return twin

    def _advance(self, tokens: Array, mask: Any, lengths: Any, others: dict[str, Any]) -> Array:
        """Run checked tokens and go on to the state after them; return the output."""
        self._exclusive.check_runnable()
        count = tokens.shape[1]
        present = call_mask(self._interface, mask, lengths, self.batch, count)
        after = self._now.lengths + (count if present is None else present.sum(1))
        self._check_positions(after - self._now.lengths)
        feed = {self._interface.tokens.name: tokens}
        if present is not None:
            feed[MASK] = present
        feed |= call_others(self._interface, others, self.batch, count)
        output, past = self._backend.run(self._now.past, feed)
        self._now = _Now(past, after)
        return output

    def _ends(self, lengths: Any, count: int) -> Array:
        """Return how many tokens of each row are there."""
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


class Exclusive:
    """A block that one thread at a time is in; any other gets an error, it does not wait.

    No lock: an interrupt between taking a lock and noting that would leave it taken for good. A thread that was
    interrupted there may go on here.

    A process that was forked has a copy of what was noted, and of all threads only the one that forked: so each note
    is a process's own, and one of another process tells of a call that will never end here.

    Args:
        fellow: the block of another stream of the same loaded model.
    """

    def __init__(self, fellow: Exclusive | None = None) -> None:
        # By process and stream, the thread that is in its block; of all streams of one loaded model.
        self._users: dict[tuple[int, int], int] = {} if fellow is None else fellow._users

    def __enter__(self) -> None:
        thread = threading.get_ident()
        # One operation, so that of two threads one is told of the other.
        if self._users.setdefault((os.getpid(), id(self)), thread) != thread:
            raise InputError("this StreamingSession is in use by another thread", "Give each thread its own: fork()")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._users.pop((os.getpid(), id(self)), None)

    def check_runnable(self) -> None:
        """Raise InputError in a process that was forked while another thread was in a block.

        What that thread held in the runtime is held for good there, and a call that needs it would never end. The
        state is whole: what a call replaces is left as it is until the call is over.
        """
        here = os.getpid()
        if any(process != here for process, _ in list(self._users)):
            raise InputError(
                "the model cannot be run in this process: it was forked while another thread ran the model",
                "Load the model again here, and restore a snapshot() of this stream",
            )
