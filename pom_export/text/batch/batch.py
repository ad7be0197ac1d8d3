"""Continue many texts at once: their tokens are computed in the same calls of the model, and sampled together."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pom_export.errors import InputError
from pom_export.runtime.pool.pool import Answers, StreamPool
from pom_export.runtime.pool.stream import PoolStream
from pom_export.runtime.streaming.state import State
from pom_export.text.batch.logprobs import Logprob, logprobs_of
from pom_export.text.batch.pieces import Pieces
from pom_export.text.batch.text import CLOSED, FAILED, Prompt, Text, Wanted
from pom_export.text.generation import ENOUGH, vocabulary_of
from pom_export.text.notes import Notes, Settings, notes_to_continue
from pom_export.text.sampling import choose_each
from pom_export.text.tokenizers import Tokenizer
from pom_export.values import is_whole

Array = npt.NDArray[Any]
# Size of the logits of the piece of a prompt whose tokens' logprobs are wanted.
_SCORED_BYTES: Final = 16 * 2**20
# Tokens of a prompt that the text after it may depend on: more than any stream of text keeps.
_CONTEXT: Final = 64


class TextBatch:
    """Continues many texts of one language model, each as it would be continued alone.

    The tokens of a text are those that `Generation` (`pom-export generate`) chooses with the same settings, whatever
    other texts come and go; see `StreamPool` for how their calls are shared. Texts are started and closed at any time,
    in any thread; one thread ticks:

        batch = TextBatch(pool := StreamPool("stream.onnx"), choose_tokenizer("bytes", 256))
        text = batch.start("Once upon a time", Settings(Sampling(seed=1), "bytes"), most=100)
        while not text.ended:
            batch.read(pool.tick())
            print("".join(piece.text for piece in text.take()), end="")

    Args:
        pool: the streams of the model, which others may use too.
        tokenizer: the model's tokenizer.
        ends: tokens that end every text, and are no part of it.

    Attributes:
        vocabulary: number of token ids that the model has.

    Raises:
        InputError: the model takes no token ids.
    """

    def __init__(self, pool: StreamPool, tokenizer: Tokenizer, *, ends: Collection[int] = ()) -> None:
        self.vocabulary = vocabulary_of(pool)
        self._pool = pool
        self._tokenizer = tokenizer
        self._ends = frozenset(ends)
        self._texts: dict[PoolStream, Text] = {}
        self._lock = threading.RLock()

    def start(
        self,
        prompt: str | Sequence[int] | Array,
        settings: Settings,
        *,
        most: int,
        state: State | None = None,
        chosen: Sequence[int] = (),
        logprobs: int | None = None,
        prompt_logprobs: bool = False,
        keep: bool = False,
        anew: bool = False,
    ) -> Text:
        """Start a text.

        Args:
            prompt: a text, or token ids. With a state, it may be empty.
            settings: how it is continued; the tokenizer is always this object's.
            most: the most tokens to choose; 0 only reads the prompt.
            state: what the prompt follows: the state of an ended text, or of a `Generation`.
            chosen: tokens of the answer that another process has chosen. The text goes on after them as it would have
                there, with the same settings; its pieces begin with what was not shown there.
            logprobs: with each token, its logprob and those of so many of the likeliest tokens; None: none.
            prompt_logprobs: whether to give those of the prompt's tokens too, as `Text.prompt`.
            keep: whether the text's `state` is kept when it ends.
            anew: whether random numbers are those of a text that begins here; otherwise they go on after those of the
                state's text, if that had the same seed.

        Raises:
            InputError: the prompt is empty or does not fit the model, or the state is another model's.
            PoolFullError: the pool has no place for another stream, or for so many tokens.
        """
        wanted = [self._wanted(settings, most, logprobs, keep=keep)]
        notes = None
        if state is not None:
            notes = notes_to_continue(state, wanted[0].settings, self._tokenizer, self.vocabulary)
            notes = replace(notes, chosen=0) if anew else notes
        ids = self._ids(prompt, begins=state is None)
        return self._open(ids, wanted, state, notes, chosen, scored=prompt_logprobs)[0]

    def start_several(
        self,
        prompt: str | Sequence[int] | Array,
        settings: Sequence[Settings],
        *,
        most: int,
        logprobs: int | None = None,
        prompt_logprobs: bool = False,
    ) -> list[Text]:
        """Start several texts with the same prompt, which is read once; see `start`.

        Args:
            prompt: see `start`.
            settings: how each is continued. To vary only the seed, see `Sampling.variant`.
            most: see `start`; each has as many.
            logprobs: see `start`.
            prompt_logprobs: see `start`.

        Raises:
            InputError: as for `start`.
            PoolFullError: the pool has no place for so many streams, or for so many tokens.
        """
        wanted = [self._wanted(each, most, logprobs, keep=False) for each in settings]
        return self._open(self._ids(prompt, begins=True), wanted, None, None, (), scored=prompt_logprobs)

    def read(self, answers: Answers) -> list[Text]:
        """Choose the next token of each of its texts that the model has answered, and have it read.

        Args:
            answers: what `StreamPool.tick` returned; streams of others are left alone.

        Returns:
            The texts with news: pieces, or an end.
        """
        texts: list[Text] = []
        rows: list[int] = []
        with self._lock:
            for row, stream in enumerate(answers.streams):
                text = self._texts.get(stream)
                if text is not None and self._has_read(text, answers):
                    texts.append(text)
                    # Those that share its prompt go on from the same logits.
                    if text.followers:
                        texts += self._followers(text)
                    rows += [row] * (len(texts) - len(rows))
        # Usually they are all of them, and need not be copied.
        everything = rows == list(range(len(answers.streams)))
        self._advance(texts, answers.outputs if everything else answers.outputs[rows])
        return texts

    def fail(self, error: Exception, streams: Collection[PoolStream]) -> list[Text]:
        """End those of its texts that have one of these streams, as their call has failed; return them."""
        with self._lock:
            texts = [self._texts[stream] for stream in streams if stream in self._texts]
            texts += [follower for text in texts for follower in text.followers]
            for text in texts:
                text.error = error
                self._end(text, FAILED)
            return texts

    def close(self, text: Text) -> None:
        """Do what `Text.close` says."""
        with self._lock:
            if text.ended:
                return
            self._hand_over(text)
            self._end(text, CLOSED)

    def _ids(self, prompt: str | Sequence[int] | Array, *, begins: bool) -> Array:
        """Return the token ids of a prompt, (tokens,) int64."""
        if isinstance(prompt, str):
            ids = np.array(self._tokenizer.encode(prompt, begins=begins), np.int64)
            if ids.max(initial=0) >= self.vocabulary:
                raise InputError(
                    f"the tokenizer gives token {ids.max()}, but the model has {self.vocabulary}",
                    "Choose the tokenizer that the model was trained with: `tokenizer`",
                )
            return ids
        most = min(self.vocabulary, self._tokenizer.size)
        # Not one by one, which would keep the thread that ticks from it.
        try:
            given = np.asarray(prompt)
        except ValueError:  # lists of different lengths
            given = np.array([None])
        if not given.size:
            return np.empty(0, np.int64)
        well = given.dtype.kind in "iu" and given.ndim == 1
        wrong = given[(given < 0) | (given >= most)].tolist() if well else [_not_an_id(prompt)]
        if wrong:
            raise InputError(f"{wrong[0]!r} is not one of the model's {most} tokens", "Choose another")
        return given.astype(np.int64)

    def _wanted(self, settings: Settings, most: int, logprobs: int | None, *, keep: bool) -> Wanted:
        for name, value in (("most", most), ("logprobs", 0 if logprobs is None else logprobs)):
            if not (is_whole(value) and value >= 0):
                raise InputError(f"{name} is {value!r}, not a whole number of at least 0", "Choose another")
        settings = replace(settings, tokenizer=self._tokenizer.name)
        return Wanted(settings, most, self._ends, self._pool.model.limits.tokens, logprobs, keep)

    def _open(
        self,
        ids: Array,
        wanted: Sequence[Wanted],
        state: State | None,
        notes: Notes | None,
        chosen: Sequence[int],
        *,
        scored: bool,
    ) -> list[Text]:
        """Return texts in streams of their own, of which the first reads the prompt."""
        texts: list[Text] = []
        try:
            for each in wanted:
                stream = self._pool.open(state)
                pieces = self._pieces(ids, each, notes)
                number = 0 if notes is None else notes.chosen
                texts.append(Text(self, stream, self._tokenizer, each, pieces, number))
                texts[-1].prompt_tokens = len(ids)
            first = texts[0]
            resumed: tuple[int, ...] = ()
            if len(chosen):
                elsewhere = self._ids(chosen, begins=False).tolist()
                resumed = first.resume(elsewhere, self._pieces(ids, wanted[0], notes))
            pending = () if notes is None else notes.pending
            read = np.concatenate([np.array(pending, np.int64), ids, np.array(resumed, np.int64)])
            self._begin(texts, read, notes, scored=scored)
        except BaseException:
            for text in texts:
                self._end(text, FAILED)
            raise
        return texts

    def _pieces(self, ids: Array, wanted: Wanted, notes: Notes | None) -> Pieces:
        """Return the pieces of a text that follows a prompt, or only a state."""
        context = ids[-_CONTEXT:].tolist()
        if notes is None:
            return Pieces(self._tokenizer.stream(context), wanted.settings.stop)
        if not context:
            stream = self._tokenizer.stream(held=notes.stream)
            return Pieces(stream, wanted.settings.stop, notes.ready, notes.held)
        # What was held back is followed by the prompt, and so is no longer the beginning of anything.
        rest = self._tokenizer.stream(held=notes.stream).finish()
        return Pieces(self._tokenizer.stream(context), wanted.settings.stop, notes.ready + notes.held + rest)

    def _begin(self, texts: list[Text], read: Array, notes: Notes | None, *, scored: bool) -> None:
        first, most = texts[0], self._pool.model.limits.tokens
        after = first.stream.length + len(read)
        if not len(read) and (notes is None or notes.logits is None):
            raise InputError("the prompt is empty", "Give at least one character")
        if most is not None and after > most:
            raise InputError(f"the prompt ends at token {after}, but the model has {most} positions", "Shorten it")
        with self._lock:
            first.followers = texts[1:]
            self._texts[first.stream] = first
            if len(read):
                first.reading = Prompt(read, scored)
                self._give(first, first.reading)
                return
        assert notes is not None
        assert notes.logits is not None
        self._advance([first], notes.logits)

    def _give(self, text: Text, reading: Prompt) -> None:
        """Have the next piece of a prompt read, or all of it if only what follows it matters."""
        count = max(1, _SCORED_BYTES // (4 * self.vocabulary)) if reading.scored else len(reading.ids)
        piece = reading.ids[reading.given : reading.given + count]
        text.stream.give(piece, every=reading.scored)
        reading.given += len(piece)

    def _has_read(self, text: Text, answers: Answers) -> bool:
        """Return whether a text's prompt has been read to its end."""
        reading = text.reading
        if reading is None:
            return True
        if reading.scored:
            outputs = self._known(answers.every[text.stream])
            done = len(reading.logprobs)
            following = reading.ids[done + 1 : done + 1 + len(outputs)]
            reading.logprobs += logprobs_of(outputs[: len(following)], following, text.wanted.logprobs or 0)
            if reading.given < len(reading.ids):
                try:
                    self._give(text, reading)
                except InputError as error:
                    self.fail(error, [text.stream])
                return False
            self._tell_prompt(text, reading)
        text.reading = None
        return True

    def _tell_prompt(self, text: Text, reading: Prompt) -> None:
        pieces = Pieces(self._tokenizer.stream(), ())
        for token, logprob in zip(reading.ids.tolist(), (None, *reading.logprobs), strict=True):
            pieces.push(token, *(logprob or ()))
        pieces.finish()
        text.prompt = tuple(token for piece in pieces.unpublished() for token in piece.tokens)

    def _followers(self, text: Text) -> list[Text]:
        """Return the texts that waited for a prompt to be read, each in a stream that has read it as well."""
        followers = [follower for follower in text.followers if not follower.ended]
        for follower in followers:
            text.stream.fork(follower.stream)
            self._texts[follower.stream] = follower
            follower.prompt = text.prompt
        text.followers = []
        return followers

    def _known(self, logits: Array) -> Array:
        """Return the logits of the tokens that the tokenizer has."""
        return logits if logits.shape[-1] <= self._tokenizer.size else logits[..., : self._tokenizer.size]

    def _advance(self, texts: Sequence[Text], logits: Array) -> None:
        """Add a token to each of some texts, given the logits that it is chosen by (texts, V)."""
        rows = [row for row, text in enumerate(texts) if text.wanted.most]
        tokens = self._choose([texts[row] for row in rows], logits if len(rows) == len(texts) else logits[rows])
        known = self._known(logits)
        logprobs = _logprobs(texts, known, dict(zip(rows, tokens, strict=True)))
        with self._lock:
            going: list[PoolStream] = []
            read: list[int] = []
            for row, token in zip(rows, tokens, strict=True):
                text = texts[row]
                if token is not None and self._add(text, token, logits[row], logprobs.get(row)):
                    going.append(text.stream)
                    read.append(token)
            for row, text in enumerate(texts):
                if not (text.wanted.most or text.ended):
                    text.end(ENOUGH, logits=logits[row])
                if text.ended:
                    self._texts.pop(text.stream, None)
            self._pool.step(going, np.array(read, np.int64))

    def _add(self, text: Text, token: int, logits: Array, logprob: Logprob | None) -> bool:
        """Add a token to a text, unless it was closed meanwhile; return whether it goes on."""
        try:
            return not text.ended and text.add(token, logits, logprob)
        except InputError as error:  # of its tokenizer
            self.fail(error, [text.stream])
            return False

    def _choose(self, texts: Sequence[Text], logits: Array) -> list[int | None]:
        """Return the next token of each text; None for one that has failed."""
        known = self._known(logits)
        samplings = [text.wanted.settings.sampling for text in texts]
        try:
            tokens = choose_each(known, samplings, [text.number for text in texts]).tolist() if texts else []
        except InputError as error:
            if len(texts) == 1:
                self.fail(error, [texts[0].stream])
                return [None]
            # Only those whose logits are bad fail.
            return [token for row, text in enumerate(texts) for token in self._choose([text], logits[row : row + 1])]
        return [text.next_token(token) for text, token in zip(texts, tokens, strict=True)]

    def _end(self, text: Text, reason: str) -> None:
        with self._lock:
            text.end(reason)
            self._texts.pop(text.stream, None)

    def _hand_over(self, text: Text) -> None:
        """Let another text that waits for the same prompt go on with reading it."""
        followers = [follower for follower in text.followers if not follower.ended]
        text.followers = []
        if followers:
            heir = followers[0]
            heir.stream, text.stream = text.stream, heir.stream
            heir.followers, heir.reading = followers[1:], text.reading
            self._texts[heir.stream] = heir


def _not_an_id(prompt: Sequence[int] | Array) -> Any:
    """Return the first entry that is no whole number, or else the largest, of a prompt that no array of ids holds."""
    for entry in prompt:
        if not is_whole(entry):
            return entry
    return max(prompt)


def _logprobs(texts: Sequence[Text], logits: Array, tokens: Mapping[int, int | None]) -> dict[int, Logprob]:
    """Return the logprobs of those tokens whose texts want them, by row."""
    rows = [row for row, token in tokens.items() if token is not None and texts[row].wanted.logprobs is not None]
    found: dict[int, Logprob] = {}
    for row in rows:
        count = texts[row].wanted.logprobs
        found[row] = logprobs_of(logits[row : row + 1], np.array([tokens[row]]), count or 0)[0]
    return found
