"""States after the beginnings of sequences, kept so that a beginning that several streams share is computed once."""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
# Pieces that are kept before they are hashed together.
_MOST_PIECES: Final = 256
# Two beginnings are compared after multiples of this many tokens.
GRAIN: Final = 64
# How many beginnings are remembered without their states, of 16 bytes each.
_MOST_SEEN: Final = 2**17


class History:
    """The tokens that a stream has seen, as a hash.

    Args:
        copied: the history that this one begins with.
    """

    def __init__(self, copied: History | None = None) -> None:
        self._hash: Any = hashlib.blake2b(digest_size=16) if copied is None else copied._hash.copy()
        self.length: int = 0 if copied is None else copied.length
        self._new: list[Array] = [] if copied is None else list(copied._new)

    def append(self, tokens: Array) -> None:
        """Add tokens (count, ...) to it. They are hashed when the key is needed, and must not change until then."""
        self._new.append(tokens)
        self.length += len(tokens)
        if len(self._new) > _MOST_PIECES:
            self._fold()

    def after(self, tokens: Array) -> History:
        """Return a history that continues with tokens."""
        later = History(self)
        later.append(tokens)
        return later

    @property
    def key(self) -> bytes:
        """A hash of all tokens, whatever pieces they came in."""
        self._fold()
        return bytes(self._hash.digest())

    def _fold(self) -> None:
        for tokens in self._new:
            self._hash.update(np.ascontiguousarray(tokens).tobytes())
        self._new.clear()


@dataclass(frozen=True)
class Prefix:
    """What is kept of a sequence's beginning.

    Attributes:
        length: its number of tokens.
        state: the state after it, by input, each (1, ...).
        output: the model's output for its last token; None if it was not asked for.
    """

    length: int
    state: Mapping[str, Array]
    output: Array | None

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        arrays = [*self.state.values(), *([] if self.output is None else [self.output])]
        return sum(array.nbytes for array in arrays)


@dataclass(frozen=True)
class Known:
    """What is known of some tokens.

    Attributes:
        count: how many of them a kept prefix spares; 0 if none does.
        prefix: that prefix.
        shared: how many of them another sequence has begun with, without its state being kept; 0 if none has.
    """

    count: int = 0
    prefix: Prefix | None = None
    shared: int = 0


class PrefixCache:
    """The most recently used prefixes that fit a number of bytes.

    Which beginnings have occurred is remembered for longer: at the second occurrence it is worth keeping the state.

    Args:
        most_bytes: the limit; with 0, nothing is kept.

    Attributes:
        nbytes: total size of what is kept.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._prefixes: OrderedDict[bytes, Prefix] = OrderedDict()
        self._lengths: Counter[int] = Counter()
        self._seen: dict[bytes, None] = {}
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._prefixes)

    @property
    def keeps(self) -> bool:
        """Whether anything is ever kept."""
        return self._most_bytes > 0

    def put(self, key: bytes, prefix: Prefix) -> None:
        """Keep a prefix, and drop those that were not used for longest."""
        known = self._prefixes.get(key)
        if prefix.nbytes > self._most_bytes or (known is not None and prefix.output is None):
            return
        self._drop(key)
        self._prefixes[key] = prefix
        self._lengths[prefix.length] += 1
        self.nbytes += prefix.nbytes
        while self.nbytes > self._most_bytes:
            self._drop(next(iter(self._prefixes)))

    def look_up(self, history: History, tokens: Array) -> Known:
        """Return what is known of tokens that follow a history, and remember that they have occurred.

        A prefix that is all of them is only of use with its output.

        Args:
            history: what comes before the tokens; it is not changed.
            tokens: (count, ...).
        """
        start, stop = history.length, history.length + len(tokens)
        ends = {length for length in self._lengths if start < length <= stop}
        ends.update(range(start - start % GRAIN + GRAIN, stop + 1, GRAIN))
        count, best, shared, place, so_far = 0, b"", 0, 0, History(history)
        for end in sorted(end - start for end in ends):
            so_far.append(tokens[place:end])
            place, key = end, so_far.key
            prefix = self._prefixes.get(key)
            if prefix is not None and (end < len(tokens) or prefix.output is not None):
                count, best = end, key
            elif key in self._seen:
                shared = end
            if (start + end) % GRAIN == 0:
                self._seen[key] = None
        while len(self._seen) > _MOST_SEEN:
            del self._seen[next(iter(self._seen))]
        if not count:
            return Known(shared=shared)
        self._prefixes.move_to_end(best)
        return Known(count, self._prefixes[best], shared)

    def _drop(self, key: bytes) -> None:
        prefix = self._prefixes.pop(key, None)
        if prefix is not None:
            self.nbytes -= prefix.nbytes
            self._lengths[prefix.length] -= 1
            if not self._lengths[prefix.length]:
                del self._lengths[prefix.length]
