"""One of the texts that a `TextBatch` continues."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from pom_export.runtime.pool.stream import PoolStream
from pom_export.runtime.streaming.state import State
from pom_export.text.batch.before_stop import Since
from pom_export.text.batch.logprobs import Logprob
from pom_export.text.batch.pieces import Piece, Pieces, Token
from pom_export.text.generation import ENOUGH, POSITIONS, STOPPED
from pom_export.text.notes import Notes, Settings
from pom_export.text.tokenizers import Tokenizer

Array = npt.NDArray[Any]
# What ends a text, besides the reasons that end a generation.
CLOSED: Final = "closed"
FAILED: Final = "error"


class Owner(Protocol):
    """What continues a text."""

    def close(self, text: Text) -> None: ...  # noqa: D102 (as `Text.close`)


@dataclass(frozen=True)
class Wanted:
    """What is wanted of a text.

    Attributes:
        settings: how to continue.
        most: the most tokens.
        ends: tokens that end it.
        positions: the most tokens that the model reads; None: any number.
        logprobs: how many of the likeliest tokens to give with each token and their logprobs; None: no logprobs.
        keep: whether its state is kept when it ends.
    """

    settings: Settings
    most: int
    ends: Collection[int]
    positions: int | None
    logprobs: int | None
    keep: bool


@dataclass
class Prompt:
    """What is read before a text's first token is chosen.

    Attributes:
        ids: the tokens, (tokens,) int64.
        scored: whether their logprobs are wanted.
        given: how many of them the stream has been given.
        logprobs: of those after the first, as far as they are read.
    """

    ids: Array
    scored: bool
    given: int = 0
    logprobs: list[Logprob] = field(default_factory=list)


class Text:
    """A text that a `TextBatch` continues, which creates it: see there. It may be used in any thread.

    Attributes:
        prompt_tokens: number of tokens of the prompt, without what the state had read that it continues from.
        prompt: the prompt's tokens with their logprobs, once they are read, if they were asked for.
        tokens: number of tokens chosen.
        ended: "max_tokens", "stop" (a stop text, or a token that ends texts), "positions" (the model has no more),
            "closed" or "error"; empty if it has not ended.
        error: what went wrong, if something did.
        state: the state after the answer, if it was asked for, once the text has ended: that of the answer's text and
            no more, so that a stop text or a token that ended it can follow or not. A `TextBatch` or a `Generation`
            continues from it.
        kept: the answer's tokens that are in the state, read or noted to be read next.
    """

    def __init__(
        self, owner: Owner, stream: PoolStream, tokenizer: Tokenizer, wanted: Wanted, pieces: Pieces, number: int
    ) -> None:
        self.prompt_tokens = 0
        self.prompt: tuple[Token, ...] = ()
        self.tokens = 0
        self.ended = ""
        self.error: Exception | None = None
        self.state: State | None = None
        self.kept: tuple[int, ...] = ()
        self.stream = stream
        self.wanted = wanted
        self.number = number
        self.forced: deque[int] = deque()
        self.followers: list[Text] = []
        self.reading: Prompt | None = None
        self._owner = owner
        self._tokenizer = tokenizer
        self._pieces = pieces
        self._last: list[Piece] = []
        self._chosen: list[int] = []
        self._since: Since | None = None

    @property
    def spared_tokens(self) -> int:
        """Number of the prompt's tokens that were not read, since the pool had kept the state after them."""
        return self.stream.spared

    def take(self) -> list[Piece]:
        """Return the pieces that have not been taken yet. Those of the last token come once the text has ended."""
        ended, pieces = self.ended, self._pieces.take()
        if ended:
            pieces += self._last
            self._last = []
        return pieces

    def close(self) -> None:
        """End the text, at any time: its place is free for another at once."""
        self._owner.close(self)

    def resume(self, chosen: Sequence[int], trial: Pieces) -> tuple[int, ...]:
        """Go on after tokens that were chosen elsewhere, and return those of them to read with the prompt.

        The others end the text or are held back: they are `forced`, one by one, so that what depends on them is done.

        Args:
            chosen: the tokens.
            trial: pieces of the same beginning as the text's own.
        """
        count = 0
        for place, token in enumerate(chosen, 1):
            if token in self.wanted.ends or place >= self.wanted.most:
                break
            trial.push(token)
            if trial.stopped:
                break
            if not trial.holding:
                count = place
        for token in chosen[:count]:
            self._pieces.push(token, silent=True)
        self.tokens, self.number = count, self.number + count
        self._chosen += chosen[:count]
        self.forced += chosen[count:]
        return tuple(chosen[:count])

    def next_token(self, chosen: int) -> int:
        """Return the text's next token: the one that was chosen, or the next of those that were chosen elsewhere."""
        return self.forced[0] if self.forced else chosen

    def add(self, token: int, logits: Array, logprob: Logprob | None) -> bool:
        """Add a token; return whether the text goes on, so that the stream reads it.

        Args:
            token: the token that `next_token` returned.
            logits: the logits that it was chosen by, (V,).
            logprob: its logprob and the likeliest tokens'.
        """
        self.tokens, self.number = self.tokens + 1, self.number + 1
        silent = bool(self.forced)
        if silent:
            self.forced.popleft()
        if token in self.wanted.ends:
            self.end(STOPPED, (), logits)
            return False
        self._chosen.append(token)
        start = self._pieces.decoded
        text = self._pieces.push(token, *(logprob or ()), silent=silent)
        if self.wanted.keep and self.wanted.settings.stop:
            self._note_since(token, start, text, logits)
        if self._pieces.stopped:
            self.end(STOPPED, (token,))
        elif self.tokens >= self.wanted.most:
            self.end(ENOUGH, (token,))
        elif self.wanted.positions is not None and self.stream.length + 1 > self.wanted.positions:
            self.end(POSITIONS, (token,))
        else:
            self._pieces.publish()
        return not self.ended

    def end(self, reason: str, pending: tuple[int, ...] = (), logits: Array | None = None) -> None:
        """End the text.

        Args:
            reason: what ended it.
            pending: tokens that the stream has not read.
            logits: the logits after the last token that it has read (V,), if none are pending.
        """
        if reason not in (CLOSED, FAILED):
            self._pieces.finish()
            if self.wanted.keep:
                self.state = self._state(pending, logits)
            self._last = self._pieces.unpublished()
        self.stream.close()
        self.ended = reason

    def _note_since(self, token: int, start: int, text: str, logits: Array) -> None:
        """Keep the state before text that may belong to a stop."""
        if not (self._pieces.holding or self._pieces.stopped):
            self._since = None
            return
        if self._since is None:
            self._since = Since(self.stream.snapshot(), logits[np.newaxis].copy(), len(self._chosen) - 1, start)
        self._since.tokens.append((token, start))
        self._since.text += text

    def _state(self, pending: tuple[int, ...], logits: Array | None) -> State:
        since = self._since
        if not self._pieces.stopped or since is None:
            self.kept, held, model = tuple(self._chosen), self._pieces.held, self.stream.snapshot()
            row = None if logits is None else logits[np.newaxis].copy()
        else:
            pending = since.shown_tokens(self._pieces.shown, lambda text: self._tokenizer.encode(text, begins=False))
            self.kept, model = (*self._chosen[: since.before], *pending), since.state
            held, row = self._tokenizer.stream(self.kept).held(), None if pending else since.logits
        return Notes(self.wanted.settings, pending, row, self.number, held, held="", ready="").added_to(model)
