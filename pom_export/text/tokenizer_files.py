"""What lies beside a tokenizer.json: the template of chats, and the tokens that begin and end texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pom_export.errors import InputError, kind_of, reason_of
from pom_export.files import readable_file
from pom_export.json_text import parse_json
from pom_export.text.tokenizers import GPT2, FileTokenizer, Tokenizer
from pom_export.values import is_whole

_CONFIG: Final = "tokenizer_config.json"
_SPECIAL: Final = "special_tokens_map.json"
_GENERATION: Final = "generation_config.json"
_TEMPLATE: Final = "chat_template.jinja"
_DEFAULT: Final = "default"
# Some configurations list all of a vocabulary's additional tokens.
_LARGEST: Final = 64 << 20
_MOST_VALUES: Final = 10_000_000
# GPT-2's only special token, which begins and ends its texts.
_GPT2_END: Final = ("<|endoftext|>", 50256)
_HINT: Final = "Mend the file, or move it away"


@dataclass(frozen=True)
class TokenizerFiles:
    """What a tokenizer's folder says besides the tokenizer itself.

    Attributes:
        template: the template of chats, in Jinja; None: there is none.
        origin: the file that it is from.
        begin: the text of the token that begins a text; it may be empty.
        end: the text of the token that ends one; it may be empty.
        ends: ids of the tokens that end texts.
    """

    template: str | None = None
    origin: str = ""
    begin: str = ""
    end: str = ""
    ends: frozenset[int] = frozenset()


_NOTHING: Final = TokenizerFiles()


def read_tokenizer_files(tokenizer: Tokenizer) -> TokenizerFiles:
    """Return what lies beside a tokenizer; of a tokenizer without a file, what is known of it.

    Raises:
        InputError: a file is damaged.
    """
    if not isinstance(tokenizer, FileTokenizer):
        text, token = _GPT2_END
        return TokenizerFiles(begin=text, end=text, ends=frozenset({token})) if tokenizer.name == GPT2 else _NOTHING
    folder = Path(tokenizer.name).parent
    config, special = _object(folder / _CONFIG), _object(folder / _SPECIAL)
    begin, end = (_text(config.get(name, special.get(name)), name, folder) for name in ("bos_token", "eos_token"))
    template, origin = read_template(folder / _TEMPLATE), folder / _TEMPLATE
    if template is None:
        template, origin = _template(config.get("chat_template"), folder), folder / _CONFIG
    ends = _ids(_object(folder / _GENERATION).get("eos_token_id"), folder / _GENERATION)
    named = tokenizer.id_of(end) if end else None
    return TokenizerFiles(template, str(origin), begin, end, ends | (frozenset() if named is None else {named}))


def read_template(path: Path) -> str | None:
    """Return the text of a template's file; None if there is none.

    Raises:
        InputError: it cannot be read.
    """
    if not path.exists():
        return None
    try:
        return _read(path).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {reason_of(error)}", _HINT) from error


def _read(path: Path) -> bytes:
    file = readable_file(path, "tokenizer's file")
    if (size := file.stat().st_size) > _LARGEST:
        raise InputError(f"{file} has {size:,} bytes, more than {_LARGEST:,}", _HINT)
    return file.read_bytes()


def _object(path: Path) -> Mapping[str, Any]:
    """Return the JSON object in a file; an empty one if there is no file."""
    if not path.exists():
        return {}
    try:
        found = parse_json(_read(path), _MOST_VALUES)
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {reason_of(error)}", _HINT) from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds {kind_of(found)}, not an object", _HINT)
    return found


def _text(value: Any, name: str, folder: Path) -> str:
    """Return a token's text, which is a string or an object with it."""
    text = value.get("content") if isinstance(value, dict) else value
    if text is None:
        return ""
    if not isinstance(text, str):
        raise InputError(f"{name} in {folder / _CONFIG} is {kind_of(text)}, not a text", _HINT)
    return text


def _template(value: Any, folder: Path) -> str | None:
    """Return the template in a configuration: a text, or the default one of a list of named ones."""
    named: dict[Any, Any] = {_DEFAULT: value}
    if isinstance(value, list):
        named = {each.get("name"): each.get("template") for each in value if isinstance(each, dict)}
    text = named.get(_DEFAULT, next(iter(named.values())) if len(named) == 1 else None)
    if value is not None and not isinstance(text, str):
        raise InputError(f"chat_template in {folder / _CONFIG} is no text, and has none named {_DEFAULT!r}", _HINT)
    return text


def _ids(value: Any, path: Path) -> frozenset[int]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for token in ids:
        if not (is_whole(token) and token >= 0):
            raise InputError(f"eos_token_id in {path} is {token!r}, not a token's id", _HINT)
    return frozenset(ids)
