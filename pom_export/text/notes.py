"""Read and write what a saved generation stores besides the model's state, strictly."""

from __future__ import annotations

import reprlib
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final, NoReturn

import numpy as np
import numpy.typing as npt

from pom_export.errors import InputError
from pom_export.runtime.streaming.state import State
from pom_export.text.decoding import Held
from pom_export.text.sampling import Sampling
from pom_export.text.tokenizers import Tokenizer

Array = npt.NDArray[Any]

_NOTES: Final = "generate"
_LOGITS: Final = "logits"
_PENDING: Final = "pending"
_MOST_STOPS: Final = 1000
_LONGEST_STOPS: Final = 65_536
_LONGEST_NAME: Final = 4096
# The longest text that was not taken yet, which is all of it if a run that prints JSON was interrupted.
_LONGEST_TEXT: Final = 2**26
# The most tokens held by a stream of text, which are few unless they produce no text.
_MOST_HELD: Final = 65_536
_MOST_PARTS: Final = 2
_MOST_CHOSEN: Final = 2**63 - 1
_HINT: Final = "Is the file damaged? Start over"


@dataclass(frozen=True)
class Settings:
    """The settings of a generation, which are saved in its state.

    Attributes:
        sampling: how tokens are chosen.
        tokenizer: its name, for `choose_tokenizer`.
        stop: strings that end the text and are not part of it: at most 1,000, with 65,536 characters in total.

    Raises:
        InputError: a stop text is empty, or there are too many.
    """

    sampling: Sampling
    tokenizer: str
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if "" in self.stop:
            raise InputError("a stop text is empty", "Give at least one character")
        if len(self.stop) > _MOST_STOPS or sum(map(len, self.stop)) > _LONGEST_STOPS:
            raise InputError(
                f"there are {len(self.stop)} stop texts of {sum(map(len, self.stop))} characters",
                f"Give at most {_MOST_STOPS}, of {_LONGEST_STOPS} in total",
            )


@dataclass(frozen=True)
class Notes:
    """The position of a generation, apart from the model's state.

    Attributes:
        settings: the settings that it was continued with.
        pending: tokens that the model has not processed yet.
        logits: logits after the last processed token, (1, V); None if tokens are pending.
        chosen: number of tokens chosen.
        stream: what the stream of text holds.
        held: the beginning of a stop.
        ready: text that was not taken.
    """

    settings: Settings
    pending: tuple[int, ...]
    logits: Array | None
    chosen: int
    stream: Held
    held: str
    ready: str

    def added_to(self, snapshot: State) -> State:
        """Return a model's state with these notes added."""
        notes = {
            "chosen": self.chosen,
            "stream": dict(self.stream),
            "held": self.held,
            "ready": self.ready,
            "settings": asdict(self.settings),
        }
        extras = {_PENDING: np.array(self.pending, np.int64)}
        if self.logits is not None:
            extras[_LOGITS] = np.array(self.logits)
        return replace(snapshot, notes={_NOTES: notes}, extras=extras)


def read_notes(state: State) -> Notes:
    """Return the notes written by `Notes.added_to`.

    Raises:
        InputError: the state was not saved by a generation, or a value has another type or is out of range.
    """
    notes = state.notes.get(_NOTES)
    wanted = {field.name for field in fields(Notes)} - {_PENDING, _LOGITS}
    if not isinstance(notes, dict) or notes.keys() != wanted or _PENDING not in state.extras:
        raise InputError("the state was not saved by generate", "Save it with `save_state`")
    settings = _settings(notes["settings"])
    held = _text(notes["held"], "held text", _LONGEST_STOPS)
    if held and not any(stop.startswith(held) and stop != held for stop in settings.stop):
        _refuse("held text", held, "the beginning of a stop")
    return Notes(
        settings=settings,
        pending=_pending(state.extras[_PENDING]),
        logits=_logits(state.extras.get(_LOGITS)),
        chosen=_whole(notes["chosen"], "number of chosen tokens", _MOST_CHOSEN),
        stream=_stream(notes["stream"]),
        held=held,
        ready=_text(notes["ready"], "text", _LONGEST_TEXT),
    )


def _settings(given: Any) -> Settings:
    named = given.get("sampling") if isinstance(given, dict) else None
    known = {field.name for field in fields(Sampling)}
    if not isinstance(named, dict) or named.keys() != known or given.keys() != {f.name for f in fields(Settings)}:
        raise InputError("the state's settings have another version", "Start over")
    stop = given["stop"]
    # It is a tuple in a state that was never saved.
    if not isinstance(stop, (list, tuple)) or len(stop) > _MOST_STOPS:
        _refuse("stops", stop, f"a list of at most {_MOST_STOPS} strings")
    try:
        sampling = Sampling(**named)
        stops = tuple(_text(text, "stop", _LONGEST_STOPS) for text in stop)
        return Settings(sampling, _text(given["tokenizer"], "tokenizer", _LONGEST_NAME), stops)
    except InputError as error:
        raise InputError(f"the state's settings are damaged: {error.what.replace('`', '')}", _HINT) from error


def _stream(given: Any) -> Held:
    if not isinstance(given, dict) or len(given) > _MOST_PARTS:
        _refuse("held tokens", given, "a stream's")
    for name, tokens in given.items():
        if not isinstance(tokens, list) or len(tokens) > _MOST_HELD:
            _refuse(f"held {name}", tokens, f"a list of at most {_MOST_HELD} tokens")
        for token in tokens:
            _whole(token, f"held {name}", 2**31 - 1)
    return given


def _pending(tokens: Array) -> tuple[int, ...]:
    if tokens.dtype != np.int64 or tokens.ndim != 1 or (tokens < 0).any():
        _refuse("pending", tokens, "a row of tokens")
    return tuple(tokens.tolist())


def _logits(logits: Array | None) -> Array | None:
    if logits is None:
        return None
    if not (logits.dtype.kind == "f" or logits.dtype.name == "bfloat16") or logits.shape != (1, logits.size):
        _refuse("logits", logits, "one row of numbers")
    return logits


def _whole(value: Any, name: str, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        _refuse(name, value, f"a whole number from 0 to {most}")
    return value


def _text(value: Any, name: str, longest: int) -> str:
    if not isinstance(value, str) or len(value) > longest:
        _refuse(name, value, f"a text of at most {longest} characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        _refuse(name, value, "a text of whole characters")
    return value


def _refuse(name: str, value: Any, wanted: str) -> NoReturn:
    shown = f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else reprlib.repr(value)
    raise InputError(f"the state's {name} is {shown}, not {wanted}", _HINT)


def notes_to_continue(state: State, settings: Settings, tokenizer: Tokenizer, vocabulary: int) -> Notes:
    """Return the notes in a state, as far as they apply to a text that goes on with other settings.

    The number of chosen tokens goes on with the same seed, and is 0 with a new one. What the stream of text holds is
    empty with a new tokenizer.

    Raises:
        InputError: as for `read_notes`, or they do not fit the model or the tokenizer.
    """
    notes = read_notes(state)
    check_fits(notes, vocabulary)
    if notes.settings.sampling.seed != settings.sampling.seed:
        notes = replace(notes, chosen=0)
    if notes.settings.tokenizer != settings.tokenizer:
        return replace(notes, stream=tokenizer.stream().held())
    check_held(notes.stream, tokenizer)
    return notes


def check_fits(notes: Notes, vocabulary: int) -> None:
    """Raise InputError if the notes have a token or logits that do not fit a vocabulary of this size."""
    if notes.pending and max(notes.pending) >= vocabulary:
        _refuse("pending token", max(notes.pending), f"one of the model's {vocabulary}")
    if notes.logits is not None and notes.logits.shape[1] != vocabulary:
        _refuse("logits", notes.logits, f"of the model's {vocabulary} tokens")


def check_held(held: Held, tokenizer: Tokenizer) -> None:
    """Raise InputError if a tokenizer could not have held these tokens, or would lose them."""
    parts = tokenizer.stream().held().keys()
    most = 256 if parts == {"bytes"} else tokenizer.size
    numbers = [number for tokens in held.values() for number in tokens]
    if held.keys() != parts or max(numbers, default=0) >= most or tokenizer.stream(held=held).held() != held:
        _refuse("held tokens", held, f"what a stream of the tokenizer {tokenizer.name} holds")
