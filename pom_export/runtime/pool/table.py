"""The streams of a pool: their states, what each waits for, and which of them share the next call."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pom_export import interrupts
from pom_export.errors import InputError, PoolFullError
from pom_export.graph.exported_model import PAST_LENGTH
from pom_export.runtime.pool.prefixes import GRAIN, History, Prefix, PrefixCache
from pom_export.runtime.pool.slots import Slots
from pom_export.runtime.pool.step_log import StepLog
from pom_export.runtime.pool.stream import Given, PoolStream
from pom_export.runtime.streaming.inputs import call_tokens, step_tokens
from pom_export.runtime.streaming.interface import StatefulModel
from pom_export.runtime.streaming.state import ModelFiles, State

Array = npt.NDArray[Any]

# The most tokens that a stream reads in a call. More would hardly be faster, and the state after each is kept.
_PIECE: Final = 512
_WAITING: Final = attrgetter("waiting")


class Finished:
    """What the calls of a tick have finished: at most one answer of each stream.

    Attributes:
        streams: those whose tokens, given at once, have all been read.
        outputs: the last token's outputs, an array (streams, ...) for each of several groups of them.
        every: (tokens, ...) by stream, where every token's output is wanted.
    """

    def __init__(self) -> None:
        self.streams: list[PoolStream] = []
        self.outputs: list[Array] = []
        self.every: dict[PoolStream, Array] = {}
        self._answered: set[PoolStream] = set()

    def __contains__(self, stream: PoolStream) -> bool:
        """Return whether a stream has its answer of this tick."""
        return stream in self._answered

    def add(self, streams: Sequence[PoolStream], outputs: Array) -> None:
        """Add streams, and their last tokens' outputs (streams, ...), an array of its own."""
        self.streams += streams
        self.outputs.append(outputs)
        self._answered.update(streams)


@dataclass(frozen=True)
class Work:
    """What a call computes: the next `count` tokens of each of some streams.

    Attributes:
        streams: the streams.
        rows: the rows of their states.
        count: how many tokens of each.
        tokens: the tokens, (streams, count, ...).
        past: the states before them, by input.
        present: where the states after them are written to, by output.
        bank: the bank that the states are in, if the call is of the batch that takes steps.
        awaited: those of the streams whose state after them others wait for.
    """

    streams: Sequence[PoolStream]
    rows: Array
    count: int
    tokens: Array
    past: Mapping[str, Array]
    present: Mapping[str, Array]
    bank: int | None = None
    awaited: Set[PoolStream] = frozenset()


class StreamTable:
    """The streams of a pool. Every method may be called from any thread.

    One `Work` at a time is under way: what `steps` or `prompts` returned is passed to `finish` before the next.

    A stream that waits for nothing and is given a single token takes a step, whose token is kept by row. Whatever else
    is given is kept with the stream, and read after that.

    Args:
        model: the interface.
        identity: the model's files.
        streams: the most streams.
        prefix_bytes: memory for kept beginnings.
        most_waiting: the most tokens that may wait.
        most_tokens: the most tokens of each stream in a call; None: no limit.
    """

    def __init__(
        self,
        model: StatefulModel,
        identity: ModelFiles,
        streams: int,
        prefix_bytes: int,
        most_waiting: int,
        most_tokens: int | None,
    ) -> None:
        self._model = model
        self._identity = identity
        self._slots = Slots(model, streams)
        self._free = list(range(streams))[::-1]
        self._most_waiting = most_waiting
        self._piece = min(_PIECE, most_tokens or _PIECE)
        # By row: the open stream, whether it waits for a step, that step's token, and the last tokens of its history.
        self._open: dict[int, PoolStream] = {}
        self._stepping = np.zeros(streams, np.bool_)
        self._next = np.zeros((streams, 1, *model.tokens.token_shape), model.tokens.dtype)
        self._log = StepLog(self._next)
        # Streams with other tokens to read, those that were served least recently first.
        self._queue: dict[PoolStream, None] = {}
        self._lock = threading.RLock()
        self.prefixes = PrefixCache(prefix_bytes)
        self.most_streams = streams
        self.waiting = self.tokens = self.spared = 0
        # Number of calls by their rows.
        self.batches: Counter[int] = Counter()

    @property
    def streams(self) -> int:
        """Number of open streams."""
        return self.most_streams - len(self._free)

    @property
    def row_bytes(self) -> int:
        """Size of one stream's state in bytes."""
        return self._slots.row_bytes

    def open(self, state: Mapping[str, Array] | None) -> PoolStream:
        """Return a new stream that begins with a state, or with the first token."""
        with interrupts.held(), self._lock:
            stream = self._new_stream(History() if state is None and self.prefixes.keeps else None)
            if state is None:
                self._slots.clear(stream.row)
            else:
                self._slots.write(stream.row, state)
                stream.length = int(state[PAST_LENGTH][0])
            return stream

    def give(self, stream: PoolStream, tokens: Any, *, every: bool) -> None:
        """Do what `PoolStream.give` says."""
        array = call_tokens(self._model, tokens, 1)[0]
        with interrupts.held(), self._lock:
            self._check_takes(stream, len(array))
            self._check_waiting(len(array), self._most_waiting)
            self._give(stream, array, every=every)

    def give_one(self, streams: Sequence[PoolStream], tokens: Any) -> None:
        """Do what `StreamPool.step` says."""
        array = step_tokens(self._model, tokens, len(streams))
        with interrupts.held(), self._lock:
            most = self._model.positions
            for stream in streams:
                if stream.closed or stream.table is not self or stream.length + stream.waiting >= most:
                    self._check_takes(stream, 1)
            # Prompts leave room for the next token of every stream: what has begun can go on.
            self._check_waiting(len(streams), self._most_waiting + self.most_streams)
            rows = [stream.row for stream in streams]
            if len(set(rows)) < len(rows) or any(map(_WAITING, streams)):
                for stream, count in Counter(streams).items():
                    self._check_takes(stream, count)
                for stream, token in zip(streams, array, strict=True):
                    self._give(stream, token, every=False)
                return
            self._next[rows] = array
            self._stepping[rows] = True
            self.waiting += len(rows)
            for stream in streams:
                stream.waiting = 1

    def close(self, stream: PoolStream) -> None:
        """Do what `PoolStream.close` says."""
        with interrupts.held(), self._lock:
            if stream.closed:
                return
            self._keep(stream, None)
            stream.closed = True
            self._stepping[stream.row] = False
            self._queue.pop(stream, None)
            self.waiting -= stream.waiting
            stream.waiting = 0
            stream.given.clear()
            del self._open[stream.row]
            self._free.append(stream.row)

    def fork(self, stream: PoolStream, into: PoolStream | None) -> PoolStream:
        """Do what `PoolStream.fork` says."""
        with interrupts.held(), self._lock:
            self._check_open(stream)
            self._check_waiting(stream.waiting, self._most_waiting)
            if into is not None:
                self._check_open(into)
                if into.length or into.waiting:
                    raise InputError("the stream to fork into has been given tokens", "Give a new one")
            twin = self._new_stream(None) if into is None else into
            history = self._history(stream)
            twin.history = None if history is None else History(history)
            self._slots.copy(stream.row, twin.row)
            twin.length = stream.length
            if self._stepping[stream.row]:
                self._give(twin, self._next[stream.row], every=False)
            for given in stream.given:
                self._append(twin, given.copy())
            return twin

    def snapshot(self, stream: PoolStream) -> State:
        """Do what `PoolStream.snapshot` says."""
        with self._lock:
            self._check_open(stream)
            return State(self._slots.read(stream.row), self._identity)

    def steps(self, finished: Finished) -> Work | None:
        """Return the call for all streams that wait for a single token; None if there are none.

        Args:
            finished: streams in it wait for the next tick.
        """
        with interrupts.held(), self._lock:
            wanted = self._stepping
            if finished.streams:
                wanted = wanted.copy()
                wanted[[stream.row for stream in finished.streams if not stream.closed]] = False
            last = [s for s in self._queue if s.given[0].left == 1 and not self._stepping[s.row] and s not in finished]
            if last:
                rows = [stream.row for stream in last]
                self._next[rows] = [stream.given[0].piece(1) for stream in last]
                wanted = wanted.copy()
                wanted[rows] = True
            if not wanted.any():
                return None
            batch = self._slots.line_up(wanted)
            past, present = self._slots.batch()
            streams = [self._open[row] for row in batch.tolist()]
            return Work(streams, batch, 1, self._next[batch], past, present, self._slots.bank)

    def prompts(self, most: int, finished: Finished) -> Work | None:
        """Return the next call for streams that wait for more than one token; None if there are none.

        Streams whose next tokens are known from others skip them, and one that would read the same as another in this
        call waits for it.

        Args:
            most: the most tokens in the call, of all its rows together.
            finished: streams in it wait for the next tick; it gets those that skip all their tokens.
        """
        with interrupts.held(), self._lock:
            waiting = [
                stream
                for stream in self._queue
                if stream.given[0].left > 1 and not self._stepping[stream.row] and stream not in finished
            ]
            chosen: list[PoolStream] = []
            readers: dict[bytes, PoolStream] = {}
            awaited: set[PoolStream] = set()
            count = 0
            for stream in waiting:
                if not self._skip_known(stream, finished):
                    continue
                if not chosen:
                    count = _piece_of(stream, min(most, self._piece), alone=len(waiting) == 1)
                if (len(chosen) + 1) * count > most or stream.given[0].left < count:
                    continue
                history = self._history(stream)
                if history is not None:
                    key = history.after(stream.given[0].piece(count)).key
                    if readers.setdefault(key, stream) is not stream:
                        awaited.add(readers[key])
                        stream.given[0].compared = False
                        continue
                chosen.append(stream)
            if not chosen:
                return None
            rows = np.array([stream.row for stream in chosen])
            past, present = self._slots.gather(rows)
            tokens = np.stack([stream.given[0].piece(count) for stream in chosen])
            return Work(chosen, rows, count, tokens, past, present, awaited=awaited)

    def finish(self, work: Work, outputs: Array, finished: Finished) -> None:
        """Record a call.

        Args:
            work: what was computed; its `present` holds the states after it.
            outputs: the model's outputs, (streams, count, ...).
            finished: gets the streams whose tokens, given at once, have all been read.
        """
        with interrupts.held(), self._lock:
            # Others were closed meanwhile, and their rows may be another stream's.
            places = np.array([place for place, stream in enumerate(work.streams) if not stream.closed], np.intp)
            if work.bank is None:
                self._slots.scatter(work.present, places, work.rows[places])
            else:
                self._slots.step()
                stepping = self._stepping[work.rows[places]]
                self._stepped(work, places[stepping], outputs, finished)
                places = places[~stepping]
            done = [place for place in places.tolist() if self._read(work, place, outputs, finished)]
            if done:
                finished.add([work.streams[place] for place in done], outputs[done, -1])
            self.batches[len(work.streams)] += 1
            self.tokens += len(places) * work.count

    def _new_stream(self, history: History | None) -> PoolStream:
        if not self._free:
            raise PoolFullError(f"all {self.most_streams} streams of the pool are in use", "Close one, or wait")
        stream = PoolStream(self, self._free.pop(), history)
        self._open[stream.row] = stream
        self._log.take(stream.row)
        return stream

    def _check_open(self, stream: PoolStream) -> None:
        if stream.closed or stream.table is not self:
            what = "the stream is closed" if stream.closed else "the stream belongs to another pool"
            raise InputError(what, "Open another")

    def _check_takes(self, stream: PoolStream, count: int) -> None:
        """Raise InputError unless a stream is open and has positions for more tokens."""
        self._check_open(stream)
        after, most = stream.length + stream.waiting + count, self._model.positions
        if after > most:
            raise InputError(f"{after} tokens are more than {self._model.name}'s {most} positions", "Close it")

    def _check_waiting(self, count: int, most: int) -> None:
        if self.waiting + count > most:
            raise PoolFullError(
                f"{self.waiting} tokens wait in the pool, which takes {most}: {count} more are too many",
                "Give them later",
            )

    def _give(self, stream: PoolStream, tokens: Array, *, every: bool) -> None:
        """Add tokens (count, ...) that were checked; they are copied, since the caller may change them."""
        if stream.waiting or every or len(tokens) > 1:
            self._append(stream, Given(tokens.copy(), every=every))
            return
        self._next[stream.row] = tokens
        self._stepping[stream.row] = True
        stream.waiting = 1
        self.waiting += 1

    def _append(self, stream: PoolStream, given: Given) -> None:
        stream.given.append(given)
        stream.waiting += given.left
        self.waiting += given.left
        self._queue.setdefault(stream)

    def _skip_known(self, stream: PoolStream, finished: Finished) -> bool:
        """Continue a stream from a state that was kept, if there is one; return whether it still has a prompt."""
        given = stream.given[0]
        history = self._history(stream)
        if history is None or given.compared or given.every:
            return True
        given.compared = True
        known = self.prefixes.look_up(history, given.piece(given.left))
        given.shared = given.taken + known.shared
        if known.prefix is None:
            return True
        self._slots.write(stream.row, known.prefix.state)
        self.spared += known.count
        stream.spared += known.count
        if self._advance(stream, known.count):
            assert known.prefix.output is not None
            finished.add([stream], known.prefix.output)
            return False
        return given.left > 1

    def _stepped(self, work: Work, places: Array, outputs: Array, finished: Finished) -> None:
        """Record that streams have taken steps."""
        if not len(places):
            return
        streams = [work.streams[place] for place in places.tolist()]
        for stream in streams:
            stream.length += 1
            stream.waiting -= 1
        rows = work.rows[places]
        self._stepping[rows] = False
        self.waiting -= len(places)
        self.tokens += len(places)
        finished.add(streams, outputs[places, -1])
        if self.prefixes.keeps:
            for row in self._log.add(rows, work.tokens[places]).tolist():
                self._history(self._open[row])

    def _history(self, stream: PoolStream) -> History | None:
        """Return a stream's history, with all its tokens."""
        tokens = self._log.take(stream.row)
        if stream.history is not None and len(tokens):
            stream.history.append(tokens)
        return stream.history

    def _read(self, work: Work, place: int, outputs: Array, finished: Finished) -> bool:
        """Record that a stream has read tokens; return whether they were the last of those given at once."""
        stream = work.streams[place]
        given = stream.given[0]
        if given.every:
            given.outputs.append(outputs[place].copy())
        last = self._advance(stream, work.count)
        if last and given.every:
            finished.every[stream] = np.concatenate(given.outputs)
        if len(given.tokens) > 1 and (last or stream.length % GRAIN == 0 or stream in work.awaited):
            self._keep(stream, outputs[place, -1:].copy() if last else None)
        return last

    def _advance(self, stream: PoolStream, count: int) -> bool:
        """Move a stream past tokens; return whether they were the last of those given at once."""
        given = stream.given[0]
        history = self._history(stream)
        if history is not None:
            history.append(given.piece(count))
        given.taken += count
        given.left -= count
        stream.length += count
        stream.waiting -= count
        self.waiting -= count
        del self._queue[stream]
        if not given.left:
            stream.given.popleft()
        if stream.given:
            self._queue[stream] = None  # behind those that were not served
        return not given.left

    def _keep(self, stream: PoolStream, output: Array | None) -> None:
        """Keep a stream's state for those that begin alike."""
        history = self._history(stream)
        if history is not None and stream.length:
            self.prefixes.put(history.key, Prefix(stream.length, self._slots.read(stream.row), output))


def _piece_of(stream: PoolStream, most: int, *, alone: bool) -> int:
    """Return how many tokens of a prompt to read in the next call.

    If others wait too, it is a power of two, so that some of them can read as many. Where a prompt is not read to its
    end, it is read to a place where its state is kept for others.
    """
    given = stream.given[0]
    end = given.shared - given.taken if given.shared > given.taken else given.left
    count = min(end, most)
    if not alone:
        count = 1 << (count.bit_length() - 1)
    aligned = (stream.length + count) // GRAIN * GRAIN - stream.length
    return aligned if count < given.left and aligned > 0 else count
