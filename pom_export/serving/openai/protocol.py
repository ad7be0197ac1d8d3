"""What requests ask for, checked: a field that would change nothing is accepted, any other that is unknown refused."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any, ClassVar, Final, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from pom_export.errors import printable
from pom_export.serving.errors import RequestError
from pom_export.text.sampling import Sampling
from pom_export.values import is_whole

# The most answers to one prompt, and the most likeliest tokens.
_MOST_ANSWERS: Final = 128
_MOST_LIKELIEST: Final = 20
_SEEDS: Final = 2**64

# Fields of OpenAI's that this server does not have, with the values that ask for nothing.
_NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = {
    "frequency_penalty": (0,),
    "functions": ([],),
    "logit_bias": ({},),
    "metadata": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (False, True),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
}
# Fields that say who asks, which changes no answer.
_IGNORED: Final = ("prompt_cache_key", "safety_identifier", "user")
_NEUTRAL_IN_MESSAGES: Final[Mapping[str, tuple[Any, ...]]] = {"annotations": ([],), "tool_calls": ([],)}


def _listed(value: Any) -> Any:
    """Return a text as a list of one, and anything else as it is."""
    return [value] if isinstance(value, str) else value


def _prompts(value: Any) -> Any:
    """Return a prompt, or a list of prompts, as a list, each a text or token ids."""
    prompts = [value] if isinstance(value, str) or _is_ids(value) else value
    if not (isinstance(prompts, list) and all(isinstance(p, str) or _is_ids(p) for p in prompts)):
        raise PydanticCustomError("prompt", "Input should be a text, token ids, or a list of either")
    return prompts


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_whole, value))


def _parts(value: Any) -> Any:
    """Return a message's content as parts."""
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class _Strict(BaseModel):
    # Numbers are not made of text, nor true of 1; objects have no other fields.
    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid", frozen=True)


class StreamOptions(_Strict):
    """Options of an answer that comes in pieces.

    Attributes:
        include_usage: whether the last event has the usage.
    """

    include_usage: bool = False


class TextRequest(_Strict):
    """What both kinds of requests ask for; see OpenAI's reference.

    Attributes:
        model: the model's name; None: the server's.
        stream: whether the answer comes in pieces, as server-sent events.
        stream_options: options of that.
        temperature: see `Sampling`.
        top_p: see there.
        top_k: see there; an extension of OpenAI's protocol.
        seed: see there, modulo 2^64; None: a random one, which the answer names.
        stop: strings that end the text.
        n: how many answers to each prompt.
        session: the session that it continues; an extension.
    """

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=_SEEDS)
    stop: Annotated[list[str], BeforeValidator(_listed)] = []
    n: int = Field(1, ge=1, le=_MOST_ANSWERS)
    session: str | None = None

    def sampling(self) -> Sampling:
        """Return how the first answer's tokens are chosen.

        Raises:
            InputError: a value is out of range.
        """
        seed = secrets.randbits(32) if self.seed is None else self.seed % _SEEDS
        return Sampling(seed, self.temperature, self.top_k, self.top_p)


class CompletionRequest(TextRequest):
    """A request for completions.

    Attributes:
        prompt: texts, or token ids, or a single one of them.
        max_tokens: the most tokens of an answer.
        echo: whether the answer's text begins with the prompt.
        logprobs: how many of the likeliest tokens to tell with each token, and their logprobs; None: no logprobs.
    """

    prompt: Annotated[list[str | list[int]], BeforeValidator(_prompts)]
    max_tokens: int = Field(16, ge=0)
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=_MOST_LIKELIEST)


class TextPart(_Strict):
    """A part of a message."""

    type: str = Field(pattern="^text$")
    text: str


class Message(_Strict):
    """A message of a chat.

    Attributes:
        role: who says it.
        content: what: a text, or parts of it.
        name: the name of who says it, for templates that show it.
    """

    role: str = Field(pattern="^(system|developer|user|assistant)$")
    content: Annotated[list[TextPart], BeforeValidator(_parts)]
    name: str | None = None

    def rendered(self) -> dict[str, str]:
        """Return the message as templates know it."""
        text = "".join(part.text for part in self.content)
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": text, **({} if self.name is None else {"name": self.name})}


class ChatRequest(TextRequest):
    """A request for an answer in a chat.

    Attributes:
        messages: what was said. In a session, only what is new, or everything.
        max_tokens: the most tokens of the answer; None: as many as the server allows.
        max_completion_tokens: the same, by its newer name.
        logprobs: whether to tell each token's logprob.
        top_logprobs: how many of the likeliest tokens to tell with it.
    """

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=_MOST_LIKELIEST)


_Request = TypeVar("_Request", bound=TextRequest)


def parsed(kind: type[_Request], value: Mapping[str, Any], header: str | None) -> _Request:
    """Return a request.

    Args:
        kind: its class.
        value: the JSON.
        header: the session that the request's header names.

    Raises:
        RequestError: a field is not supported.
        pydantic.ValidationError: a field is not what it must be.
    """
    fields = _supported(kind, value, _NEUTRAL, "")
    if isinstance(messages := fields.get("messages"), list):
        fields["messages"] = [
            _supported(Message, each, _NEUTRAL_IN_MESSAGES, f"messages.{place}.") if isinstance(each, dict) else each
            for place, each in enumerate(messages)
        ]
    if header is not None:
        fields.setdefault("session", header)
    # The Python form of the values, since the JSON is parsed already, within bounds.
    return kind.model_validate(fields)


def _supported(
    kind: type[BaseModel], value: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]], place: str
) -> dict[str, Any]:
    """Return the fields of an object that say something; null says nothing."""
    fields: dict[str, Any] = {}
    for name, given in value.items():
        if given is None or name in _IGNORED:
            continue
        if name in kind.model_fields:
            fields[name] = given
        elif not (given in neutral.get(name, ()) or (name == "best_of" and given == value.get("n", 1))):
            raise RequestError(
                HTTPStatus.BAD_REQUEST,
                f"the field {place}{name} is not supported",
                "Leave it out",
                param=printable(f"{place}{name}"),
                code="unsupported_field",
            )
    return fields
