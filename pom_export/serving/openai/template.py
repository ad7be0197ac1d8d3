"""Render the messages of a chat as the text that a model reads, by the template of its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pom_export.errors import InputError, reason_of
from pom_export.files import readable_file
from pom_export.text.tokenizer_files import TokenizerFiles, read_template

_HINT: Final = "Is it a template of Hugging Face's? Name another: `chat_template=PATH`"


class _Generation(Extension):
    """The block that marks a model's own text for training, which changes nothing here."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own way)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A template of Hugging Face's, which cannot do anything but make text of the messages.

    Args:
        source: the template, in Jinja.
        origin: the file that it is from, for messages.
        begin: the text of the token that begins a text.
        end: the text of the token that ends one.

    Raises:
        InputError: it is no template.
    """

    def __init__(self, source: str, origin: str, begin: str, end: str) -> None:
        # As transformers does.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _json
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise InputError(f"{origin} has no template that Jinja reads: {reason_of(error)}", _HINT) from error
        self._tokens = {"bos_token": begin, "eos_token": end}

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Return the text of messages, up to where the next answer begins.

        Raises:
            InputError: the template refuses them.
        """
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, **self._tokens)
        except Exception as error:  # a template may fail in any way
            raise InputError(
                f"the model's chat template refuses the messages: {reason_of(error)}", "Send messages that it knows"
            ) from error


def chat_template(path: str | None, beside: TokenizerFiles) -> ChatTemplate | None:
    """Return the template of a file; without one, that of the tokenizer's folder, or None if there is none there.

    Raises:
        InputError: the file cannot be read, or is no template.
    """
    if path is None:
        source, origin = beside.template, beside.origin
    else:
        source, origin = read_template(readable_file(path, "chat template")), path
    return None if source is None else ChatTemplate(source, origin, beside.begin, beside.end)


def _json(value: Any, **options: Any) -> str:
    # Unlike Jinja's own, which is for HTML.
    return json.dumps(value, **{"ensure_ascii": False, **options})


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(format_: str) -> str:
    return datetime.now().astimezone().strftime(format_)
