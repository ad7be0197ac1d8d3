"""Decode tokens incrementally: a character made of several tokens appears whole, with the last of them."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

# Tokens that have not been output yet, or that are needed for the output that follows; JSON values.
Held = Mapping[str, list[int]]

# What stands for bytes that are no character.
REPLACEMENT: Final = "\ufffd"
# UTF-8 uses at most four bytes per character: as many bytes that are not a character never become one.
_MOST_BYTES: Final = 4
# Tokens kept before a piece. With fewer, a tokenizer may treat the piece as the beginning of a text.
_CONTEXT: Final = 8


class TextStream(Protocol):
    """Turns tokens into text, one at a time."""

    def push(self, token: int) -> str:
        """Return the text that a token completes; it may be empty."""

    def finish(self) -> str:
        """Return and release the remaining text, with U+FFFD for an incomplete character."""

    def held(self) -> Held:
        """Return what a stream needs to continue from here."""


class BytesStream:
    """A stream of tokens that stand for UTF-8 bytes.

    Args:
        bytes_of: returns the bytes of a token.
        held: what the stream that this one continues returned from `held`.
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
    """A stream of tokens whose text depends on their neighbours: what the newest token adds to the last few's text.

    Args:
        decode: returns the text of tokens.
        context: the preceding tokens.
        held: what the stream that this one continues returned from `held`, instead of the context.
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
        if not text or (text.endswith(REPLACEMENT) and len(self._open) < _MOST_BYTES):
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
    """Text up to the first of several strings; anything that may be the beginning of one is held back.

    Args:
        stops: the strings, none of them empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self.held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Add text, and return the part that may be output: none after a stop."""
        if self.stopped:
            return ""
        if not self._stops:
            return text
        whole = self.held + text
        ends = [end for stop in self._stops if (end := whole.find(stop)) >= 0]
        if ends:
            self.held, self.stopped = "", True
            return whole[: min(ends)]
        kept = max((_overlap(whole, stop) for stop in self._stops), default=0)
        self.held = whole[len(whole) - kept :]
        return whole[: len(whole) - kept]

    def finish(self) -> str:
        """Return and release the text that was held back."""
        rest, self.held = self.held, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text are the beginning of `stop`."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
