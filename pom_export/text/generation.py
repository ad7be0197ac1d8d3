"""Continue a text with a streaming model, such that generation can be stopped and resumed at any point."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pom_export import interrupts
from pom_export.errors import InputError
from pom_export.runtime.pool.pool import StreamPool
from pom_export.runtime.streaming.session import CHUNK, StreamingSession
from pom_export.runtime.streaming.state import State
from pom_export.text.decoding import StopStream
from pom_export.text.notes import Notes, Settings, notes_to_continue
from pom_export.text.tokenizers import Tokenizer

# Reasons for the end of a run, other than exceptions.
ENOUGH: Final = "max_tokens"
STOPPED: Final = "stop"
POSITIONS: Final = "positions"

# Size of the logits in one call of a long prompt, of which only the last token's are used.
_LOGITS_BYTES: Final = 64 * 2**20
_FEWEST: Final = 64


@dataclass(frozen=True)
class _Position:
    """The position of a generation, apart from the model's state.

    Attributes:
        pending: tokens that the model has not processed yet.
        logits: logits after the last processed token, (1, V); None if tokens are pending.
        chosen: number of tokens chosen.
    """

    pending: tuple[int, ...] = ()
    logits: npt.NDArray[Any] | None = None
    chosen: int = 0


class Generation:
    """A text that is being continued. Prompts go in, pieces of text come out, and its state can be saved at any time.

    A termination signal (`pom_export.interrupts`) only interrupts it between two calls of the model. Text that was
    generated but not taken is part of the state, and comes first when the generation continues.

    Args:
        session: a stream of a language model with one row.
        tokenizer: the model's tokenizer.
        settings: how to continue.
        state: the result of `state`, to continue from; the session is set to it.
        inputs: the model's other inputs by name, such as the context of an encoder-decoder, which a stream gets in its
            first call.

    Attributes:
        prompt_tokens: number of tokens processed from prompts and from the state's pending ones.
        prompt_seconds: time that took.
        tokens: number of tokens generated.
        seconds: time to process them and to choose the next, without the time for the prompt.
        ended: "max_tokens", "stop" or "positions" (the model has no more); empty if it has not ended.

    Raises:
        InputError: the session is of another kind, or the state was not saved by a generation or belongs to another
            model.
    """

    def __init__(
        self,
        session: StreamingSession,
        tokenizer: Tokenizer,
        settings: Settings,
        state: State | None = None,
        inputs: Mapping[str, Any] | None = None,
    ) -> None:
        self._session = session
        self._inputs = dict(inputs or {})
        self._tokenizer = tokenizer
        self._settings = settings
        self._vocabulary = vocabulary_of(session)
        if session.batch != 1:
            raise InputError(f"the stream has {session.batch} rows", "A text is one row")
        self._now = _Position()
        self._stream = tokenizer.stream()
        self._stops = StopStream(settings.stop)
        self._ready = ""
        self._begun = state is not None
        self.prompt_tokens, self.prompt_seconds = 0, 0.0
        self.tokens, self.seconds = 0, 0.0
        self.ended = ""
        if state is not None:
            if self._inputs.keys() & session.contexts:
                name = min(self._inputs.keys() & session.contexts)
                raise InputError(f"the state has taken in {name} already", "Leave it out, or start a new text")
            self._continue(state)

    @property
    def settings(self) -> Settings:
        """The settings that the text is continued with."""
        return self._settings

    def prompt(self, text: str) -> None:
        """Append a text, which the model processes when the next token is requested.

        Raises:
            InputError: the model lacks one of its tokens, or positions for them.
        """
        ids = self._tokenizer.encode(text, begins=not self._begun)
        if ids and max(ids) >= self._vocabulary:
            raise InputError(
                f"the tokenizer gives token {max(ids)}, but the model has {self._vocabulary}",
                "Choose the tokenizer that the model was trained with: `tokenizer`",
            )
        pending = (*self._now.pending, *ids)
        most, after = self._session.model.limits.tokens, self._session.length + len(pending)
        if most is not None and after > most:
            raise InputError(f"the prompt ends at token {after}, but the model has {most} positions", "Shorten it")
        if ids:
            self._begun = True
            # What was held back is followed by the prompt, and so is no longer the beginning of anything.
            self.finish()
            self._stream = self._tokenizer.stream(ids)
            self._stops = StopStream(self._settings.stop)
            self._now = replace(self._now, pending=pending, logits=None)

    def read(self) -> None:
        """Process the pending tokens, in parts if there are many.

        Raises:
            InputError: there is nothing to continue from, or the model cannot be run.
        """
        if not self._now.pending and self._now.logits is None:
            raise InputError("the prompt is empty", "Give at least one character")
        most = max(min(CHUNK, _LOGITS_BYTES // (4 * self._vocabulary)), _FEWEST)
        most = min(most, self._session.most_tokens or most)
        while self._now.pending:
            interrupts.check()
            self._give(most)
        interrupts.check()

    def _give(self, most: int) -> None:
        started = time.perf_counter()
        part, rest = self._now.pending[:most], self._now.pending[most:]
        # The stream and the position change together.
        with interrupts.held():
            ids = np.array([part], dtype=np.int64)
            its = self._session.inputs_of_call(self._inputs)
            one = len(part) == 1
            logits = self._session.step(ids, **its) if one else self._session.prefill(ids, **its)[:, -1].copy()
            self._now = replace(self._now, pending=rest, logits=None if rest else logits)
        if self.tokens:
            self.seconds += time.perf_counter() - started
        else:
            self.prompt_tokens += len(part)
            self.prompt_seconds += time.perf_counter() - started

    def advance(self, most: int) -> bool:
        """Generate a token; return False if the text has ended instead.

        Args:
            most: the text ends when this many tokens have been generated.

        Raises:
            InputError: as for `read`, or the logits are not finite.
        """
        if self.tokens >= most or self._stops.stopped:
            self.ended = STOPPED if self._stops.stopped else ENOUGH
            return False
        positions = self._session.model.limits.tokens
        if positions is not None and self._session.length + len(self._now.pending) > positions:
            self.ended = POSITIONS
            return False
        self.read()
        started = time.perf_counter()
        with interrupts.held():
            assert self._now.logits is not None
            known = self._now.logits[:, : self._tokenizer.size]
            token = int(self._settings.sampling.choose(known, self._now.chosen)[0])
            self._now = _Position((token,), None, self._now.chosen + 1)
            self._ready += self._stops.push(self._stream.push(token))
            self.tokens += 1
        self.seconds += time.perf_counter() - started
        return True

    def take(self) -> str:
        """Return the complete text that has not been taken yet; it may be empty."""
        ready, self._ready = self._ready, ""
        return ready

    def finish(self) -> None:
        """Release what is held back: the beginning of a character, or of a string that ends the text."""
        self._ready += self._stops.push(self._stream.finish()) + self._stops.finish()

    def state(self) -> State:
        """Return the state for saving: the model's state, the tokens that it has not processed, and the settings."""
        notes = Notes(
            settings=self._settings,
            pending=self._now.pending,
            logits=self._now.logits,
            chosen=self._now.chosen,
            stream=self._stream.held(),
            held=self._stops.held,
            ready=self._ready,
        )
        return notes.added_to(self._session.snapshot())

    def _continue(self, state: State) -> None:
        notes = notes_to_continue(state, self._settings, self._tokenizer, self._vocabulary)
        self._session.restore(state)
        self._now = _Position(notes.pending, notes.logits, notes.chosen)
        self._stream = self._tokenizer.stream(held=notes.stream)
        # The held text may contain other stops, or no beginning of one.
        self._ready = notes.ready + self._stops.push(notes.held)


def vocabulary_of(source: StreamingSession | StreamPool) -> int:
    """Return the size of a streaming language model's vocabulary.

    Raises:
        InputError: the model takes no token ids, or does not say how many there are.
    """
    model = source.model
    if not source.takes_ids:
        raise InputError(f"{model.path.name} takes no token ids", "Only a language model generates text")
    if source.tokens.name not in model.limits.values:
        raise InputError(f"{model.path.name} does not say how many tokens it has", "Export it again")
    return int(model.limits.values[source.tokens.name][0])
