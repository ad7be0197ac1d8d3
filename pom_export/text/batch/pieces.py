"""Turn a text's tokens into pieces that can be shown, each with the tokens that it is made of."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from pom_export.text.batch.logprobs import Likeliest
from pom_export.text.decoding import Held, StopStream, TextStream


@dataclass(frozen=True)
class Token:
    """A token of a text.

    Attributes:
        id: its number.
        offset: where its text begins, in characters from the beginning of the answer (or of the prompt).
        logprob: the logarithm of its probability by the model, before temperature, top-k and top-p; None if it was not
            asked for, or if nothing precedes the token.
        likeliest: the likeliest tokens in its place and their logprobs, the likeliest first.
    """

    id: int
    offset: int
    logprob: float | None = None
    likeliest: Likeliest = ()


@dataclass(frozen=True)
class Piece:
    """A part of a text.

    Attributes:
        text: the text; it may be empty, at the end.
        tokens: the tokens that it is made of. What is held back, since it may be the beginning of a stop, comes with
            its tokens later.
    """

    text: str
    tokens: tuple[Token, ...]


class Pieces:
    """The pieces of a text, from its tokens.

    One thread adds tokens and publishes the pieces that they make, another may take those.

    Args:
        stream: turns tokens into text.
        stops: strings that end the text and are not part of it.
        ready: text of an earlier answer that was not shown.
        held: the end of an earlier answer that may be the beginning of a stop.
    """

    def __init__(self, stream: TextStream, stops: Sequence[str], ready: str = "", held: str = "") -> None:
        self._stream = stream
        self._stops = StopStream(stops)
        self._held: list[Token] = []
        self._decoded, self._shown = len(held), 0
        self._new: list[Piece] = []
        self._published: deque[Piece] = deque([Piece(ready, ())] if ready else [])
        self._show(self._stops.push(held), last=False)

    @property
    def shown(self) -> int:
        """Number of characters of the tokens' text that may be shown."""
        return self._shown

    @property
    def decoded(self) -> int:
        """Number of characters of the tokens' text, with those that are held back."""
        return self._decoded

    @property
    def holding(self) -> bool:
        """Whether anything is held back: the beginning of a character, or of a stop."""
        return bool(self._held or self._stops.held)

    @property
    def stopped(self) -> bool:
        """Whether one of the stops has come."""
        return self._stops.stopped

    @property
    def held(self) -> Held:
        """What the stream of text needs to continue from here."""
        return self._stream.held()

    def push(self, token: int, logprob: float | None = None, likeliest: Likeliest = (), *, silent: bool = False) -> str:
        """Add a token, and return the text that it completes, whether or not it may be shown.

        Args:
            token: see `Token`.
            logprob: see there.
            likeliest: see there.
            silent: whether to make no piece of what may be shown, since it has been shown already.
        """
        self._held.append(Token(token, self._decoded, logprob, likeliest))
        text = self._stream.push(token)
        self._decoded += len(text)
        self._show(self._stops.push(text), last=self.stopped, silent=silent)
        return text

    def finish(self) -> None:
        """Release what is held back: the beginning of a character, or of a stop."""
        if not self.stopped:
            self._show(self._stops.push(self._stream.finish()) + self._stops.finish(), last=True)

    def publish(self) -> None:
        """Let the new pieces be taken."""
        self._published += self._new
        self._new.clear()

    def unpublished(self) -> list[Piece]:
        """Return the new pieces, which are then nobody else's."""
        new, self._new = self._new, []
        return new

    def take(self) -> list[Piece]:
        """Return the published pieces that have not been taken yet."""
        pieces = []
        while self._published:
            pieces.append(self._published.popleft())
        return pieces

    def _show(self, text: str, *, last: bool, silent: bool = False) -> None:
        self._shown += len(text)
        if not (text or last):
            return
        tokens = tuple(self._held)
        if self.stopped:
            tokens = tuple(token for token in tokens if token.offset < self._shown)
        self._held.clear()
        if (text or tokens) and not silent:
            self._new.append(Piece(text, tokens))
