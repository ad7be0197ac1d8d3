"""Decode tokens incrementally: a character made of several tokens appears whole, with the last of them."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

# What has been taken in and not been given out, or is needed to give out what follows; JSON values.
Held = Mapping[str, list[int]]

_REPLACEMENT: Final = "\ufffd"
# UTF-8 takes four bytes a character at most: what is no character after as many tokens never becomes one.
_MOST_BYTES: Final = 4
# Tokens before those of a piece: with fewer, a tokenizer may take it for the beginning of a text.
_CONTEXT: Final = 8


class TextStream(Protocol):
    """Turns tokens into text, one at a time."""

    def push(self, token: int) -> str:
        """Return the text that a token completes; it may be empty."""

    def finish(self) -> str:
        """Return the text of what is left incomplete, U+FFFD for what is no character; it is then no longer held."""

    def held(self) -> Held:
        """Return what a stream that goes on from here needs."""


class BytesStream:
    """A stream of tokens that stand for bytes of UTF-8.

    Args:
        bytes_of: the bytes of a token.
        held: of the stream that this one continues.
    """

    def __init__(self, bytes_of: Callable[[int], bytes], held: Held | None = None) -> None:
        self._bytes_of = bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        if held is not None:
            self._decoder.decode(bytes(held["bytes"]))

    def push(self, token: int) -> str:  # noqa: D102 (the protocol says it)
        return self._decoder.decode(self._bytes_of(token))

    def finish(self) -> str:  # noqa: D102
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest

    def held(self) -> Held:  # noqa: D102
        return {"bytes": list(self._decoder.getstate()[0])}


class WindowStream:
    """A stream of tokens whose text depends on the tokens around them: what the newest add to the text of a few.

    Args:
        decode: the text of tokens.
        context: the tokens before.
        held: of the stream that this one continues, instead of the tokens before.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], context: Sequence[int] = (), held: Held | None = None
    ) -> None:
        self._decode = decode
        self._given = list(context[-_CONTEXT:]) if held is None else list(held["given"])
        self._open = [] if held is None else list(held["open"])

    def push(self, token: int) -> str:  # noqa: D102
        self._open.append(token)
        text = self._new_text()
        if not text or (text.endswith(_REPLACEMENT) and len(self._open) < _MOST_BYTES):
            return ""
        self._given, self._open = [*self._given, *self._open][-_CONTEXT:], []
        return text

    def finish(self) -> str:  # noqa: D102
        text = self._new_text()
        self._given, self._open = [*self._given, *self._open][-_CONTEXT:], []
        return text

    def held(self) -> Held:  # noqa: D102
        return {"given": list(self._given), "open": list(self._open)}

    def _new_text(self) -> str:
        return self._decode([*self._given, *self._open])[len(self._decode(self._given)) :]


class StopStream:
    """Text up to the first of some strings; what may be the beginning of one is held back.

    Args:
        stops: the strings, none empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self.held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Return what of the text so far may be given out."""
        whole = self.held + text
        ends = [end for stop in self._stops if (end := whole.find(stop)) >= 0]
        if ends:
            self.held, self.stopped = "", True
            return whole[: min(ends)]
        kept = max((_overlap(whole, stop) for stop in self._stops), default=0)
        self.held = whole[len(whole) - kept :]
        return whole[: len(whole) - kept]

    def finish(self) -> str:
        """Return what was held back; it is then no longer held."""
        rest, self.held = self.held, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text begin `stop`."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
