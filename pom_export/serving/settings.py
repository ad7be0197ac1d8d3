"""What a server is told when it starts."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Final

from pom_export.errors import InputError
from pom_export.text.tokenizers import AUTO
from pom_export.values import is_number, is_whole

MIB: Final = 2**20
_LONGEST_KEY: Final = 1000
_AT_LEAST_ONE: Final = {"streams", "most_body", "most_tokens", "most_answer", "most_output"}


@dataclass(frozen=True)
class ServeSettings:
    """Limits and options of a server.

    Attributes:
        api_key: what requests must carry as `Authorization: Bearer KEY`; None: nothing.
        hosts: names that requests may call the server by; None: any. On an address that only this machine reaches, a
            page of another site can reach it too, through a name that leads there (DNS rebinding); such requests carry
            that name.
        tokenizer: name for `choose_tokenizer`; "auto" serves arrays alone if none is known for the model.
        engine: path of an engine of the model, which runs it on a GPU; None: ONNX Runtime does.
        threads: the most threads of ONNX Runtime; 0: one for each core.
        chat_template: path of a file with the template of chats, in Jinja; None: that of the tokenizer's folder.
        streams: the most streams at a time.
        queue: the most requests that wait for a stream; more are refused.
        prefix_bytes: memory for states of beginnings that several streams share.
        most_body: the most bytes of a request.
        most_tokens: the most tokens that a request gives.
        most_answer: the most tokens of an answer; so many has a chat's that asks for no number.
        most_output: the most bytes of the arrays that a request gets.
        sessions: the most sessions that are kept; of more, the least recently used are dropped.
        session_bytes: the most memory for their states.
        session_seconds: how long a session is kept after its last request.
        finish_seconds: how long requests may go on once the server is told to end.

    Raises:
        InputError: one is out of range.
    """

    api_key: str | None = None
    hosts: tuple[str, ...] | None = None
    tokenizer: str = AUTO
    engine: str | None = None
    threads: int = 0
    chat_template: str | None = None
    streams: int = 64
    queue: int = 256
    prefix_bytes: int = 64 * MIB
    most_body: int = 8 * MIB
    most_tokens: int = 131_072
    most_answer: int = 16_384
    most_output: int = 64 * MIB
    sessions: int = 10_000
    session_bytes: int = 256 * MIB
    session_seconds: float = 3600
    finish_seconds: float = 30

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), int(field.name in _AT_LEAST_ONE)
            if field.type == "int" and not (is_whole(value) and value >= least):
                raise InputError(f"{field.name} is {value!r}, not a whole number of at least {least}", "Choose another")
            if field.type == "float" and not (is_number(value) and 0 <= value < math.inf):
                raise InputError(f"{field.name} is {value!r}, not a number of at least 0", "Choose another")
        key = self.api_key
        if key is not None and not (0 < len(key) <= _LONGEST_KEY and key.isascii() and key.isprintable()):
            raise InputError("the key is empty, or not plain text", "Give letters and digits")
